"""Learning tokens: of answers (sft), or of everything (pretrain). The data's loss mask says which."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tunewright.train.objectives.base import Answer, Mask, Plain, Rows

if TYPE_CHECKING:
    import torch


class NextToken(Plain):
    """Cross entropy of the supervised tokens.

    Args:
        smoothing: share of each target that is spread evenly over the vocabulary, in training.
    """

    def __init__(self, smoothing: float = 0.0):
        self.smoothing = smoothing

    def places(self, rows: Rows) -> Mask:
        return supervised_mask(rows)

    def units(self, rows: Rows) -> int:
        return int(supervised_mask(rows).sum())

    def loss(self, answer: Answer, training: bool = True) -> torch.Tensor:
        assert answer.logps_N is not None
        loss = -answer.logps_N.sum()
        if not training or not self.smoothing:
            return loss
        assert answer.uniform_N is not None
        return (1 - self.smoothing) * loss - self.smoothing * answer.uniform_N.sum()


def supervised_mask(rows: Rows) -> Mask:
    """(B, S): whether place s predicts token s+1 of the same document, and that one is to be learned."""
    segments_BS = rows["segment_ids"]
    learned_BS = np.zeros(segments_BS.shape, bool)
    same = segments_BS[:, 1:] == segments_BS[:, :-1]
    learned_BS[:, :-1] = (rows["loss_mask"][:, 1:] == 1) & same & (segments_BS[:, 1:] > 0)
    return learned_BS
