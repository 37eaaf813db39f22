"""A model with virtual tokens decodes as it was trained: with a cache, padded, at told positions."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from loops import small_model
from tunewright.config.methods import LoraConfig, PrefixTuningConfig, PromptTuningConfig
from tunewright.errors import ModelError
from tunewright.models.decode import Sampling, decode_batch
from tunewright.models.prompted import prompted, virtual_tokens
from tunewright.train.methods import apply_method

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

METHODS = [PromptTuningConfig(tokens=5), PrefixTuningConfig(tokens=5)]
PROMPTS = [[3, 9, 27, 14, 8], [40, 2], [7, 7, 1, 30, 22, 6, 19]]
LOGITS_TOLERANCE = 1e-5


def with_virtual_tokens(method: Any, kind: str = "llama") -> Any:
    changes = {"sliding_window": None} if kind == "mistral" else {}
    model: Any = apply_method(small_model(kind, **changes), method, seed=1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)) * 0.3)
    return model.eval()


@torch.no_grad()
def one_by_one(model: Any, prompt: list[int], steps: int) -> list[int]:
    """Greedy tokens by PEFT's own forward pass over everything, without cache, mask or positions."""
    from peft import PeftModelForCausalLM

    ids = list(prompt)
    for _ in range(steps):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logits = PeftModelForCausalLM.forward(model, input_ids=torch.tensor([ids])).logits
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "phi"])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.type)
def test_a_padded_batch_with_a_cache_gives_what_each_prompt_gives_alone(method: Any, kind: str) -> None:
    model = with_virtual_tokens(method, kind)
    steps = list(decode_batch(model, PROMPTS, [Sampling(6)] * len(PROMPTS), frozenset(), pad_id=0))
    batch = [[step[i] for step in steps] for i in range(len(PROMPTS))]
    assert batch == [one_by_one(model, prompt, 6) for prompt in PROMPTS]
    plain = small_model(kind)
    without = list(decode_batch(plain, PROMPTS, [Sampling(6)] * len(PROMPTS), frozenset(), pad_id=0))
    assert [[step[i] for step in without] for i in range(len(PROMPTS))] != batch


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.type)
def test_logits_are_those_of_the_real_tokens(method: Any) -> None:
    model = with_virtual_tokens(method)
    ids = torch.tensor([PROMPTS[0]])
    whole = model(input_ids=ids).logits
    assert whole.shape[:2] == ids.shape
    last = model(input_ids=ids, logits_to_keep=1).logits
    some = model(input_ids=ids, logits_to_keep=torch.tensor([1, 3])).logits
    torch.testing.assert_close(last, whole[:, -1:], rtol=0, atol=LOGITS_TOLERANCE)
    torch.testing.assert_close(some, whole[:, [1, 3]], rtol=0, atol=LOGITS_TOLERANCE)
    masked = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(masked, whole, rtol=0, atol=LOGITS_TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.type)
def test_without_its_adapter_the_model_is_its_base(method: Any) -> None:
    model = with_virtual_tokens(method)
    ids = torch.tensor([PROMPTS[0]])
    tuned = model(input_ids=ids).logits
    with model.disable_adapter():
        base = model(input_ids=ids, position_ids=torch.arange(5)[None]).logits
    torch.testing.assert_close(base, small_model()(input_ids=ids).logits, rtol=0, atol=LOGITS_TOLERANCE)
    assert (tuned - base).abs().max() > 1e-2
    torch.testing.assert_close(model(input_ids=ids).logits, tuned, rtol=0, atol=0)


def test_other_adapters_are_left_as_they_are() -> None:
    model = apply_method(small_model(), LoraConfig(rank=2), seed=1)
    kind = type(model)
    assert type(prompted(model)) is kind
    assert virtual_tokens(model) == 0
    assert virtual_tokens(with_virtual_tokens(METHODS[0])) == 5


def test_labels_are_refused_rather_than_shifted_wrongly() -> None:
    with pytest.raises(ModelError, match="gives logits; compute the loss from them"):
        with_virtual_tokens(METHODS[0])(input_ids=torch.tensor([[1]]), labels=torch.tensor([[1]]))
