"""What a training reads: documents, packed rows and tokens, from a prepared data set or a sample of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tunewright.data.pack import pack_best_fit
from tunewright.data.shards import PackedRows

LOOKED_AT = 512
"""Packed rows of a prepared data set that are looked at."""


@dataclass(frozen=True)
class Workload:
    """The rows of a training.

    Attributes:
        rows: packed rows to train on.
        tokens: in all of them, padding not counted.
        asked: the share of the tokens that the objective asks the model about.
        seen: how many tokens a token sees, on average: its document up to itself.
        segments_S, mask_S: segments and loss mask of the row that asks most, of those looked at.
        histogram: (upper bound of tokens, documents) of the documents looked at.
        measured: on all rows, or on how many of the source's rows.
    """

    rows: int
    tokens: float
    asked: float
    seen: float
    segments_S: npt.NDArray[np.int64]
    mask_S: npt.NDArray[np.int64]
    histogram: tuple[tuple[int, int], ...]
    measured: str

    @property
    def row_length(self) -> int:
        return len(self.segments_S)


def of_shards(rows: PackedRows) -> Workload:
    """The workload of prepared rows; some of them stand for all."""
    looked = np.unique(np.linspace(0, len(rows) - 1, min(LOOKED_AT, len(rows))).astype(int))
    taken = rows.take([int(i) for i in looked])
    return _of_rows(
        taken["segment_ids"],
        taken["loss_mask"],
        len(rows),
        f"{len(looked):,} of {len(rows):,} prepared rows",
    )


def of_documents(
    lengths: Sequence[int], asked: Sequence[int], seq_len: int, documents: float, told: str
) -> Workload:
    """The workload of documents that were encoded for a look, packed as the data stage packs.

    Args:
        lengths, asked: tokens of each document, and how many of them are learned.
        documents: how many there will be.
        told: what was looked at.
    """
    packed = pack_best_fit(lengths, seq_len)
    segments_BS = np.zeros((len(packed), seq_len), np.int64)
    mask_BS = np.zeros((len(packed), seq_len), np.int64)
    for row, members in enumerate(packed):
        at = 0
        for number, index in enumerate(members, start=1):
            end = at + lengths[index]
            segments_BS[row, at:end] = number
            mask_BS[row, end - asked[index] : end] = 1
            at = end
    rows = max(1, round(len(packed) * documents / len(lengths)))
    return _of_rows(segments_BS, mask_BS, rows, told)


def _of_rows(
    segments_BS: npt.NDArray[np.int64], mask_BS: npt.NDArray[np.int64], rows: int, told: str
) -> Workload:
    lengths = [n for row in segments_BS for n in np.bincount(row)[1:].tolist() if n]
    tokens = sum(lengths)
    asked_B = mask_BS.sum(axis=1)
    most = int(asked_B.argmax())
    return Workload(
        rows=rows,
        tokens=tokens * rows / len(segments_BS),
        asked=float(asked_B.sum()) / max(1, tokens),
        seen=sum(n * (n + 1) / 2 for n in lengths) / max(1, tokens),
        segments_S=segments_BS[most],
        mask_S=mask_BS[most],
        histogram=_histogram(lengths, segments_BS.shape[1]),
        measured=told,
    )


def _histogram(lengths: Sequence[int], longest: int) -> tuple[tuple[int, int], ...]:
    edges = [2**power for power in range(3, 40) if 2**power < longest] + [longest]
    counts, _ = np.histogram(lengths, bins=[0, *edges])
    return tuple((edge, int(count)) for edge, count in zip(edges, counts, strict=True))
