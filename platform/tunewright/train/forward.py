"""The one place where the model is called in training and evaluation: packed rows in, answers out.

B rows, S tokens per row, N places, V vocabulary, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tunewright.models.heads import head_of
from tunewright.models.packed import EVERY_LAYER, Windows, packed_masks, windows_of
from tunewright.train.engine import Engine
from tunewright.train.objectives.base import Places, Rows

if TYPE_CHECKING:
    import torch


class Forward:
    """A model that is asked about places of packed rows; no token sees another document.

    Args:
        windows: how far the model's layers see, by `windows_of`; others than its own need masks.
    """

    def __init__(self, engine: Engine, windows: Windows = EVERY_LAYER):
        from tunewright.models.attention import attend_by_documents

        self.engine, self.windows = engine, windows
        self.model = getattr(engine.deepspeed, "module", engine.deepspeed)
        quicken(self.model)
        self.by_documents = attend_by_documents(self.model, engine.device, engine.dtype)

    def logps(
        self, rows: Rows, places: Places, uniform: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(N,) log-probabilities, in fp32, of the tokens behind the places.

        Returns them and, if `uniform`, the mean log-probability over the vocabulary at each place.
        Without any place the forward pass happens all the same: workers move together.
        """
        import torch

        from tunewright.models.output_layer import asked_at, handing_on, how_to_ask
        from tunewright.models.token_logps import token_logps

        way, device = how_to_ask(self.model).way, self.engine.device
        targets_N = torch.from_numpy(rows["input_ids"][places.rows, places.columns + 1]).to(device)
        if way == "columns":
            logits_NV, anything = self._by_columns(rows, places)
            return _logps_of(logits_NV, targets_N, anything, uniform)
        head = self.model.get_output_embeddings()
        length = rows["input_ids"].shape[1]
        places_N = torch.from_numpy(places.rows * length + places.columns).to(device)
        if way == "places":
            with asked_at(head, places_N):
                logits_NV = self.engine.deepspeed(**self._inputs(rows)).logits
            return _logps_of(logits_NV, targets_N, logits_NV, uniform)
        with handing_on(head):
            hidden_BSH = self.engine.deepspeed(**self._inputs(rows)).logits
        hidden_NH = hidden_BSH.flatten(0, 1).index_select(0, places_N)
        logps_N, uniform_N = token_logps(hidden_NH, head.weight, head.bias, targets_N, uniform)
        if not len(places):
            logps_N = logps_N + hidden_BSH.sum() * 0.0
        return logps_N, uniform_N

    def scores(self, rows: Rows, places: Places) -> torch.Tensor:
        """(N, C) the head's scores at the places, in fp32.

        The head answers at every place and the wanted answers are caught as it gives them: what comes
        out of transformers' forward pass is the score of a row's last token alone. Without any place
        the forward pass happens all the same, and the backward pass can.
        """
        import torch

        answers: list[torch.Tensor] = []
        # Behind DeepSpeed's own hooks, by which ZeRO-3 has the weights whole when gradients come back.
        catching = head_of(self.engine.deepspeed).register_forward_hook(
            lambda _module, _given, answer: answers.append(answer)
        )
        try:
            self.engine.deepspeed(**self._inputs(rows))
        finally:
            catching.remove()
        (scores_BSC,) = answers
        device = scores_BSC.device
        row_N, column_N = (
            torch.from_numpy(places.rows).to(device),
            torch.from_numpy(places.columns).to(device),
        )
        return scores_BSC[row_N, column_N].float()

    def _by_columns(self, rows: Rows, places: Places) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, V) logits at the places, and what the model answered: every row at every column of a place."""
        import torch

        kept, at = np.unique(places.columns, return_inverse=True)
        device = self.engine.device
        keep = torch.from_numpy(kept).to(device)
        logits_BKV = self.engine.deepspeed(**self._inputs(rows), logits_to_keep=keep).logits
        row_N, column_N = torch.from_numpy(places.rows).to(device), torch.from_numpy(at).to(device)
        return logits_BKV[row_N, column_N], logits_BKV

    def _inputs(self, rows: Rows) -> dict[str, Any]:
        import torch

        from tunewright.models.attention import Documents, no_mask

        engine = self.engine
        inputs: dict[str, Any] = {
            "input_ids": torch.from_numpy(rows["input_ids"]).to(engine.device),
            "position_ids": torch.from_numpy(rows["position_ids"]).to(engine.device),
            "use_cache": False,
        }
        own_windows = windows_of(self.model.config, rows["input_ids"].shape[1])
        if self.by_documents and self.windows == own_windows:
            documents = Documents.of(rows["segment_ids"])
            if documents.worth_it(engine.device):
                return {**inputs, "documents": documents, "attention_mask": no_mask(inputs["input_ids"])}
        segments_BS = torch.from_numpy(rows["segment_ids"]).to(engine.device)
        return {**inputs, "attention_mask": packed_masks(segments_BS, engine.dtype, self.windows)}


def _logps_of(
    logits_NV: torch.Tensor, targets_N: torch.Tensor, answered: torch.Tensor, uniform: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities of the targets, which hang on what was answered even if there are none."""
    every_NV = logits_NV.float().log_softmax(-1)
    logps_N = every_NV.gather(1, targets_N[:, None])[:, 0]
    if not len(targets_N):
        logps_N = logps_N + answered.sum() * 0.0
    return logps_N, every_NV.mean(-1) if uniform else None


def quicken(model: Any) -> None:
    """Make layers quick whose own forward pass is known to do no more; names and weights stay."""
    from tunewright.models.quick_mlp import quicken_mlps
    from tunewright.models.quick_norm import quicken_norms

    quicken_norms(model)
    quicken_mlps(model)
    if hasattr(model, "peft_config"):
        from tunewright.models.quick_lora import quicken_lora

        quicken_lora(model)
