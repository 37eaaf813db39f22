"""Small complete trainings without Ray, certified as runs are: some examples, a base, a worker."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from golden.record import byte_tokenizer
from loops import small_model
from tunewright.artifacts import MANIFEST, write_json
from tunewright.config import DataConfig, TrainConfig
from tunewright.data.dataset import LABELS
from tunewright.data.encode import Encoder
from tunewright.data.pack import pack_best_fit
from tunewright.data.records import payload
from tunewright.data.rows import Document, Encoded, Example
from tunewright.data.shards import write_shard
from tunewright.data.tables import write_table
from tunewright.models.chat import ChatRenderer
from tunewright.models.load import save_tokenizer
from tunewright.models.templates import named_template
from tunewright.train.objectives import rows_for
from tunewright.train.worker import TaskSpec, WorkerSpec, run_spec

SEQ_LEN, EXAMPLES = 128, {"train": 90, "eval": 12}
WORDS = ["red", "blue", "green", "small", "large", "old", "new", "fast", "slow"]
SHAPE = {"max_position_embeddings": 160, "hidden_size": 32}


def renderer() -> ChatRenderer:
    return ChatRenderer(byte_tokenizer("chatml"), named_template("chatml"))


def example(task: str, number: int) -> Example:
    """One of the examples of a kind of rows; answers follow from questions."""
    numbers = np.random.default_rng(number)
    first, second = (WORDS[int(i)] for i in numbers.integers(0, len(WORDS), 2))
    asked = [{"role": "user", "content": f"{first} {number}"}]
    if number % 3 == 0:
        asked = [{"role": "system", "content": "Be short."}, *asked]
    answer = {"role": "assistant", "content": f"{second} {first}"}
    more = [{"role": "user", "content": "more"}, {"role": "assistant", "content": second}]
    contents: dict[str, dict[str, Any]] = {
        "conversation": {"messages": [*asked, answer, *(more if number % 4 == 0 else [])]},
        "text": {"text": f"{first} {number} is {second}. " * (1 + number % 3)},
        "preference": {
            "messages": asked,
            "chosen": [answer],
            "rejected": [{"role": "assistant", "content": f"{number % 7}?"}],
        },
        "kto": {"messages": [*asked, answer], "label": bool(number % 2)},
        "classification": {"text": f"{first} {number}", "label": first},
        "tags": {"tokens": [first, str(number), second], "tags": ["B-colour", "O", "B-size"]},
    }
    return Example(task, contents[task])  # type: ignore[arg-type]


def write_data(
    folder: Path,
    task: str,
    examples: dict[str, int] | None = None,
    change: Callable[[Document], Document] | None = None,
) -> Path:
    """A data artifact's folder, as far as training reads it.

    Args:
        change: what happens to a training document before it is packed.
    """
    rendering = renderer()
    settings = {"sources": [{"type": "jsonl", "path": "x"}], "pack": {"seq_len": SEQ_LEN}}
    config = DataConfig.model_validate(settings)
    encoder = Encoder(rendering, config, task)  # type: ignore[arg-type]
    at = 0
    (folder / "examples").mkdir(parents=True)
    for split, count in (examples or EXAMPLES).items():
        some = [example(task, number) for number in range(at, at + count)]
        at += count
        (folder / split).mkdir()
        if not some:
            continue
        encoded = encoder.encode(some)
        assert all(isinstance(one, Encoded) for one in encoded), encoded
        documents = [document for one in encoded for document in one.documents]  # type: ignore[union-attr]
        if change is not None and split == "train":
            documents = [change(document) for document in documents]
        rows = pack_best_fit([len(document.ids) for document in documents], SEQ_LEN)
        write_shard(folder / split / "shard-00000.parquet", documents, rows, SEQ_LEN)
        if split == "eval":
            import pyarrow as pa

            kept = pa.table({"example": pa.array([payload(one) for one in some], pa.large_string())})
            write_table(folder / "examples" / "examples-00000.parquet", kept, None)
    save_tokenizer(rendering, folder / "tokenizer")
    if encoder.label_names:
        write_json(folder / LABELS, encoder.label_names)
    write_json(folder / MANIFEST, {"config": json.loads(config.model_dump_json()), "facts": {"task": task}})
    return folder


def training(
    folder: Path,
    objective: str = "sft",
    kind: str = "llama",
    examples: dict[str, int] | None = None,
    **values: Any,
) -> WorkerSpec:
    """A training of three steps over a base and data in `folder`."""
    vocabulary = len(byte_tokenizer("chatml"))
    if not (folder / "base").exists():
        small_model(kind, vocab_size=vocabulary, **SHAPE).save_pretrained(folder / "base")
    task = rows_for(objective)
    if not (folder / task).exists():
        write_data(folder / task, task, examples)
    shape = {"max_steps": 3, "global_batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-2}
    config = TrainConfig.model_validate(
        {**shape, "objective": objective, "precision": "fp32", "logging_steps": 1, **values}
    )
    return WorkerSpec(
        config=config,
        seed=1,
        identity="the same",
        base=str(folder / "base"),
        tasks=(TaskSpec("", config, str(folder / task)),),
        work=str(folder / "work"),
    )


def certificate(spec: WorkerSpec, rank: int = 0) -> dict[int, dict[str, Any]]:
    """Train, and give the entries of the certificate by number; none but on worker 0."""
    run_spec(spec, rank, lambda _: None)
    return written(spec) if rank == 0 else {}


def written(spec: WorkerSpec) -> dict[int, dict[str, Any]]:
    """The entries that are in the work folder."""
    path = Path(spec.work) / "out" / "certificate.json"
    return {entry["number"]: entry for entry in json.loads(path.read_text(encoding="utf-8"))["entries"]}


def with_task(spec: WorkerSpec, folder: Path, name: str, objective: str, share: float) -> WorkerSpec:
    """The same training with a task beside it."""
    data = folder / rows_for(objective)
    if not data.exists():
        write_data(data, rows_for(objective))
    config = TrainConfig.model_validate({"max_steps": 1, "objective": objective})
    return replace(spec, tasks=(*spec.tasks, TaskSpec(name, config, str(data), share)))
