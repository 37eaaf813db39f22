"""The better one of two answers: dpo against what the model was before, orpo without.

Rows hold pairs: segment 1 is a chosen answer and segment 2 the rejected one to the same question, then
3 and 4, and so on.

D documents (segments) of a micro batch, P pairs of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tunewright.config.objectives import PreferenceConfig
from tunewright.errors import DataError
from tunewright.train.objectives.base import (
    Answer,
    Counts,
    Mask,
    Places,
    Plain,
    Rows,
    count_documents,
    documents,
    sums_by_document,
)
from tunewright.train.objectives.language import supervised_mask

if TYPE_CHECKING:
    import torch


class Pairs(Plain):
    """What objectives of pairs share.

    Attributes:
        beta: see `PreferenceConfig`.
    """

    unit = "pair"

    def __init__(self, config: PreferenceConfig):
        self.beta = config.beta

    def places(self, rows: Rows) -> Mask:
        return supervised_mask(rows)

    def units(self, rows: Rows) -> int:
        """Raises `DataError` if the rows do not hold pairs of answers."""
        check_pairs(rows)
        return count_documents(rows) // 2


class Dpo(Pairs):
    """For each pair, -log sigmoid(beta * margin): how much more likely than before the chosen answer has
    become, less how much the rejected one has. In logarithms, summed over an answer's tokens.

    With `sft_weight`, that many times the chosen answer's own loss, the mean over its tokens, is added.

    Source: Rafailov et al. 2023, Direct Preference Optimization (arXiv:2305.18290), equation 7; the chosen
        answer's own loss as in Pang et al. 2024, Iterative Reasoning Preference Optimization
        (arXiv:2404.19733).
    """

    needs_reference = True

    def __init__(self, config: PreferenceConfig):
        super().__init__(config)
        self.sft_weight = config.sft_weight

    def loss(self, answer: Answer, training: bool = True) -> torch.Tensor:
        from torch.nn.functional import logsigmoid

        chosen_P, rejected_P = self._rewards(answer)
        loss = -logsigmoid(chosen_P - rejected_P).sum()
        if self.sft_weight:
            loss = loss - self.sft_weight * means_by_document(answer)[0::2].sum()
        return loss

    def counts(self, answer: Answer) -> Counts:
        chosen_P, rejected_P = self._rewards(answer)
        return {
            "pairs": float(len(chosen_P)),
            "accuracy": float((chosen_P > rejected_P).sum()),
            "margin": float((chosen_P - rejected_P).double().sum()),
            "reward_chosen": float(chosen_P.double().sum()),
            "reward_rejected": float(rejected_P.double().sum()),
        }

    def summary(self, counts: Counts) -> dict[str, float]:
        """accuracy: share of pairs whose chosen answer has the higher reward. Rewards: beta times how much
        more likely an answer is than before, in logarithms; their mean, and that of their difference.
        """
        return _means(counts)

    def _rewards(self, answer: Answer) -> tuple[torch.Tensor, torch.Tensor]:
        assert answer.logps_N is not None and answer.reference_D is not None
        sums_D = sums_by_document(answer.logps_N, answer.rows, answer.places)
        rewards_D = self.beta * (sums_D - answer.reference_D)
        return rewards_D[0::2], rewards_D[1::2]


class Orpo(Pairs):
    """For each pair, the chosen answer's own loss, and -beta * log sigmoid of the log odds ratio.

    Both take an answer's mean log-probability of a token, m; its odds are exp(m) / (1 - exp(m)).

    Source: Hong et al. 2024, ORPO: Monolithic Preference Optimization without Reference Model
        (arXiv:2403.07691), equations 4 to 7.
    """

    def loss(self, answer: Answer, training: bool = True) -> torch.Tensor:
        from torch.nn.functional import logsigmoid

        means_D = means_by_document(answer)
        odds_D = log_odds(means_D)
        return -(means_D[0::2] + self.beta * logsigmoid(odds_D[0::2] - odds_D[1::2])).sum()

    def counts(self, answer: Answer) -> Counts:
        means_D = means_by_document(answer)
        odds_D = log_odds(means_D)
        return {
            "pairs": float(len(means_D) // 2),
            "accuracy": float((means_D[0::2] > means_D[1::2]).sum()),
            "margin": float((odds_D[0::2] - odds_D[1::2]).double().sum()),
            "logp_chosen": float(means_D[0::2].double().sum()),
            "logp_rejected": float(means_D[1::2].double().sum()),
        }

    def summary(self, counts: Counts) -> dict[str, float]:
        """accuracy: share of pairs whose chosen answer is the likelier one by the token; margin: mean log
        odds ratio; logp: mean log-probability of a token, by answers.
        """
        return _means(counts)


def log_odds(means_D: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)) of p = exp(mean), finite also where p rounds to 1.

    1 - exp(m) would lose all digits for m near 0, which expm1 keeps; for m far below, the logarithm is
    near 0, and m itself is all that matters.
    """
    import torch

    below_D = means_D.clamp(max=-torch.finfo(means_D.dtype).eps)
    return below_D - torch.log(-torch.expm1(below_D))


def means_by_document(answer: Answer) -> torch.Tensor:
    """(D,) mean log-probability of each document's learned tokens."""
    import torch

    assert answer.logps_N is not None
    sums_D = sums_by_document(answer.logps_N, answer.rows, answer.places)
    tokens_D = torch.from_numpy(tokens_by_document(answer.rows, answer.places))
    return sums_D / tokens_D.to(sums_D)


def tokens_by_document(rows: Rows, places: Places) -> npt.NDArray[np.int64]:
    """(D,) how many places each document has."""
    return np.bincount(documents(rows)[places.rows, places.columns], minlength=count_documents(rows)).astype(
        np.int64
    )


def check_answers(rows: Rows, what: str) -> None:
    """Ensure that every document has a token to learn.

    Args:
        what: of what the documents are, in the plural.
    Raises:
        DataError: one has none.
    """
    tokens_D = tokens_by_document(rows, Places.of(supervised_mask(rows)))
    empty = np.flatnonzero(tokens_D == 0)
    if len(empty):
        raise DataError(
            f"{len(empty)} of {len(tokens_D)} {what} have no token that carries loss; prepare the data again"
        )


def check_pairs(rows: Rows) -> None:
    """Ensure that the rows' segments are pairs of answers.

    Raises:
        DataError: they are not; a prepared data set never has such rows unless it is damaged.
    """
    odd = [int(most) for most in rows["segment_ids"].max(axis=1, initial=0) if most % 2]
    if odd:
        raise DataError(
            f"a row has {odd[0]} segments, which cannot be pairs of a chosen and a rejected answer; "
            f"prepare the data again"
        )
    check_answers(rows, "answers")


def _means(counts: Counts) -> dict[str, float]:
    pairs = max(1.0, counts["pairs"])
    return {name: value / pairs for name, value in counts.items() if name != "pairs"}
