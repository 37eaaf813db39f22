"""How a model's output layer is asked about a few places of rows instead of about all of them.

hidden   the layer hands on what it was given, and `token_logps` does its work piece by piece
places   the layer itself, whatever it has become, is given the hidden states of the places alone
columns  the model is told which columns to answer at (`logits_to_keep`), each for every row
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from tunewright.models.attention import TESTED
from tunewright.models.prompted import virtual_tokens

Way = Literal["hidden", "places", "columns"]
AFTERWARDS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Settings by which an architecture changes its logits behind the output layer."""


@dataclass(frozen=True)
class Asking:
    """How to ask, and why not in the quickest way."""

    way: Way
    reason: str = ""


def how_to_ask(model: Any) -> Asking:
    """The quickest way that gives this model's own log-probabilities.

    Decided anew for each pass: DeepSpeed and PEFT change a model after it was made.
    """
    config, head = model.config, model.get_output_embeddings()
    if virtual_tokens(model):
        return Asking("columns", "virtual tokens stand before those of the row")
    if config.model_type not in TESTED or not isinstance(head, torch.nn.Module):
        return Asking("columns", f"where {config.model_type} models end is not known")
    if type(head) is not torch.nn.Linear:
        return Asking("places", f"the output layer is a {type(head).__name__}")
    if head._forward_hooks or head._forward_pre_hooks or hasattr(head.weight, "ds_id"):
        return Asking("places", "the output layer's weight is whole only while the layer is called")
    changed = [name for name in AFTERWARDS if getattr(config, name, None) not in (None, 1.0)]
    if changed:
        return Asking("places", f"{changed[0]} changes the logits behind the output layer")
    return Asking("hidden")


@contextmanager
def handing_on(head: torch.nn.Module) -> Iterator[None]:
    """While the block runs, the output layer gives back the hidden states that it is given."""
    with _instead(head, lambda hidden: hidden):
        yield


@contextmanager
def asked_at(head: torch.nn.Module, places_N: torch.Tensor) -> Iterator[None]:
    """While the block runs, the output layer answers (N, V) at these places alone.

    Args:
        places_N: numbers of tokens, counted through all rows one behind the other.
    """
    own = head.forward

    def at_places(hidden_BSH: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = own(hidden_BSH.flatten(0, 1).index_select(0, places_N))
        return logits

    with _instead(head, at_places):
        yield


@contextmanager
def _instead(module: torch.nn.Module, forward: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Another forward pass of the module, hooks around it as ever; one that it had as its own comes back."""
    kept = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if kept is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = kept
