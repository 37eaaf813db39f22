"""What was trained, written, and read again to see that it is what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.config.methods import Method, PrefixTuningConfig, PromptTuningConfig
from tunewright.errors import TrainError
from tunewright.models.heads import kind_of, write_labels

if TYPE_CHECKING:
    import torch

Tensors = dict[str, "torch.Tensor"]


def export(model: Any, weights: Tensors, method: Method, folder: Path) -> None:
    """Write the trained model: a plain PEFT folder for adapters, a Hugging Face folder for whole models.

    A classifier's has the names of its classes in `labels.json` besides.

    Args:
        weights: fp32 values of every trained parameter, by its name in `model`.
    Raises:
        TrainError: what was written, read again, is not what was trained.
    """
    from safetensors.torch import load_file

    if method.result == "model":
        expected = weights
        model.save_pretrained(folder, state_dict=_whole(model, weights))
    elif isinstance(method, PromptTuningConfig | PrefixTuningConfig):
        expected = _write_prompts(model, weights, folder)
    else:
        state = _with_aliases(model, weights)
        expected = _adapter_names(model, state)
        model.save_pretrained(str(folder), state_dict=state)
    if method.type == "qlora":
        from tunewright.models.quantize import write_quantization

        write_quantization(folder)
    if kind_of(model) is not None:
        write_labels(model, folder)
    written: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        written |= load_file(path)
    _compare(written, expected, folder)


def _compare(written: Tensors, expected: Tensors, folder: Path) -> None:
    for name, value in written.items():
        if name in expected and not value.equal(expected[name]):
            raise TrainError(f"{folder}: {name} differs from the trained weight after writing")
    missing = sorted(set(expected) - set(written))
    if missing:
        raise TrainError(f"{folder}: {len(missing)} trained weights were not written, first {missing[0]}")


def _with_aliases(model: Any, weights: Tensors) -> Tensors:
    """The weights under every name they have in the model: a tied one has several, and PEFT asks for each."""
    listed = {id(weight): name for name, weight in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    return {name: weights[listed[id(w)]] for name, w in every if listed[id(w)] in weights}


def _adapter_names(model: Any, weights: Tensors) -> Tensors:
    """The weights under the names that PEFT's files have; each must have one."""
    from peft import get_peft_model_state_dict

    found: Tensors = get_peft_model_state_dict(model, state_dict=dict(weights))
    kept = {id(value) for value in found.values()}
    lost = sorted(name for name, value in weights.items() if id(value) not in kept)
    if lost:
        raise TrainError(f"PEFT would leave out {len(lost)} trained weights, first {lost[0]}")
    return found


def _write_prompts(model: Any, weights: Tensors, folder: Path) -> Tensors:
    """PEFT would write the model's own values, which are bf16 where the trained ones are fp32."""
    import copy

    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (value,) = weights.values()
    out = {"prompt_embeddings": value.contiguous()}
    save_file(out, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = copy.copy(model.active_peft_config)
    config.base_model_name_or_path = model.base_model.config.name_or_path
    config.inference_mode = True
    config.save_pretrained(str(folder))
    return out


def _whole(model: Any, weights: Tensors) -> Tensors:
    """All of the model's state in fp32, trained values in it; save_pretrained drops tied copies."""
    listed = {id(weight): name for name, weight in model.named_parameters()}
    tied = {name: listed[id(weight)] for name, weight in model.named_parameters(remove_duplicate=False)}
    values: Tensors = {}
    state = {}
    for name, value in model.state_dict().items():
        own = tied.get(name, name)
        if own not in values:
            value = weights.get(own, value)
            values[own] = value.float() if value.is_floating_point() else value
        state[name] = values[own]  # one tensor for all the names of a weight
    return state
