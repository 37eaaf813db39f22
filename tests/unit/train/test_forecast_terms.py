"""What DeepSpeed holds beside the passes is forecast from its code; real engines hold the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine_storages import Found, found
from loops import on_two_workers
from tunewright.train.forecast.memory import Setting, Traced, in_exchange, in_passes, in_step, memory

pytestmark = [
    # DeepSpeed's, of its use of torch.
    pytest.mark.filterwarnings("ignore:`torch.distributed:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]
TOLERANCE = 0.02
ACTIVATIONS = 0.2
"""Bytes a parameter that the short rows of these engines hold at most."""


def assert_as_forecast(seen: Found, setting: Setting) -> None:
    sizes = seen.sizes
    held = memory(setting, sizes, Traced(0, 0))
    assert held.weights + held.optimizer == pytest.approx(seen.held, rel=TOLERANCE)
    every = {
        "passes": in_passes(setting, sizes),
        "exchange": in_exchange(setting, sizes),
        "step": in_step(setting, sizes),
    }
    for name, moment in every.items():
        more = getattr(seen, name) - moment.gradients - moment.buffers
        if (setting.stage, name) == (1, "passes"):
            more -= setting.bytes_each * sizes.trained  # a bucket that nothing was written to yet
        bound = TOLERANCE * seen.held + ACTIVATIONS * sizes.total
        assert abs(more) <= bound, f"{name}: {more / sizes.trained:+.2f} bytes a parameter more than forecast"


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_an_engine_holds_what_is_forecast(one_worker: None, stage: int, precision: str) -> None:
    assert_as_forecast(found(0, (stage, precision)), Setting(stage, 2 if precision == "bf16" else 4))


def found_by_each(rank: int, case: tuple[int, str]) -> Found:
    return found(rank, case)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_engines_divide_what_is_forecast(stage: int, tmp_path: Path) -> None:
    every = on_two_workers(found_by_each, (stage, "bf16"), tmp_path)
    for seen in every:
        assert_as_forecast(seen, Setting(stage, 2, workers=2))
    assert len(every) == 2
