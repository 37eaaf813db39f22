"""Answers that are good or bad by themselves, without a better or worse one to the same question.

B rows, S tokens per row, D documents of a micro batch.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tunewright.config.objectives import PreferenceConfig
from tunewright.data.rows import KTO_LABELS, NO_LABEL
from tunewright.data.shards import positions
from tunewright.errors import DataError
from tunewright.train.objectives.base import (
    Answer,
    Counts,
    Mask,
    Plain,
    Rows,
    count_documents,
    documents,
    sums_by_document,
)
from tunewright.train.objectives.language import supervised_mask
from tunewright.train.objectives.preference import check_answers

if TYPE_CHECKING:
    import torch


class Kto(Plain):
    """For each answer, its weight times sigmoid(-beta * (r - z)) if it is desirable, and
    sigmoid(-beta * (z - r)) if it is not.

    r is how much more likely than before the answer has become, in logarithms. z is the same of answers
    to other questions, the mean over the global batch and at least 0: how far the model has moved
    anyhow. No gradient goes through z. The loss is the mean over all documents, whatever their weights.

    The other questions are those of the same row, each with the next one's answer (`mismatched`). The
    paper shifts answers within a micro batch; here the micro batch decides nothing.

    Source: Ethayarajh et al. 2024, KTO: Model Alignment as Prospect Theoretic Optimization
        (arXiv:2402.01306).
    """

    unit = "document"
    needs_reference = True

    def __init__(self, config: PreferenceConfig):
        self.first_pass = OtherQuestions()
        self.beta = config.beta
        self.weights = (config.undesirable_weight, config.desirable_weight)

    def places(self, rows: Rows) -> Mask:
        return supervised_mask(rows)

    def units(self, rows: Rows) -> int:
        """Raises `DataError` if a document has no answer or no label."""
        check_answers(rows, "documents")
        desirable(rows)
        return count_documents(rows)

    def loss(self, answer: Answer, training: bool = True) -> torch.Tensor:
        import torch

        good_D, moved_D = self._judged(answer)
        against_D = self.beta * (moved_D - answer.baseline)
        undesirable, desirable = self.weights
        return torch.where(
            good_D, desirable * torch.sigmoid(-against_D), undesirable * torch.sigmoid(against_D)
        ).sum()

    def counts(self, answer: Answer) -> Counts:
        good_D, moved_D = self._judged(answer)
        right_D = (moved_D > answer.baseline) == good_D
        rewards_D = self.beta * moved_D.double()
        return {
            "documents": float(len(good_D)),
            "desirable": float(good_D.sum()),
            "accuracy": float((right_D & (moved_D != answer.baseline)).sum()),
            "reward_desirable": float(rewards_D[good_D].sum()),
            "reward_undesirable": float(rewards_D[~good_D].sum()),
            "kl": answer.baseline * len(good_D),
        }

    def summary(self, counts: Counts) -> dict[str, float]:
        """accuracy: share of answers that are on their side of z; kl: z; rewards: beta * r, the means over
        answers of a kind, and how far they are apart. What there are no answers for is left out.
        """
        every = max(1.0, counts["documents"])
        good, bad = counts["desirable"], counts["documents"] - counts["desirable"]
        out = {"accuracy": counts["accuracy"] / every, "kl": counts["kl"] / every}
        if good:
            out["reward_desirable"] = counts["reward_desirable"] / good
        if bad:
            out["reward_undesirable"] = counts["reward_undesirable"] / bad
        if good and bad:
            out["margin"] = out["reward_desirable"] - out["reward_undesirable"]
        return out

    def _judged(self, answer: Answer) -> tuple[torch.Tensor, torch.Tensor]:
        """(D,) whether each answer is desirable, and its r."""
        import torch

        moved_D = moved(answer)
        return torch.from_numpy(desirable(answer.rows)).to(moved_D.device), moved_D


class OtherQuestions:
    """How far the model has moved on answers to other questions: z."""

    names: tuple[str, ...] = ("moved", "documents")

    def rows(self, rows: Rows) -> Rows:
        return mismatched(rows)

    def counts(self, answer: Answer) -> Counts:
        moved_D = moved(answer)
        return {"moved": float(moved_D.double().sum()), "documents": float(len(moved_D))}

    def baseline(self, counts: Counts) -> float:
        return max(0.0, counts["moved"] / counts["documents"]) if counts["documents"] else 0.0


def moved(answer: Answer) -> torch.Tensor:
    """(D,) how much more likely than before each answer has become, in logarithms."""
    assert answer.logps_N is not None and answer.reference_D is not None
    return sums_by_document(answer.logps_N, answer.rows, answer.places) - answer.reference_D


def desirable(rows: Rows) -> npt.NDArray[np.bool_]:
    """(D,) whether each document's answer is a good one.

    Raises:
        DataError: a document has no label, two of them, or one that is neither.
    """
    labels_BS = rows.get("labels")
    if labels_BS is None:
        raise DataError("the rows have no labels; kto needs rows that say whether an answer is desirable")
    labelled_BS = (labels_BS != NO_LABEL) & (rows["segment_ids"] > 0)
    count = count_documents(rows)
    at_D = documents(rows)[labelled_BS]
    labels_D = labels_BS[labelled_BS]
    if len(at_D) != count or (np.diff(at_D) == 0).any():
        raise DataError(
            f"{count} documents have {len(at_D)} labels, where each has one; prepare the data again"
        )
    wrong = labels_D[(labels_D < 0) | (labels_D >= len(KTO_LABELS))]
    if len(wrong):
        raise DataError(f"a label is {wrong[0]}, where 0 is {KTO_LABELS[0]} and 1 {KTO_LABELS[1]}")
    good_D: npt.NDArray[np.bool_] = labels_D == KTO_LABELS.index("desirable")
    return good_D


def mismatched(rows: Rows) -> Rows:
    """The same rows with every document's answer replaced by that of the next one, the last one's by the
    first one's; a row of one document becomes padding.

    An answer is all from the first token that is to be learned. A row has the same tokens as before, so
    that it stays as long: Q1 A1 A1 Q2 A2 -> Q1 A2 Q2 A1 A1.
    """
    segments_BS = rows["segment_ids"]
    out = {name: np.zeros_like(segments_BS) for name in ("input_ids", "segment_ids", "loss_mask")}
    for row, segments_S in enumerate(segments_BS):
        count = int(segments_S.max(initial=0))
        if count < 2:
            continue
        bounds = np.searchsorted(segments_S[: np.count_nonzero(segments_S)], np.arange(1, count + 2))
        questions, answers = [], []
        for begin, end in pairwise(bounds.tolist()):
            cut = begin + int(np.argmax(rows["loss_mask"][row, begin:end] == 1))
            questions.append(np.arange(begin, cut))
            answers.append(np.arange(cut, end))
        others = zip(questions, [*answers[1:], answers[0]], strict=True)
        mixed = [np.concatenate(pair) for pair in others]
        order, lengths = np.concatenate(mixed), [len(document) for document in mixed]
        for name in ("input_ids", "loss_mask"):
            out[name][row, : len(order)] = rows[name][row, order]
        out["segment_ids"][row, : len(order)] = np.repeat(np.arange(1, count + 1), lengths)
    out["position_ids"] = positions(out["segment_ids"])
    return out
