"""One file describes a run: the top of the schema."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, model_validator

from tunewright.config.base import Config
from tunewright.config.data import DataConfig
from tunewright.config.evaluate import EvaluateConfig
from tunewright.config.new_tokens import check_new_tokens
from tunewright.config.objectives import LANGUAGE_OBJECTIVES, SideTask
from tunewright.config.serve import ServeConfig
from tunewright.config.stages import Described, EarlierStage, check_trainings, trainings_of
from tunewright.config.sweep import SweepConfig
from tunewright.config.train import BaseModelConfig, TrainConfig


class RunConfig(Config):
    """A run: from raw rows to an endpoint."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    """Names the run's folder and the registered model."""
    store: str | None = None
    """Folder of artifacts, runs and the registry; shared by all nodes.
    `$TUNEWRIGHT_STORE`, else `~/.tunewright`, when left out."""
    seed: int = Field(17, ge=0)
    base: BaseModelConfig
    data: DataConfig
    train: TrainConfig
    tasks: tuple[SideTask, ...] = ()
    """More rows, learned beside those of `data` in the same run."""
    stages: tuple[EarlierStage, ...] = ()
    """Trainings before the main one, each from what the one before it came to."""
    sweep: SweepConfig | None = None
    evaluate: EvaluateConfig = EvaluateConfig()
    serve: ServeConfig | None = None

    @property
    def store_root(self) -> Path:
        return default_store_root() if self.store is None else Path(self.store).expanduser()

    @property
    def trainings(self) -> list[Described]:
        """All trainings in order, the main one last."""
        return trainings_of(self.stages, self.data, self.train, self.tasks)

    @model_validator(mode="after")
    def _trainings_follow_on_each_other(self) -> RunConfig:
        check_trainings(self.trainings)
        check_new_tokens(self.base, self.trainings)
        return self

    @model_validator(mode="after")
    def _answers_where_it_is_asked(self) -> RunConfig:
        objective = self.train.objective
        if objective in LANGUAGE_OBJECTIVES:
            return self
        if self.serve is not None:
            raise ValueError(
                f"serve: the endpoint answers with text, and objective {objective} trains a model that gives "
                f"scores; leave serve out, and open the result with PEFT or transformers"
            )
        if self.evaluate.tasks:
            raise ValueError(
                f"evaluate.tasks: they are answered with text, and objective {objective} trains a model that "
                f"gives scores; leave them out, its figures are measured on the evaluation rows in training"
            )
        return self


def default_store_root() -> Path:
    """`$TUNEWRIGHT_STORE`, else `~/.tunewright`."""
    return Path(os.environ.get("TUNEWRIGHT_STORE") or "~/.tunewright").expanduser()
