"""Which weights are trained: `full`, or `lora` through PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.config import FullConfig, LoraConfig
from tunewright.errors import TrainError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def apply_method(model: PreTrainedModel, method: LoraConfig | FullConfig, seed: int) -> torch.nn.Module:
    """The model with exactly the method's weights trainable.

    New weights are drawn from `seed`, so that every worker holds the same ones.

    Raises:
        TrainError: a target module that matches no layer.
    """
    import torch

    if isinstance(method, FullConfig):
        model.requires_grad_(True)
        return model
    from peft import LoraConfig as PeftLora
    from peft import get_peft_model

    targets = method.target_modules
    if targets != ("all-linear",):
        _check_targets(model, targets)
    peft_config = PeftLora(
        r=method.rank,
        lora_alpha=method.effective_alpha,  # type: ignore[arg-type]
        lora_dropout=method.dropout,
        target_modules="all-linear" if targets == ("all-linear",) else list(targets),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, peft_config, autocast_adapter_dtype=False)
        except ValueError as error:
            raise TrainError(f"train.method.target_modules={list(targets)}: {error}") from None


def export(
    model: torch.nn.Module,
    weights: dict[str, torch.Tensor],
    method: LoraConfig | FullConfig,
    folder: Path,
) -> None:
    """Write the trained model: a plain PEFT folder for lora, a Hugging Face folder for full.

    Args:
        weights: fp32 values of every trained parameter, by its name in `model`.
    Raises:
        TrainError: what was written, read again, is not what was trained.
    """
    from safetensors.torch import load_file

    if isinstance(method, FullConfig):
        model.save_pretrained(folder, state_dict=_with_tied(model, weights))  # type: ignore[operator]
    else:
        model.save_pretrained(str(folder), state_dict=weights)  # type: ignore[operator]
    written: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        written |= load_file(path)
    trained = {name.replace(".default.", "."): value for name, value in weights.items()}
    for name, value in written.items():
        if name in trained and not value.equal(trained[name]):
            raise TrainError(f"{folder}: {name} differs from the trained weight after writing")
    missing = sorted(set(trained) - set(written))
    if missing:
        raise TrainError(f"{folder}: {len(missing)} trained weights were not written, first {missing[0]}")


def _check_targets(model: torch.nn.Module, targets: Sequence[str]) -> None:
    """Every name must match: PEFT is content when one does, and leaves out a misspelt one in silence."""
    modules = dict(model.named_modules())
    unknown = [t for t in targets if not any(f".{name}".endswith(f".{t}") for name in modules)]
    if unknown:
        linear = sorted({name.rsplit(".", 1)[-1] for name, m in modules.items() if _is_linear(m)})
        raise TrainError(
            f"train.method.target_modules={list(targets)}: the model has no layer {', '.join(unknown)}. "
            f"Its linear layers: {', '.join(linear)}; or say all-linear, alone"
        )


def _with_tied(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All of the model's state, trained parameters in fp32; save_pretrained drops tied copies."""
    state = {name: weights.get(name, value) for name, value in model.state_dict().items()}
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if head in state and head not in weights and embedding in weights:
        state[head] = weights[embedding]
    return state


def _is_linear(module: torch.nn.Module) -> bool:
    import torch

    return isinstance(module, torch.nn.Linear)
