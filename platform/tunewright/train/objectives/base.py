"""What an objective is: which places of a row it asks the model about, and what it makes of the answers.

B rows, S tokens per row, N places of a micro batch, D documents of it, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Rows = dict[str, npt.NDArray[np.int64]]
"""`input_ids`, `segment_ids`, `loss_mask`, `position_ids` and, for tasks with classes, `labels`: (B, S)."""
Mask = npt.NDArray[np.bool_]
Counts = Mapping[str, float]
"""Numbers that are summed over micro batches and workers."""
HeadKind = Literal["lm", "sequence", "token"]
"""What stands on the transformer: the output layer, or a classifier of documents or of tokens."""


@dataclass(frozen=True)
class Places:
    """Where the head is asked, row after row.

    Attributes:
        rows, columns: (N,) of a micro batch. For the head `lm`, the token of column + 1 is predicted.
    """

    rows: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]

    @classmethod
    def of(cls, mask_BS: Mask) -> Places:
        rows, columns = np.nonzero(mask_BS)
        return cls(rows, columns)

    def __len__(self) -> int:
        return len(self.rows)

    def of_rows(self, chosen_B: Mask) -> Mask:
        """(N,) whether a place is in a chosen row."""
        kept: Mask = chosen_B[self.rows]
        return kept


@dataclass(frozen=True)
class Answer:
    """What the model said about the rows of one task.

    Attributes:
        rows: of the task alone.
        places: where it was asked, in these rows.
        logps_N: log-probabilities of the tokens that are there, fp32; head `lm`.
        uniform_N: mean log-probability over the vocabulary, where label smoothing asks for it.
        scores_NC: the classifier's scores, fp32; the other heads.
        reference_D: what the model said of each document before training: the sum of `logps_N` over it,
            documents in the order of `documents`; where the objective needs it.
        baseline: the number that `FirstPass.baseline` gave for the whole global batch.
    """

    rows: Rows
    places: Places
    logps_N: torch.Tensor | None = None
    uniform_N: torch.Tensor | None = None
    scores_NC: torch.Tensor | None = None
    reference_D: torch.Tensor | None = None
    baseline: float = 0.0


class FirstPass(Protocol):
    """What a loss needs to know of the whole global batch: asked in evaluation mode, without gradients."""

    names: tuple[str, ...]
    """The keys of `counts`."""

    def rows(self, rows: Rows) -> Rows:
        """The rows that are asked about, of the same shape."""
        ...

    def counts(self, answer: Answer) -> Counts:
        """What is summed over micro batches and workers, by `names`; `answer` is about `rows`."""
        ...

    def baseline(self, counts: Counts) -> float:
        """The number that comes of the sums: `Answer.baseline`."""
        ...


class Objective(Protocol):
    """How rows become a loss. Knows nothing of micro batches, workers or tasks beside it.

    The loss of a step is the sum over all units of the global batch divided by their number; so it is
    the same however the batch is divided.
    """

    head: HeadKind
    labels: tuple[str, ...]
    """Names of the head's classes, by number; none of the head `lm`."""
    unit: str
    """What the loss is a mean of, in the singular: token, pair, document."""
    needs_reference: bool
    """Whether `Answer.reference_D` is wanted: the model as it was before training."""
    first_pass: FirstPass | None
    """A pass over the global batch that is wanted before the one with gradients."""
    smoothing: float
    """Share of each target that is spread over all classes, in training; `Answer.uniform_N` is for it."""

    def places(self, rows: Rows) -> Mask:
        """(B, S) the places it asks about; none in padding, whose segment is 0."""
        ...

    def units(self, rows: Rows) -> int:
        """How many units the rows have."""
        ...

    def loss(self, answer: Answer, training: bool = True) -> torch.Tensor:
        """Sum of the loss over the units, a scalar with gradients.

        Args:
            training: whether to regularise; the evaluation measures without.
        """
        ...

    def counts(self, answer: Answer) -> Counts:
        """What the evaluation adds up besides the loss; always the same keys."""
        ...

    def summary(self, counts: Counts) -> dict[str, float]:
        """Figures from the sums over all evaluation rows."""
        ...


class Plain:
    """An objective without reference, first pass or figures of its own; others extend it."""

    head: HeadKind = "lm"
    labels: tuple[str, ...] = ()
    unit = "token"
    needs_reference = False
    first_pass: FirstPass | None = None
    smoothing = 0.0

    def counts(self, answer: Answer) -> Counts:
        return {}

    def summary(self, counts: Counts) -> dict[str, float]:
        return {}


def documents(rows: Rows) -> npt.NDArray[np.int64]:
    """(B, S) number of the document at each place, 0, 1, 2... over all rows; -1 in padding."""
    segments_BS = rows["segment_ids"]
    most_B = segments_BS.max(axis=1, initial=0)
    before_B = np.concatenate([[0], np.cumsum(most_B)[:-1]])
    return np.where(segments_BS > 0, before_B[:, None] + segments_BS - 1, -1)


def count_documents(rows: Rows) -> int:
    """D, the documents of the rows."""
    return int(rows["segment_ids"].max(axis=1, initial=0).sum())


def sums_by_document(values_N: torch.Tensor, rows: Rows, places: Places) -> torch.Tensor:
    """(D,) the sum of the values at each document's places; 0 for a document without any."""
    import torch

    at_N = torch.from_numpy(documents(rows)[places.rows, places.columns]).to(values_N.device)
    return torch.zeros(count_documents(rows), device=values_N.device).index_add(0, at_N, values_N)
