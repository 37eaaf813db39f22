"""An earlier training's adapter: trained further, or left as it is under a new one and added to that.

`keep` and `stack` are called before an engine divides the model's weights among the workers.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.config.methods import Method
from tunewright.errors import TrainError
from tunewright.models.adapter_config import NAME as CONFIG
from tunewright.models.adapter_config import read_adapter_config
from tunewright.train.methods.export import export
from tunewright.train.methods.names import check_trainable

if TYPE_CHECKING:
    import torch

    from tunewright.train.engine import Engine

Tensors = dict[str, "torch.Tensor"]

EARLIER = "earlier"
"""PEFT's name for the adapter that stays as it is; the one that is trained is its `default`."""
WEIGHTS = "adapter_model.safetensors"
KIND = {
    "peft_type": "method",
    "r": "rank",
    "lora_alpha": "alpha",
    "use_rslora": "rslora",
    "use_dora": "dora",
    "num_virtual_tokens": "tokens",
}
"""PEFT's settings that decide how an adapter's weights count -> what we call them."""


def go_on_with(model: Any, method: Method, earlier: Path | None, stacked: bool) -> Tensors:
    """Let training begin where an earlier one ended; there may be none.

    Returns the fp32 weights that are trained further, by their names in the model.

    Raises:
        TrainError: the earlier adapter is not one that the method can go on with.
        ModelError: the folder holds no adapter.
    """
    if earlier is None:
        return {}
    if stacked:
        stack(model, method, earlier)
        return {}
    return keep(model, earlier)


def keep(model: Any, folder: Path) -> Tensors:
    """Give the adapter on `model` the weights of an earlier one, and return them in fp32.

    Raises:
        TrainError: the adapters are of different shapes; says in what.
        ModelError: the folder holds no adapter.
    """
    from tunewright.models.quantize import was_quantized

    now, before = _settings(model), read_adapter_config(folder)
    different = [
        f"{told} is {_plain(before.get(key))} there and {_plain(now.get(key))} here"
        for key, told in KIND.items()
        if _plain(before.get(key)) != _plain(now.get(key))
    ]
    if was_quantized(folder) != bool(getattr(model, "is_loaded_in_4bit", False)):
        different.append("one of them is over a base in 4 bits")
    if different:
        raise TrainError(f"the adapter in {folder} cannot be trained further: {'; '.join(different)}")
    return _put(model, "default", folder)


def stack(model: Any, method: Method, folder: Path) -> None:
    """Put an earlier adapter beside the one on `model`, active and not to be trained.

    Raises:
        TrainError: one of them is no plain low-rank adapter.
        ModelError: the folder holds no adapter.
    """
    import torch
    from peft import LoraConfig

    for which, settings in (("earlier", read_adapter_config(folder)), ("new", _settings(model))):
        reason = _why_no_sum(settings)
        if reason:
            raise TrainError(
                f"the adapter in {folder} cannot be built upon: the {which} one {reason}; "
                f"only lora and rslora add up"
            )
    config = LoraConfig.from_pretrained(str(folder))
    if config.fan_in_fan_out != _settings(model)["fan_in_fan_out"]:
        raise TrainError(
            f"the adapter in {folder} cannot be built upon: its layers keep their weights in another way "
            f"(Conv1D and Linear) than those of train.method.target_modules"
        )
    config.lora_dropout = 0.0  # it is no longer trained, so nothing of it is left out
    config.inference_mode = True
    with torch.random.fork_rng(devices=[]):
        model.add_adapter(EARLIER, config, autocast_adapter_dtype=False)
    _put(model, EARLIER, folder)
    model.base_model.set_adapter([EARLIER, "default"])  # of the layers; the model's own stays `default`
    for name, weight in model.named_parameters():
        if EARLIER in name.split("."):
            weight.requires_grad_(False)
    check_trainable(model, method)


def restore_precision(engine: Engine, weights: Tensors) -> None:
    """Give the optimizer the fp32 weights that lost digits on their way into a model of less precision."""
    import torch
    from deepspeed.utils import safe_set_full_fp32_param

    if not weights or engine.dtype == torch.float32:
        return
    whole = engine.unpartitioned()
    for name, parameter in engine.named:
        if whole:
            whole[name][0].data.copy_(weights[name])
        else:
            safe_set_full_fp32_param(parameter, weights[name])


def export_sum(model: Any, weights: Tensors, method: Method, earlier: Path, folder: Path) -> None:
    """Write the earlier adapter and the one trained on top of it as one plain adapter.

    Args:
        weights: fp32 values of the trained parameters, by their names in `model`.
    Raises:
        TrainError: what was written, read again, is not the sum.
    """
    alone = folder.parent.with_name("newer")
    shutil.rmtree(alone, ignore_errors=True)
    config = model.peft_config.pop(EARLIER)  # or PEFT would write that one too
    try:
        export(model, weights, method, alone)
    finally:
        model.peft_config[EARLIER] = config
    join(earlier, alone, folder)
    shutil.rmtree(alone)


def join(first: Path, second: Path, folder: Path) -> None:
    """Write one low-rank adapter that changes the base by what two do together.

    s1 B1 A1 + s2 B2 A2 = [s1 B1, s2 B2] [A1; A2], so the ranks add up and the scale is 1. A layer that
    only one of them is on gets zeros for the other: servers expect one rank for all layers.

    Raises:
        TrainError: what was written, read again, is something else.
    """
    from safetensors.torch import load_file, save_file

    configs = [read_adapter_config(each) for each in (first, second)]
    ranks = [int(config["r"]) for config in configs]
    scaled = [
        {name: value * _scale(config) if _is_b(name) else value for name, value in _read(each).items()}
        for each, config in zip((first, second), configs, strict=True)
    ]
    joined = {}
    for name in sorted(scaled[0].keys() | scaled[1].keys()):
        parts = [
            part[name] if name in part else _zeros(other[name], rank, _is_b(name))
            for part, other, rank in zip(scaled, reversed(scaled), ranks, strict=True)
        ]
        joined[name] = _side_by_side(parts, _is_b(name))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(joined, folder / WEIGHTS, metadata={"format": "pt"})
    targets = sorted({target for config in configs for target in config["target_modules"]})
    rank = sum(ranks)
    settings = {**configs[1], "r": rank, "lora_alpha": rank, "use_rslora": False, "lora_dropout": 0.0}
    text = json.dumps(settings | {"target_modules": targets}, indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    written = load_file(folder / WEIGHTS)
    wrong = [name for name, value in joined.items() if name not in written or not written[name].equal(value)]
    if wrong:
        raise TrainError(f"{folder}: {wrong[0]} differs from the sum of the two adapters after writing")


def _put(model: Any, adapter: str, folder: Path) -> Tensors:
    """Copy the weights of a folder into an adapter of the model; they are returned by their names there."""
    import torch

    names = _names(model, adapter)
    stored = _read(folder)
    every = dict(model.named_parameters(remove_duplicate=False))
    here = {name: tuple(every[own].shape) for name, own in names.items()}
    there = {name: tuple(value.shape) for name, value in stored.items()}
    odd = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
    if odd:
        raise TrainError(
            f"the adapter in {folder} is not one for this model and method: {len(odd)} weights differ, the "
            f"first is {odd[0]}: {there.get(odd[0], 'none')} there and {here.get(odd[0], 'none')} here"
        )
    listed = {id(weight): name for name, weight in model.named_parameters()}
    put = {}
    with torch.no_grad():
        for name, value in stored.items():
            weight = every[names[name]]
            weight.copy_(value)
            put[listed[id(weight)]] = value.float()
    return put


def _names(model: Any, adapter: str) -> dict[str, str]:
    """The name of each weight of an adapter in PEFT's file -> the parameter's name in the model."""
    from peft import get_peft_model_state_dict

    if model.peft_config[adapter].is_prompt_learning:
        return {"prompt_embeddings": f"prompt_encoder.{adapter}.embedding.weight"}
    state = dict(model.named_parameters(remove_duplicate=False))
    found = get_peft_model_state_dict(
        model, state_dict=state, adapter_name=adapter, save_embedding_layers=False
    )
    names = {id(weight): name for name, weight in state.items()}
    return {name: names[id(weight)] for name, weight in found.items()}


def _settings(model: Any) -> dict[str, Any]:
    settings: dict[str, Any] = model.peft_config["default"].to_dict()
    return settings


def _plain(value: Any) -> Any:
    """A setting as JSON has it; one that is off and one that is not there are the same."""
    return getattr(value, "value", value) or None


def _why_no_sum(settings: dict[str, Any]) -> str:
    """Why an adapter is no sum of low-rank updates; empty if it is."""
    kind = _plain(settings["peft_type"])
    if kind != "LORA":
        return f"is {str(kind).lower()}"
    if settings.get("use_dora"):
        return "is dora, which scales the base's own weights too"
    if settings.get("modules_to_save"):
        return f"has modules that were trained whole ({', '.join(settings['modules_to_save'])})"
    if settings.get("trainable_token_indices"):
        return "has embeddings of new tokens"
    return ""


def _read(folder: Path) -> Tensors:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise TrainError(f"the earlier adapter's weights cannot be read: {path}: {error}") from None


def _scale(settings: dict[str, Any]) -> float:
    rank = int(settings["r"])
    return float(settings["lora_alpha"] / (math.sqrt(rank) if settings.get("use_rslora") else rank))


def _is_b(name: str) -> bool:
    """Whether a weight is the second factor, whose columns are the rank; the first one has it as rows."""
    return "lora_B" in name or "lora_embedding_B" in name


def _zeros(other: torch.Tensor, rank: int, is_b: bool) -> torch.Tensor:
    return other.new_zeros((other.shape[0], rank) if is_b else (rank, other.shape[1]))


def _side_by_side(parts: list[torch.Tensor], is_b: bool) -> torch.Tensor:
    import torch

    return torch.cat([part.float() for part in parts], dim=1 if is_b else 0).contiguous()
