"""Checkpoints: the trainable state, in safetensors and JSON, with a verified manifest.

    step-000040/trainable.safetensors   w/NAME fp32 weights, m/NAME and v/NAME Adam moments
    step-000040/state.json              step, identity of the run, figures to carry on
    step-000040/manifest.json           SHA-256 of both, written last

A checkpoint does not know how many workers wrote it. It becomes visible by one rename. A damaged
one is moved aside and the one before it is used. Knows nothing of Ray or DeepSpeed.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.artifacts import explained, file_sha256, fsync, read_json, write_json
from tunewright.errors import CheckpointCorrupt

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

TENSORS, STATE, MANIFEST = "trainable.safetensors", "state.json", "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])

    def tensors(self) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        return load_file(self.path / TENSORS)


def save_checkpoint(
    folder: Path, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any], keep: int, spare: int = 0
) -> Path:
    """Write the checkpoint of `state["step"]`, durable when this returns; keeps the last `keep`.

    Args:
        spare: a step whose checkpoint is kept too, besides those; none if 0.
    Raises:
        StoreError: the disk is full or read-only; earlier checkpoints are untouched.
    """
    final = folder / f"step-{int(state['step']):06d}"
    writing = folder / f".writing-{final.name}-{os.getpid()}"
    with explained(f"checkpoint {final.name}"):
        for left in folder.glob(".writing-*"):  # by a worker that was killed while it wrote
            shutil.rmtree(left)
        try:
            writing.mkdir(parents=True)
            _write_tensors(tensors, writing / TENSORS)
            write_json(writing / STATE, dict(state))
            fsync(writing / TENSORS)
            write_json(writing / MANIFEST, {n: file_sha256(writing / n) for n in (TENSORS, STATE)})
            if final.exists():  # the same step again, after a resume from an earlier one
                shutil.rmtree(final)
            writing.rename(final)
        except BaseException:
            shutil.rmtree(writing, ignore_errors=True)
            raise
        spared = f"step-{spare:06d}" if spare else ""
        for old in [path for path in sorted(folder.glob("step-*")) if path.name != spared][:-keep]:
            shutil.rmtree(old)
    return final


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in `path`, verified.

    Raises:
        CheckpointCorrupt: a file is missing or differs; names it.
    """
    try:
        manifest = read_json(path / MANIFEST)
        for name in (TENSORS, STATE):
            if file_sha256(path / name) != manifest[name]:
                raise CheckpointCorrupt(f"{path / name} does not match its SHA-256")
        return Checkpoint(path, read_json(path / STATE))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointCorrupt(f"{path}: {error}") from error


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest undamaged checkpoint of a run; damaged ones are moved to `damaged/` with a warning."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            return open_checkpoint(path)
        except CheckpointCorrupt as error:
            aside = folder / "damaged"
            aside.mkdir(exist_ok=True)
            target = aside / f"{path.name}-{len(list(aside.iterdir()))}"
            path.rename(target)
            log.warning("checkpoint damaged, using the one before", extra={"reason": str(error)})
            with (folder / "damaged.txt").open("a", encoding="utf-8") as file:
                file.write(f"{target}: {error}\n")
    return None


def _write_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    with disk_errors(path):
        save_file(dict(tensors), path)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """A full disk, which safetensors tells in an error of its own, as the `OSError` that it is."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
