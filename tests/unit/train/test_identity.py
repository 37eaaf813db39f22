"""A training is known by what decides its weights, and not by where it runs."""

from __future__ import annotations

from typing import Any

import pytest

from doubles import publish
from tunewright.artifacts import Artifact, Store
from tunewright.config import FullConfig, TrainConfig
from tunewright.config.train import WorkerResources, ZeroConfig
from tunewright.errors import TrainError
from tunewright.train.stage import TaskData, Training

CONFIG = TrainConfig(max_steps=8, global_batch_size=16, micro_batch_size=2)
CHATS: dict[str, Any] = {"task": "conversation"}
TEXTS: dict[str, Any] = {"task": "text"}


@pytest.fixture
def base(tmp_store: Store) -> Artifact:
    return publish(tmp_store, "base")  # type: ignore[no-any-return]


@pytest.fixture
def data(tmp_store: Store) -> Artifact:
    return publish(tmp_store, "data", CHATS)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "change",
    [
        {"workers": 4},
        {"worker_resources": WorkerResources(cpus=3)},
        {"max_failures": 0},
        {"keep_checkpoints": 9},
        {"save_steps": 1},
        {"logging_steps": 1},
    ],
    ids=str,
)
def test_where_and_how_safely_it_runs_changes_nothing(
    base: Artifact, data: Artifact, change: dict[str, Any]
) -> None:
    other = CONFIG.model_copy(update=change)
    assert Training(other, base, data, 1).plan.id == Training(CONFIG, base, data, 1).plan.id
    assert Training(other, base, data, 1).identity == Training(CONFIG, base, data, 1).identity


@pytest.mark.parametrize(
    "change",
    [{"learning_rate": 1e-3}, {"max_steps": 9}, {"global_batch_size": 32}, {"method": FullConfig()}],
    ids=str,
)
def test_what_changes_the_weights_makes_another_training(
    base: Artifact, data: Artifact, change: dict[str, Any]
) -> None:
    other = CONFIG.model_copy(update=change)
    assert Training(other, base, data, 1).plan.id != Training(CONFIG, base, data, 1).plan.id
    assert Training(other, base, data, 1).identity != Training(CONFIG, base, data, 1).identity


@pytest.mark.parametrize(
    "change", [{"zero": ZeroConfig(stage=3)}, {"micro_batch_size": 4}, {"eval_steps": 2}], ids=str
)
def test_a_checkpoint_serves_any_split_of_the_work(
    base: Artifact, data: Artifact, change: dict[str, Any]
) -> None:
    assert (
        Training(CONFIG.model_copy(update=change), base, data, 1).identity
        == Training(CONFIG, base, data, 1).identity
    )


def test_seed_data_base_and_start_are_part_of_it(tmp_store: Store, base: Artifact, data: Artifact) -> None:
    other_base, other_data = publish(tmp_store, "base", n=2), publish(tmp_store, "data", CHATS, n=2)
    plans = [
        Training(CONFIG, base, data, 1).plan,
        Training(CONFIG, base, data, 2).plan,
        Training(CONFIG, other_base, data, 1).plan,
        Training(CONFIG, base, other_data, 1).plan,
        Training(CONFIG, base, data, 1, start=other_base).plan,
        Training(CONFIG, base, data, 1, (TaskData("more", CONFIG, other_data, 0.1),)).plan,
        Training(CONFIG, base, data, 1, (TaskData("more", CONFIG, other_data, 0.2),)).plan,
        Training(CONFIG, base, data, 1, (TaskData("less", CONFIG, other_data, 0.1),)).plan,
        Training(CONFIG, base, data, 1, previous=other_base).plan,
        Training(CONFIG, base, data, 1, previous=other_base, stacked=True).plan,
    ]
    assert len({plan.id for plan in plans}) == len(plans)


@pytest.mark.parametrize(
    ("objective", "facts", "words"),
    [
        ("pretrain", CHATS, "train.objective is pretrain, but the rows are conversations; say sft"),
        ("sft", TEXTS, "train.objective is sft, but the rows are texts; say pretrain"),
        ("tag", {"task": "preference"}, "tag, but the rows are preferences; say dpo or orpo or reward"),
    ],
)
def test_rows_that_are_not_for_the_objective_are_refused(
    tmp_store: Store, base: Artifact, objective: Any, facts: dict[str, Any], words: str
) -> None:
    config = CONFIG.model_copy(update={"objective": objective})
    with pytest.raises(TrainError, match=words):
        Training(config, base, publish(tmp_store, "data", facts, kind_of_rows=objective), 1)
