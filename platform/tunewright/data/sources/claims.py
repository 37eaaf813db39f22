"""Whether a file is what its source says, by its first bytes and, of Parquet and Arrow, its schema's."""

from __future__ import annotations

import codecs
import os

from tunewright.data.sources.extensions import refuse_extension_types
from tunewright.data.sources.files import Found
from tunewright.data.sources.places import open_file
from tunewright.data.sources.streams import head_of, is_packed
from tunewright.errors import DataError

HEAD_BYTES = 4096
MAGIC = {
    b"PAR1": "a Parquet file",
    b"PARE": "an encrypted Parquet file",
    b"ARROW1": "an Arrow file",
    b"\xff\xff\xff\xff": "an Arrow stream",
    b"\x1f\x8b": "compressed twice; undo one of them",
    b"\x28\xb5\x2f\xfd": "compressed twice; undo one of them",
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it first",
    b"Rar!": "a rar archive; unpack it first",
    b"BZh": "compressed with bzip2; of those only gzip and zstd are undone here, so unpack it first",
    b"\xfd7zXZ": "compressed with xz; of those only gzip and zstd are undone here, so unpack it first",
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
    b"%PDF": "a PDF",
    b"SQLite format 3": "an SQLite database; see type: sql",
}
TAR_AT, TAR = 257, b"ustar"
OWN_MAGIC = {"parquet": (b"PAR1",), "arrow": (b"ARROW1", b"\xff\xff\xff\xff")}
NUL_SHARE = 8
"""What has a NUL in every so many bytes is no text; where there are fewer, rows are rejected one by one."""


def check_claim(file: Found, kind: str) -> None:
    """Return if the file is what its source says.

    Raises:
        DataError: the file is empty, is of another type, or is Parquet or Arrow with extension types.
        OSError: it cannot be read.
    """
    path = file.path
    if file.size == 0:
        raise DataError(f"{path}: the file is empty")
    raw, head = head_of(path, HEAD_BYTES)
    if not head:
        raise DataError(f"{path}: the file is empty once it is unpacked")
    own = OWN_MAGIC.get(kind, ())
    for magic, what in MAGIC.items():
        if head.startswith(magic) and magic not in own:
            raise DataError(f"{path}: type is {kind}, but the file is {what}")
    if head[TAR_AT:].startswith(TAR):
        raise DataError(f"{path}: type is {kind}, but the file is a tar archive; unpack it first")
    if own:
        _check_columns(path, kind, head, is_packed(raw))
    else:
        _check_text(path, kind, head)


def _check_columns(path: str, kind: str, head: bytes, packed: bool) -> None:
    # Streams of Arrow before version 0.15 have no mark: the length of their schema comes first.
    old_stream = kind == "arrow" and head[3:4] == b"\0"
    if not head.startswith(OWN_MAGIC[kind]) and not old_stream:
        raise DataError(f"{path}: type is {kind}, but the file does not begin as one")
    if packed:
        return  # its end and its schema are looked at when it is read
    with open_file(path) as file:
        refuse_extension_types(path, file)
        if kind == "parquet":
            file.seek(-4, os.SEEK_END)
            if file.read(4) != b"PAR1":
                raise DataError(
                    f"{path}: the Parquet file is cut off: it does not end as one; get the whole file"
                )


def _check_text(path: str, kind: str, head: bytes) -> None:
    nuls = head.count(b"\0")
    if nuls and (nuls * NUL_SHARE >= len(head) or not _is_utf8(head)):
        utf16 = max(head[0::2].count(b"\0"), head[1::2].count(b"\0")) == nuls and nuls * NUL_SHARE >= len(
            head
        )
        what = "UTF-16 text without its mark; save it as UTF-8" if utf16 else "binary"
        raise DataError(f"{path}: type is {kind}, but the file is {what}")
    if kind == "jsonl" and head.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[":
        raise DataError(f"{path}: type is jsonl, but the file is one JSON list; say type: json")


def _is_utf8(head: bytes) -> bool:
    """Whether it is UTF-8, but for a character that the end cuts."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True
