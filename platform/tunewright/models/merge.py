"""Base and adapter made one: a plain Hugging Face folder, its weights added in fp32 and rounded once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunewright.errors import ModelError
from tunewright.models.adapter_config import read_adapter_config
from tunewright.models.compare import Agreement
from tunewright.models.heads import kind_of_folder
from tunewright.models.load import load_model

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16", "fp16"]
HEADERS: dict[str, Precision] = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}
PLACED = {"PROMPT_TUNING": "prompt_tuning", "PREFIX_TUNING": "prefix_tuning"}
"""PEFT's name -> ours, of methods that put virtual tokens in front of the input."""


@dataclass(frozen=True)
class Tolerance:
    """What a merged model may differ by from base and adapter, both computed in fp32."""

    kl: float
    top1: float


TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(kl=1e-6, top1=0.999),
    "fp16": Tolerance(kl=1e-4, top1=0.99),
    "bf16": Tolerance(kl=2e-3, top1=0.95),
}
"""Ten times the largest difference measured, or more, on the pretrained stories260K and
babyllama-105 (bases in bf16; lora, dora, rslora and ia3 after 1 to 40 steps, 2,000 held-out tokens):
KL 8e-12, 2e-6 and 1.4e-4, top-1 1.0, 0.998 and 0.992. Random weights, whose favourites are close to one
another, gave a top-1 of 0.977 in bf16."""
MOST_OF_EFFECT = 0.25
"""Share of the tuning's own divergence from the base that rounding may come to. Measured in bf16: under
0.13 where the tuning's was above 5e-4, and 0.8 or more where it was below 1e-5, as the weights round back."""


def why_not_equal(found: Agreement, effect: Agreement | None, precision: Precision) -> str:
    """Why a merged model is not what base and adapter are; empty if it is.

    Args:
        found: of base and adapter with the merged model.
        effect: of base and adapter with the base alone, where there is an adapter.
    """
    limit = TOLERANCES[precision]
    if found.kl > limit.kl:
        return f"its mean KL divergence is {found.kl:.2g}, and {limit.kl:g} is tolerated in {precision}"
    if found.top1 < limit.top1:
        return (
            f"it finds the same likeliest token at {found.top1:.2%} of {found.tokens:,} tokens, and "
            f"{limit.top1:.1%} is needed in {precision}"
        )
    if effect is not None and found.kl > max(TOLERANCES["fp32"].kl, MOST_OF_EFFECT * effect.kl):
        return (
            f"rounding to {precision} undoes the tuning: it moves the model by a mean KL divergence of "
            f"{found.kl:.2g}, and the adapter itself by {effect.kl:.2g}; write it with --dtype fp32"
        )
    return ""


def check_mergeable(adapter: Path) -> None:
    """Raises `ModelError` with the reason when the adapter is no change of the base's weights."""
    settings = read_adapter_config(adapter)
    method = PLACED.get(settings.get("peft_type", ""))
    if method is not None:
        raise ModelError(
            f"{method} cannot be merged: it puts {settings.get('num_virtual_tokens')} virtual tokens before "
            f"the input and changes no weight of the base; export the adapter itself, without --merge"
        )
    kind = kind_of_folder(adapter)
    if kind is not None:
        raise ModelError(
            f"the adapter in {adapter} is for {kind} classification, and a comparison of next tokens "
            f"proves nothing of its scores; export the adapter itself, without --merge"
        )


def stored_precision(folder: Path) -> Precision:
    """The precision that most of the numbers in a folder's safetensors files have.

    Raises:
        ModelError: it is none that a model can be exported in, such as 8 bits.
    """
    from math import prod

    from safetensors import safe_open

    numbers: dict[str, int] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 - not a dictionary
                piece = file.get_slice(name)
                kind = piece.get_dtype()
                numbers[kind] = numbers.get(kind, 0) + prod(piece.get_shape())
    most = max(numbers, key=lambda kind: numbers[kind], default="nothing")
    if most not in HEADERS:
        raise ModelError(f"the weights in {folder} are {most}; say what to write with --dtype fp32 or bf16")
    return HEADERS[most]


def write_merged(base: Path, adapter: Path | None, folder: Path, precision: Precision) -> None:
    """Write the model of `base`, with the adapter in its weights, to `folder`.

    The adapter's change is added to the base's weights in fp32, and each sum is rounded once. A base
    that was in 4 bits in training is merged as training saw it: 4 bits, written out.

    Raises:
        ModelError: the adapter cannot be merged, or does not fit its base.
        OSError: the disk is full.
    """
    import torch
    from transformers import GenerationConfig
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    if adapter is not None:
        check_mergeable(adapter)
    model = load_model(base, None, torch.float32) if adapter is None else merged_model(base, adapter)
    torch.nn.Module.to(model, dtype_of(precision))
    # What the base says of generation is copied by the caller: the library refuses to write some of it.
    model.generation_config = GenerationConfig()
    model.save_pretrained(folder)


def dtype_of(precision: Precision) -> torch.dtype:
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def merged_model(base: Path, adapter: Path) -> Any:
    """The base with the adapter's updates in its weights, in fp32."""
    import torch
    from peft import PeftModel

    from tunewright.models.quantize import was_quantized

    try:
        if was_quantized(adapter):
            whole = load_model(base, None, torch.float32)
            round_to_nf4(whole)
            tuned: Any = PeftModel.from_pretrained(whole, str(adapter), autocast_adapter_dtype=False)
        else:
            tuned = load_model(base, adapter, torch.float32)
        return tuned.merge_and_unload(safe_merge=True)  # which sees numbers that are not finite
    except (ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"the adapter in {adapter} cannot be merged into its base: {error}") from error


def round_to_nf4(model: Any) -> None:
    """Give every linear layer but the output layer the weights that it has in 4 bits, in its own precision.

    Raises:
        ModelError: bitsandbytes is not installed, or the model has no layers that it knows.
    """
    import torch

    from tunewright.models.quantize import quantize_nf4

    quantize_nf4(model, model.dtype)
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    small = [(name, module) for name, module in model.named_modules() if isinstance(module, Linear4bit)]
    for name, module in small:
        weight = dequantize_4bit(module.weight.data, module.weight.quant_state).to(model.dtype)
        whole = torch.nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
        whole.weight = torch.nn.Parameter(weight, requires_grad=False)
        whole.bias = module.bias
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, whole)
    model.is_loaded_in_4bit = False


class WithoutAdapter:
    """The base inside a model with an adapter, as something to compare with; no second copy is loaded."""

    def __init__(self, tuned: Any):
        self.tuned = tuned

    def __call__(self, **inputs: Any) -> Any:
        with self.tuned.disable_adapter():
            return self.tuned(**inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tuned, name)

    def eval(self) -> WithoutAdapter:
        self.tuned.eval()
        return self
