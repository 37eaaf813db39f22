"""A file's content as blocks of bytes, gzip and zstd undone, and as text.

A compressed file is known by its first bytes, whatever its name. What it unpacks to is limited, in
memory by the size of a block and in all by constants below; one that ends too soon, or that a
checksum does not fit, is refused as a whole, never read up to the damage.
"""

from __future__ import annotations

import gzip
import io
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from tunewright.data.sources.places import open_file
from tunewright.errors import DataError

BLOCK_BYTES = 1 << 20
MIB = 1 << 20
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
BOMB_RATIO = 200
"""Text seldom shrinks to a twentieth; deflate ends at a thousandth, zstd nowhere."""
BOMB_FREE_BYTES = 64 << 20
"""A small file of many blanks is harmless."""
UNPACKED_BYTES = 256 << 30
SPOOLED_BYTES = 16 << 30
"""Of a compressed file that must be unpacked into a temporary one to be read."""


def is_packed(head: bytes) -> bool:
    return head.startswith((GZIP, ZSTD))


def head_of(path: str, size: int) -> tuple[bytes, bytes]:
    """The first bytes of a file as they lie, and of its content."""
    with open_file(path) as file:
        raw = file.read(size)
        if not is_packed(raw):
            return raw, raw
        file.seek(0)
        content = b""
        for block in _unpacked(path, file, raw):
            content += block
            if len(content) >= size:
                break
        return raw, content[:size]


def blocks(path: str, start: int = 0, end: int = -1) -> Iterator[bytes]:
    """Bytes start..end of a file, or all its content unpacked, in order, none empty.

    Raises:
        DataError: it is damaged, unpacks to more than is allowed, or was cut while it was read.
        OSError: it cannot be read, perhaps only for now.
    """
    with open_file(path) as file:
        head = file.read(4)
        file.seek(start)
        if is_packed(head) and start == 0:
            yield from _unpacked(path, file, head)
            return
        at = start
        while end < 0 or at < end:
            block = file.read(BLOCK_BYTES if end < 0 else min(BLOCK_BYTES, end - at))
            if not block:
                break
            at += len(block)
            yield block
        if at < end:
            raise DataError(f"{path}: became shorter while it was read: {at} bytes, and there were {end}")


def open_text(path: str, newline: str | None) -> io.TextIOWrapper:
    """The content as text without a byte order mark; `newline` as for `open`."""
    raw = io.BufferedReader(_Raw(blocks(path)), BLOCK_BYTES)
    return io.TextIOWrapper(raw, encoding="utf-8-sig", newline=newline)


@contextmanager
def seekable(path: str) -> Iterator[BinaryIO]:
    """The content as a file to seek in; a compressed one is unpacked into a temporary file."""
    with open_file(path) as file:
        head = file.read(4)
        file.seek(0)
        if not is_packed(head):
            yield file
            return
        with tempfile.TemporaryFile() as spool:
            for block in _unpacked(path, file, head, spooled=True):
                spool.write(block)
            spool.seek(0)
            yield spool


def _unpacked(path: str, file: BinaryIO, head: bytes, spooled: bool = False) -> Iterator[bytes]:
    """The content of a gzip or zstd file.

    Raises:
        DataError: cut, damaged, or a bomb.
    """
    kind = "gzip" if head.startswith(GZIP) else "zstd"
    limit = SPOOLED_BYTES if spooled else UNPACKED_BYTES
    out = 0
    for block in _gunzip(path, file) if kind == "gzip" else _unzstd(path, file):
        out += len(block)
        packed = max(1, file.tell())
        if out > limit or (out > BOMB_FREE_BYTES and out > BOMB_RATIO * packed):
            raise DataError(
                f"{path}: {packed:,} bytes of {kind} unpack to {out // MIB:,} MiB and more; at most "
                f"{BOMB_RATIO} times the size and {limit >> 30} GiB are taken; unpack it first if it is safe"
            )
        yield block


def _gunzip(path: str, file: BinaryIO) -> Iterator[bytes]:
    stream = gzip.GzipFile(fileobj=file, mode="rb")
    try:
        while block := stream.read(BLOCK_BYTES):
            yield block
    except EOFError:
        raise _cut(path, "gzip", file) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(path, "gzip", file, error) from None


def _unzstd(path: str, file: BinaryIO) -> Iterator[bytes]:
    import pyarrow as pa

    source = _Watched(file)
    stream = pa.CompressedInputStream(pa.PythonFile(source, "r"), "zstd")
    try:
        while block := stream.read(BLOCK_BYTES):
            yield block
    except OSError as error:
        if source.failed is not None:
            raise source.failed from None
        if "runcated" in str(error):
            raise _cut(path, "zstd", file) from None
        raise _damaged(path, "zstd", file, error) from None


def _cut(path: str, kind: str, file: BinaryIO) -> DataError:
    return DataError(
        f"{path}: the {kind} file is cut off at byte {file.tell():,}: the rest of its rows is missing; "
        f"get the whole file"
    )


def _damaged(path: str, kind: str, file: BinaryIO, error: Exception) -> DataError:
    said = " ".join(str(error).split())
    return DataError(f"{path}: the {kind} file is damaged, before byte {file.tell():,}: {said}")


class _Watched:
    """A file that remembers its own failure, which pyarrow tells like damage of what it read."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.failed: OSError | None = None
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        try:
            return self.file.read(size)
        except OSError as error:
            self.failed = error
            raise

    def close(self) -> None:
        self.closed = True


class _Raw(io.RawIOBase):
    """Blocks as a file of Python's."""

    def __init__(self, source: Iterator[bytes]):
        self._source = source
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._source, b""))
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size

    def close(self) -> None:
        self._source.close()  # type: ignore[attr-defined]
        super().close()
