"""Snapshots: what a database, an API or the hub gave, kept as files, so that a run can be repeated.

    rows-00000.parquet   line: number of the row in the source, from 1; row: the row as JSON

Parts are cut by their content alone. Knows nothing of where the rows come from.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import hashlib
import heapq
import ipaddress
import json
import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.artifacts import Artifact
from tunewright.config import HttpSource, HuggingFaceSource, Sample, SqlSource, source_label
from tunewright.data.rows import Chunk, Piece
from tunewright.errors import DataError

if TYPE_CHECKING:
    from tunewright.data.encryption import Cipher

PART_CHARS = 16 << 20
GROUP_CHARS = 1 << 20
RUN_CHARS = 32 << 20
"""What `in_order` holds in memory at once."""


@dataclass(frozen=True)
class Written:
    """What `write_snapshot` wrote.

    Attributes:
        content: SHA-256 of the rows, in order.
        parts: file name -> number of its first line.
    """

    rows: int
    chars: int
    content: str
    parts: dict[str, int]


@dataclass(frozen=True)
class SnapshotSource:
    """A fetched source, to be read in place of the one in the configuration."""

    folder: str
    path: str
    """What messages call it."""
    parts: tuple[tuple[str, int], ...]
    """File name and number of the first line of each file."""
    format: str
    columns: dict[str, str]
    system: str | None
    weight: float
    repeat: int
    sample: Sample
    type: str = "rows"
    max_rows: None = None
    """The rows were limited when they were fetched."""

    @classmethod
    def of(cls, artifact: Artifact, source: SqlSource | HttpSource | HuggingFaceSource) -> SnapshotSource:
        return cls(
            folder=str(artifact.path),
            path=source_label(source),
            parts=tuple(sorted(artifact.facts["parts"].items())),
            format=source.format,
            columns=source.columns,
            system=source.system,
            weight=source.weight,
            repeat=source.repeat,
            sample=source.sample,
        )

    def settings(self) -> dict[str, Any]:
        """What decides the data set, apart from the rows themselves, which are an artifact."""
        return {
            "type": self.type,
            "format": self.format,
            "columns": self.columns,
            "system": self.system,
            "weight": self.weight,
            "repeat": self.repeat,
            "sample": self.sample.model_dump(mode="json"),
        }

    def chunks(self, index: int, first_number: int = 0) -> list[Chunk]:
        """One chunk a file."""
        found = []
        for number, (name, first_line) in enumerate(self.parts, start=first_number):
            path = Path(self.folder) / name
            piece = Piece(str(path), first_line=first_line)
            found.append(Chunk(index, number, self.type, (piece,), size=path.stat().st_size))
        return found


def row_text(row: Any) -> str:
    """A row as JSON on one line.

    Dates become ISO text, decimals and UUIDs text, NaN null. Text that UTF-8 cannot hold keeps its
    escapes, so that reading rejects this row alone.

    Raises:
        DataError: a column holds bytes, or what else has no form in JSON; names the column.
    """
    try:
        text = _dump(row)
        if "NaN" in text:
            text = _dump(_without_nan(row))
    except TypeError:
        if isinstance(row, Mapping):
            for name, value in row.items():
                _check_column(name, value)
        raise
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(json.loads(text), separators=(",", ":"))
    return text


def write_snapshot(folder: Path, rows: Iterable[str], cipher: Cipher | None = None) -> Written:
    """Write the rows, which `row_text` made, into `folder`, in order.

    Raises:
        StoreError: the disk is full.
    """
    import pyarrow as pa

    from tunewright.data.tables import write_groups

    schema = pa.schema([("line", pa.int64()), ("row", pa.string())])
    groups = _Groups(rows)
    parts: dict[str, int] = {}
    # A part is begun only when there is a row for it: the file's first line is then known.
    while (first := groups.begin()) is not None:
        name = f"rows-{len(parts):05d}.parquet"
        parts[name] = first
        tables = (
            pa.table({"line": range(line, line + len(texts)), "row": texts}, schema=schema)
            for line, texts in groups.part()
        )
        write_groups(folder / name, tables, schema, cipher)
    return Written(groups.line, groups.chars, groups.content.hexdigest(), parts)


def in_order(rows: Iterable[str], folder: Path, cipher: Cipher | None = None) -> Iterator[str]:
    """The rows sorted by their text, however they came; `folder` holds what memory does not.

    A database gives rows in whatever order suits it, and several readers in no order at all.
    """
    runs: list[Path] = []
    texts: list[str] = []
    held = 0
    for text in rows:
        texts.append(text)
        held += len(text)
        if held >= RUN_CHARS:
            run = folder / f"run-{len(runs):05d}"
            run.mkdir()
            write_snapshot(run, sorted(texts), cipher)
            runs.append(run)
            texts, held = [], 0
    texts.sort()
    return heapq.merge(*(_read_run(run, cipher) for run in runs), texts)


def _read_run(run: Path, cipher: Cipher | None) -> Iterator[str]:
    from tunewright.data.tables import open_parquet

    for path in sorted(run.iterdir()):
        for batch in open_parquet(path, cipher).iter_batches(batch_size=256, columns=["row"]):
            yield from batch.column(0).to_pylist()


class _Groups:
    """Rows -> row groups of about GROUP_CHARS, in parts of about PART_CHARS."""

    def __init__(self, rows: Iterable[str]):
        self.rows = iter(rows)
        self.ahead: str | None = None
        self.line = self.chars = 0
        self.content = hashlib.sha256()

    def begin(self) -> int | None:
        """Number of the next row, None after the last."""
        self.ahead = next(self.rows, None)
        return None if self.ahead is None else self.line + 1

    def part(self) -> Iterator[tuple[int, list[str]]]:
        """Line of the first row and rows of each row group of the part that was begun."""
        end = self.chars + PART_CHARS
        while self.chars < end and (self.ahead is not None or self.begin() is not None):
            first, texts = self.line + 1, []
            group_end = self.chars + GROUP_CHARS
            while self.chars < group_end and (text := self._next()) is not None:
                texts.append(text)
            yield first, texts

    def _next(self) -> str | None:
        text, self.ahead = self.ahead, None
        if text is None and (text := next(self.rows, None)) is None:
            return None
        self.line += 1
        self.chars += len(text)
        self.content.update(text.encode() + b"\n")
        return text


def _dump(row: Any) -> str:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"), default=_plain)


PLAIN: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    ((datetime.datetime, datetime.date, datetime.time), lambda value: value.isoformat()),
    ((decimal.Decimal, uuid.UUID, datetime.timedelta), str),
    (
        (
            ipaddress.IPv4Address,
            ipaddress.IPv6Address,
            ipaddress.IPv4Interface,
            ipaddress.IPv6Interface,
            ipaddress.IPv4Network,
            ipaddress.IPv6Network,
        ),
        str,
    ),
    (enum.Enum, lambda value: value.value),
)


def _plain(value: Any) -> Any:
    for types, plain in PLAIN:
        if isinstance(value, types):
            return plain(value)
    raise TypeError(type(value).__name__)


def _check_column(name: str, value: Any) -> None:
    try:
        _dump(value)
    except TypeError as error:
        what = str(error)
        if what in ("bytes", "bytearray", "memoryview"):
            raise DataError(f"column `{name}` holds bytes; rows are text: leave the column out") from None
        raise DataError(f"column `{name}` holds a {what}, which JSON has no form for; leave it out") from None


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return value
