"""Answers that were judged, as prepared data sets on disk, and trainings on them as a worker does them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loops import VOCABULARY
from tunewright.config import ObjectiveConfig, TrainConfig
from tunewright.data.pack import pack_best_fit
from tunewright.data.rows import NO_LABEL, Document
from tunewright.data.shards import write_shard

SEQ_LEN = 40
WORDS = 12
"""Questions consist of so many different tokens."""
GOOD, BAD = 5, 7
"""A good answer goes on by steps of 5 from the question's last token, a bad one by steps of 7."""


def pairs(count: int, seed: int) -> list[Document]:
    """Questions, each with a good answer and a bad one, as the data stage lays them out."""
    numbers = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        question = numbers.integers(0, WORDS, numbers.integers(2, 5))
        good, bad = _answered(question, GOOD, numbers), _answered(question, BAD, numbers)
        ids = np.concatenate([good.ids, bad.ids])
        mask = np.concatenate([good.loss_mask, bad.loss_mask])
        out.append(Document(ids, mask, None, (len(good.ids), len(bad.ids))))
    return out


def rated(count: int, seed: int) -> list[Document]:
    """Questions with an answer each, labelled 1 if it is good and 0 if it is bad."""
    numbers = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        question, good = numbers.integers(0, WORDS, numbers.integers(2, 5)), numbers.integers(0, 2)
        answered = _answered(question, GOOD if good else BAD, numbers)
        labels = np.full(len(answered.ids), NO_LABEL, np.int32)
        labels[-1] = good
        out.append(Document(answered.ids, answered.loss_mask, labels))
    return out


def chats(count: int, seed: int) -> list[Document]:
    """Questions with a good answer each."""
    numbers = np.random.default_rng(seed)
    questions = [numbers.integers(0, WORDS, numbers.integers(2, 5)) for _ in range(count)]
    return [_answered(question, GOOD, numbers) for question in questions]


def _answered(question: Any, step: int, numbers: np.random.Generator) -> Document:
    length = int(numbers.integers(2, 6))
    answer = (question[-1] + step * np.arange(1, length + 1)) % VOCABULARY
    mask = np.repeat(np.array([0, 1], np.int8), [len(question), length])
    return Document(np.concatenate([question, answer]).astype(np.int32), mask)


def prepared(folder: Path, train: Sequence[Document], held_out: Sequence[Document]) -> str:
    """A folder as the data stage leaves it, with these documents packed."""
    for split, documents in {"train": train, "eval": held_out}.items():
        (folder / split).mkdir(parents=True)
        rows = pack_best_fit([len(d.ids) for d in documents], SEQ_LEN)
        write_shard(folder / split / "shard-000.parquet", documents, rows, SEQ_LEN)
    (folder / "manifest.json").write_text(json.dumps({"config": {}}))
    return str(folder)


def config(**values: Any) -> TrainConfig:
    shape = {
        "max_steps": 4,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "logging_steps": 1,
        "precision": "fp32",
        "learning_rate": 3e-3,
    }
    return TrainConfig.model_validate({**shape, **values})


def train_judged(
    base: Path,
    data: str,
    work: Path,
    rank: int = 0,
    beside: Sequence[tuple[str, ObjectiveConfig, str, float]] = (),
    stop_step: int | None = None,
    identity: str = "the same",
    **values: Any,
) -> tuple[Any, list[dict[str, float]]]:
    """Train as a worker does; the outcome, and the figures of every step.

    Args:
        beside: name, objective, data and share of the tasks beside the main one.
    """
    from tunewright.train.worker import TaskSpec, WorkerSpec, read_metrics, run_spec

    asked = config(**values)
    spec = WorkerSpec(
        config=asked,
        seed=3,
        identity=identity,
        base=str(base),
        tasks=(TaskSpec("", asked, data), *(TaskSpec(*task) for task in beside)),
        work=str(work),
        stop_step=stop_step,
        export=False,
    )
    outcome = run_spec(spec, rank, lambda _: None)
    return outcome, read_metrics(work / "metrics.jsonl")
