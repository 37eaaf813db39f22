"""Which rows, documents and tokens of a run a certificate looks at; few, and the same ones each time.

B rows, S tokens per row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from tunewright.data.rows import NO_LABEL
from tunewright.data.shards import positions
from tunewright.train.objectives.base import Rows
from tunewright.train.streams import RowSource, Stream

if TYPE_CHECKING:
    from tunewright.train.reference import Reference

PADDING = {"segment_ids": 0, "loss_mask": 0, "input_ids": 0, "labels": NO_LABEL}


@dataclass(frozen=True)
class Subject:
    """A task, as the certificate looks at it.

    Attributes:
        rows_of: the kind of its rows, as `facts["task"]` of the data has it.
        folder: of the data artifact.
    """

    stream: Stream
    rows_of: str
    folder: Path

    @property
    def told(self) -> str:
        """What comes before a sentence about this task."""
        return f"task {self.stream.name}: " if self.stream.name else ""


def spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers below `count`, evenly spaced: 10, 4 -> [0, 2, 5, 7]."""
    taken = min(count, most)
    return [number * count // taken for number in range(taken)]


def segments_of(segments_S: Any) -> list[slice]:
    """Where the documents of a row stand, in order."""
    most = int(segments_S.max(initial=0))
    found = [np.flatnonzero(segments_S == number) for number in range(1, most + 1)]
    return [slice(int(at[0]), int(at[-1]) + 1) for at in found if len(at)]


def kept_documents(rows: Rows, numbers: Sequence[Sequence[int]], length: int) -> Rows:
    """Rows of `length` tokens that hold, of each row, the documents with these numbers (from 1), and padding.

    They are numbered anew, in the order given.
    """
    shape = (len(numbers), length)
    out = {name: np.full(shape, PADDING[name], np.int64) for name in rows if name in PADDING}
    for row, chosen in enumerate(numbers):
        at = 0
        for new, number in enumerate(chosen, start=1):
            from_S = np.flatnonzero(rows["segment_ids"][row] == number)
            to = slice(at, at + len(from_S))
            for name in out:
                out[name][row, to] = new if name == "segment_ids" else rows[name][row, from_S]
            at = to.stop
    return out | {"position_ids": positions(out["segment_ids"])}


def reference_of(stream: Stream, numbers: Mapping[int, Sequence[int]]) -> Reference | None:
    """What the model said before training of some documents (from 1) of some rows, by row."""
    if stream.reference is None:
        return None
    kept = {index: stream.reference.train[index][np.array(chosen) - 1] for index, chosen in numbers.items()}
    return replace(stream.reference, train=cast(Any, kept))


def with_most_documents(rows: RowSource, looked_at: int, most_rows: int, most_tokens: int) -> list[int]:
    """Rows in which packing shows: of some that are looked at, those of the most documents."""
    among = spread(len(rows), looked_at)
    counts = rows.take(among)["segment_ids"].max(axis=1, initial=0)
    length = rows.take([among[0]])["segment_ids"].shape[1]
    best = sorted(range(len(among)), key=lambda at: (-int(counts[at]), at))
    return sorted(among[at] for at in best[: max(1, min(most_rows, most_tokens // length))])


def some_documents(rows: RowSource, most_tokens: int, longest: int) -> list[list[int]]:
    """Documents of two tokens at least, cut off at `longest`, until there are so many tokens."""
    out: list[list[int]] = []
    left = most_tokens
    for index in spread(len(rows), 64):
        taken = rows.take([index])
        for at in segments_of(taken["segment_ids"][0]):
            document = taken["input_ids"][0, at][: min(longest, left)].tolist()
            if len(document) > 1:
                out.append(document)
                left -= len(document)
            if left < 2:
                return out
    return out
