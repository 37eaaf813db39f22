"""What the model said of each document before training; preferences are measured against it.

Asked once, before the first step, of all rows of both splits. Kept in the work folder, so that a training
that is started again does not ask again; what it has of a try that was killed, it goes on from.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tunewright.artifacts import digest, explained, fsync
from tunewright.config.methods import Method, PrefixTuningConfig, PromptTuningConfig
from tunewright.errors import DataError, TrainError
from tunewright.train.bare import bare_forward, evaluating
from tunewright.train.checkpoint import disk_errors
from tunewright.train.forward import Forward
from tunewright.train.group import Group
from tunewright.train.heartbeat import moved
from tunewright.train.objectives.base import Objective, Places, Rows, count_documents, sums_by_document
from tunewright.train.streams import RowSource, Stream, take_padded

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

PASSES_PER_EXCHANGE = 8
"""Of each worker; then all know what each found."""
SECONDS_BETWEEN_SAVES = 60.0
Floats = npt.NDArray[np.float32]


@dataclass
class Ragged:
    """Some numbers for each row, another number of them for each.

    Attributes:
        values: of all rows, one row after another.
        counts: how many each row has.
    """

    values: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    counts: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))

    def __post_init__(self) -> None:
        self._ends = np.cumsum(self.counts, dtype=np.int64)
        assert len(self.values) == (self._ends[-1] if len(self._ends) else 0)

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, row: int) -> Floats:
        end = self._ends[row]
        return self.values[end - self.counts[row] : end]

    def followed_by(self, others: Iterable[Ragged]) -> Ragged:
        """One of all the rows, these first."""
        every = [self, *others]
        return Ragged(np.concatenate([r.values for r in every]), np.concatenate([r.counts for r in every]))


@dataclass(frozen=True)
class Reference:
    """Sums of log-probabilities by document, of all rows of both splits.

    Attributes:
        train, eval: each row's sums, documents in their order in the row.
        other_train, other_eval: the same of the rows of the objective's first pass, if it has one.
    """

    train: Ragged
    eval: Ragged
    other_train: Ragged = field(default_factory=Ragged)
    other_eval: Ragged = field(default_factory=Ragged)


def untrained(trained: Any, method: Method, goes_on: bool) -> Any:
    """The model as it was before training, of one that a method has just been put on.

    That is the same one: what a method adds changes nothing yet, but for virtual tokens.

    Args:
        goes_on: the method's weights are those of an earlier training, and so belong to it.
    """
    if isinstance(method, PromptTuningConfig | PrefixTuningConfig) and not goes_on:
        return trained.get_base_model()
    return trained


def with_references(
    streams: Sequence[Stream],
    model: Any,
    device: torch.device,
    dtype: torch.dtype,
    work: Path,
    identity: str,
    size: int,
) -> list[Stream]:
    """The streams, those whose objective needs it with what the model says of their rows.

    Every worker asks about its share of the rows, and has what all found in the end; collective. The
    passes, and with them the bits, are the same for any number of workers.

    Args:
        model: whole on every worker, as it was before training.
        work: folder of the training; the references are kept there.
        identity: of what decides them; others that are kept there are not used.
        size: rows a pass.
    Raises:
        DataError: rows are not what an objective learns from.
        TrainError: the model says something that is not a number.
        StoreError: what was found cannot be kept.
    """
    if not any(stream.objective.needs_reference for stream in streams):
        return list(streams)
    row_length = streams[0].rows.take([0])["input_ids"].shape[1]
    forward, group = bare_forward(model.to(device), device, dtype, row_length), Group(device)
    out = []
    with evaluating(model):
        for stream in streams:
            if stream.objective.needs_reference:
                name = stream.name or "main"
                # Another precision or other passes would give other bits, and a resume is bit-identical.
                decided_by = digest([identity, name, str(dtype), size])
                kept = Kept(work / f"reference-{name}.safetensors", decided_by)
                stream = replace(stream, reference=_reference(stream, forward, group, kept, size))
            out.append(stream)
    return out


def _reference(stream: Stream, forward: Forward, group: Group, kept: Kept, size: int) -> Reference:
    found: dict[str, Ragged] = group.told(kept.read() if group.leads else None)
    for asked in _asked(stream):
        begun, saved = time.monotonic(), time.monotonic()
        known = found.get(asked.name, Ragged())
        new: list[Ragged] = []
        for rows_known, pieces in _answers(asked, forward, group, size, len(known)):
            new += pieces
            if group.leads and time.monotonic() - saved >= SECONDS_BETWEEN_SAVES:
                saved = time.monotonic()
                known, new = known.followed_by(new), []
                kept.write({**found, asked.name: known})
                log.info("reference", extra={"rows": rows_known, "of": len(asked.rows), "what": asked.name})
        found[asked.name] = known.followed_by(new)
        if group.leads and new:
            kept.write(found)
            seconds = round(time.monotonic() - begun, 1)
            log.info("reference", extra={"rows": len(asked.rows), "what": asked.name, "seconds": seconds})
    return Reference(**found)


@dataclass(frozen=True)
class _Asked:
    """Rows that the model is asked about.

    Attributes:
        name: of the field of `Reference`.
        change: what is asked about instead of a row, if anything is.
    """

    name: str
    objective: Objective
    rows: RowSource
    change: Callable[[Rows], Rows] | None = None


def _asked(stream: Stream) -> Iterator[_Asked]:
    objective = stream.objective
    yield _Asked("train", objective, stream.rows)
    yield _Asked("eval", objective, stream.eval_rows)
    if objective.first_pass is not None:
        yield _Asked("other_train", objective, stream.rows, objective.first_pass.rows)
        yield _Asked("other_eval", objective, stream.eval_rows, objective.first_pass.rows)


def _answers(
    asked: _Asked, forward: Forward, group: Group, size: int, known: int
) -> Iterator[tuple[int, list[Ragged]]]:
    """What follows the first `known` rows: how many are known then, and the pieces in between."""
    passes = math.ceil(len(asked.rows) / size)
    each = PASSES_PER_EXCHANGE * group.world
    for first in range(math.ceil(known / size), passes, each):
        end = min(first + each, passes)
        mine = range(first + group.rank, end, group.world)
        every = _told_by_all({number: _pass(asked, forward, number * size, size) for number in mine})
        yield min(end * size, len(asked.rows)), [every[number] for number in range(first, end)]


def _pass(asked: _Asked, forward: Forward, first: int, size: int) -> Ragged:
    """The sums of rows `first` to `first + size`, as far as there are any."""
    import torch

    indices, rows = take_padded(asked.rows, first, size)
    where = f"rows {indices[0]} to {indices[-1]} of {asked.name.removeprefix('other_')}"
    try:
        asked.objective.units(rows)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    if asked.change is not None:
        rows = asked.change(rows)
    places = Places.of(asked.objective.places(rows))
    with torch.no_grad():
        logps_N, _ = forward.logps(rows, places)
        sums_D = sums_by_document(logps_N, rows, places)
    moved()
    values: Floats = sums_D.float().cpu().numpy()
    if not np.isfinite(values).all():
        raise TrainError(
            f"{where}: the base model's log-probabilities are not finite, so nothing can be measured against "
            f"them; look at its weights, or set train.precision to fp32"
        )
    counts = rows["segment_ids"].max(axis=1, initial=0)[: len(indices)].astype(np.int32)
    assert count_documents(rows) == counts.sum(), "padding has no documents"
    return Ragged(values, counts)


def _told_by_all(mine: dict[int, Ragged]) -> dict[int, Ragged]:
    """What each worker found, together."""
    import torch.distributed as dist

    if dist.get_world_size() == 1:
        return mine
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, mine)
    return {number: ragged for found in every for number, ragged in found.items()}


@dataclass(frozen=True)
class Kept:
    """A reference on disk: as much of it as is known, with a hash of it and of what it belongs to."""

    path: Path
    identity: str

    def write(self, found: dict[str, Ragged]) -> None:
        """Replace the file, durably; readers see the old one or the new.

        Raises:
            StoreError: the disk is full or read-only.
        """
        from safetensors.numpy import save_file

        tensors: dict[str, npt.NDArray[Any]] = {}
        for name, ragged in found.items():
            tensors |= {f"{name}/values": ragged.values, f"{name}/counts": ragged.counts}
        facts = {"identity": self.identity, "sha256": _hash(tensors)}
        writing = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        with explained(f"writing {self.path.name}"):
            try:
                with disk_errors(writing):
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    save_file(tensors, writing, metadata=facts)
                fsync(writing)
                writing.replace(self.path)
                fsync(self.path.parent)
            except BaseException:
                writing.unlink(missing_ok=True)
                raise

    def read(self) -> dict[str, Ragged]:
        """What is known; nothing if the file is not there, damaged or of another training."""
        from safetensors import SafetensorError, safe_open

        if not self.path.is_file():
            return {}
        try:
            with explained(f"reading {self.path.name}"), safe_open(self.path, "np") as file:
                facts = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
        except SafetensorError as error:
            log.warning("reference damaged, asking again", extra={"path": self.path.name, "why": str(error)})
            return {}
        if facts.get("identity") != self.identity:
            log.info("reference of another training, asking again", extra={"path": self.path.name})
            return {}
        if facts.get("sha256") != _hash(tensors):
            log.warning("reference damaged, asking again", extra={"path": self.path.name, "why": "SHA-256"})
            return {}
        names = sorted({name.partition("/")[0] for name in tensors})
        return {name: Ragged(tensors[f"{name}/values"], tensors[f"{name}/counts"]) for name in names}


def _hash(tensors: dict[str, npt.NDArray[Any]]) -> str:
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(f"{name} {len(tensors[name])} ".encode() + tensors[name].tobytes())
    return sha.hexdigest()
