"""Checkpoints of a running training: when they are due, which are kept, where to go on from."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.artifacts import explained
from tunewright.config import TrainConfig
from tunewright.errors import ResumeMismatch
from tunewright.train.checkpoint import Checkpoint, latest_checkpoint, open_checkpoint, save_checkpoint
from tunewright.train.engine import Engine
from tunewright.train.group import Group

if TYPE_CHECKING:
    import torch


class Saver:
    """Writes and finds the checkpoints of one training, in lock step with the other workers.

    Args:
        folder: where they are; visible to all workers.
        identity: of what decides the weights; a checkpoint of another is refused.
        start: a checkpoint to begin from when there is none in `folder`.
    """

    def __init__(
        self,
        config: TrainConfig,
        engine: Engine,
        group: Group,
        folder: Path,
        identity: str,
        start: Path | None = None,
    ):
        self.config, self.engine, self.group = config, engine, group
        self.folder, self.identity, self.start = folder, identity, start
        self._saved_at = time.monotonic()

    def minutes_due(self) -> bool:
        """Whether `save_minutes` have gone by; by worker 0's clock, which the others are told of."""
        minutes = self.config.save_minutes
        if minutes is None or not self.group.leads:
            return False
        return time.monotonic() - self._saved_at >= 60 * minutes

    def save(self, step: int, state: Mapping[str, Any], best_step: int) -> None:
        """Write the engine's state; the last few checkpoints and the best one are kept."""
        tensors = self.engine.trainable_state()
        if self.group.leads:
            content = {"step": step, "identity": self.identity, "world": self.group.world, **state}
            save_checkpoint(self.folder, tensors, content, self.config.keep_checkpoints, spare=best_step)
        self._saved_at = time.monotonic()
        self.group.wait()  # nobody reports a step whose checkpoint may not exist yet

    def find(self) -> Checkpoint | None:
        """The training's newest checkpoint, else the one to start from, else None.

        Worker 0 looks, and moves damaged ones aside; the others open what it found.

        Raises:
            CheckpointCorrupt: all of the training's own are damaged.
            ResumeMismatch: it belongs to another training.
        """
        found = None
        if self.group.leads:
            own = latest_checkpoint(self.folder)
            found = str(own.path) if own else str(self.start) if self.start else None
        found = self.group.told(found)
        if found is None:
            return None
        checkpoint = open_checkpoint(Path(found))
        if checkpoint.state["identity"] != self.identity:
            raise ResumeMismatch(
                f"{checkpoint.path} was made with other data, another base or other hyperparameters; "
                f"training does not go on from it"
            )
        return checkpoint

    def best(self, step: int) -> Checkpoint:
        """The checkpoint of the best step.

        Raises:
            CheckpointCorrupt: it is damaged or gone.
        """
        return open_checkpoint(self._path(step))

    def has(self, step: int) -> bool:
        """Whether there is a checkpoint of the step among the training's own."""
        return bool(self.group.told(self._path(step).is_dir()))

    def adopt(self, checkpoint: Checkpoint) -> None:
        """Have a copy of the checkpoint that training starts from among its own."""
        if self.group.leads:
            writing = self.folder / f".writing-{checkpoint.path.name}"
            with explained(f"checkpoint {checkpoint.path.name}"):
                shutil.copytree(checkpoint.path, writing, dirs_exist_ok=True)
                writing.rename(self._path(checkpoint.step))
        self.group.wait()

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"


def weights_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights in an engine's state, by the parameters' names."""
    return {name[2:]: value for name, value in tensors.items() if name.startswith("w/")}
