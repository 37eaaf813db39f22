"""The tasks of one training: the rows of each, what they teach, and the micro batches they are mixed in.

B rows, S tokens per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from tunewright.data.rows import NO_LABEL
from tunewright.data.shards import PackedRows
from tunewright.train.objectives.base import Mask, Objective, Rows

if TYPE_CHECKING:
    from tunewright.train.reference import Reference

Index = npt.NDArray[np.int64]
MODEL_COLUMNS = ("input_ids", "segment_ids", "position_ids", "loss_mask")


class RowSource(Protocol):
    """Rows by index, as `PackedRows` gives them."""

    def __len__(self) -> int: ...

    def take(self, indices: Sequence[int]) -> Rows: ...


@dataclass(frozen=True)
class Stream:
    """One task.

    Attributes:
        name: of a side task; the main task has none.
        share: of the rows of the global batches.
        reference: what the model said of the rows before training, if the objective needs it.
    """

    name: str
    objective: Objective
    rows: RowSource | PackedRows
    eval_rows: RowSource | PackedRows
    share: float = 1.0
    reference: Reference | None = None

    def named(self, figure: str) -> str:
        """The figure's name among those of the run."""
        return f"{figure}/{self.name}" if self.name else figure


@dataclass(frozen=True)
class Part:
    """Rows of one task in a micro batch.

    Attributes:
        task: which of the streams.
        indices: (B,) of the rows in their stream; those behind `indices` are padding.
    """

    task: int
    indices: Index
    rows: Rows


@dataclass(frozen=True)
class Micro:
    """A micro batch: the rows of one task after those of another."""

    parts: tuple[Part, ...]

    @property
    def rows(self) -> Rows:
        """(B, S) all of them, as the model sees them."""
        if len(self.parts) == 1:
            return self.parts[0].rows
        columns = {name: [part.rows[name] for part in self.parts] for name in MODEL_COLUMNS}
        return {name: np.concatenate(values) for name, values in columns.items()}

    @property
    def keys(self) -> list[int]:
        """A number for each row that no other row of the training has; all padding shares one."""
        out: list[int] = []
        for part in self.parts:
            out += [int(index) + (part.task << 40) for index in part.indices]
            out += [-1] * (len(part.rows["segment_ids"]) - len(part.indices))
        return out


def take(streams: Sequence[Stream], tasks_B: Index, indices_B: Index) -> Micro:
    """The named rows, those of a task together; an index of -1 is an empty row, behind the task's others."""
    parts = []
    for task in np.unique(tasks_B):
        chosen = indices_B[tasks_B == task]
        rows = streams[task].rows.take(np.maximum(chosen, 0).tolist())
        parts.append(Part(int(task), chosen[chosen >= 0], _emptied(rows, chosen < 0)))
    return Micro(tuple(parts))


def take_padded(rows: RowSource, first: int, size: int) -> tuple[Index, Rows]:
    """Rows `first` to `first + size`; what is behind the last row is empty. The numbers of the others too."""
    indices = np.arange(first, first + size)
    inside = indices < len(rows)
    taken = rows.take(np.minimum(indices, len(rows) - 1).tolist())
    return indices[inside], _emptied(taken, ~inside)


def _emptied(rows: Rows, empty_B: Mask) -> Rows:
    """The rows, some of which are nothing but padding."""
    for name, value in (("segment_ids", 0), ("loss_mask", 0), ("labels", NO_LABEL)):
        if name in rows:
            rows[name][empty_B] = value
    return rows
