"""The loss: sum over supervised tokens, to be divided by the global number of them.

B rows, S tokens per row, N supervised tokens of the batch, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tunewright.models.packed import EVERY_LAYER, Windows, packed_masks

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Batch:
    """A micro batch on the device.

    Attributes:
        inputs: keyword arguments of the model's forward pass.
        rows, columns: (N,) places, row and kept column, whose logits predict a supervised token.
        targets_N: the tokens they should predict.
    """

    inputs: dict[str, Any]
    rows: torch.Tensor
    columns: torch.Tensor
    targets_N: torch.Tensor

    @property
    def supervised(self) -> int:
        return int(self.targets_N.numel())


def supervised_mask(rows: dict[str, npt.NDArray[np.int64]]) -> npt.NDArray[np.bool_]:
    """(B, S-1): whether position s predicts token s+1 of the same document, and that one is learned."""
    segments = rows["segment_ids"]
    same = segments[:, 1:] == segments[:, :-1]
    learned: npt.NDArray[np.bool_] = (rows["loss_mask"][:, 1:] == 1) & same & (segments[:, 1:] > 0)
    return learned


def make_batch(
    rows: dict[str, npt.NDArray[np.int64]],
    device: torch.device,
    dtype: torch.dtype,
    windows: Windows = EVERY_LAYER,
) -> Batch:
    """Packed rows as the model takes them: no token sees another document.

    Logits are computed only for columns that some row supervises.

    Args:
        windows: how far the model's layers see, by `windows_of`.
    """
    import torch

    segments_BS = torch.from_numpy(rows["segment_ids"]).to(device)
    learned = supervised_mask(rows)
    kept = np.flatnonzero(learned.any(axis=0))
    row_index, column = np.nonzero(learned)
    return Batch(
        inputs={
            "input_ids": torch.from_numpy(rows["input_ids"]).to(device),
            "position_ids": torch.from_numpy(rows["position_ids"]).to(device),
            "attention_mask": packed_masks(segments_BS, dtype, windows),
            "logits_to_keep": torch.from_numpy(kept).to(device),
            "use_cache": False,
        },
        rows=torch.from_numpy(row_index).to(device),
        columns=torch.from_numpy(np.searchsorted(kept, column)).to(device),
        targets_N=torch.from_numpy(rows["input_ids"][:, 1:][learned]).to(device),
    )


def loss_sum(logits_BKV: torch.Tensor, batch: Batch, smoothing: float = 0.0) -> torch.Tensor:
    """Sum of the cross entropy over the batch's supervised tokens, in fp32.

    Args:
        smoothing: share of each target that is spread evenly over the vocabulary.
    """
    import torch

    logits_NV = logits_BKV[batch.rows, batch.columns].float()
    return torch.nn.functional.cross_entropy(
        logits_NV, batch.targets_N, reduction="sum", label_smoothing=smoothing
    )
