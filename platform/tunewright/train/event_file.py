"""TensorBoard's event files, written without its packages: those import torch and much else.

A file is a row of records (length, its checksum, the event, its checksum), an event a protocol buffer
(tensorflow/core/util/event.proto, tensorflow/core/framework/summary.proto).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import count
from pathlib import Path

PATTERN = "events.out.tfevents.*"
VERSION = b"brain.Event:2"
MASK = 0xFFFFFFFF


def begin_file(folder: Path, step: int) -> Path:
    """A new event file, which undoes what older ones in the folder say of this step and those behind it."""
    folder.mkdir(parents=True, exist_ok=True)
    now = int(time.time())
    # TensorBoard reads files in the order of their names.
    names = (folder / f"events.out.tfevents.{now:010d}.tunewright.{n:03d}" for n in count(_next(folder)))
    path = next(path for path in names if not path.exists())
    start = _field(7, _number(1, 1))  # session_log { status: START }
    _append(path, [_event(0, _field(3, VERSION)), _event(step, start)])
    return path


def append_scalars(path: Path, step: int, scalars: Mapping[str, float]) -> None:
    """Add the values of a step, each under its tag; they are in the file when this returns."""
    values = [
        _field(1, _field(1, tag.encode()) + b"\x15" + struct.pack("<f", value))
        for tag, value in scalars.items()
    ]
    _append(path, [_event(step, _field(5, b"".join(values)))])


def _next(folder: Path) -> int:
    return len(list(folder.glob(PATTERN)))


def _append(path: Path, events: list[bytes]) -> None:
    with path.open("ab") as file:
        file.write(b"".join(_record(event) for event in events))


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", _checksum(length)) + data + struct.pack("<I", _checksum(data))


def _event(step: int, what: bytes) -> bytes:
    return b"\x09" + struct.pack("<d", time.time()) + _number(2, step) + what


def _field(number: int, content: bytes) -> bytes:
    """A field that holds bytes, a text or another message."""
    return bytes(_varint(number << 3 | 2)) + bytes(_varint(len(content))) + content


def _number(number: int, value: int) -> bytes:
    return bytes(_varint(number << 3)) + bytes(_varint(value))


def _varint(value: int) -> Iterator[int]:
    while value > 127:
        yield value & 127 | 128
        value >>= 7
    yield value


def _checksum(data: bytes) -> int:
    """CRC-32C, turned by 15 bits and moved by a constant, as records have it."""
    table, crc = _table(), MASK
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= MASK
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & MASK


@cache
def _table() -> tuple[int, ...]:
    out = []
    for crc in range(256):
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        out.append(crc)
    return tuple(out)
