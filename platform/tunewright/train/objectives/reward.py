"""Learning a score that is higher for the better of two answers (reward).

N places, of which every second belongs to a rejected answer; P pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tunewright.errors import TrainError
from tunewright.train.objectives.base import Answer, Counts, HeadKind, Mask, Plain, Rows

if TYPE_CHECKING:
    import torch

SCORE = ("score",)
"""The one class of a reward model's head."""


class Reward(Plain):
    """How likely the chosen answer wins: -log sigmoid(score of the chosen - score of the rejected).

    Each conversation is scored at its last token. Source: Bradley and Terry 1952, as Ouyang et al. 2022
    (arXiv:2203.02155) train reward models.
    """

    head: HeadKind = "sequence"
    unit = "pair"
    labels: tuple[str, ...] = SCORE

    def places(self, rows: Rows) -> Mask:
        """The last token of each conversation; chosen and rejected in turn.

        Raises:
            TrainError: one of a pair is missing.
        """
        segments_BS = rows["segment_ids"]
        last_BS = segments_BS > 0
        last_BS[:, :-1] &= segments_BS[:, :-1] != segments_BS[:, 1:]
        alone_B = last_BS.sum(1) % 2 == 1
        if alone_B.any():
            count = int(last_BS[alone_B][0].sum())
            raise TrainError(f"a packed row has {count} answers; each chosen one needs its rejected one")
        return last_BS

    def units(self, rows: Rows) -> int:
        return int(self.places(rows).sum()) // 2

    def loss(self, answer: Answer, training: bool = True) -> torch.Tensor:
        from torch.nn.functional import logsigmoid

        return -logsigmoid(_margins(answer)).sum()

    def counts(self, answer: Answer) -> Counts:
        margins_P = _margins(answer).detach().double().cpu().numpy()
        return {
            "pairs": float(len(margins_P)),
            "right": float(np.sum(margins_P > 0)),
            "margin": float(margins_P.sum()),
        }

    def summary(self, counts: Counts) -> dict[str, float]:
        """`accuracy`: share of the pairs whose chosen answer scores higher; `margin`: the mean difference."""
        pairs = max(1.0, counts["pairs"])
        return {"accuracy": counts["right"] / pairs, "margin": counts["margin"] / pairs}


def _margins(answer: Answer) -> torch.Tensor:
    assert answer.scores_NC is not None
    scores_N = answer.scores_NC[:, 0]
    return scores_N[0::2] - scores_N[1::2]
