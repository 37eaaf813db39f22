"""Which rows of the vocabulary's tables are trained beside low-rank updates: those of new tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from tunewright.config.methods import LowRankMethod


def new_token_ids(model: Any) -> list[int]:
    """Ids of the tokens that `base.new_tokens` added to the model; its settings say so."""
    return [int(number) for number in getattr(model.config, "new_token_ids", None) or ()]


def rows_and_saved(
    model: Any, modules: Mapping[str, torch.nn.Module], method: LowRankMethod, saved: Sequence[str]
) -> tuple[dict[str, list[int]], list[str]]:
    """(layer -> tokens whose rows are trained, modules trained whole), so that new tokens are learned.

    The embeddings' rows and, unless it shares its weight with them, the output layer's. An output layer
    with a bias is trained whole: PEFT would leave the bias out. A layer that the method changes anyway
    is left to it.

    Args:
        saved: the modules that are trained whole in any case.
    """
    ids = new_token_ids(model)
    if not ids:
        return {}, list(saved)
    words = _bare(model.get_input_embeddings())
    tables = [words]
    output = _bare(model.get_output_embeddings()) if hasattr(model, "get_output_embeddings") else None
    if output is not None and output.weight is not words.weight:
        tables.append(output)
    rows, whole = {}, list(saved)
    taken = (*saved, *method.target_modules)
    for name, module in modules.items():
        if (module is words or module is output) and _named(name, taken):
            tables = [table for table in tables if table.weight is not module.weight]
    for name, module in modules.items():
        if not any(module is table for table in tables):
            continue
        if getattr(module, "bias", None) is not None:
            whole.append(name)
        else:
            rows[name] = ids
    return rows, whole


def row_names(rows: Mapping[str, list[int]]) -> set[str]:
    """The names of the trained rows in a model with the adapter on it."""
    return {f"base_model.model.{name}.token_adapter.trainable_tokens_delta.default" for name in rows}


def _bare(module: Any) -> Any:
    """The layer inside PEFT's."""
    return getattr(module, "original_module", getattr(module, "base_layer", module))


def _named(name: str, wanted: Sequence[str]) -> bool:
    return any(f".{name}".endswith(f".{one}") for one in wanted)
