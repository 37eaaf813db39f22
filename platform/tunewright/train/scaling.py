"""fp16's loss scale: which steps overflowed and were left out, and what a checkpoint keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunewright.errors import NonFiniteLoss
from tunewright.train.engine import Engine

KEPT = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What DeepSpeed's scaler decides by."""


class LossScale:
    """The scale that DeepSpeed multiplies an fp16 loss by; with other precisions there is none.

    A step whose scaled gradients overflow is left out by DeepSpeed, on every worker, and the scale
    halved; one that overflows at the smallest scale has gradients that are no numbers.

    Attributes:
        overflows: steps that were left out.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        scaler = getattr(engine.deepspeed.optimizer, "loss_scaler", None)
        self.scaler = scaler if getattr(scaler, "dynamic", False) else None
        self.overflows = 0
        if self.scaler is not None:
            self.scaler.raise_error_at_min_scale = False  # ours names the step
        self._before = self._now()

    def left_out(self, step: int) -> bool:
        """Whether the step that was just taken overflowed.

        Raises:
            NonFiniteLoss: it did at the smallest scale.
        """
        before, self._before = self._before, self._now()
        if self.scaler is None or not self.engine.deepspeed.optimizer.overflow:
            return False
        if before <= self.scaler.min_scale:
            raise NonFiniteLoss(step, "gradient norm")
        self.overflows += 1
        return True

    def figures(self) -> dict[str, float]:
        """For the metrics; nothing where there is no scale."""
        if self.scaler is None:
            return {}
        return {"loss_scale": self._now(), "overflows": self.overflows}

    def state(self) -> dict[str, Any]:
        """As JSON holds it."""
        kept = {name: getattr(self.scaler, name) for name in KEPT} if self.scaler is not None else {}
        return {"overflows": self.overflows, **kept}

    def restore(self, state: Mapping[str, Any], step: int) -> None:
        """Go on as after `step` steps; those that were left out are none that Adam has seen."""
        self.overflows = int(state["overflows"])
        if self.scaler is not None:
            for name in KEPT:
                setattr(self.scaler, name, state[name])
        self._before = self._now()
        self.engine.count_steps_from(step - self.overflows)

    def _now(self) -> float:
        return float(self.scaler.cur_scale) if self.scaler is not None else 1.0
