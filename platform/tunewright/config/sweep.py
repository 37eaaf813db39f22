"""`sweep:` which hyperparameters are tried, how many times, and what decides."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tunewright.config.base import Config


class SweepConfig(Config):
    """`sweep:` chooses hyperparameters; `train` then goes on from the best trial's checkpoint."""

    space: str
    """A YAML file of tune_spaces/; relative to the run's YAML file or the working directory."""
    trials: int = Field(4, ge=1)
    scheduler: Literal["asha", "fifo"] = "asha"
    """`asha` stops trials that fall behind; `fifo` runs each to the end."""
    metric: str = "exact_match"
    """`exact_match` of the task on validation rows, `eval_loss`, or another figure of the objective's
    evaluation, such as `eval_accuracy`."""
    mode: Literal["max", "min"] = "max"
    max_steps: int | None = Field(None, ge=2)
    """Steps a trial may take; the whole of training when left out."""
    grace_steps: int | None = Field(None, ge=1)
    """Steps before a trial may be stopped; a third of `max_steps` when left out."""
    reduction_factor: int = Field(2, ge=2)
    """ASHA keeps the best 1/reduction_factor of the trials at each rung."""
    eval_rows: int = Field(64, ge=1)
    """Validation conversations generated for at each report."""
    workers: int = Field(1, ge=1)
    """Training workers of one trial."""
    max_concurrent_trials: int | None = Field(None, ge=1)
    """At most what the cluster holds; computed from its free resources when left out."""

    @model_validator(mode="after")
    def _loss_goes_down(self) -> SweepConfig:
        if self.metric == "eval_loss" and self.mode == "max":
            raise ValueError("metric eval_loss needs mode: min")
        return self
