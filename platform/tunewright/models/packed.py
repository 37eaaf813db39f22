"""Packed rows and a model's attention: masks under which no token sees another document.

B rows, S tokens per row.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tunewright.errors import ModelError
from tunewright.models.heads import kind_of

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

Windows = Mapping[str, int | None]
"""Kind of layer -> how many tokens it sees, itself included; None for all. `""` is every layer."""
EVERY_LAYER: Windows = {"": None}
ATTENTION_KINDS = {"full_attention", "sliding_attention"}


def windows_of(config: PretrainedConfig, length: int) -> Windows:
    """How far the model's layers see in rows of `length` tokens.

    A mask of one's own takes the place of the library's, sliding window included; so the window
    must be in it, or training would see more than serving does.
    """
    window = getattr(config, "sliding_window", None)
    if window is None or window >= length:
        return EVERY_LAYER
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds:
        return {"": window}
    if "sliding_attention" not in kinds:
        return EVERY_LAYER
    # The library looks for both, whether it has layers of both or not.
    return {"full_attention": None, "sliding_attention": window}


def packed_masks(
    segments_BS: torch.Tensor, dtype: torch.dtype, windows: Windows = EVERY_LAYER
) -> torch.Tensor | dict[str, torch.Tensor]:
    """(B, 1, S, S) what is added to the attention scores: 0 for a token's own document up to itself.

    One tensor for every layer, or one for each kind of them.
    """
    import torch

    length = segments_BS.shape[1]
    at_S = torch.arange(length, device=segments_BS.device)
    back_SS = at_S[:, None] - at_S[None, :]
    same_BSS = segments_BS[:, :, None] == segments_BS[:, None, :]

    def mask(window: int | None) -> torch.Tensor:
        near_SS = back_SS >= 0 if window is None else (back_SS >= 0) & (back_SS < window)
        bias_BSS = torch.zeros(same_BSS.shape, dtype=dtype, device=segments_BS.device)
        return bias_BSS.masked_fill_(~(same_BSS & near_SS), torch.finfo(dtype).min)[:, None]

    if set(windows) == {""}:
        return mask(windows[""])
    return {kind: mask(window) for kind, window in windows.items()}


def check_packable(model: Any) -> None:
    """Ensure that the model's layers exchange tokens by masked attention alone, at positions it is told.

    Raises:
        ModelError: packed documents would leak into each other.
    """
    config = model.config
    named = f"{config.model_type} models"
    taken = inspect.signature(model.forward).parameters
    needed = ["attention_mask", "position_ids", *([] if kind_of(model) else ["logits_to_keep"])]
    missing = [name for name in needed if name not in taken]
    if missing:
        raise ModelError(
            f"{named} take no {missing[0]}, so packed documents would leak into each other; "
            f"choose a base such as Llama, Qwen, Mistral, Gemma, Phi or GPT-2"
        )
    if getattr(config, "alibi", False):
        raise ModelError(
            f"this {config.model_type} model has ALiBi positions, which packed rows cannot start anew; "
            f"choose one with rotary or learned positions"
        )
    kinds = set(getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ())
    other = sorted(kinds - ATTENTION_KINDS)
    if other:
        raise ModelError(
            f"{named} have {other[0]} layers, in which packed documents would leak into each other; "
            f"choose a base with full or sliding attention alone"
        )
