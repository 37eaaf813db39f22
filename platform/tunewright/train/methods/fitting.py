"""A method tried on a model without weights: what workers would refuse is refused in a second."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from tunewright.config import TrainConfig
from tunewright.config.methods import FreezeConfig, LoraConfig, Method
from tunewright.errors import TrainError
from tunewright.models.skeleton import Head, Parameters, parameters_of, skeleton_of, weightless
from tunewright.train.methods.apply import apply_method, context_left
from tunewright.train.methods.tokens import new_token_ids

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

HEADS: dict[str, Head] = {"classify": "sequence", "reward": "sequence", "tag": "token"}
"""Objective -> what its head is asked about, where it is not a language model's."""


def fit_training(config: PretrainedConfig, base: str, train: TrainConfig, row_length: int) -> Parameters:
    """The parameters of a base with a training's method on it, and those of them that would be trained.

    Args:
        config: the base's settings; a copy is used.
        base: what it is called in messages.
        row_length: tokens per packed row.
    Raises:
        TrainError: a module that matches nothing, a method that the architecture has no place for or
            that would not learn the base's new tokens, or rows that do not fit into the context.
        ModelError: packed rows or the method are not for this architecture.
    """
    model = skeleton_of(copy.deepcopy(config), base, HEADS.get(train.objective, "lm"))
    _check_learns_new_tokens(model, train.method)
    return fit_method(model, train.method, row_length)


def fit_method(model: PreTrainedModel, method: Method, row_length: int | None = None) -> Parameters:
    """As `fit_training`, of a skeleton, which has the method on it then."""
    applied = _applied(model, method)
    if row_length is not None:
        context_left(applied, row_length)
    return parameters_of(applied)


def with_method(model: PreTrainedModel, train: TrainConfig) -> Any:
    """The skeleton with the method of a training on it."""
    return _applied(model, train.method)


def _applied(model: PreTrainedModel, method: Method) -> Any:
    with weightless():
        return apply_method(model, _without_bits(model, method), seed=0)


def _without_bits(model: PreTrainedModel, method: Method) -> Method:
    """The method over a base that is not quantized: where there are no weights, none can be packed."""
    if method.type != "qlora":
        return method
    from tunewright.models.quantize import check_quantizable

    check_quantizable(model)
    return LoraConfig(**method.model_dump(exclude={"type"}))


def _check_learns_new_tokens(model: PreTrainedModel, method: Method) -> None:
    """Raises `TrainError` when `freeze` would leave the rows of new tokens as they are."""
    if not isinstance(method, FreezeConfig) or not new_token_ids(model):
        return
    from tunewright.train.methods.names import trainable_names

    words: Any = model.get_input_embeddings()
    names = {id(weight): name for name, weight in model.named_parameters()}
    if names[id(words.weight)] not in trainable_names(model, method):
        own = next(name for name, module in model.named_modules() if module is words)
        raise TrainError(
            f"train.method.type=freeze would leave the tokens of base.new_tokens what they are: add "
            f"{own.rsplit('.', 1)[-1]} to train.method.modules"
        )
