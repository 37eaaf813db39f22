"""Every method on every architecture: packed documents are what they are alone, one step trains, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from loops import SEQ_LEN, VOCABULARY, language_loss, plain_forward, small_model
from tunewright.config.methods import (
    DoraConfig,
    FreezeConfig,
    FullConfig,
    Ia3Config,
    LoraConfig,
    Method,
    PrefixTuningConfig,
    PromptTuningConfig,
    RsloraConfig,
)
from tunewright.errors import ModelError, TrainError
from tunewright.models.load import load_model
from tunewright.models.packed import EVERY_LAYER, windows_of
from tunewright.train.methods import apply_method, export, trainable_names
from tunewright.train.objectives.language import supervised_mask

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LOSS_TOLERANCE = 1e-5
"""Relative, fp32: a row of another length is summed in another order."""
LOGITS_TOLERANCE = 1e-6
CPU, FP32 = torch.device("cpu"), torch.float32

METHODS: list[Method] = [
    FullConfig(),
    FreezeConfig(last_blocks=1, modules=("lm_head",)),
    LoraConfig(rank=4),
    RsloraConfig(rank=4),
    DoraConfig(rank=4),
    PromptTuningConfig(tokens=5),
    PrefixTuningConfig(tokens=5),
    Ia3Config(),
]
BY_NAME = {method.type: method for method in METHODS}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": None},
    "gemma": {},
    "phi": {},
}
SLIDING: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 6},
    "qwen2": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "gemma3": {
        "sliding_window": 6,
        "head_dim": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}


def documents() -> list[Any]:
    numbers = np.random.default_rng(3)
    return [numbers.integers(0, VOCABULARY, length) for length in (9, 14, 5, 3, 11)]


def packed(groups: list[list[Any]]) -> dict[str, Any]:
    rows = {
        name: np.zeros((len(groups), SEQ_LEN), np.int64)
        for name in ("input_ids", "segment_ids", "loss_mask", "position_ids")
    }
    for row, group in enumerate(groups):
        at = 0
        for number, document in enumerate(group, start=1):
            place = slice(at, at + len(document))
            rows["input_ids"][row, place] = document
            rows["segment_ids"][row, place] = number
            rows["loss_mask"][row, place] = 1
            rows["position_ids"][row, place] = np.arange(len(document))
            at += len(document)
    return rows


def packed_loss(model: Any, windows: Any = None) -> Any:
    all_ = documents()
    rows = packed([all_[:2], all_[2:]])
    forward = plain_forward(model, windows_of(model.config, SEQ_LEN) if windows is None else windows)
    return language_loss(forward, rows) / supervised_mask(rows).sum()


@torch.no_grad()
def loss_alone(model: Any) -> float:
    """Each document by itself, as the library and not this project would mask it; weighted by tokens."""
    total, tokens = 0.0, 0
    for document in documents():
        logits = model(input_ids=torch.from_numpy(document)[None]).logits[0, -len(document) :]
        total += float(cross_entropy(logits[:-1], torch.from_numpy(document[1:]), reduction="sum"))
        tokens += len(document) - 1
    return total / tokens


def trained(kind: str, method: Method, changes: dict[str, Any]) -> Any:
    """A model after one step that made the loss smaller, and moved what the method trains alone."""
    model: Any = apply_method(small_model(kind, **changes), method, seed=1).eval()
    before = packed_loss(model)
    assert float(before.detach()) == pytest.approx(loss_alone(model), rel=LOSS_TOLERANCE)
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    base = {n: w.detach().clone() for n, w in model.named_parameters() if n not in weights}
    optimizer = torch.optim.SGD(weights.values(), lr=1e-2)
    before.backward()
    assert all(weight.grad is not None for weight in weights.values())
    optimizer.step()
    after = float(packed_loss(model).detach())
    assert np.isfinite(after) and after < float(before.detach())
    assert all(torch.equal(model.get_parameter(name), value) for name, value in base.items())
    return model


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    out: torch.Tensor = model(input_ids=torch.from_numpy(documents()[0])[None]).logits
    return out[:, -9:]


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.type)
def test_packed_is_unpacked_a_step_helps_and_what_is_written_answers_the_same(
    tmp_path: Path, method: Method, kind: str
) -> None:
    changes = ARCHITECTURES[kind]
    model = trained(kind, method, changes)
    assert float(packed_loss(model).detach()) == pytest.approx(loss_alone(model), rel=LOSS_TOLERANCE)
    weights = {n: w.detach().clone() for n, w in model.named_parameters() if w.requires_grad}
    assert set(weights) == trainable_names(model, method)
    small_model(kind, **changes).save_pretrained(tmp_path / "base")
    export(model, weights, method, tmp_path / "out")
    if method.result == "model":
        reopened = load_model(tmp_path / "out", None, FP32)
    else:
        reopened = load_model(tmp_path / "base", tmp_path / "out", FP32)
    torch.testing.assert_close(logits(reopened), logits(model), rtol=0, atol=LOGITS_TOLERANCE)
    untouched = logits(small_model(kind, **changes))
    assert (logits(model) - untouched).abs().max() > 100 * LOGITS_TOLERANCE


@pytest.mark.parametrize("kind", SLIDING)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_sliding_window_stays_in_packed_rows(kind: str, method: str) -> None:
    model = trained(kind, BY_NAME[method], SLIDING[kind])
    assert float(packed_loss(model).detach()) == pytest.approx(loss_alone(model), rel=LOSS_TOLERANCE)
    assert float(packed_loss(model, EVERY_LAYER).detach()) != pytest.approx(
        loss_alone(model), rel=100 * LOSS_TOLERANCE
    )


@pytest.mark.parametrize("kind", SLIDING)
@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_virtual_tokens_that_a_sliding_window_would_lose_are_refused(kind: str, method: str) -> None:
    with pytest.raises(ModelError, match="slides over the last 6 tokens, .* choose lora instead"):
        apply_method(small_model(kind, **SLIDING[kind]), BY_NAME[method], seed=1)


def test_ia3_without_a_usual_choice_of_layers_asks_for_one() -> None:
    from transformers import Phi3Config, Phi3ForCausalLM

    config = Phi3Config(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    with pytest.raises(
        TrainError, match="no usual choice of layers for phi3 models; give train.method.target"
    ):
        apply_method(Phi3ForCausalLM(config), Ia3Config(), seed=1)
    own = Ia3Config(target_modules=("qkv_proj", "down_proj"), feedforward_modules=("down_proj",))
    model = apply_method(Phi3ForCausalLM(config), own, seed=1)
    assert {n.split(".")[-3] for n, w in model.named_parameters() if w.requires_grad} == {
        "qkv_proj",
        "down_proj",
    }


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("BloomForCausalLM", "bloom models take no position_ids, so packed documents would leak"),
        ("MambaForCausalLM", "mamba models take no position_ids, so packed documents would leak"),
        ("Lfm2ForCausalLM", "lfm2 models have conv layers, in which packed documents would leak"),
        ("FalconForCausalLM", "this falcon model has ALiBi positions, which packed rows cannot start anew"),
    ],
)
def test_an_architecture_that_would_let_documents_leak_is_refused(kind: str, told: str) -> None:
    import transformers

    model_class = getattr(transformers, kind)
    changes = {
        "Lfm2ForCausalLM": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
        "FalconForCausalLM": {"alibi": True},
    }
    config = model_class.config_class(**changes.get(kind, {}))
    with torch.device("meta"):
        model = model_class(config)
    with pytest.raises(ModelError, match=told):
        apply_method(model, FullConfig(), seed=1)


def test_training_in_four_bits_needs_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunewright.config.methods import QloraConfig
    from tunewright.models import quantize

    monkeypatch.setattr(quantize.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        ModelError, match=r"qlora needs bitsandbytes; install it with `pip install 'tunewright"
    ):
        apply_method(small_model(), QloraConfig(), seed=1)


def test_a_base_in_four_bits_trains_and_its_adapter_is_read_over_four_bits_again(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra [qlora] is not installed")
    from peft import PeftModel

    from tunewright.config.methods import QloraConfig
    from tunewright.models.quantize import quantize_nf4, was_quantized

    wide = {"hidden_size": 64, "intermediate_size": 128}
    model = trained("llama", QloraConfig(rank=4), wide)
    evaluated = float(packed_loss(model).detach())
    model.train()
    assert (
        float(packed_loss(model).detach())
        == evaluated
        == pytest.approx(loss_alone(model), rel=LOSS_TOLERANCE)
    )
    packed_weights = [w for w in model.parameters() if w.dtype == torch.uint8]
    assert len(packed_weights) == 14
    weights = {n: w.detach().clone() for n, w in model.named_parameters() if w.requires_grad}
    export(model, weights, QloraConfig(rank=4), tmp_path / "out")
    assert was_quantized(tmp_path / "out")
    small_model("llama", **wide).save_pretrained(tmp_path / "base")
    base = load_model(tmp_path / "base", None, FP32)
    quantize_nf4(base, FP32)
    reopened = PeftModel.from_pretrained(base, str(tmp_path / "out"), autocast_adapter_dtype=False).eval()
    torch.testing.assert_close(logits(reopened), logits(model.eval()), rtol=0, atol=LOGITS_TOLERANCE)
    with pytest.raises(ModelError, match="q_proj has 32 inputs; qlora needs a multiple of 64"):
        apply_method(small_model(), QloraConfig(), seed=1)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    def gradients(checkpointed: bool) -> list[torch.Tensor]:
        model = small_model()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        applied = apply_method(model, PromptTuningConfig(tokens=3), seed=1).train()
        packed_loss(applied).backward()
        return [w.grad for w in applied.parameters() if w.requires_grad and w.grad is not None]

    for with_, without in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(with_, without)
    assert len(gradients(True)) == 1
