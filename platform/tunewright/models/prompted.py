"""Prompt and prefix tuning where PEFT alone would not do: packed rows, key-value caches, told positions.

PEFT's own forward pass ignores `position_ids` and `past_key_values`, and takes 2-D masks only. Here
the virtual tokens stand once, at the beginning of a row: every document sees them, they see nothing
but each other, and a document's positions begin behind them. So a packed document is what it is alone.

B rows, S tokens per row, P virtual tokens, K places in the cache, H heads, D channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModelForCausalLM
from transformers import DynamicCache

from tunewright.errors import ModelError

Mask = torch.Tensor | dict[str, torch.Tensor] | None


def prompted(model: Any) -> Any:
    """The same model, its forward pass fit for packed rows and caches if it has virtual tokens."""
    if isinstance(model, PeftModelForCausalLM) and model.active_peft_config.is_prompt_learning:
        check_prompted(model)
        model.__class__ = PromptedModel
    return model


def virtual_tokens(model: Any) -> int:
    """How many tokens of its context the model has given away to virtual ones."""
    if not isinstance(model, PromptedModel):
        return 0
    return int(model.active_peft_config.num_virtual_tokens)


def check_prompted(model: Any) -> None:
    """Raises `ModelError` when virtual tokens would not be seen from everywhere."""
    window = getattr(model.config, "sliding_window", None)
    context = getattr(model.config, "max_position_embeddings", None)
    kinds = getattr(model.config, "layer_types", None)
    slides = window is not None and (kinds is None or "sliding_attention" in kinds)
    if slides and (context is None or window < context):
        raise ModelError(
            f"this {model.config.model_type} model's attention slides over the last {window} tokens, and "
            f"would lose sight of virtual tokens; choose lora instead of prompt_tuning or prefix_tuning"
        )


class PromptedModel(PeftModelForCausalLM):
    """A causal language model with virtual tokens in front; its logits are those of real tokens only."""

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: Mask = None,
        inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        logits_to_keep: int | torch.Tensor = 0,
        **rest: Any,
    ) -> Any:
        """As the base model's, labels aside.

        Args:
            attention_mask: (B, K) ones for real tokens; or (B, 1, S, S) without a cache, added to the
                scores; or one of these for each kind of layer.
        """
        if rest.get("labels") is not None:
            raise ModelError("a model with virtual tokens gives logits; compute the loss from them")
        rest |= {"logits_to_keep": logits_to_keep, "past_key_values": past_key_values}
        count = self.active_peft_config.num_virtual_tokens
        if position_ids is not None:
            rest["position_ids"] = position_ids + count
        if past_key_values is not None and past_key_values.get_seq_length() > 0:  # goes on behind them
            rest["attention_mask"] = _extended(attention_mask, count, own_rows=False)
            return self.base_model(input_ids=input_ids, inputs_embeds=inputs_embeds, **rest)
        prefix = self.active_peft_config.peft_type == "PREFIX_TUNING"
        rest["attention_mask"] = _extended(attention_mask, count, own_rows=not prefix)
        given = input_ids if input_ids is not None else inputs_embeds
        assert given is not None
        if prefix:
            rest["past_key_values"] = self._fill(past_key_values, len(given))
            return self.base_model(input_ids=input_ids, inputs_embeds=inputs_embeds, **rest)
        return self._behind_embeddings(input_ids, inputs_embeds, count, rest)

    def _behind_embeddings(
        self, input_ids: torch.Tensor | None, embedded: torch.Tensor | None, count: int, rest: dict[str, Any]
    ) -> Any:
        if embedded is None:
            words: Any = self.word_embeddings
            embedded = words(input_ids)
        prompts = self.get_prompt(len(embedded)).to(embedded.dtype)
        positions = rest.get("position_ids")
        if positions is not None:
            own = torch.arange(count, device=positions.device).expand(len(positions), -1)
            rest["position_ids"] = torch.cat([own, positions], dim=1)
        kept = rest["logits_to_keep"]
        if isinstance(kept, torch.Tensor):
            rest["logits_to_keep"] = kept + count
        out = self.base_model(inputs_embeds=torch.cat([prompts, embedded], dim=1), **rest)
        if isinstance(kept, int) and kept == 0:
            out.logits = out.logits[:, count:]
        return out

    def _fill(self, cache: Any, rows: int) -> Any:
        """A cache that begins with the learned keys and values, in every layer."""
        config = self.active_peft_config
        encoder: Any = self.prompt_encoder[self.active_adapter]
        tokens_P = self.prompt_tokens[self.active_adapter].to(encoder.embedding.weight.device)
        heads = config.num_attention_heads
        shape = (config.num_virtual_tokens, 2 * config.num_layers, heads, config.token_dim // heads)
        pairs_LHPD = encoder(tokens_P).view(shape).permute(1, 2, 0, 3)
        if self.base_model_torch_dtype is not None:
            pairs_LHPD = pairs_LHPD.to(self.base_model_torch_dtype)
        cache = DynamicCache() if cache is None else cache
        for layer in range(config.num_layers):
            keys_HPD, values_HPD = pairs_LHPD[2 * layer], pairs_LHPD[2 * layer + 1]
            cache.update(keys_HPD.expand(rows, -1, -1, -1), values_HPD.expand(rows, -1, -1, -1), layer)
        return cache


def _extended(mask: Mask, count: int, own_rows: bool) -> Mask:
    """The mask with `count` virtual tokens in front, which every token sees.

    Args:
        own_rows: the virtual tokens are inputs too: each sees itself and those before it.
    """
    if mask is None:
        return None
    if isinstance(mask, dict):
        return {kind: _with_columns(each, count, own_rows) for kind, each in mask.items()}
    if mask.dim() == 2:
        return torch.cat([mask.new_ones(len(mask), count), mask], dim=1)
    return _with_columns(mask, count, own_rows)


def _with_columns(mask: torch.Tensor, count: int, own_rows: bool) -> torch.Tensor:
    rows, heads, queries, keys = mask.shape
    top = count if own_rows else 0
    out = mask.new_zeros(rows, heads, top + queries, count + keys)
    out[:, :, top:, count:] = mask
    if own_rows:
        hidden = torch.finfo(mask.dtype).min
        above = torch.ones(count, count, dtype=torch.bool, device=mask.device).triu(1)
        out[:, :, :count, :count].masked_fill_(above, hidden)
        out[:, :, :count, count:] = hidden
    return out
