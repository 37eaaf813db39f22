"""A tokenizer against the model it came with: whether the ids of one are rows of the other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.errors import ModelError
from tunewright.models.load import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENDS = ("bos_token_id", "eos_token_id")


def check_tokenizer(folder: Path, model: Any) -> None:
    """Raises `ModelError` when the tokenizer in `folder` cannot be the one that `model` was trained with.

    Its ids must be rows of the embeddings, and the tokens that the model's settings call first and
    last must be special ones in it.
    """
    tokenizer = load_tokenizer(folder)
    highest, rows = highest_id(tokenizer), rows_of(model)
    if highest >= rows:
        raise ModelError(
            f"{folder}: the tokenizer is not this model's: its ids go up to {highest}, and the model has "
            f"embeddings for {rows} tokens. Copy the tokenizer from where the model is from; tokens that are "
            f"to be added to it are named in base.new_tokens"
        )
    for name in ENDS:
        given = getattr(model.config, name, None)
        for number in given if isinstance(given, list) else [given]:
            if number is not None and number >= 0 and number not in tokenizer.added_tokens_decoder:
                raise ModelError(
                    f"{folder}: the tokenizer is not this model's: {name}={number} in config.json is "
                    f"{_said(tokenizer, number, highest)}. Copy the tokenizer from where the model is "
                    f"from, or correct config.json"
                )


def rows_of(model: Any) -> int:
    """How many tokens the model has embeddings for."""
    return int(model.get_input_embeddings().num_embeddings)


def highest_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The largest id that the tokenizer can give."""
    return max(tokenizer.get_vocab().values())


def _said(tokenizer: PreTrainedTokenizerBase, number: int, highest: int) -> str:
    if number > highest:
        return f"above the tokenizer's highest id {highest}"
    return f"the ordinary token {tokenizer.convert_ids_to_tokens(number)!r} in the tokenizer"
