"""The data stage: sources -> checked, cleaned, split, tokenized, packed shards, on Ray Data.

Two passes (convert.py, collect.py) with files of the work folder between them, so that memory does
not grow with the data. Which rows are used, their split and their packing depend on the content
alone: the shards are the same bytes whatever the parallelism or the order of the rows.

    train/shard-00000.parquet        packed rows (see shards.py)
    eval/shard-00000.parquet         the same, for evaluation loss
    examples/examples-00000.parquet  the evaluation examples themselves, as JSON
    tokenizer/                       the tokenizer and template used
    quarantine/*.parquet             rejected rows: source, file, line, reason, row
    report.json                      where every row went, and the figures of the set
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tunewright.artifacts import Artifact, Plan, Store, clear_dir, code_hash, write_json
from tunewright.config import BuiltinSource, DataConfig, FileSource
from tunewright.data.accounts import check_adds_up
from tunewright.data.collect import Collect, Near, count_bucket, find_near_duplicates, write_bucket
from tunewright.data.contamination import Contamination, build
from tunewright.data.conversations import format_of, read_texts
from tunewright.data.convert import Part, SourceView, Step, chunk_from_json, chunk_to_json, convert_chunk
from tunewright.data.dataset import LABELS
from tunewright.data.encryption import Cipher
from tunewright.data.figures import Figures
from tunewright.data.funnel import check_rules, data_facts, data_report
from tunewright.data.mixing import choose, merge_census, needs_census
from tunewright.data.privacy import Redactor
from tunewright.data.rows import KTO_LABELS, Chunk, Task
from tunewright.data.sources import source_chunks, source_identity, write_builtin
from tunewright.data.sources.fetch import fetch_source
from tunewright.data.sources.snapshot import SnapshotSource
from tunewright.errors import DataError
from tunewright.models.base import model_folder
from tunewright.models.load import import_tokenizers, load_renderer, save_tokenizer
from tunewright.models.templates import resolve_template

log = logging.getLogger(__name__)

ROWS_PER_BUCKET = 25_000
BYTES_PER_ROW = 512  # a guess, from which the number of buckets follows: rows are not counted beforehand
TASK_OF_FORMAT: dict[str, Task] = {
    "messages": "conversation",
    "sharegpt": "conversation",
    "prompt_completion": "conversation",
    "alpaca": "conversation",
    "text": "text",
    "preference": "preference",
    "kto": "kto",
    "classification": "classification",
    "tags": "tags",
}
RENDERING = (
    "models/chat",
    "models/load",
    "models/messages",
    "models/online",
    "models/probes",
    "models/sandbox",
    "models/segments",
    "models/templates",
    "models/turns",
    "models/words",
)
"""The modules that decide what tokens a conversation becomes."""
MOST_WARMED = 64
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Inputs:
    """The sources as files: what databases, APIs and the hub gave has become an artifact.

    Attributes:
        sources: one for each of `config.sources`, in order.
        parents: role -> artifact of what was fetched.
    """

    sources: tuple[FileSource | BuiltinSource | SnapshotSource, ...]
    parents: dict[str, str]


def gather(store: Store, config: DataConfig) -> Inputs:
    """Fetch what is not a file. The same rows give the same artifact, so an unchanged table is no new data.

    Raises:
        DataError: a database, an API or the hub does not give the rows; names the source.
    """
    sources: list[FileSource | BuiltinSource | SnapshotSource] = []
    parents = {}
    cipher = _cipher(config)
    for index, source in enumerate(config.sources):
        if isinstance(source, FileSource | BuiltinSource):
            sources.append(source)
        else:
            artifact, snapshot = fetch_source(store, index, source, cipher)
            sources.append(snapshot)
            parents[f"rows_{index}"] = artifact.ref
    return Inputs(tuple(sources), parents)


def prepare_plan(config: DataConfig, base: Artifact, inputs: Inputs | None = None) -> Plan:
    """The identity of the data set: content of the sources, settings, tokenizer and code.

    Args:
        inputs: of `gather`; may be left out where all sources are files.
    Raises:
        DataError: a source is missing, empty or not what it claims.
    """
    inputs = inputs or _files_only(config)
    settings = config.model_dump(mode="json", exclude={"sources", "chat_template", "contamination"})
    settings["sources"] = [
        source.settings() if isinstance(source, SnapshotSource) else source_identity(source)
        for source in inputs.sources
    ]
    settings["chat_template"] = resolve_template(config.chat_template)
    if config.contamination:
        against = [source_identity(source) for source in config.contamination.against]
        settings["contamination"] = {**config.contamination.model_dump(mode="json"), "against": against}
    code = code_hash("data", *RENDERING)
    return Plan("data", {"base": base.ref, **inputs.parents}, settings, code)


def prepare(
    store: Store,
    config: DataConfig,
    base: Artifact,
    plan: Plan,
    inputs: Inputs | None = None,
    tell: Tell | None = None,
) -> Artifact:
    """Make the data set of `plan`. Needs a connected Ray.

    Raises:
        DataError: a rule refuses the set, or nothing is left to train on.
    """
    started = time.monotonic()
    inputs = inputs or _files_only(config)
    cipher = _cipher(config)
    _check_context(config, base)
    _warm_workers()
    Redactor(config.privacy)  # a missing Presidio shows here, once, and not in every worker
    work = clear_dir(store.work_dir(plan))
    for name in ("train", "eval", "examples", "quarantine", "tokenizer", "generated", "spill"):
        (work / name).mkdir()
    renderer = load_renderer(model_folder(base), resolve_template(config.chat_template))
    save_tokenizer(renderer, work / "tokenizer")
    sources = [
        write_builtin(s, work / "generated") if isinstance(s, BuiltinSource) else s for s in inputs.sources
    ]
    formats, reasons = zip(
        *(format_of(index, source, cipher) for index, source in enumerate(sources)), strict=True
    )
    chunks = _chunks(sources)
    size = sum(chunk.size * _unpacked(chunk) for chunk in chunks)
    step = Step(
        config=config,
        task=_task(config, formats),
        sources=_views(config, sources, formats),
        tokenizer=str(work / "tokenizer"),
        buckets=1 + size // (ROWS_PER_BUCKET * BYTES_PER_ROW),
        out=str(work),
        contamination=_contamination(config, work / "generated"),
        cipher=cipher,
    )
    figures, splits, extra = _run(step, chunks, tell or (lambda text: None))
    shutil.rmtree(work / "spill")
    shutil.rmtree(work / "generated")
    report = data_report(config, step.task, formats, reasons, figures, splits, extra)
    facts = data_facts(report)
    check_adds_up(report)
    write_json(work / "report.json", report)
    if extra["labels"]:
        write_json(work / LABELS, extra["labels"])
    check_rules(config, report, work)
    return store.publish(plan, work, facts, time.monotonic() - started)


def _run(step: Step, chunks: Sequence[Chunk], tell: Tell) -> tuple[Figures, dict[str, Any], dict[str, Any]]:
    """Both passes over the cluster: figures, facts of each split, label names and shares asked for."""
    figures = Figures()
    labels: dict[int, tuple[str, ...]] = {}
    parts: list[Part] = []
    begun = time.monotonic()
    rows = 0
    tasks = [chunk_to_json(chunk) for chunk in chunks]
    for done, result in enumerate(_on_cluster(partial(_convert, step=step), tasks), start=1):
        if "failed" in result:
            raise DataError(result["failed"])
        part = Figures(result["figures"])
        figures.merge(part)
        labels[result["chunk"]] = KTO_LABELS if step.task == "kto" else tuple(result["labels"])
        parts += [(result["chunk"], number) for number in range(result["parts"])]
        rows += part.total("read")
        rate = rows / (time.monotonic() - begun)
        tell(f"read {done} of {len(tasks)} chunks, {rows:,} rows, {rate:,.0f} rows/s")
    parts.sort()
    config, buckets = step.config, [str(bucket) for bucket in range(step.buckets)]
    near: Near = {}
    if config.near_duplicates:
        for result in _on_cluster(partial(_near, step=step, parts=parts), ["all"]):
            near = {key: (kept, similarity) for key, kept, similarity in result["near"]}
    census = None
    if needs_census(config):
        counting = partial(_count, step=step, parts=parts, near=near)
        census = merge_census([result["census"] for result in _on_cluster(counting, buckets)])
    choice = choose(config, census)
    names = tuple(sorted({name for known in labels.values() for name in known}))
    names = KTO_LABELS if step.task == "kto" else names
    work = Collect(step, tuple(parts), choice, near, names, tuple(labels[i] for i in range(len(chunks))))
    splits: dict[str, dict[str, int]] = {"train": {}, "eval": {}}
    for done, result in enumerate(_on_cluster(partial(_write, work=work), buckets), start=1):
        figures.merge(Figures(result["figures"]))
        for split, facts in result["splits"].items():
            for name, value in facts.items():
                splits[split][name] = splits[split].get(name, 0) + value
        tell(f"packed {done} of {len(buckets)} buckets")
    return figures, splits, {"labels": list(names), "asked": dict(choice.asked)}


def _warm_workers() -> None:
    """Begin the imports of worker processes while the driver still plans: 3 seconds that nobody waits for.

    Ray gives a process that has become idle to the next task, so those of the passes start at once.
    """
    import ray

    cpus = int(ray.cluster_resources().get("CPU", 1))
    warm = ray.remote(import_tokenizers)
    for _ in range(min(cpus, MOST_WARMED)):
        warm.remote()


def _on_cluster(work: Callable[[str], dict[str, Any]], items: Sequence[str]) -> Iterator[dict[str, Any]]:
    """`work` of each item, as tasks of Ray Data; results come as they are done, in any order.

    A task whose worker died is run again by Ray Data; what it writes is written over.
    """
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    results = ray.data.from_items(
        [{"item": item} for item in items], override_num_blocks=len(items)
    ).map_batches(
        _task_batch,  # type: ignore[arg-type]
        fn_kwargs={"work": work},
        batch_size=1,
        batch_format="numpy",
    )
    for row in results.iter_rows():
        yield json.loads(row["result"])


def _task_batch(batch: dict[str, Any], work: Callable[[str], dict[str, Any]]) -> dict[str, list[str]]:
    return {"result": [json.dumps(work(str(item))) for item in batch["item"]]}


def _convert(item: str, step: Step) -> dict[str, Any]:
    return convert_chunk(chunk_from_json(item), step)


def _near(item: str, step: Step, parts: Sequence[Part]) -> dict[str, Any]:
    return {item: None, "near": find_near_duplicates(step, parts)}


def _count(item: str, step: Step, parts: Sequence[Part], near: Near) -> dict[str, Any]:
    return {"census": count_bucket(int(item), step, parts, near)}


def _write(item: str, work: Collect) -> dict[str, Any]:
    return write_bucket(int(item), work)


def _files_only(config: DataConfig) -> Inputs:
    sources = [s for s in config.sources if isinstance(s, FileSource | BuiltinSource)]
    assert len(sources) == len(config.sources), "other sources are gathered first"
    return Inputs(tuple(sources), {})


def _views(
    config: DataConfig, sources: Sequence[FileSource | SnapshotSource], formats: Sequence[str]
) -> tuple[SourceView, ...]:
    """What workers need of each source."""
    samples = (None if isinstance(s, BuiltinSource) else s.sample.stratify for s in config.sources)
    return tuple(
        SourceView(form, source.columns, source.system, sampled_by)
        for source, form, sampled_by in zip(sources, formats, samples, strict=True)
    )


def _chunks(sources: Sequence[FileSource | SnapshotSource]) -> list[Chunk]:
    chunks: list[Chunk] = []
    for index, source in enumerate(sources):
        if isinstance(source, SnapshotSource):
            chunks += source.chunks(index, len(chunks))
        else:
            chunks += source_chunks(index, source, len(chunks))
    return chunks


def _unpacked(chunk: Chunk) -> int:
    """How many times larger a chunk's rows are than its bytes on disk, about."""
    dense = chunk.type in ("parquet", "rows") or chunk.pieces[0].path.endswith((".gz", ".zst"))
    return 4 if dense else 1


def _task(config: DataConfig, formats: Sequence[str]) -> Task:
    tasks = {TASK_OF_FORMAT[form] for form in formats}
    if len(tasks) > 1:
        raise DataError(
            f"the sources hold different things: {', '.join(sorted(set(formats)))}; one run trains on "
            f"one kind, and of these the formats messages, sharegpt, prompt_completion and alpaca go together"
        )
    return tasks.pop()


def _check_context(config: DataConfig, base: Artifact) -> None:
    context = base.facts.get("context")
    if context and config.pack.seq_len > context:
        raise DataError(
            f"data.pack.seq_len={config.pack.seq_len} is above the context of {context} tokens "
            f"that {base.facts.get('model', base.ref)} was made for"
        )


def _contamination(config: DataConfig, folder: Path) -> Contamination | None:
    if config.contamination is None:
        return None
    texts = {}
    for source in config.contamination.against:
        file = write_builtin(source, folder) if isinstance(source, BuiltinSource) else source
        name = source.name if isinstance(source, BuiltinSource) else Path(file.path).name
        texts[name] = read_texts(file)
    return build(texts, config.contamination.ngram)


def _cipher(config: DataConfig) -> Cipher | None:
    return Cipher(config.encryption.key) if config.encryption else None
