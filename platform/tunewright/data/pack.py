"""Best-fit packing of documents into rows of fixed length. Pure functions of their arguments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tunewright.errors import DataError


def pack_best_fit(lengths: Sequence[int] | npt.NDArray[np.integer], capacity: int) -> list[list[int]]:
    """Group sequence indices into rows of at most `capacity` tokens.

    Longest first, each into the fullest row that still holds it; equal lengths keep their order:
    lengths [5, 2, 4, 1], capacity 6  ->  [[0, 3], [2, 1]]

    The time is O(1) a document, whatever the number of rows.

    Args:
        lengths: tokens per sequence, each in 1..capacity.
        capacity: tokens per row, the model's sequence length.
    Raises:
        DataError: a sequence is empty or exceeds `capacity`; truncating is the caller's decision.
    Source: Ding et al. 2024, Fewer Truncations Improve Language Modeling (arXiv:2404.10830).
    """
    sizes = np.asarray(lengths, np.int64)
    wrong = np.flatnonzero((sizes < 1) | (sizes > capacity))
    if len(wrong):
        raise DataError(
            f"sequence {wrong[0]} has {sizes[wrong[0]]} tokens; a row holds 1..{capacity}"
            + (f" ({len(wrong)} such sequences)" if len(wrong) > 1 else "")
        )
    members = np.argsort(-sizes, kind="stable").tolist()
    negated, counts = np.unique(-sizes, return_counts=True)
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows by tokens still free
    free_sizes = 0  # bit r is set where with_room[r] is not empty: finds the best fit in O(1)
    at = 0
    for length, same in zip((-negated).tolist(), counts.tolist(), strict=True):
        end = at + same
        while at < end:
            fitting = free_sizes >> length
            if fitting:
                room = length + (fitting & -fitting).bit_length() - 1
                row = with_room[room].pop()
                if not with_room[room]:
                    free_sizes ^= 1 << room
            else:
                room, row = capacity, len(rows)
                rows.append([])
            # The fullest row stays the fullest while it takes more of the same length.
            count = min(room // length, end - at)
            rows[row] += members[at : at + count]
            at += count
            left = room - count * length
            if left:
                with_room[left].append(row)
                free_sizes |= 1 << left
    return rows
