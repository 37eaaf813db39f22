"""Rows a few at a time, so that what several operations do to them in turn stays in a processor's cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch

NUMBERS = 1 << 17
"""Of a piece: 512 KB in fp32, a part of one core's own cache."""


def few_rows(like_NH: torch.Tensor) -> Iterator[slice]:
    """Slices that cover the rows; a single one where no such cache is in question."""
    count, width = like_NH.shape
    step = max(1, NUMBERS // width) if like_NH.device.type == "cpu" else max(1, count)
    for begin in range(0, count, step):
        yield slice(begin, begin + step)
