"""Rows of the embeddings and of the output layer that are trained beside low-rank updates.

PEFT has them as `trainable_token_indices`, and puts them into a copy of the whole table in every
forward pass, whose gradient is as large. Here the layer answers as it is, and the answers of the new
tokens take the places of its own: the same numbers and the same files, for a third of what it adds.

N tokens of the vocabulary with rows of their own, H hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch.nn.functional import embedding, linear

Model = TypeVar("Model", bound=torch.nn.Module)


def with_own_rows(model: Model) -> Model:
    """The same model, its layers with trained rows of single tokens doing without a copy of the table."""
    for module in model.modules():
        if type(module) is TrainableTokensLayer:
            module.__class__ = OwnRowsLayer
    return model


class OwnRowsLayer(TrainableTokensLayer):
    """An embedding or output layer of which some tokens' rows are an adapter's."""

    def forward_adapters(self, x: Any, active_adapters: Any, *args: Any, **kwargs: Any) -> Any:
        """As PEFT's."""
        if self.disable_adapters or self.merged or len(active_adapters) != 1:
            return super().forward_adapters(x, active_adapters, *args, **kwargs)
        name = active_adapters[0]
        rows_NH: torch.Tensor = self.trainable_tokens_delta[name]
        ids_N = torch.tensor(self.token_indices[name], device=x.device)
        out = self.base_layer(x, *args, **kwargs)
        if isinstance(self.base_layer, torch.nn.Embedding):
            is_new = x[..., None] == ids_N
            new = embedding(is_new.int().argmax(-1), rows_NH.to(out.dtype))
            scale = self._get_embed_scale()  # type: ignore[no-untyped-call]
            new = new if scale is None else new * scale.to(new.dtype)
            return torch.where(is_new.any(-1, keepdim=True), new, out)
        return out.index_copy(-1, ids_N, linear(x, rows_NH.to(x.dtype)).to(out.dtype))
