"""Exactly the method's weights are trained, and what is written is what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from doubles import tiny_llama
from tunewright.config import FullConfig, LoraConfig
from tunewright.errors import TrainError
from tunewright.models.load import load_model
from tunewright.models.tiny import TinyShape, write_newborn
from tunewright.train import methods
from tunewright.train.methods import apply_method, export

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

VOCABULARY = 96
IDS = torch.arange(12)[None]
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LOGITS_TOLERANCE = 1e-5


def trainable(model: torch.nn.Module) -> dict[str, Any]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def taught(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Other weights in place of the trainable ones, as training would leave them; returns a copy."""
    generator = torch.Generator().manual_seed(3)
    for weight in trainable(model).values():
        weight.data.add_(torch.randn(weight.shape, generator=generator) * 0.05)
    return {name: weight.detach().clone() for name, weight in trainable(model).items()}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    out: torch.Tensor = model.eval()(input_ids=IDS).logits
    return out


def lora_names(layers: tuple[str, ...]) -> set[str]:
    rooms = {name: "mlp" if name in LINEAR[4:] else "self_attn" for name in layers}
    return {
        f"base_model.model.model.layers.{n}.{room}.{name}.lora_{side}.default.weight"
        for n in (0, 1)
        for name, room in rooms.items()
        for side in "AB"
    }


@pytest.mark.parametrize(
    ("targets", "layers"), [(("all-linear",), LINEAR), (("q_proj", "v_proj"), ("q_proj", "v_proj"))]
)
def test_lora_trains_its_own_weights_and_no_others(targets: tuple[str, ...], layers: tuple[str, ...]) -> None:
    model = apply_method(tiny_llama(VOCABULARY), LoraConfig(rank=4, target_modules=targets), seed=1)
    found = trainable(model)
    assert set(found) == lora_names(layers)
    assert all(4 in weight.shape for weight in found.values())


def test_an_untrained_adapter_changes_nothing_and_its_scale_is_alpha_over_rank() -> None:
    model = apply_method(tiny_llama(VOCABULARY), LoraConfig(rank=4, alpha=12.0), seed=1)
    torch.testing.assert_close(logits(model), logits(tiny_llama(VOCABULARY)), rtol=0, atol=LOGITS_TOLERANCE)
    scales = {m.scaling["default"] for m in model.modules() if hasattr(m, "lora_A")}
    assert scales == {3.0}


def test_every_worker_draws_the_same_adapter_from_the_seed() -> None:
    def drawn(seed: int, noise: int) -> torch.Tensor:
        torch.manual_seed(noise)
        model = apply_method(tiny_llama(VOCABULARY), LoraConfig(rank=4), seed)
        return torch.cat([weight.flatten() for weight in trainable(model).values()])

    assert torch.equal(drawn(1, 10), drawn(1, 20))
    assert not torch.equal(drawn(1, 10), drawn(2, 10))


def test_full_trains_every_weight() -> None:
    model = tiny_llama(VOCABULARY)
    model.requires_grad_(False)
    assert len(trainable(apply_method(model, FullConfig(), seed=1))) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("targets", "unknown"), [(("q_prj",), "q_prj"), (("q_proj", "v_prj"), "v_prj"), (("proj",), "proj")]
)
def test_a_target_that_matches_no_layer_is_named_with_those_that_there_are(
    targets: tuple[str, ...], unknown: str
) -> None:
    with pytest.raises(TrainError) as caught:
        apply_method(tiny_llama(VOCABULARY), LoraConfig(target_modules=targets), seed=1)
    told = str(caught.value)
    assert f"train.method.target_modules={list(targets)}: the model has no layer {unknown}." in told
    assert "Its linear layers: down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj" in told


def test_an_exported_adapter_reopens_with_peft_and_answers_the_same(tmp_path: Path) -> None:
    from peft import PeftModel

    base = tiny_llama(VOCABULARY)
    base.save_pretrained(tmp_path / "base")
    model = apply_method(tiny_llama(VOCABULARY), LoraConfig(rank=4), seed=1)
    untrained = logits(model)
    export(model, taught(model), LoraConfig(rank=4), tmp_path / "adapter")
    assert {p.name for p in (tmp_path / "adapter").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    expected = logits(model)
    assert not torch.allclose(expected, untrained, atol=1e-2)
    plain = PeftModel.from_pretrained(tiny_llama(VOCABULARY), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(plain), expected, rtol=0, atol=LOGITS_TOLERANCE)
    ours = load_model(tmp_path / "base", tmp_path / "adapter", torch.float32)
    torch.testing.assert_close(logits(ours), expected, rtol=0, atol=LOGITS_TOLERANCE)


def test_exported_weights_are_the_fp32_ones_and_not_those_of_the_bf16_model(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = apply_method(tiny_llama(VOCABULARY).bfloat16(), LoraConfig(rank=4), seed=1)
    weights = {name: weight.float() + 1e-6 for name, weight in taught(model).items()}
    export(model, weights, LoraConfig(rank=4), tmp_path)
    written = load_file(tmp_path / "adapter_model.safetensors")
    assert {value.dtype for value in written.values()} == {torch.float32}
    for name, value in weights.items():
        assert torch.equal(written[name.replace(".default.", ".")], value)


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
def test_an_exported_full_model_reopens_and_answers_the_same(tmp_path: Path, tied: bool) -> None:
    if tied:
        shape = TinyShape(
            vocab_limit=300, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16, context=64
        )
        write_newborn(tmp_path / "base", ["a few words"], shape, seed=1)
        model: Any = load_model(tmp_path / "base", None, torch.float32)
    else:
        model = tiny_llama(VOCABULARY)
    before = logits(model)
    trained = apply_method(model, FullConfig(), seed=1)
    weights = taught(trained)
    export(trained, weights, FullConfig(), tmp_path / "model")
    assert not torch.allclose(logits(trained), before, atol=1e-3)
    reopened = load_model(tmp_path / "model", None, torch.float32)
    torch.testing.assert_close(logits(reopened), logits(trained), rtol=0, atol=LOGITS_TOLERANCE)


def test_a_file_that_is_not_what_was_trained_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = apply_method(tiny_llama(VOCABULARY), LoraConfig(rank=4), seed=1)
    weights = taught(model)
    name = next(iter(weights))
    real = type(model).save_pretrained

    def save_other(self: Any, folder: str, state_dict: dict[str, torch.Tensor]) -> None:
        real(self, folder, state_dict=change(state_dict))

    monkeypatch.setattr(type(model), "save_pretrained", save_other)
    change = lambda state: {**state, name: state[name] + 1}  # noqa: E731
    with pytest.raises(TrainError, match="differs from the trained weight after writing"):
        methods.export(model, weights, LoraConfig(rank=4), tmp_path / "a")
    change = lambda state: {k: v for k, v in state.items() if k != name}  # noqa: E731
    with pytest.raises(TrainError, match="1 trained weights were not written, first base_model"):
        methods.export(model, weights, LoraConfig(rank=4), tmp_path / "b")
