"""Classify, tag and reward with a real DeepSpeed engine: they learn, the same however they are split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from headed import OBJECTIVES, headed
from loops import Trained, Training, on_two_workers, train
from tunewright.config import TrainConfig

pytestmark = [
    pytest.mark.usefixtures("one_worker"),
    # DeepSpeed's:
    pytest.mark.filterwarnings("ignore:`torch.distributed:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]

OTHER_SPLIT_TOLERANCE = 1e-6
"""Relative, fp32: sums of another split are taken in another order."""
LORA = {"type": "lora", "rank": 4, "dropout": 0.2}


def run(
    work: Path,
    objective: str,
    dtype: torch.dtype = torch.float32,
    stop_step: int | None = None,
    **values: Any,
) -> Trained:
    rows, _, labels = OBJECTIVES[objective]
    shape = {"max_steps": 4, "global_batch_size": 4, "micro_batch_size": 2, "logging_steps": 1}
    config = TrainConfig.model_validate(
        {**shape, "objective": objective, "learning_rate": 3e-3, "method": LORA, **values}
    )
    return train(
        Training(
            config,
            work,
            model=lambda: headed(objective),
            rows=rows(64, seed=7),
            eval_rows=rows(3, seed=8),
            labels=labels,
            stop_step=stop_step,
            dtype=dtype,
        )
    )


def figures(trained: Trained) -> list[dict[str, float]]:
    """What does not depend on the clock."""
    return [{k: v for k, v in f.items() if k not in ("tokens_per_s", "eta_s")} for f in trained.figures]


def evaluated(trained: Trained) -> dict[str, float]:
    return {k: v for k, v in trained.figures[-1].items() if k.startswith("eval_")}


@pytest.mark.parametrize(
    ("objective", "figure", "chance"),
    [("classify", "eval_accuracy", 0.6), ("tag", "eval_f1", 0.3), ("reward", "eval_accuracy", 0.75)],
)
def test_it_learns(tmp_path: Path, objective: str, figure: str, chance: float) -> None:
    method = {"type": "lora", "rank": 8}
    untaught = run(tmp_path / "untaught", objective, method=method, learning_rate=1e-12, max_steps=1)
    taught = run(tmp_path / "taught", objective, method=method, learning_rate=2e-2, max_steps=32)
    before, after = evaluated(untaught), evaluated(taught)
    assert before[figure] < chance < 0.9 < after[figure]
    assert after["eval_loss"] < before["eval_loss"] / 3


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_micro_batch_changes_neither_losses_nor_weights(tmp_path: Path, objective: str) -> None:
    runs = [run(tmp_path / str(size), objective, micro_batch_size=size) for size in (1, 2, 4)]
    for other in runs[1:]:
        assert list(other.losses.values()) == pytest.approx(
            list(runs[0].losses.values()), rel=OTHER_SPLIT_TOLERANCE
        )
        norms = [[f["grad_norm"] for f in each.figures] for each in (other, runs[0])]
        assert norms[0] == pytest.approx(norms[1], rel=10 * OTHER_SPLIT_TOLERANCE)
        for name, weight in runs[0].outcome.weights.items():
            torch.testing.assert_close(other.outcome.weights[name], weight, rtol=1e-3, atol=1e-5)
        assert evaluated(other) == pytest.approx(evaluated(runs[0]), rel=1e-4)


RUNS: list[dict[str, Any]] = [
    {"objective": "classify", "label_smoothing": 0.1, "zero": {"stage": 2}},
    {"objective": "tag", "method": {"type": "full"}, "zero": {"stage": 3}},  # with dropout before its head
    {"objective": "reward", "zero": {"stage": 3}},
    {"objective": "classify", "method": {"type": "ia3"}, "zero": {"stage": 3}},
    {"objective": "tag", "method": {"type": "freeze", "last_blocks": 1}, "zero": {"stage": 0}},
]


def trained_on(rank: int, work: str) -> Any:
    """For `on_two_workers`: losses, figures and weights of the runs."""
    out = []
    for number, values in enumerate(RUNS):
        one = run(Path(work) / str(number), **{**values, "max_steps": 3})
        out.append((one.losses, evaluated(one), one.outcome.weights))
    return out


def test_two_workers_see_what_one_sees_with_partitioned_heads_too(tmp_path: Path) -> None:
    two = on_two_workers(trained_on, str(tmp_path / "two"), tmp_path)
    one = trained_on(0, str(tmp_path / "one"))
    for (losses, measured, weights), *others in zip(one, *two, strict=True):
        assert len(losses) == 3 and any("score" in name for name in weights)
        for other_losses, other_measured, other_weights in others:
            assert list(other_losses.values()) == pytest.approx(
                list(losses.values()), rel=OTHER_SPLIT_TOLERANCE
            )
            assert other_measured == pytest.approx(measured, rel=1e-4)
            for name, weight in weights.items():
                torch.testing.assert_close(other_weights[name], weight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("zero", [0, 2])
def test_a_run_that_was_stopped_goes_on_bit_identically(tmp_path: Path, objective: str, zero: int) -> None:
    values: dict[str, Any] = {"zero": {"stage": zero}, "max_steps": 5, "eval_steps": 1}
    whole = run(tmp_path / "whole", objective, **values)
    first = run(tmp_path / "halves", objective, stop_step=2, **values)
    second = run(tmp_path / "halves", objective, **values)
    assert (first.outcome.step, second.outcome.began_at, second.outcome.step) == (2, 2, 5)
    assert figures(second) == figures(whole)[2:]
    for name, weight in whole.outcome.weights.items():
        assert torch.equal(weight, second.outcome.weights[name]), name


def test_the_head_of_a_model_in_bf16_learns_in_fp32(tmp_path: Path) -> None:
    learned = run(tmp_path, "classify", torch.bfloat16)
    (head,) = (weight for name, weight in learned.outcome.weights.items() if "score" in name)
    assert head.dtype == torch.float32 and not torch.equal(head, head.bfloat16().float())
    assert learned.losses[4] == pytest.approx(run(tmp_path / "fp32", "classify").losses[4], rel=0.05)
