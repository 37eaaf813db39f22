"""The one place where the model is called in training and evaluation: packed rows in, answers out.

B rows, S tokens per row, N places, V vocabulary, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tunewright.models.packed import EVERY_LAYER, Windows, packed_masks
from tunewright.train.engine import Engine
from tunewright.train.objectives.base import Places, Rows

if TYPE_CHECKING:
    import torch


class Forward:
    """A model that is asked about places of packed rows; no token sees another document.

    Args:
        windows: how far the model's layers see, by `windows_of`.
    """

    def __init__(self, engine: Engine, windows: Windows = EVERY_LAYER):
        self.engine, self.windows = engine, windows

    def logps(
        self, rows: Rows, places: Places, uniform: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(N,) log-probabilities, in fp32, of the tokens behind the places.

        Returns them and, if `uniform`, the mean log-probability over the vocabulary at each place.
        Without any place the forward pass happens all the same: workers move together.
        """
        import torch

        kept, at = np.unique(places.columns, return_inverse=True)
        device = self.engine.device
        keep = torch.from_numpy(kept).to(device)
        logits_BKV = self.engine.deepspeed(**self._inputs(rows), logits_to_keep=keep).logits
        row_N, column_N = torch.from_numpy(places.rows).to(device), torch.from_numpy(at).to(device)
        every_NV = logits_BKV[row_N, column_N].float().log_softmax(-1)
        targets_N = torch.from_numpy(rows["input_ids"][places.rows, places.columns + 1]).to(device)
        logps_N = every_NV.gather(1, targets_N[:, None])[:, 0]
        if not len(places):
            logps_N = logps_N + logits_BKV.sum() * 0.0
        return logps_N, every_NV.mean(-1) if uniform else None

    def scores(self, rows: Rows, places: Places) -> torch.Tensor:
        """(N, C) the classifier's scores at the places, in fp32."""
        raise NotImplementedError

    def _inputs(self, rows: Rows) -> dict[str, Any]:
        import torch

        engine = self.engine
        segments_BS = torch.from_numpy(rows["segment_ids"]).to(engine.device)
        return {
            "input_ids": torch.from_numpy(rows["input_ids"]).to(engine.device),
            "position_ids": torch.from_numpy(rows["position_ids"]).to(engine.device),
            "attention_mask": packed_masks(segments_BS, engine.dtype, self.windows),
            "use_cache": False,
        }
