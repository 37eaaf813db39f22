"""What the model said of each document before training; preferences are measured against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Reference:
    """Sums of log-probabilities by document, of all rows of both splits.

    Attributes:
        train, eval: each row's sums, documents in their order in the row.
        other_train, other_eval: the same of the rows of the objective's first pass, if it has one.
    """

    train: Sequence[npt.NDArray[np.float32]]
    eval: Sequence[npt.NDArray[np.float32]]
    other_train: Sequence[npt.NDArray[np.float32]] = ()
    other_eval: Sequence[npt.NDArray[np.float32]] = ()
