"""Learning classes: one of a text at its last token (classify), one of each word at its first (tag).

N places, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tunewright.data.rows import NO_LABEL
from tunewright.errors import TrainError
from tunewright.train.objectives.base import Answer, Counts, HeadKind, Mask, Plain, Rows, documents
from tunewright.train.objectives.spans import are_spans, spans

if TYPE_CHECKING:
    import torch

Numbers = npt.NDArray[np.int64]
BINS = 10
"""Of confidence, in the calibration error."""


class Classes(Plain):
    """Cross entropy of the places that have a label.

    Args:
        labels: names of the classes, by number.
        smoothing: share of each target that is spread evenly over the classes, in training.
    Raises:
        TrainError: there are fewer than two classes.
    """

    def __init__(self, labels: Sequence[str], smoothing: float = 0.0):
        if len(labels) < 2:
            found = f"one class, {labels[0]}" if labels else "no class"
            raise TrainError(f"the rows have {found}; there must be two at least to tell apart")
        self.labels, self.smoothing = tuple(labels), smoothing

    def places(self, rows: Rows) -> Mask:
        labelled: Mask = (rows["labels"] != NO_LABEL) & (rows["segment_ids"] > 0)
        return labelled

    def units(self, rows: Rows) -> int:
        return int(self.places(rows).sum())

    def loss(self, answer: Answer, training: bool = True) -> torch.Tensor:
        import torch
        from torch.nn.functional import cross_entropy

        assert answer.scores_NC is not None
        targets_N = torch.from_numpy(_targets(answer)).to(answer.scores_NC.device)
        smoothing = self.smoothing if training else 0.0
        return cross_entropy(answer.scores_NC, targets_N, reduction="sum", label_smoothing=smoothing)

    def counts(self, answer: Answer) -> Counts:
        targets_N, said_N = _targets(answer), _scores(answer).argmax(-1)
        number = len(self.labels)
        counts = {
            "right": np.bincount(targets_N[targets_N == said_N], minlength=number),
            "true": np.bincount(targets_N, minlength=number),
            "said": np.bincount(said_N, minlength=number),
        }
        return _flat(counts)

    def summary(self, counts: Counts) -> dict[str, float]:
        """`accuracy`, and `macro_f1`: the mean F1 of the classes that are there or were said to be."""
        right, true, said = (_back(counts, name) for name in ("right", "true", "said"))
        there = (true + said) > 0
        f1 = 2 * right[there] / (true + said)[there]
        return {
            "accuracy": float(right.sum() / max(1.0, true.sum())),
            "macro_f1": float(f1.mean()) if len(f1) else 0.0,
        }


class Classify(Classes):
    """The class of a text."""

    head: HeadKind = "sequence"
    unit = "document"

    def counts(self, answer: Answer) -> Counts:
        scores_NC, targets_N = _scores(answer), _targets(answer)
        shares_NC = np.exp(scores_NC - scores_NC.max(-1, keepdims=True))
        shares_NC /= shares_NC.sum(-1, keepdims=True)
        confidence_N = shares_NC.max(-1)
        right_N = scores_NC.argmax(-1) == targets_N
        bin_N = np.clip(np.ceil(confidence_N * BINS).astype(np.int64) - 1, 0, BINS - 1)
        bins = {
            "confidence": np.bincount(bin_N, confidence_N, minlength=BINS),
            "hits": np.bincount(bin_N, right_N, minlength=BINS),
        }
        return {**super().counts(answer), **_flat(bins)}

    def summary(self, counts: Counts) -> dict[str, float]:
        """Besides, `calibration_error`: how far confidence and accuracy are apart in the mean.

        Expected calibration error over bins of equal width. Source: Guo et al. 2017, On Calibration of
        Modern Neural Networks (arXiv:1706.04599).
        """
        apart = np.abs(_back(counts, "confidence") - _back(counts, "hits")).sum()
        total = max(1.0, _back(counts, "true").sum())
        return {**super().summary(counts), "calibration_error": float(apart / total)}


class Tag(Classes):
    """The tags of words; whole entities are counted where tags are B-, I- and O."""

    head: HeadKind = "token"
    unit = "word"

    def counts(self, answer: Answer) -> Counts:
        counts = super().counts(answer)
        if not are_spans(self.labels):
            return counts
        number_N = documents(answer.rows)[answer.places.rows, answer.places.columns]
        true, said = _targets(answer), _scores(answer).argmax(-1)
        entities = {"entities_true": 0, "entities_said": 0, "entities_right": 0}
        for number in np.unique(number_N):
            own = number_N == number
            there, found = (spans([self.labels[label] for label in each[own]]) for each in (true, said))
            entities["entities_true"] += len(there)
            entities["entities_said"] += len(found)
            entities["entities_right"] += len(there & found)
        return {**counts, **entities}

    def summary(self, counts: Counts) -> dict[str, float]:
        """`accuracy` of words and, of entities, `precision`, `recall` and `f1`; else `macro_f1` of words."""
        figures = super().summary(counts)
        if not are_spans(self.labels):
            return figures
        true, said, right = (counts[f"entities_{name}"] for name in ("true", "said", "right"))
        return {
            "accuracy": figures["accuracy"],
            "precision": right / max(1.0, said),
            "recall": right / max(1.0, true),
            "f1": 2 * right / max(1.0, true + said),
        }


def _targets(answer: Answer) -> Numbers:
    targets_N: Numbers = answer.rows["labels"][answer.places.rows, answer.places.columns]
    return targets_N.astype(np.int64)


def _scores(answer: Answer) -> npt.NDArray[np.float64]:
    assert answer.scores_NC is not None
    scores_NC: npt.NDArray[np.float64] = answer.scores_NC.detach().double().cpu().numpy()
    return scores_NC


def _flat(arrays: dict[str, npt.NDArray[np.int64]] | dict[str, npt.NDArray[np.float64]]) -> dict[str, float]:
    return {f"{name}/{at}": float(value) for name, array in arrays.items() for at, value in enumerate(array)}


def _back(counts: Counts, name: str) -> npt.NDArray[np.float64]:
    return np.array([value for key, value in counts.items() if key.startswith(f"{name}/")])
