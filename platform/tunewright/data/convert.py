"""First pass: a chunk of a source -> cleaned, tokenized examples in a spill file, and rejected rows.

What a row becomes depends on the row and the settings alone, so a task that is run again after its
worker died writes the same files over the old ones: no row is lost and none counted twice.

A spill file has one row group a bucket, so that the second pass reads its bucket of every chunk
without reading the rest. One row of it is one example:

    key       32 hexadecimal digits of the normalised content; decides bucket, split and order
    side      hash of the group that must stay on one side of the split; the content's as a rule
    stratum   value of `split.stratify`
    sampled   value of the source's `sample.stratify`
    ids       int32 token ids of all its documents, one after the other
    mask      int8, the same length
    labels    int32, the same length; empty where the task has no classes
    segments  int32 length of each segment; `documents` int32 segments in each document
"""

from __future__ import annotations

import gc
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from tunewright.config import DataConfig
from tunewright.data.clean import clean
from tunewright.data.contamination import Contamination
from tunewright.data.encode import Encoder
from tunewright.data.encryption import Cipher
from tunewright.data.figures import Figures
from tunewright.data.near import signature
from tunewright.data.privacy import Redactor
from tunewright.data.quality import dominant_script
from tunewright.data.records import (
    content_key,
    example_texts,
    payload,
    renamed,
    to_example,
)
from tunewright.data.rows import Chunk, Encoded, Example, RawRow, Task
from tunewright.data.sources import read_chunk
from tunewright.data.tables import read_group, write_groups, write_table
from tunewright.errors import DataError
from tunewright.models.chat import ChatRenderer
from tunewright.models.load import load_renderer

ROWS_AT_ONCE = 512
PART_BYTES = 32 << 20
MASKED_CHARS = 1 << 16  # far more than is shown, so that a cut hides no half of a secret from the masking
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("side", pa.uint64()),
        ("stratum", pa.string()),
        ("sampled", pa.string()),
        ("source", pa.int32()),
        ("file", pa.string()),
        ("line", pa.int64()),
        ("ids", pa.large_binary()),
        ("mask", pa.large_binary()),
        ("labels", pa.large_binary()),
        ("segments", pa.binary()),
        ("documents", pa.binary()),
        ("payload", pa.large_string()),
        ("signature", pa.binary()),
    ]
)
QUARANTINE = pa.schema(
    [
        ("source", pa.int32()),
        ("file", pa.string()),
        ("line", pa.int64()),
        ("reason", pa.string()),
        ("row", pa.large_string()),
    ]
)


@dataclass(frozen=True)
class SourceView:
    """What a worker needs to know of a source."""

    format: str
    columns: dict[str, str]
    system: str | None
    sampled_by: str | None


@dataclass(frozen=True)
class Step:
    """What a worker needs to turn chunks into examples; travels with every task."""

    config: DataConfig
    task: Task
    sources: tuple[SourceView, ...]
    tokenizer: str
    buckets: int
    out: str
    contamination: Contamination | None = None
    cipher: Cipher | None = None


@dataclass
class _Spill:
    """What is converted and not yet written."""

    rows: list[tuple[Any, ...]] = field(default_factory=list)
    rejected: list[tuple[Any, ...]] = field(default_factory=list)
    size: int = 0
    """Bytes held, about."""


@dataclass
class _Row:
    """A row on its way through the checks."""

    raw: RawRow
    example: Example
    side: str | None
    stratum: str | None
    sampled: str | None


Part = tuple[int, int]
"""A spill file: number of the chunk, and of the part of what it became."""


def spill_path(folder: str | Path, part: Part) -> Path:
    return Path(folder) / "spill" / f"chunk-{part[0]:06d}-{part[1]:04d}.parquet"


def convert_chunk(chunk: Chunk, step: Step) -> dict[str, Any]:
    """Write the spill and quarantine files of one chunk; returns its figures and label names.

    A problem of a file as a whole is returned under `failed`: Ray Data would lose which error it was.
    """
    begun = time.monotonic()
    figures = Figures()
    worker = _Converter(chunk, step, figures)
    gc.disable()  # thousands of rows and no cycles among them: looking for some costs 8 % of the time
    try:
        worker.run()
    except DataError as error:
        return {"chunk": chunk.number, "failed": str(error), "figures": figures.as_dict(), "labels": []}
    finally:
        gc.enable()
    return {
        "chunk": chunk.number,
        "figures": figures.as_dict(),
        "labels": worker.encoder.label_names,
        "parts": worker.parts,
        "seconds": time.monotonic() - begun,
    }


@cache
def _renderer(tokenizer: str) -> ChatRenderer:
    """Loaded once in each worker process, which runs many chunks."""
    return load_renderer(Path(tokenizer))


class _Converter:
    """Raw rows of one chunk -> spill rows and rejections."""

    def __init__(self, chunk: Chunk, step: Step, figures: Figures):
        self.chunk, self.step, self.figures = chunk, step, figures
        self.spill, self.parts = _Spill(), 0
        self.view = step.sources[chunk.source]
        self.encoder = Encoder(_renderer(step.tokenizer), step.config, step.task)
        self.redactor = Redactor(step.config.privacy)
        self.scripts: Counter[str] = Counter()

    def run(self) -> None:
        decryption = self.step.cipher.decryption() if self.step.cipher and self.chunk.type == "rows" else None
        rows = iter(read_chunk(self.chunk, decryption))
        while batch := list(islice(rows, ROWS_AT_ONCE)):
            self._convert(batch)
            if self.spill.size > PART_BYTES:  # a file that cannot be divided may be of any size
                self._write()
        self._write()
        self.figures.add("scripts", self.scripts)

    def _write(self) -> None:
        """Write what was converted since the last time, each file by one rename."""
        step, part = self.step, (self.chunk.number, self.parts)
        table = _table(self.spill.rows, SCHEMA)
        keys = [row[0] for row in self.spill.rows]
        buckets = np.fromiter((int(key[8:16], 16) % step.buckets for key in keys), np.int64, len(keys))
        table = table.take(pa.array(np.argsort(buckets, kind="stable")))
        counts = np.bincount(buckets, minlength=step.buckets)
        starts = np.concatenate([[0], np.cumsum(counts)])
        groups = (table.slice(starts[b], counts[b]) for b in range(step.buckets))
        write_groups(spill_path(step.out, part), groups, SCHEMA, step.cipher)
        if self.spill.rejected:
            path = Path(step.out) / "quarantine" / f"rejected-{part[0]:06d}-{part[1]:04d}.parquet"
            write_table(path, _table(self.spill.rejected, QUARANTINE), step.cipher)
        self.spill, self.parts = _Spill(), self.parts + 1

    def _convert(self, batch: Sequence[RawRow]) -> None:
        rows, kept = [], 0
        self.figures.count(self.chunk.source, "read", len(batch))
        for raw in batch:
            row = self._checked(raw)
            if row is not None:
                rows.append(row)
        for row, encoded in zip(rows, self.encoder.encode([row.example for row in rows]), strict=True):
            if isinstance(encoded, DataError):
                self._reject(row.raw, "valid", str(encoded))
            else:
                kept += self._keep(row, encoded)
        self.figures.count(self.chunk.source, "clean", kept)

    def _checked(self, raw: RawRow) -> _Row | None:
        """The row as an example, if it is one and is clean; else it is rejected here."""
        if raw.record is None:
            self._reject(raw, "parsed", raw.problem)
            return None
        view, stage = self.view, "valid"
        try:
            example = to_example(raw.record, view.format, view.columns, view.system)
            record = renamed(raw.record, view.columns)
            split = self.step.config.split
            side = None if split.by == "content" else _value(record, split.by, "split.by")
            stratum = _value(record, split.stratify, "split.stratify")
            sampled = _value(record, view.sampled_by, "sample.stratify")
            stage = "clean"
            example, found = clean(example, self.step.config, self.redactor)
            self.figures.add("personal_data", found)
            return _Row(raw, example, side, stratum, sampled)
        except DataError as error:
            self._reject(raw, stage, str(error))
            return None

    def _keep(self, row: _Row, encoded: Encoded) -> bool:
        """Add the row to the spill file, unless it is contaminated; returns whether it was added."""
        texts = example_texts(row.example)
        found = self._contamination(texts)
        if found:
            self._reject(row.raw, "clean", found)
            return False
        key = content_key(row.example)
        documents = encoded.documents
        segments = [d.segments or (len(d.ids),) for d in documents]
        labelled = any(d.labels is not None for d in documents)
        config, chunk = self.step.config, self.chunk
        text = "\n".join(texts)
        self.spill.rows.append(
            (
                key,
                _side(row, key),
                row.stratum,
                row.sampled,
                chunk.source,
                row.raw.file,
                row.raw.line,
                _joined([d.ids for d in documents], np.int32),
                _joined([d.loss_mask for d in documents], np.int8),
                _joined([d.labels for d in documents], np.int32) if labelled else b"",
                np.array([n for parts in segments for n in parts], np.int32).tobytes(),
                np.array([len(parts) for parts in segments], np.int32).tobytes(),
                payload(row.example),
                signature(text, config.near_duplicates) if config.near_duplicates else b"",
            )
        )
        if encoded.notes:
            self.figures.add("notes", dict.fromkeys(encoded.notes, 1))
        self.spill.size += 6 * sum(len(d.ids) for d in documents) + len(text)
        self.scripts[dominant_script(text)] += 1
        return True

    def _contamination(self, texts: Sequence[str]) -> str | None:
        known, rules = self.step.contamination, self.step.config.contamination
        if known is None or rules is None:
            return None
        for text in texts:
            found = known.find(text)
            if found:
                self.figures.add("contamination", {found[0]: 1})
                reason = f"holds {rules.ngram} words in a row of the evaluation set {found[0]}"
                return reason if rules.action == "reject" else None
        return None

    def _reject(self, raw: RawRow, stage: str, reason: str) -> None:
        self.spill.rejected.append((self.chunk.source, raw.file, raw.line, reason, raw.text))
        self.spill.size += len(raw.text)
        shows = self.figures.shows(self.chunk.source, stage, reason) and not self.step.cipher
        text = self.redactor.masked(raw.text[:MASKED_CHARS]) if shows else ""
        self.figures.lose(self.chunk.source, stage, reason, raw.file, raw.line, text)


def _side(row: _Row, key: str) -> int:
    """The hash that decides on which side of the split a row falls; the label is no part of it, so
    that a text whose label is disputed is not learned on one side and asked on the other."""
    if row.side is not None:
        return xxhash.xxh3_64_intdigest(row.side.encode())
    content = row.example.content
    if "label" in content:
        if "text" in content:
            key = content_key(Example("text", {"text": content["text"]}))
        else:
            key = content_key(Example("conversation", {k: v for k, v in content.items() if k != "label"}))
    return int(key[:16], 16)


def _table(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    arrays = [pa.array(column, kind.type) for column, kind in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def _joined(parts: Sequence[Any], dtype: Any) -> bytes:
    if len(parts) == 1:
        return bytes(np.ascontiguousarray(parts[0], dtype).tobytes())
    return b"".join(np.ascontiguousarray(part, dtype).tobytes() for part in parts)


def _value(record: dict[str, Any], column: str | None, setting: str) -> str | None:
    if column is None:
        return None
    value = record.get(column)
    if value is None:
        raise DataError(f"column `{column}`, named by {setting}, is missing")
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def chunk_to_json(chunk: Chunk) -> str:
    """A chunk as it travels through Ray Data."""
    return json.dumps(asdict(chunk))


def chunk_from_json(text: str) -> Chunk:
    from tunewright.data.rows import Piece

    value = json.loads(text)
    return Chunk(**{**value, "pieces": tuple(Piece(**piece) for piece in value["pieces"])})


def groups_of(
    parts: Sequence[Part], step: Step, bucket: int, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """The rows of one bucket, spill file by spill file."""
    for part in parts:
        yield read_group(spill_path(step.out, part), bucket, columns, step.cipher)
