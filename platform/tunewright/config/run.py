"""One file describes a run: the top of the schema."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field

from tunewright.config.base import Config
from tunewright.config.data import DataConfig
from tunewright.config.evaluate import EvaluateConfig
from tunewright.config.serve import ServeConfig
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
    sweep: SweepConfig | None = None
    evaluate: EvaluateConfig = EvaluateConfig()
    serve: ServeConfig | None = None

    @property
    def store_root(self) -> Path:
        return default_store_root() if self.store is None else Path(self.store).expanduser()


def default_store_root() -> Path:
    """`$TUNEWRIGHT_STORE`, else `~/.tunewright`."""
    return Path(os.environ.get("TUNEWRIGHT_STORE") or "~/.tunewright").expanduser()
