"""Linear layers in 4 bits (NF4, by bitsandbytes), as QLoRA trains over and its adapters are read over."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.errors import ModelError
from tunewright.models.heads import head_of, kind_of

if TYPE_CHECKING:
    import torch

QUANTIZATION = "quantization.json"
"""Beside an adapter: how the base was quantized when it was trained."""
BLOCK = 64
"""Weights that share a scale; on CPUs bitsandbytes wants whole blocks in a row."""
NF4 = {"bits": 4, "type": "nf4", "double": True}


def quantize_nf4(model: Any, dtype: torch.dtype) -> None:
    """Replace every linear layer but the output layer or head by one of 4 bits, which computes in `dtype`.

    Raises:
        ModelError: bitsandbytes is not installed, or the model has no layers that it knows.
    """
    linear = check_quantizable(model)
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name, module in linear:
        small = Linear4bit(
            module.in_features,
            module.out_features,
            bias=module.bias is not None,
            compute_dtype=dtype,
            compress_statistics=NF4["double"],
            quant_type=NF4["type"],
        )
        weight = module.weight.data
        small.weight = Params4bit(
            weight.clone(),
            requires_grad=False,
            compress_statistics=NF4["double"],
            quant_type=NF4["type"],
        )
        small.bias = module.bias
        # Else an evaluation on a CPU would repack the weights, for a product that training does not use.
        small.support_avx512bf16_for_cpu = False
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, small.to(weight.device))
    # PEFT asks this before it puts its own layers over those of 4 bits.
    model.is_loaded_in_4bit = True


def check_quantizable(model: Any) -> list[tuple[str, Any]]:
    """The linear layers, by name, that become ones of 4 bits; weights are not needed.

    Raises:
        ModelError: bitsandbytes is not installed, or the model has no layers that it knows.
    """
    import torch

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError("qlora needs bitsandbytes; install it with `pip install 'tunewright[qlora]'`")
    output = head_of(model) if kind_of(model) else model.get_output_embeddings()
    linear = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not output
    ]
    if not linear:
        raise ModelError(
            f"{model.config.model_type} models have no linear layers that bitsandbytes knows; "
            f"choose lora instead of qlora"
        )
    crossing = [(name, module) for name, module in linear if module.in_features % BLOCK]
    if crossing:
        name, module = crossing[0]
        raise ModelError(
            f"{name} has {module.in_features} inputs; qlora needs a multiple of {BLOCK}, choose lora instead"
        )
    return linear


def write_quantization(folder: Path) -> None:
    """Say beside an adapter that its base was in 4 bits."""
    (folder / QUANTIZATION).write_text(json.dumps(NF4, indent=2), encoding="utf-8")


def was_quantized(folder: Path) -> bool:
    """Whether the adapter in `folder` was trained over a base in 4 bits.

    Raises:
        ModelError: over one quantized in a way that is not known here.
    """
    path = folder / QUANTIZATION
    if not path.is_file():
        return False
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from None
    if found != NF4:
        raise ModelError(f"{path} says {found}; only {NF4} is known here")
    return True
