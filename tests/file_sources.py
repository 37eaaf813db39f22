"""Rows in files of every type, for the tests of reading them."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tunewright.config import FileSource
from tunewright.data.rows import RawRow
from tunewright.data.sources import read_chunk, source_chunks

ROWS = [{"prompt": "007", "completion": 'caf\u00e9, "yes"\nno'}, {"prompt": "b", "completion": "1e5"}]


def file_source(path: Path | str, kind: str, **more: Any) -> FileSource:
    return FileSource.model_validate({"type": kind, "path": str(path), **more})


def read_rows(path: Path | str, kind: str, **more: Any) -> list[RawRow]:
    """All rows of a source, as the data stage reads them."""
    return [row for chunk in source_chunks(0, file_source(path, kind, **more)) for row in read_chunk(chunk)]


def records(rows: list[RawRow]) -> list[dict[str, Any] | None]:
    return [row.record for row in rows]


def write_delimited(path: Path, delimiter: str = ",") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def write_arrow(path: Path, table: pa.Table | None = None, stream: bool = False) -> None:
    table = pa.Table.from_pylist(ROWS) if table is None else table
    opened = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, opened(sink, table.schema) as writer:
        writer.write_table(table)


def write_stream(path: Path) -> None:
    write_arrow(path, stream=True)


WRITERS: dict[str, Callable[[Path], object]] = {
    "jsonl": lambda path: path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8"),
    "json": lambda path: path.write_text(json.dumps(ROWS, indent=1), encoding="utf-8"),
    "csv": write_delimited,
    "tsv": lambda path: write_delimited(path, "\t"),
    "parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
    "arrow": write_arrow,
}


def gzipped(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def zstandard(content: bytes) -> bytes:
    return bytes(pa.compress(content, codec="zstd", asbytes=True))


PACKERS = {"gz": gzipped, "zst": zstandard}
