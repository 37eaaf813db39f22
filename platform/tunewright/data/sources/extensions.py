"""Arrow extension types, found in a file's bytes before pyarrow reads its schema.

As soon as pyarrow opens a file, even for `pyarrow.parquet.read_metadata`, it hands the metadata of such
a type to whatever package registered the type's name, and packages have unpickled it. So the names
are looked for in the bytes of the schema; nothing is decoded.
"""

from __future__ import annotations

import base64
import os
from typing import BinaryIO

from tunewright.errors import DataError

EXTENSION = b"ARROW:extension:name"
SCHEMA_BYTES = 256 << 20
"""A larger schema is none."""


def refuse_extension_types(path: str, file: BinaryIO) -> None:
    """Leaves the file at its beginning.

    Raises:
        DataError: the schema of this Parquet file, Arrow file or Arrow stream names an extension type.
    """
    if holds_extension_type(file):
        raise DataError(
            f"{path}: a column has an Arrow extension type, which can carry code and is refused; "
            f"write the column as one of Arrow's own types"
        )
    file.seek(0)


def holds_extension_type(file: BinaryIO) -> bool:
    """Whether a schema in this Parquet file, Arrow file or Arrow stream names an extension type.

    False for what is none of these.
    """
    file.seek(0)
    head = file.read(8)
    if head.startswith(b"PAR1"):
        schemas = [_tail(file, 4)]  # the file's metadata; the Arrow schema stands in it as base64
    elif head.startswith(b"ARROW1"):
        schemas = [_message(file, 8), _tail(file, 6)]  # a reader takes the second; both must be harmless
    else:
        schemas = [_message(file, 0)]
    return any(mark in schema for mark in MARKS for schema in schemas)


def _message(file: BinaryIO, at: int) -> bytes:
    """The metadata of the message that begins there; a stream's first is its schema."""
    file.seek(at)
    size = file.read(4)
    if size == b"\xff\xff\xff\xff":  # before version 0.15 of Arrow there was no such mark
        size = file.read(4)
    length = int.from_bytes(size, "little")
    return file.read(length) if length <= SCHEMA_BYTES else b""


def _tail(file: BinaryIO, magic: int) -> bytes:
    """What stands before its own length and the closing mark of `magic` bytes."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - magic - 4))
    length = int.from_bytes(file.read(4), "little")
    if length > min(size, SCHEMA_BYTES):
        return b""
    file.seek(max(0, size - magic - 4 - length))
    return file.read(length)


def _in_base64(text: bytes, shift: int) -> bytes:
    """What base64 makes of a text that begins `shift` bytes after a multiple of three, its ends left out."""
    encoded = base64.b64encode(bytes(shift) + text)
    return encoded[-(-shift * 8 // 6) : (shift + len(text)) * 8 // 6]


MARKS = (EXTENSION, *(_in_base64(EXTENSION, shift) for shift in range(3)))
