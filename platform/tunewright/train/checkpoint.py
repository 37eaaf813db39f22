"""Checkpoints: the trainable state, in safetensors and JSON, with a verified manifest.

    step-000040/trainable.safetensors   w/NAME fp32 weights, m/NAME and v/NAME Adam moments
    step-000040/state.json              step, identity of the run, figures to carry on
    step-000040/manifest.json           SHA-256 of both, written last

A checkpoint does not know how many workers wrote it. It becomes visible by one rename. A damaged
one is moved aside and the one before it is used; training never begins anew because all are
damaged. Knows nothing of Ray or DeepSpeed.
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

from tunewright.artifacts import (
    explain_os_error,
    explained,
    file_sha256,
    fsync,
    read_json,
    write_json,
)
from tunewright.errors import CheckpointCorrupt, StoreError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

TENSORS, STATE, MANIFEST = "trainable.safetensors", "state.json", "manifest.json"
DAMAGED, DAMAGED_LIST = "damaged", "damaged.txt"
REPLACED, REMOVED = ".replaced-", ".removed-"


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

    A process may be killed anywhere in it: the checkpoint is there whole or not at all, and those
    before it are untouched until it is.

    Args:
        spare: a step whose checkpoint is kept too, besides those; none if 0.
    Raises:
        StoreError: the disk is full or read-only; says which checkpoint training goes on from.
    """
    final = folder / f"step-{int(state['step']):06d}"
    writing = folder / f".writing-{final.name}-{os.getpid()}"
    try:
        _clear(folder)
        try:
            _write(tensors, state, writing)
            _show(writing, final)
        except BaseException:
            shutil.rmtree(writing, ignore_errors=True)
            _put_back(folder)
            raise
        spared = f"step-{spare:06d}" if spare else ""
        for old in [path for path in _checkpoints(folder) if path.name != spared][:-keep]:
            _remove(old)
    except OSError as error:
        there = [path.name for path in _checkpoints(folder)]
        then = f"training goes on from {there[-1]}" if there else "there was no checkpoint before it"
        raise StoreError(f"checkpoint {final.name}: {explain_os_error(error)}; {then}") from error
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
    """The newest undamaged checkpoint of a run; damaged ones are moved to `damaged/` with a warning.

    Raises:
        CheckpointCorrupt: there are some, and all are damaged. Steps that were paid for are not
            thrown away in silence: whether to begin anew is the user's decision.
    """
    with explained(f"checkpoints in {folder}"):
        _put_back(folder)
    for path in reversed(_checkpoints(folder)):
        try:
            return open_checkpoint(path)
        except CheckpointCorrupt as error:
            _set_aside(path, error)
    damaged = sorted(path.name for path in (folder / DAMAGED).glob("step-*"))
    if damaged:
        raise CheckpointCorrupt(
            f"no checkpoint of this training is undamaged: {', '.join(damaged)} in {folder / DAMAGED}. "
            f"Put a good copy of one into {folder}, or delete that folder to train from the beginning"
        )
    return None


def _set_aside(path: Path, error: CheckpointCorrupt) -> None:
    folder = path.parent
    aside = folder / DAMAGED
    with explained(f"damaged checkpoint {path.name}"):
        aside.mkdir(exist_ok=True)
        target = aside / f"{path.name}-{len(list(aside.iterdir()))}"
        path.rename(target)
        with (folder / DAMAGED_LIST).open("a", encoding="utf-8") as file:
            file.write(f"{target}: {error}\n")
    log.warning("checkpoint damaged, using the one before", extra={"reason": str(error)})


def _checkpoints(folder: Path) -> list[Path]:
    """Those that are to be seen, by step; by number, for a step of seven digits sorts before one of six."""
    found = [path for path in folder.glob("step-*") if path.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def _write(tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True)
    _write_tensors(tensors, folder / TENSORS)
    write_json(folder / STATE, dict(state))
    fsync(folder / TENSORS)
    write_json(folder / MANIFEST, {n: file_sha256(folder / n) for n in (TENSORS, STATE)})
    fsync(folder)


def _show(writing: Path, final: Path) -> None:
    """Give what was written its name; a folder cannot be renamed onto another, so that one steps aside."""
    if final.exists():  # the same step again, after a resume from an earlier one
        final.rename(final.with_name(REPLACED + final.name))
    writing.rename(final)
    fsync(final.parent)
    shutil.rmtree(final.with_name(REPLACED + final.name), ignore_errors=True)


def _put_back(folder: Path) -> None:
    """Give a checkpoint its name again whose successor did not come, because the process was killed."""
    for aside in folder.glob(f"{REPLACED}step-*"):
        final = aside.with_name(aside.name.removeprefix(REPLACED))
        if not final.exists():
            aside.rename(final)


def _remove(path: Path) -> None:
    """Delete a checkpoint; hidden first, so that a half-deleted one is never taken for a damaged one."""
    hidden = path.with_name(f"{REMOVED}{path.name}-{os.getpid()}")
    path.rename(hidden)
    shutil.rmtree(hidden)


def _clear(folder: Path) -> None:
    """Remove what a process that was killed while it saved has left."""
    _put_back(folder)
    for pattern in (".writing-*", f"{REMOVED}*", f"{REPLACED}*"):
        for left in folder.glob(pattern):
            shutil.rmtree(left)


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
