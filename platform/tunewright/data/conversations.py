"""Rows of a source as conversations: their format, a held-out task's rows, a data set's evaluation rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tunewright.artifacts import Artifact
from tunewright.config import BuiltinSource, FileSource
from tunewright.data.records import detect_format, to_messages
from tunewright.data.sources import read_chunk, source_chunks, write_builtin
from tunewright.errors import DataError

PEEK_ROWS = 50


def format_of(index: int, source: FileSource) -> tuple[str, str]:
    """The format of a source's rows and why, from the first rows that parse."""
    if source.format != "auto":
        return source.format, "stated"
    records: list[dict[str, Any]] = []
    problem = "no rows"
    rows = (raw for chunk in source_chunks(index, source) for raw in read_chunk(chunk))
    for raw in rows:
        if raw.record is not None:
            records.append(raw.record)
        else:
            problem = raw.problem
        if len(records) == PEEK_ROWS:
            break
    if not records:
        raise DataError(f"{source.path}: no row can be read as {source.type}: {problem}")
    try:
        return detect_format(records, source.columns)
    except DataError as error:
        raise DataError(f"{source.path}: {error}") from None


def read_examples(data: Artifact, limit: int | None = None) -> list[list[dict[str, str]]]:
    """The evaluation conversations of a data set, in the order of their content hash."""
    out: list[list[dict[str, str]]] = []
    for path in sorted((data.path / "examples").glob("examples-*.parquet")):
        for text in pq.read_table(path).column("conversation").to_pylist():
            out.append(json.loads(text)["messages"])
            if limit is not None and len(out) == limit:
                return out
    return out


def read_conversations(source: FileSource | BuiltinSource, folder: Path) -> list[list[dict[str, str]]]:
    """All conversations of a (small) source, such as a held-out task; every row must be valid.

    Raises:
        DataError: a row is not a conversation; names the line.
    """
    file = write_builtin(source, folder) if isinstance(source, BuiltinSource) else source
    form, _ = format_of(0, file)
    out = []
    for chunk in source_chunks(0, file):
        for raw in read_chunk(chunk):
            try:
                if raw.record is None:
                    raise DataError(raw.problem)
                out.append(to_messages(raw.record, form, file.columns, file.system))
            except DataError as error:
                raise DataError(f"{chunk.path}:{raw.line}: {error}") from None
    return out
