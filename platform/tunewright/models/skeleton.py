"""A model without its weights: modules, names and shapes on torch's meta device, which takes no memory.

A model of 70 billion parameters is built in a second or two, so that what does not fit it is told at once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunewright.errors import ModelError
from tunewright.models.weights import first_of, one_line

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

ADAPTER = ("lora_", "ia3_l", "prompt_encoder", "trainable_tokens_", "modules_to_save")
"""What PEFT calls the weights that it adds."""


Head = Literal["lm", "sequence", "token"]
AUTOS: Mapping[Head, str] = {
    "lm": "AutoModelForCausalLM",
    "sequence": "AutoModelForSequenceClassification",
    "token": "AutoModelForTokenClassification",
}


@dataclass(frozen=True)
class Parameters:
    """Parameters of a model; a weight that two modules share counts once.

    Attributes:
        trained: those that take gradients, by kind; `held` are all of them.
        held: embeddings, output, attention, mlp, norms, adapter and other.
    """

    held: dict[str, int]
    trained: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.held.values())

    @property
    def trainable(self) -> int:
        return sum(self.trained.values())


def skeleton(folder: Path, head: Head = "lm") -> PreTrainedModel:
    """The model that the config.json in `folder` describes, on the meta device, in evaluation mode.

    Raises:
        ModelError: no model that the installed transformers knows, or settings that contradict each other.
    """
    return skeleton_of(read_config(folder), str(folder), head)


def skeleton_of(config: PretrainedConfig, said: str, head: Head = "lm") -> PreTrainedModel:
    """The model of a configuration, on the meta device, in evaluation mode.

    Args:
        said: what the model is called in messages.
        head: of a language model, or of a classifier of documents or of tokens.
    Raises:
        ModelError: transformers cannot build it, or it is an encoder.
    """
    import transformers

    auto: Any = getattr(transformers, AUTOS[head])
    try:
        with weightless():
            model = auto.from_config(config, attn_implementation="sdpa", trust_remote_code=False)
    except Exception as error:  # whatever a module's constructor thinks of the numbers it is given
        raise ModelError(f"{said}: transformers cannot build it: {one_line(error)}") from error
    check_causal(model, said)
    model.tie_weights()
    model.eval()
    built: PreTrainedModel = model
    return built


def whole_skeleton(folder: Path) -> PreTrainedModel:
    """The model in `folder` on the meta device, each of its weights being in the files with its own shape.

    The library would draw a missing weight at random, and warn in a log.

    Raises:
        ModelError: a weight is missing, or has another shape than config.json says.
    """
    from transformers import AutoModelForCausalLM

    try:
        with quiet_transformers():
            auto: Any = AutoModelForCausalLM
            model, found = auto.from_pretrained(
                folder,
                device_map="meta",
                dtype="auto",
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                attn_implementation="sdpa",
                ignore_mismatched_sizes=True,  # told below, with names and shapes
                output_loading_info=True,
            )
    except Exception as error:  # constructors and readers of many models, each with errors of its own
        raise ModelError(f"the model in {folder} cannot be loaded: {one_line(error)}") from error
    other = sorted((name, tuple(has), tuple(wants)) for name, has, wants in found["mismatched_keys"])
    if other:
        name, has, wants = other[0]
        raise ModelError(
            f"{folder}: {len(other)} weights have other shapes than config.json says, first {name}: "
            f"{list(has)} instead of {list(wants)}; the two are of different models"
        )
    missing = sorted(found["missing_keys"])
    if missing:
        raise ModelError(
            f"{folder}: {len(missing)} weights of config.json are in no file, and would be random: "
            f"{first_of(missing)}"
        )
    check_causal(model, str(folder))
    whole: PreTrainedModel = model.eval()
    return whole


def read_config(folder: Path) -> PretrainedConfig:
    """The model's settings, as transformers understands them.

    Raises:
        ModelError: it does not.
    """
    from transformers import AutoConfig, __version__

    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        return config
    except Exception as error:  # settings are checked by many hands, each with errors of its own
        raise ModelError(
            f"{folder}: transformers {__version__} does not understand its config.json: {one_line(error)}"
        ) from error


def check_causal(model: Any, said: str) -> None:
    """Raises `ModelError` when the model's tokens see those behind them."""
    seeing = [
        name
        for name, module in model.named_modules()
        if getattr(module, "is_decoder", True) is False or getattr(module, "is_causal", True) is False
    ]
    if seeing:
        raise ModelError(
            f"{said} is an encoder: in {seeing[0]}, tokens see those behind them. Training needs a causal "
            f"language model such as Llama, Qwen, Mistral, Gemma, Phi or GPT-2"
        )


@contextmanager
def weightless() -> Iterator[None]:
    """While the block runs, new tensors have a shape and no content."""
    import torch

    with torch.device("meta"):
        yield


def parameters_of(model: Any) -> Parameters:
    """How many parameters a model has, of what kind, and which of them are trained."""
    held: dict[str, int] = {}
    trained: dict[str, int] = {}
    kinds = _kinds(model)
    for name, weight in model.named_parameters():
        kind = kinds[name]
        held[kind] = held.get(kind, 0) + weight.numel()
        if weight.requires_grad:
            trained[kind] = trained.get(kind, 0) + weight.numel()
    return Parameters(held, trained)


def _kinds(model: Any) -> dict[str, str]:
    """The kind of each parameter, by its name."""
    import torch

    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    mine = {id(weight) for weight in output.parameters()} if output is not None else set()
    kinds = {}
    for path, module in model.named_modules():
        for last, weight in module.named_parameters(recurse=False):
            name = f"{path}.{last}" if path else last
            if any(part in name for part in ADAPTER):
                kinds[name] = "adapter"
            elif isinstance(module, torch.nn.Embedding):  # before the output, which may share its weight
                kinds[name] = "embeddings"
            elif id(weight) in mine:
                kinds[name] = "output"
            else:
                kinds[name] = _kind_in_block(path, module)
    return kinds


def _kind_in_block(path: str, module: torch.nn.Module) -> str:
    if "norm" in type(module).__name__.lower():
        return "norms"
    if "attn" in path or "attention" in path:
        return "attention"
    return "mlp" if "mlp" in path or "experts" in path else "other"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """While the block runs, transformers logs no report of its own and draws no bars."""
    from transformers.utils import logging as own

    level, bars = own.get_verbosity(), own.is_progress_bar_enabled()
    own.set_verbosity(logging.CRITICAL)
    own.disable_progress_bar()
    try:
        yield
    finally:
        own.set_verbosity(level)
        if bars:
            own.enable_progress_bar()
