"""Arrow extension types, found in a file's bytes before anything makes them.

pyarrow hands such a type's metadata to whatever package registered its name, and packages have
unpickled it. It does so as soon as it opens a file, even for `pyarrow.parquet.read_metadata`.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import BinaryIO

EXTENSION = b"ARROW:extension:name"


def holds_extension_type(path: Path) -> bool:
    """Whether the schema of an Arrow file, an Arrow stream or a Parquet file names an extension type.

    Opens the file as bytes alone; False for what is none of these.
    """
    with path.open("rb") as file:
        schema = _parquet_footer(file) if file.read(4) == b"PAR1" else _arrow_schema(file)
    return any(mark in schema for mark in MARKS)


def _arrow_schema(file: BinaryIO) -> bytes:
    """The first message, which is the schema."""
    file.seek(0)
    head = file.read(8)
    if head.startswith(b"ARROW1"):  # a file is a stream between two marks
        head = file.read(8)
    return file.read(int.from_bytes(head[4:], "little"))


def _parquet_footer(file: BinaryIO) -> bytes:
    """The file's metadata; the Arrow schema stands in it as base64."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    length = int.from_bytes(file.read(4), "little")
    file.seek(max(0, size - 8 - length))
    return file.read(length)


def _in_base64(text: bytes, shift: int) -> bytes:
    """What base64 makes of a text that begins `shift` bytes after a multiple of three, its ends left out."""
    encoded = base64.b64encode(bytes(shift) + text)
    return encoded[-(-shift * 8 // 6) : (shift + len(text)) * 8 // 6]


MARKS = (EXTENSION, *(_in_base64(EXTENSION, shift) for shift in range(3)))
