"""Several tasks in one training: their shares, their figures, the same steps however a batch is divided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loops import (
    VOCABULARY,
    MemoryRows,
    Trained,
    Training,
    language_loss,
    on_two_workers,
    plain_forward,
    small_model,
    train,
)
from tunewright.config import TrainConfig
from tunewright.errors import TrainError
from tunewright.train.objectives.language import NextToken, supervised_mask
from tunewright.train.streams import Stream

pytestmark = [
    pytest.mark.usefixtures("one_worker"),
    # DeepSpeed's:
    pytest.mark.filterwarnings("ignore:`torch.distributed:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]

TOLERANCE = 1e-6
"""Relative, fp32: sums over other micro batches and workers are taken in another order."""
FORGOTTEN, KEPT = 5.0, 1.5
"""How many times its loss a task has after another one was learned: without replay at least, with at most.
Measured when this was written: 11.3 and 1.2, of a loss of 0.126."""


def config(**values: Any) -> TrainConfig:
    shape = {"max_steps": 10, "global_batch_size": 4, "micro_batch_size": 2, "logging_steps": 1}
    noisy = {"method": {"type": "lora", "rank": 4, "dropout": 0.3}, "neftune_alpha": 5.0}
    return TrainConfig.model_validate({**shape, **noisy, "learning_rate": 3e-3, "save_steps": 3, **values})


class Texts(MemoryRows):
    """Rows all of whose tokens are learned but the first of each document; others than `MemoryRows`."""

    def __init__(self, count: int = 7):
        super().__init__(count, seed=21)
        self.rows["loss_mask"] = (self.rows["segment_ids"] > 0).astype(np.int64)
        self.rows["input_ids"] = (self.rows["input_ids"] * 7 + 3) % VOCABULARY


def texts(share: float = 0.3, smoothing: float = 0.1) -> Stream:
    return Stream("texts", NextToken(smoothing), Texts(), Texts(3), share)


def clockless(trained: Trained) -> list[dict[str, float]]:
    return [{k: v for k, v in f.items() if k not in ("tokens_per_s", "eta_s")} for f in trained.figures]


def test_each_task_has_its_share_of_the_rows_and_figures_of_its_own(tmp_path: Path) -> None:
    main, beside = MemoryRows(), texts()
    run = train(Training(config(eval_steps=5), tmp_path, rows=main, beside=[beside]))
    assert run.loop.order.taken(10) == [28, 12]
    assert len(beside.rows.taken) == 12  # type: ignore[union-attr]
    assert len(main.taken) >= 28
    for seen in run.figures:
        taken = run.loop.order.rows_of_step(int(seen["step"]) - 1)[0]
        share = float((taken == 1).mean())
        parts = [(1 - share) * seen["loss/main"], share * seen.get("loss/texts", 0.0)]
        assert seen["loss"] == pytest.approx(sum(parts), rel=TOLERANCE)
    assert [f["step"] for f in run.figures if "eval_loss/texts" in f] == [5, 10]
    assert run.figures[-1]["eval_loss"] != run.figures[-1]["eval_loss/texts"]


@torch.no_grad()
def test_a_tasks_figure_is_its_loss_alone(tmp_path: Path) -> None:
    plain = {"method": {"type": "lora", "rank": 4}, "neftune_alpha": None}
    with torch.enable_grad():
        run = train(Training(config(**plain, max_steps=1), tmp_path, beside=[texts(0.5, 0.0)]))
    tasks, rows = run.loop.order.rows_of_step(0)
    for task, source, name in ((0, MemoryRows(), "loss/main"), (1, Texts(), "loss/texts")):
        taken = source.take(rows[tasks == task])
        alone = float(language_loss(plain_forward(small_model()), taken)) / int(supervised_mask(taken).sum())
        assert run.figures[0][name] == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("zero", [0, 2])
def test_tasks_go_on_bit_identically_after_a_stop(tmp_path: Path, zero: int) -> None:
    asked = config(zero={"stage": zero})
    whole = train(Training(asked, tmp_path / "whole", beside=[texts()]))
    first = train(Training(asked, tmp_path / "halves", beside=[texts()], stop_step=4))
    second = train(Training(asked, tmp_path / "halves", beside=[texts()]))
    assert (first.outcome.step, second.outcome.began_at) == (4, 4)
    assert clockless(second) == clockless(whole)[4:]
    for name, weight in whole.outcome.weights.items():
        assert torch.equal(weight, second.outcome.weights[name]), name


def steps_of(rank: int, arguments: tuple[Path, list[int]]) -> Any:
    """For `on_two_workers`: the figures of the steps by micro batch, and the weights."""
    work, sizes = arguments
    runs = [
        train(
            Training(config(micro_batch_size=n, max_steps=4), work / f"{n}-of-{len(sizes)}", beside=[texts()])
        )
        for n in sizes
    ]
    names = ("loss", "loss/main", "loss/texts", "grad_norm")
    return [([[f.get(name, 0.0) for name in names] for f in r.figures], r.outcome.weights) for r in runs]


def test_tasks_take_the_same_steps_however_a_batch_is_divided(tmp_path: Path) -> None:
    one = steps_of(0, (tmp_path, [1, 2, 4]))
    two = on_two_workers(steps_of, (tmp_path / "two", [1, 2]), tmp_path)
    figures, weights = one[0]
    others = [*one[1:], *(run for worker in two for run in worker)]
    assert len(others) == 6
    for other, other_weights in others:
        assert np.array(other) == pytest.approx(np.array(figures), rel=TOLERANCE)
        for name, weight in weights.items():
            torch.testing.assert_close(other_weights[name], weight, rtol=1e-3, atol=1e-5)


def test_a_task_without_rows_is_refused(tmp_path: Path) -> None:
    empty = Stream("texts", NextToken(), Texts(0), Texts(1), 0.2)
    with pytest.raises(TrainError, match="a side task has no packed rows to train on"):
        train(Training(config(), tmp_path, beside=[empty]))


class Counting(MemoryRows):
    """Documents that count up in steps, in one half of the vocabulary."""

    def __init__(self, step: int, half: int, count: int = 64, seed: int = 7):
        super().__init__(count, seed)
        place = self.rows["position_ids"]
        first = self.rows["input_ids"] - 5 * place
        self.rows["input_ids"] = half * VOCABULARY // 2 + (first + step * place) % (VOCABULARY // 2)


def test_replay_keeps_what_was_learned_first(tmp_path: Path) -> None:
    values = {"method": {"type": "full"}, "neftune_alpha": None, "lr_scheduler_type": "linear"}
    asked = config(**values, max_steps=60, global_batch_size=8, micro_batch_size=8, save_steps=100)
    old, new = Counting(5, 0), Counting(7, 1)
    held_out = {"old": Counting(5, 0, 8, seed=8), "new": Counting(7, 1, 8, seed=8)}
    before = train(Training(asked, tmp_path / "old", rows=old, eval_rows=held_out["old"])).outcome

    def as_it_was() -> Any:
        model = small_model()
        model.load_state_dict(before.weights)
        return model

    def learned(name: str, share: float) -> dict[str, float]:
        again = [Stream("old", NextToken(), old, held_out["old"], share)] if share else []
        there = tmp_path / name
        run = train(Training(asked, there, as_it_was, new, held_out["new"], beside=again))
        model = small_model()
        model.load_state_dict(run.outcome.weights)
        return {which: mean_loss(model, rows) for which, rows in held_out.items()}

    alone, replayed = learned("alone", 0.0), learned("replayed", 0.25)
    was = before.metrics["eval_loss"]
    assert alone["old"] > FORGOTTEN * was
    assert replayed["old"] < KEPT * was
    assert replayed["new"] < 0.2 * mean_loss(as_it_was(), held_out["new"]), "and the new one is learned"


@torch.no_grad()
def mean_loss(model: Any, rows: MemoryRows) -> float:
    taken = rows.take(range(len(rows)))
    return float(language_loss(plain_forward(model), taken)) / int(supervised_mask(taken).sum())
