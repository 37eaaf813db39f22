"""Quick LoRA layers and norms: PEFT's and transformers' numbers, names and files."""

import copy
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict

from loops import small_model
from tunewright.config import DoraConfig, LoraConfig, RsloraConfig
from tunewright.models import few_rows
from tunewright.models.quick_lora import QuickLora, quicken_lora
from tunewright.models.quick_mlp import quicken_mlps
from tunewright.models.quick_norm import quicken_norms
from tunewright.train.methods import apply_method

TOLERANCE = 1e-6
KINDS = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma3", "phi")


def with_updates(method: Any, kind: str = "llama") -> Any:
    """A model whose updates are not zero, in training."""
    model = apply_method(small_model(kind), method, 0).train()
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
        elif "norm" in name:
            torch.nn.init.normal_(weight, mean=1.0, std=0.2)
    return model


def answer(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    torch.manual_seed(2)
    logits: torch.Tensor = model(input_ids=torch.arange(40).view(2, 20)).logits
    loss = logits.log_softmax(-1)[..., 3].mean()
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(found: Any, wanted: Any) -> None:
    """To fp32's last digits; a gradient that is small because large ones cancel has fewer of its own."""
    torch.testing.assert_close(found[0], wanted[0], rtol=TOLERANCE, atol=0)
    assert found[1].keys() == wanted[1].keys() and len(wanted[1]) > 10
    length = float(torch.stack([gradient.norm() for gradient in wanted[1].values()]).norm())
    for name, gradient in wanted[1].items():
        difference, scale = float((found[1][name] - gradient).norm()), float(gradient.norm())
        assert scale > 0 and difference < 3 * TOLERANCE * length and difference < 30 * TOLERANCE * scale, name


@pytest.mark.parametrize("kind", KINDS)
def test_quick_layers_give_what_the_slow_ones_give(kind: str) -> None:
    model = with_updates(LoraConfig(rank=4), kind)
    wanted, names = answer(model), [name for name, _ in model.named_parameters()]
    saved = copy.deepcopy(get_peft_model_state_dict(model))
    assert quicken_lora(model) > 8
    norms = quicken_norms(model)
    assert norms > 0 or kind == "phi"  # whose norms are torch's own
    assert quicken_mlps(model) == (2 if kind in ("llama", "qwen2", "qwen3", "mistral") else 0)
    assert_same(answer(model), wanted)
    assert names == [name for name, _ in model.named_parameters()]
    again = get_peft_model_state_dict(model)
    assert again.keys() == saved.keys() and all(torch.equal(again[name], saved[name]) for name in saved)
    assert quicken_lora(model) == quicken_norms(model) == quicken_mlps(model) == 0


def test_rows_may_be_taken_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_updates(LoraConfig(rank=4))
    wanted = answer(model)
    monkeypatch.setattr(few_rows, "NUMBERS", 150)  # 4 of the norms' 40 rows, 3 of the inner ones
    assert quicken_norms(model) == 5 and quicken_mlps(model) == 2
    assert_same(answer(model), wanted)


def test_a_gated_layer_in_16_bits_is_the_same_to_the_last_bit() -> None:
    model = small_model().to(torch.bfloat16).train()
    wanted = answer(model)
    assert quicken_mlps(model) == 2
    found = answer(model)
    assert torch.equal(found[0], wanted[0])
    assert all(torch.equal(found[1][name], gradient) for name, gradient in wanted[1].items())


def test_a_layer_that_does_more_is_no_gated_one() -> None:
    class OddMLP(type(small_model().model.layers[0].mlp)):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x) * self.config.factor)

    model = small_model()
    model.model.layers[0].mlp.__class__ = OddMLP
    assert quicken_mlps(model) == 1
    assert quicken_mlps(small_model(hidden_act="gelu")) == 0


@pytest.mark.parametrize("method", [RsloraConfig(rank=4), LoraConfig(rank=4, alpha=3.0, dropout=0.4)])
def test_scale_and_dropout_are_heeded(method: Any) -> None:
    model = with_updates(method)
    wanted = answer(model)
    assert quicken_lora(model) > 8
    assert_same(answer(model), wanted)


def test_dora_stays_with_peft() -> None:
    assert quicken_lora(with_updates(DoraConfig(rank=4))) == 0


def test_an_update_that_is_off_or_merged_is_left_to_peft() -> None:
    model = with_updates(LoraConfig(rank=4)).eval()
    ids = torch.arange(10)[None]
    with torch.no_grad(), model.disable_adapter():
        without = model(input_ids=ids).logits
    with_update = model(input_ids=ids).logits
    assert quicken_lora(model) > 8
    assert sum(isinstance(m, QuickLora) for m in model.modules()) > 8
    torch.testing.assert_close(model(input_ids=ids).logits, with_update, rtol=1e-5, atol=1e-5)
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(model(input_ids=ids).logits, without)
    model.merge_adapter()
    torch.testing.assert_close(model(input_ids=ids).logits, with_update, rtol=1e-4, atol=1e-4)


def test_trained_norms_and_unknown_ones_stay_as_they_are() -> None:
    class OddRMSNorm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = torch.nn.Parameter(torch.ones(8), requires_grad=False), 1e-6

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden * self.weight + 1

    assert quicken_norms(torch.nn.ModuleList([OddRMSNorm()])) == 0
    assert quicken_norms(small_model().requires_grad_(True)) == 0
    model = small_model().requires_grad_(False)
    assert quicken_norms(model) == 5
    hidden = torch.randn(2, 3, 32)
    norm = model.model.norm
    wanted = type(norm).forward(norm, hidden)
    norm.weight.requires_grad_(True)  # since it was looked at
    norm(hidden).sum().backward()
    assert norm.weight.grad is not None
    torch.testing.assert_close(norm(hidden), wanted)


def test_a_frozen_norm_keeps_its_weight() -> None:
    model = small_model("gemma").requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    assert quicken_norms(model) == 5
    embedded = torch.randn(1, 6, 32, requires_grad=True)
    model(inputs_embeds=embedded).logits.sum().backward()
    assert embedded.grad is not None
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    clone = copy.deepcopy(model)
    clone.model.norm.weight.data.fill_(3.0)
    assert not torch.equal(clone.model.norm(embedded), model.model.norm(embedded))
