"""Best-fit packing of documents into rows of fixed length. Pure functions of their arguments."""

from __future__ import annotations

from collections.abc import Sequence

from tunewright.errors import DataError


def pack_best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Group sequence indices into rows of at most `capacity` tokens.

    Longest first, each into the fullest row that still holds it; equal lengths keep their order:
    lengths [5, 2, 4, 1], capacity 6  ->  [[0, 3], [2, 1]]

    Args:
        lengths: tokens per sequence, each in 1..capacity.
        capacity: tokens per row, the model's sequence length.
    Raises:
        DataError: a sequence is empty or exceeds `capacity`; truncating is the caller's decision.
    Source: Ding et al. 2024, Fewer Truncations Improve Language Modeling (arXiv:2404.10830).
    """
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows by tokens still free
    free_sizes = 0  # bit r is set where with_room[r] is not empty: finds the best fit in O(1)
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        if not 1 <= length <= capacity:
            raise DataError(f"sequence {index} has {length} tokens; a row holds 1..{capacity}")
        fitting = free_sizes >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                free_sizes &= ~(1 << room)
            rows[row].append(index)
        else:
            room, row = capacity, len(rows)
            rows.append([index])
        left = room - length
        if left:
            with_room[left].append(row)
            free_sizes |= 1 << left
    return rows
