"""The names of what a method trains, worked out from the architecture and not from what PEFT did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from tunewright.config.methods import (
    FreezeConfig,
    FullConfig,
    Ia3Config,
    LowRankMethod,
    Method,
    PrefixTuningConfig,
    PromptTuningConfig,
)
from tunewright.errors import TrainError
from tunewright.models.heads import head_name, kind_of
from tunewright.train.methods.tokens import row_names, rows_and_saved

if TYPE_CHECKING:
    import torch

Modules = dict[str, "torch.nn.Module"]


def trainable_names(model: torch.nn.Module, method: Method) -> set[str]:
    """Parameters of `model`, which has the method on it, that the method trains; by their names in it.

    Raises:
        TrainError: a module that the method names is not there.
    """
    if isinstance(method, FullConfig):
        return {name for name, _ in model.named_parameters()}
    if isinstance(method, FreezeConfig):
        return _unfrozen(model, method)
    if isinstance(method, PromptTuningConfig | PrefixTuningConfig):
        return {"prompt_encoder.default.embedding.weight"}
    modules = architecture(model)
    if isinstance(method, Ia3Config):
        wanted, _ = ia3_targets(model, method)
        found = named(modules, wanted, "target_modules")
        scales = {f"base_model.model.{name}.ia3_l.default" for name in found}
        return scales | _whole(modules, saved_whole(model, ()))
    rows, saved = rows_and_saved(model, modules, method, saved_whole(model, method.modules_to_save))
    trained = _low_rank(modules, method, saved, output_name(model, modules)) | row_names(rows)
    return _listed(model, trained)


def check_trainable(model: torch.nn.Module, method: Method) -> None:
    """Raises `TrainError` unless the weights that take gradients are exactly those of the method."""
    expected = trainable_names(model, method)
    found = {name for name, weight in model.named_parameters() if weight.requires_grad}
    if found == expected and found:
        return
    more, fewer = sorted(found - expected), sorted(expected - found)
    told = [f"{len(more)} weights would be trained that should not be, first {more[0]}"] if more else []
    told += [f"{len(fewer)} weights would not be trained, first {fewer[0]}"] if fewer else []
    raise TrainError(f"train.method.type={method.type}: {'; '.join(told) or 'no weight would be trained'}")


def architecture(model: Any) -> Modules:
    """The base model's modules by their names in it, whatever PEFT has put around them."""
    inner = model
    if hasattr(model, "peft_config"):
        inner = model.base_model if model.active_peft_config.is_prompt_learning else model.base_model.model
    return dict(_walk(inner, ""))


def _walk(module: torch.nn.Module, prefix: str) -> Iterator[tuple[str, torch.nn.Module]]:
    base = getattr(module, "base_layer", None)
    if base is not None:  # a layer of PEFT's: what is beside the base layer is the adapter
        yield prefix, base
        return
    module = getattr(module, "original_module", module)
    if prefix:
        yield prefix, module
    for name, child in module.named_children():
        yield from _walk(child, f"{prefix}.{name}" if prefix else name)


def named(modules: Modules, wanted: Sequence[str], field: str) -> list[str]:
    """Modules whose name is one of `wanted`, or ends with it.

    Raises:
        TrainError: one that matches nothing; PEFT is content when another does, and leaves it out in silence.
    """
    unknown = [w for w in wanted if not any(_ends(name, w) for name in modules)]
    if unknown:
        linear = sorted({name.rsplit(".", 1)[-1] for name, module in modules.items() if is_linear(module)})
        also = "; or say all-linear, alone" if field == "target_modules" else ""
        raise TrainError(
            f"train.method.{field}={list(wanted)}: the model has no layer {', '.join(unknown)}. "
            f"Its linear layers: {', '.join(linear)}{also}"
        )
    return [name for name in modules if any(_ends(name, w) for w in wanted)]


def blocks(model: Any) -> tuple[str, int]:
    """The name of the list of transformer blocks and their number.

    Raises:
        TrainError: the model has none as long as its configuration says.
    """
    import torch

    layers = model.config.num_hidden_layers
    for name, module in sorted(architecture(model).items(), key=lambda item: item[0].count(".")):
        if isinstance(module, torch.nn.ModuleList) and len(module) == layers:
            return name, layers
    raise TrainError(
        f"train.method.last_blocks: no list of {layers} blocks in a {model.config.model_type} model"
    )


def output_name(model: Any, modules: Modules) -> str | None:
    """The name of the output layer or head, which `all-linear` leaves out."""
    if kind_of(model) is not None:
        return head_name(model)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    head = getattr(head, "original_module", getattr(head, "base_layer", head))
    return next((name for name, module in modules.items() if module is head), None)


def ia3_targets(model: Any, method: Ia3Config) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(target modules, those of them whose inputs are scaled): the method's, or PEFT's for the architecture.

    Raises:
        TrainError: neither says.
    """
    from peft.utils.constants import (
        TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as FEEDFORWARD,
    )
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as TARGETS

    if method.target_modules:
        return method.target_modules, method.feedforward_modules
    kind = model.config.model_type
    if kind not in TARGETS:
        raise TrainError(
            f"train.method.type=ia3: there is no usual choice of layers for {kind} models; "
            f"give train.method.target_modules and feedforward_modules"
        )
    return tuple(TARGETS[kind]), tuple(FEEDFORWARD.get(kind, ()))


def is_linear(module: torch.nn.Module) -> bool:
    """Whether PEFT counts the module as linear: GPT-2's layers are, by another name."""
    import torch
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, torch.nn.Linear | Conv1D)


def saved_whole(model: Any, wanted: Sequence[str]) -> list[str]:
    """The modules that are trained whole beside an adapter: those asked for, and the head of a classifier."""
    return list(wanted) if kind_of(model) is None else list(dict.fromkeys((*wanted, head_name(model))))


def _low_rank(modules: Modules, method: LowRankMethod, saved: list[str], output: str | None) -> set[str]:
    import torch

    whole = _whole(modules, saved)
    if method.target_modules == ("all-linear",):
        layers = [name for name, module in modules.items() if is_linear(module) and name != output]
    else:
        layers = named(modules, method.target_modules, "target_modules")
    names = set()
    for layer in layers:
        if any(_ends(layer, name) for name in saved):
            continue
        inside = f"base_model.model.{layer}"
        if isinstance(modules[layer], torch.nn.Embedding):
            names |= {f"{inside}.lora_embedding_{side}.default" for side in "AB"}
        else:
            names |= {f"{inside}.lora_{side}.default.weight" for side in "AB"}
        if method.type == "dora":
            names.add(f"{inside}.lora_magnitude_vector.default.weight")
    return names | whole


def _whole(modules: Modules, saved: Sequence[str]) -> set[str]:
    return {
        f"base_model.model.{name}.modules_to_save.default.{weight}"
        for name in named(modules, saved, "modules_to_save")
        for weight, _ in modules[name].named_parameters()
    }


def _listed(model: torch.nn.Module, names: set[str]) -> set[str]:
    """The names under which the model lists the weights; a tied weight has several and is listed once."""
    listed = {id(weight): name for name, weight in model.named_parameters()}
    every = dict(model.named_parameters(remove_duplicate=False))
    return {listed[id(every[name])] if name in every else name for name in names}


def _unfrozen(model: torch.nn.Module, method: FreezeConfig) -> set[str]:
    """Names in `model`; a tied weight has the one it is listed under."""
    modules = architecture(model)
    chosen = [] if kind_of(model) is None else [head_name(model)]
    if method.last_blocks:
        inside, layers = blocks(model)
        if method.last_blocks > layers:
            raise TrainError(f"train.method.last_blocks={method.last_blocks}: the model has {layers} blocks")
        chosen += [f"{inside}.{number}" for number in range(layers - method.last_blocks, layers)]
    for pattern in method.modules:
        found = [
            n
            for n in modules
            if _ends(n, pattern) or fnmatchcase(n, pattern) or fnmatchcase(n, f"*.{pattern}")
        ]
        if not any(True for name in found for _ in modules[name].parameters()):
            parts = sorted({name.rsplit(".", 1)[-1] for name in modules} - {str(n) for n in range(1000)})
            raise TrainError(
                f"train.method.modules={list(method.modules)}: {pattern} matches no module with weights. "
                f"Names there are: {', '.join(parts)}"
            )
        chosen += found
    weights = {id(weight) for name in chosen for weight in modules[name].parameters()}
    return {name for name, weight in model.named_parameters() if id(weight) in weights}


def _ends(name: str, wanted: str) -> bool:
    return f".{name}".endswith(f".{wanted}")
