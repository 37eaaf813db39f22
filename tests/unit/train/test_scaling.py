"""fp16's loss scale, weights kept elsewhere, other numbers of workers: training goes on as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loops import Training, on_two_workers, train
from tunewright.config import TrainConfig
from tunewright.config.train import ZeroConfig
from tunewright.errors import NonFiniteLoss

pytestmark = [
    pytest.mark.usefixtures("one_worker"),
    # DeepSpeed's:
    pytest.mark.filterwarnings("ignore:`torch.distributed:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]

OTHER_WORLD_TOLERANCE = 1e-6
"""Relative, fp32: sums over another number of workers are taken in another order."""


def config(**values: Any) -> TrainConfig:
    shape = {"max_steps": 8, "global_batch_size": 4, "micro_batch_size": 2, "logging_steps": 1}
    method = {"type": "lora", "rank": 4, "dropout": 0.3}
    return TrainConfig.model_validate({**shape, "learning_rate": 3e-3, "method": method, **values})


def too_large(built: Any) -> None:
    """A scale at which the gradients of the first steps leave fp16's range."""
    built.deepspeed.optimizer.loss_scaler.cur_scale = 2.0**20


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_steps_that_overflow_are_counted_left_out_and_remembered(tmp_path: Path, stage: int) -> None:
    asked = config(precision="fp16", zero={"stage": stage})
    half = {"dtype": torch.float16}
    whole = train(Training(asked, tmp_path / "whole", change_engine=too_large, **half))  # type: ignore[arg-type]
    overflows = [int(f["overflows"]) for f in whole.figures]
    assert 2 <= overflows[2] == overflows[1] + 1, "the third step is left out too"
    assert overflows[-1] < 8, "and the last ones are not"
    assert ["grad_norm" in f for f in whole.figures] == [
        now == before for now, before in zip(overflows, [0, *overflows[:-1]], strict=True)
    ]
    first = train(Training(asked, tmp_path / "x", change_engine=too_large, stop_step=3, **half))  # type: ignore[arg-type]
    second = train(Training(asked, tmp_path / "x", **half))  # type: ignore[arg-type]
    assert first.losses | second.losses == whole.losses
    assert [f["loss_scale"] for f in second.figures] == [f["loss_scale"] for f in whole.figures[3:]]
    for name, weight in whole.outcome.weights.items():
        assert torch.equal(weight, second.outcome.weights[name]), name


def test_a_step_that_overflows_at_the_smallest_scale_ends_training(tmp_path: Path) -> None:
    def change(built: Any) -> None:
        built.deepspeed.optimizer.loss_scaler.cur_scale = 2.0
        seen = []

        def spoil(gradient: torch.Tensor) -> torch.Tensor:
            seen.append(1)
            return gradient * float("inf") if len(seen) > 4 else gradient

        built.named[0][1].register_hook(spoil)

    # The second step overflows, which DeepSpeed forgives once; the third halves the scale, to 1.
    with pytest.raises(NonFiniteLoss, match="non-finite gradient norm at step 4"):
        train(Training(config(precision="fp16"), tmp_path, dtype=torch.float16, change_engine=change))


def test_other_precisions_have_no_scale(tmp_path: Path) -> None:
    run = train(Training(config(max_steps=1), tmp_path))
    assert "loss_scale" not in run.figures[0] and "grad_norm" in run.figures[0]


@pytest.mark.parametrize("stage", [2, 3])
def test_what_is_kept_elsewhere_is_saved_and_comes_back(tmp_path: Path, stage: int) -> None:
    zero = ZeroConfig(
        stage=stage,  # type: ignore[arg-type]
        offload_optimizer=True,
        offload_params=stage == 3,
        stage3_param_persistence_threshold=0,
    )
    # Refused without a GPU, where it is of no use; what it does to checkpoints is the same.
    asked = config().model_copy(update={"zero": zero})
    plain = train(Training(config(zero={"stage": stage}), tmp_path / "plain"))
    train(Training(asked, tmp_path / "kept", stop_step=3))
    kept = train(Training(asked, tmp_path / "kept"))
    assert kept.outcome.began_at == 3
    assert list(kept.losses.values()) == pytest.approx(list(plain.losses.values())[3:], rel=1e-6)


def part(rank: int, arguments: tuple[str, int]) -> dict[int, dict[int, float]]:
    """For `on_two_workers`: stage -> the losses of a training up to a step."""
    work, stop = arguments
    out = {}
    for stage in (2, 3):
        zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
        asked = config(max_steps=9, neftune_alpha=5.0, zero=zero)
        out[stage] = train(Training(asked, Path(work) / str(stage), stop_step=stop)).losses
    return out


def test_two_workers_then_one_then_two_take_the_same_steps(tmp_path: Path) -> None:
    work = str(tmp_path / "work")
    parts = [
        on_two_workers(part, (work, 3), tmp_path / "a")[0],
        part(0, (work, 6)),
        on_two_workers(part, (work, 9), tmp_path / "b")[0],
    ]
    whole = part(0, (str(tmp_path / "whole"), 9))
    for stage, losses in whole.items():
        seen = parts[0][stage] | parts[1][stage] | parts[2][stage]
        assert list(seen) == list(losses) == list(range(1, 10))
        assert list(seen.values()) == pytest.approx(list(losses.values()), rel=OTHER_WORLD_TOLERANCE)
