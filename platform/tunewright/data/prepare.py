"""The data stage: sources -> checked, split, rendered, tokenized, packed shards, on Ray Data.

Two steps. A map reads each chunk of a source and turns every row into a document or a rejection;
a group-by on a hash of the content then packs each bucket. Buckets, splits and packing depend on
the content alone, so the shards are the same bytes whatever the parallelism.

    train/shard-000.parquet      packed rows (see shards.py)
    eval/shard-000.parquet       the same, for evaluation loss
    examples/examples-000.parquet  the evaluation conversations themselves, as JSON
    tokenizer/                   the tokenizer and template used
    quarantine/*.parquet         rejected rows: source, file, line, reason, row
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tunewright.artifacts import Artifact, Plan, Store, clear_dir, code_hash
from tunewright.config import BuiltinSource, DataConfig, FileSource
from tunewright.data.conversations import format_of
from tunewright.data.funnel import check_rules, data_facts
from tunewright.data.pack import pack_best_fit
from tunewright.data.privacy import redact
from tunewright.data.records import content_key, to_messages, to_text
from tunewright.data.shards import Document, write_shard
from tunewright.data.sources import (
    Chunk,
    RawRow,
    read_chunk,
    source_chunks,
    source_identity,
    write_builtin,
)
from tunewright.errors import DataError
from tunewright.models.base import model_folder
from tunewright.models.chat import ChatRenderer
from tunewright.models.load import load_renderer, save_tokenizer

log = logging.getLogger(__name__)

ROWS_PER_BUCKET = 50_000
SCHEMA = pa.schema(
    [
        ("bucket", pa.string()),
        ("key", pa.string()),
        ("source", pa.int32()),
        ("file", pa.string()),
        ("line", pa.int64()),
        ("reason", pa.string()),
        ("ids", pa.binary()),
        ("mask", pa.binary()),
        ("payload", pa.string()),
        ("findings", pa.string()),
    ]
)


@dataclass(frozen=True)
class Step:
    """What a worker needs to turn chunks into documents."""

    config: DataConfig
    formats: tuple[str, ...]
    sources: tuple[FileSource, ...]
    tokenizer: str
    buckets: int


def prepare_plan(config: DataConfig, base: Artifact) -> Plan:
    """The identity of the data set: content of the sources, settings, tokenizer and code.

    Raises:
        DataError: a source is missing, empty or not what it claims.
    """
    settings = config.model_dump(mode="json", exclude={"sources", "chat_template"})
    settings["sources"] = [source_identity(source) for source in config.sources]
    settings["chat_template"] = _template(config)
    code = code_hash("data", "models/chat", "models/load")
    return Plan("data", {"base": base.ref}, settings, code)


def prepare(store: Store, config: DataConfig, base: Artifact, plan: Plan) -> Artifact:
    """Make the data set of `plan`. Needs a connected Ray.

    Raises:
        DataError: a source has too many bad rows, or nothing is left to train on.
    """
    started = time.monotonic()
    context = base.facts.get("context")
    if context and config.pack.seq_len > context:
        raise DataError(
            f"data.pack.seq_len={config.pack.seq_len} is above the context of {context} tokens "
            f"that {base.facts.get('model', base.ref)} was made for"
        )
    work = clear_dir(store.work_dir(plan))
    for name in ("train", "eval", "examples", "quarantine", "tokenizer", "generated"):
        (work / name).mkdir()
    sources = tuple(
        write_builtin(s, work / "generated") if isinstance(s, BuiltinSource) else s for s in config.sources
    )
    renderer = load_renderer(model_folder(base), _template(config))
    save_tokenizer(renderer, work / "tokenizer")
    formats, reasons = zip(*(format_of(index, source) for index, source in enumerate(sources)), strict=True)
    chunks = [chunk for index, source in enumerate(sources) for chunk in source_chunks(index, source)]
    size = sum(Path(c.path).stat().st_size if c.end < 0 else c.end - c.start for c in chunks)
    buckets = 1 + size // (ROWS_PER_BUCKET * 512)  # from bytes: rows are not counted beforehand
    step = Step(config, formats, sources, str(work / "tokenizer"), buckets)
    summaries = _run(step, chunks, work)
    for reason in (reason for summary in summaries for reason in summary.get("failed", ())):
        raise DataError(reason)
    facts = data_facts(config, sources, formats, reasons, summaries)
    check_rules(config, facts, work)
    return store.publish(plan, work, facts, time.monotonic() - started)


def _run(step: Step, chunks: Sequence[Chunk], work: Path) -> list[dict[str, Any]]:
    """Run both steps over the cluster; returns one summary a bucket."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    partitions = 2 * step.buckets + 1
    grouped = (
        ray.data.from_items([{"chunk": json.dumps(asdict(c))} for c in chunks])
        .repartition(len(chunks))
        .map_batches(
            _chunk_to_documents,  # type: ignore[arg-type]
            fn_kwargs={"step": step},
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=0.5,
        )
        .groupby("bucket", num_partitions=partitions)
        .map_groups(
            _write_bucket,  # type: ignore[arg-type]
            batch_format="pyarrow",
            fn_kwargs={
                "seq_len": step.config.pack.seq_len,
                "out": str(work),
                "dedup": step.config.rules.drop_duplicates,
            },
            num_cpus=0.5,
        )
    )
    rows = sorted(grouped.take_all(), key=lambda row: str(row["bucket"]))
    return [json.loads(row["summary"]) for row in rows]


def _chunk_to_documents(batch: pa.Table, step: Step) -> pa.Table:
    """One chunk in, one row a record out: a tokenized document, or a rejection with its reason."""
    rows: list[dict[str, Any]] = []
    worker = _Documents(step, _renderer(step.tokenizer))
    for text in batch.column("chunk").to_pylist():
        chunk = Chunk(**json.loads(text))
        try:
            for raw in read_chunk(chunk):
                rows += worker.of(chunk, raw)
        except DataError as error:  # of the file as a whole; Ray Data would lose which error it was
            failure = {"bucket": "failed", "key": "", "line": 0, "payload": ""}
            rows.append(
                {**failure, **_where(chunk), "reason": str(error), "ids": b"", "mask": b"", "findings": "{}"}
            )
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _where(chunk: Chunk) -> dict[str, Any]:
    """What a row says of where it was found."""
    return {"source": chunk.source, "file": Path(chunk.path).name}


@cache
def _renderer(tokenizer: str) -> ChatRenderer:
    """Loaded once in each worker process, which runs many chunks."""
    return load_renderer(Path(tokenizer))


class _Documents:
    """Raw rows -> documents, by the settings of one step."""

    def __init__(self, step: Step, renderer: ChatRenderer):
        self.step, self.renderer = step, renderer

    def of(self, chunk: Chunk, raw: RawRow) -> Iterator[dict[str, Any]]:
        row = {**_where(chunk), "line": raw.line, "reason": "", "payload": raw.text, "findings": "{}"}
        try:
            if raw.record is None:
                raise DataError(raw.problem)
            yield from self._documents(row, raw.record)
        except DataError as error:
            reason = str(error)
            yield {**row, "bucket": "rejected", "key": "", "reason": reason, "ids": b"", "mask": b""}

    def _documents(self, row: dict[str, Any], record: dict[str, Any]) -> Iterator[dict[str, Any]]:
        step, form = self.step, self.step.formats[row["source"]]
        source = step.sources[row["source"]]
        findings: Counter[str] = Counter()
        if form == "text":
            text = self._clean(to_text(record, source.columns), findings)
            documents, payload, key = self._text_documents(text), text, content_key(text)
        else:
            messages = to_messages(record, form, source.columns, source.system)
            for message in messages:
                message["content"] = self._clean(message["content"], findings)
            rendered = self.renderer.conversation(messages)
            documents = [(rendered.ids, rendered.loss_mask)]
            payload = json.dumps({"messages": messages}, ensure_ascii=False)
            key = content_key(messages)
        limit = step.config.pack.seq_len
        for number, (ids, mask) in enumerate(documents):
            if len(ids) > limit:
                raise DataError(f"{len(ids)} tokens do not fit a row of seq_len={limit}")
            yield {
                **row,
                "bucket": self._bucket(key),
                "key": f"{key}-{number:06d}",
                "ids": np.asarray(ids, np.int32).tobytes(),
                "mask": np.asarray(mask, np.int8).tobytes(),
                "payload": payload if number == 0 else "",
                "findings": json.dumps(findings if number == 0 else {}),
            }

    def _text_documents(self, text: str) -> list[tuple[list[int], list[int]]]:
        """A text between its begin and end tokens, in pieces of at most seq_len; all carry loss."""
        tokenizer = self.renderer.tokenizer
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        ids.append(int(tokenizer.eos_token_id))
        if tokenizer.bos_token_id not in (None, tokenizer.eos_token_id):
            ids.insert(0, int(tokenizer.bos_token_id))
        size = self.step.config.pack.seq_len
        return [(ids[at : at + size], [1] * len(ids[at : at + size])) for at in range(0, len(ids), size)]

    def _clean(self, text: str, findings: Counter[str]) -> str:
        privacy = self.step.config.privacy
        if privacy.action == "keep":
            return text
        redacted, counts = redact(text, privacy.kinds)
        if counts and privacy.action == "reject":
            raise DataError(f"holds personal data: {', '.join(sorted(counts))}")
        findings.update(counts)
        return redacted

    def _bucket(self, key: str) -> str:
        """Split and bucket from the content's hash: stable under reordering and growth."""
        share = int(key[:8], 16) / 2**32
        split = "eval" if share < self.step.config.split.eval else "train"
        return f"{split}-{int(key[8:16], 16) % self.step.buckets:03d}"


def _write_bucket(group: pa.Table, seq_len: int, out: str, dedup: bool) -> pa.Table:
    """Write all files of one bucket and describe them; the same group gives the same bytes."""
    folder = Path(out)
    order = [(name, "ascending") for name in ("key", "source", "file", "line")]
    rows = group.sort_by(order).to_pylist()
    bucket = rows[0]["bucket"]
    summary: dict[str, Any] = {"bucket": bucket, "documents": 0, "rejected": {}, "kept": {}, "findings": {}}
    kept, duplicates = _unique(rows) if dedup and "-" in bucket else (rows, [])
    if bucket == "rejected":
        _write_quarantine(folder / "quarantine" / "rejected.parquet", kept)
        summary["rejected"] = _by_source(kept, "reason")
        return _summary_table(bucket, summary)
    if bucket == "failed":
        summary["failed"] = [row["reason"] for row in rows]
        return _summary_table(bucket, summary)
    split, number = bucket.split("-")
    documents = [Document(np.frombuffer(r["ids"], np.int32), np.frombuffer(r["mask"], np.int8)) for r in kept]
    packed = pack_best_fit([len(d.ids) for d in documents], seq_len)
    write_shard(folder / split / f"shard-{number}.parquet", documents, packed, seq_len)
    if split == "eval":
        examples = [r["payload"] for r in kept if r["payload"]]
        pq.write_table(
            pa.table({"conversation": examples}), folder / "examples" / f"examples-{number}.parquet"
        )
    _write_quarantine(folder / "quarantine" / f"duplicates-{bucket}.parquet", duplicates)
    findings: Counter[str] = Counter()
    for row in kept:
        findings.update(json.loads(row["findings"]))
    summary |= {
        "rows": len(packed),
        "documents": len(documents),
        "tokens": sum(len(d.ids) for d in documents),
        "supervised_tokens": int(sum(int(d.loss_mask.sum()) for d in documents)),
        "kept": dict(Counter(str(r["source"]) for r in kept if r["payload"])),
        "duplicates": dict(Counter(str(r["source"]) for r in duplicates if r["payload"])),
        "findings": dict(findings),
    }
    return _summary_table(bucket, summary)


def _unique(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The first row of each content, and the others; rows are sorted by content, source and line."""
    kept: list[dict[str, Any]] = []
    duplicates = []
    for row in rows:
        if kept and kept[-1]["key"] == row["key"]:
            first = kept[-1]
            reason = f"same content as source {first['source']}, {first['file']}:{first['line']}"
            duplicates.append({**row, "reason": reason})
        else:
            kept.append(row)
    return kept, duplicates


def _write_quarantine(path: Path, rows: list[dict[str, Any]]) -> None:
    if rows:
        rows = sorted(rows, key=lambda r: (r["source"], r["file"], r["line"]))
        columns = {"source": "source", "file": "file", "line": "line", "reason": "reason", "row": "payload"}
        pq.write_table(pa.table({name: [r[key] for r in rows] for name, key in columns.items()}), path)


def _by_source(rows: list[dict[str, Any]], field: str) -> dict[str, dict[str, int]]:
    out: dict[str, Counter[str]] = {}
    for row in rows:
        out.setdefault(str(row["source"]), Counter())[_general(row[field])] += 1
    return {source: dict(counts) for source, counts in out.items()}


def _general(reason: str) -> str:
    """A reason without its figures, so that like reasons are counted together."""
    words = ["N" if any(c.isdigit() for c in word) else word for word in reason.split()]
    return " ".join(words)[:120]


def _summary_table(bucket: str, summary: dict[str, Any]) -> pa.Table:
    return pa.table({"bucket": [bucket], "summary": [json.dumps(summary)]})


def _template(config: DataConfig) -> str | None:
    if config.chat_template is None:
        return None
    try:
        return Path(config.chat_template).read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"data.chat_template {config.chat_template}: {error.strerror}") from None
