"""Exactly the method's weights are trained, and what is written is what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from doubles import tiny_llama
from loops import small_model
from tunewright.config import FullConfig, LoraConfig, TrainConfig
from tunewright.config.methods import (
    DoraConfig,
    FreezeConfig,
    Ia3Config,
    Method,
    PromptTuningConfig,
    RsloraConfig,
)
from tunewright.errors import TrainError
from tunewright.models.load import load_model
from tunewright.models.tiny import TinyShape, write_newborn
from tunewright.train import methods
from tunewright.train.methods import apply_method, check_trainable, context_left, export

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


@pytest.mark.parametrize(
    ("method", "names"),
    [
        (FreezeConfig(last_blocks=1), {"model.layers.1."}),
        (FreezeConfig(last_blocks=2), {"model.layers.0.", "model.layers.1."}),
        (FreezeConfig(modules=("lm_head", "model.norm")), {"lm_head.", "model.norm."}),
        (FreezeConfig(modules=("layers.*.mlp",)), {"model.layers.0.mlp.", "model.layers.1.mlp."}),
        (FreezeConfig(last_blocks=1, modules=("embed_tokens",)), {"model.embed_tokens.", "model.layers.1."}),
    ],
    ids=["last", "all", "named", "pattern", "both"],
)
def test_freeze_trains_the_last_blocks_and_named_modules(method: FreezeConfig, names: set[str]) -> None:
    model = tiny_llama(VOCABULARY)
    found = set(trainable(apply_method(model, method, seed=1)))
    assert found == {n for n, _ in model.named_parameters() if any(n.startswith(part) for part in names)}
    assert found


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (FreezeConfig(last_blocks=3), "train.method.last_blocks=3: the model has 2 blocks"),
        (FreezeConfig(modules=("hed",)), "hed matches no module with weights. Names there are: .*lm_head"),
        (FreezeConfig(modules=("act_fn",)), "act_fn matches no module with weights"),
        (Ia3Config(target_modules=("k_prj",)), "the model has no layer k_prj. Its linear layers: down_proj"),
        (LoraConfig(modules_to_save=("head",)), r"train.method.modules_to_save=\['head'\]: the model has no"),
        (LoraConfig(target_modules=("mlp",)), "layers.0.mlp is a LlamaMLP, and .* its parts: gate_proj, up_"),
    ],
    ids=["blocks", "module", "empty module", "ia3", "saved", "kind"],
)
def test_what_a_method_names_and_the_model_has_not_is_refused(method: Method, told: str) -> None:
    with pytest.raises(TrainError, match=told):
        apply_method(tiny_llama(VOCABULARY), method, seed=1)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"type": "lora", "rank": 0}, "greater than or equal to 1"),
        ({"type": "dora", "target_modules": []}, "at least 1 item"),
        ({"type": "lora", "target_modules": ["all-linear", "lm_head"]}, "all-linear stands alone"),
        (
            {"type": "lora", "target_modules": ["a"], "modules_to_save": ["a"]},
            "a is in target_modules and in",
        ),
        ({"type": "freeze"}, "give last_blocks, modules or both"),
        ({"type": "prefix_tuning", "tokens": 0}, "greater than or equal to 1"),
        ({"type": "ia3", "feedforward_modules": ["a"]}, "feedforward_modules: a is not in target_modules"),
        ({"type": "adapter"}, "'full', 'freeze', 'lora', 'rslora', 'dora', 'qlora', 'prompt_tuning'"),
    ],
    ids=str,
)
def test_a_method_without_sense_is_refused_by_the_configuration(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        TrainConfig.model_validate({"max_steps": 1, "method": given})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"method": {"type": "prefix_tuning"}, "gradient_checkpointing": True}, "so prefix_tuning cannot"),
        ({"method": {"type": "qlora"}, "zero": {"stage": 3}}, "those of qlora are packed in 4 bits"),
    ],
    ids=["prefix", "qlora"],
)
def test_a_method_that_the_engine_does_not_support_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        TrainConfig.model_validate({"max_steps": 1, **given})


def test_a_weight_too_many_or_too_few_is_noticed() -> None:
    model = apply_method(tiny_llama(VOCABULARY), LoraConfig(rank=4), seed=1)
    check_trainable(model, LoraConfig(rank=4))
    other = next(weight for weight in model.parameters() if not weight.requires_grad)
    other.requires_grad_(True)
    with pytest.raises(TrainError, match="1 weights would be trained that should not be, first base_model"):
        check_trainable(model, LoraConfig(rank=4))
    other.requires_grad_(False)
    next(iter(trainable(model).values())).requires_grad_(False)
    with pytest.raises(TrainError, match="1 weights would not be trained, first base_model.*lora_"):
        check_trainable(model, LoraConfig(rank=4))


@pytest.mark.parametrize(("method", "scale"), [("lora", 3.0), ("rslora", 6.0), ("dora", 3.0)])
def test_the_scale_is_alpha_over_rank_or_over_its_root(method: str, scale: float) -> None:
    config = TrainConfig.model_validate({"max_steps": 1, "method": {"type": method, "rank": 4, "alpha": 12}})
    model = apply_method(tiny_llama(VOCABULARY), config.method, seed=1)
    assert {m.scaling["default"] for m in model.modules() if hasattr(m, "lora_A")} == {scale}


@pytest.mark.parametrize("method", [LoraConfig(), DoraConfig(), RsloraConfig(), Ia3Config()], ids=str)
def test_an_adapter_begins_as_the_base(method: Method) -> None:
    model = apply_method(tiny_llama(VOCABULARY), method, seed=1)
    torch.testing.assert_close(logits(model), logits(tiny_llama(VOCABULARY)), rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore:You have requested `ensure_weight_tying`:UserWarning")  # PEFT, of GPT-2
@pytest.mark.parametrize("kind", ["llama", "gemma", "gpt2"], ids=["own head", "tied", "tied, GPT-2"])
def test_a_module_trained_whole_comes_back_with_its_adapter(tmp_path: Path, kind: str) -> None:
    method = LoraConfig(rank=4, modules_to_save=("lm_head",))
    model = apply_method(small_model(kind), method, seed=1)
    whole = [name for name in trainable(model) if "modules_to_save" in name]
    assert len(whole) == 1
    weights = taught(model)
    export(model, weights, method, tmp_path / "adapter")
    small_model(kind).save_pretrained(tmp_path / "base")
    reopened = load_model(tmp_path / "base", tmp_path / "adapter", torch.float32)
    torch.testing.assert_close(logits(reopened), logits(model), rtol=0, atol=LOGITS_TOLERANCE)
    head = model.get_output_embeddings()
    tied = model.get_input_embeddings()
    shared = head.modules_to_save["default"].weight is getattr(
        getattr(tied, "modules_to_save", {"default": tied})["default"], "weight", None
    )
    assert shared == (kind != "llama")


def test_whole_weights_are_written_in_fp32_whatever_the_model_computes_in(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = apply_method(tiny_llama(VOCABULARY).bfloat16(), FreezeConfig(last_blocks=1), seed=1)
    weights = {name: weight.float() + 1e-6 for name, weight in taught(model).items()}
    export(model, weights, FreezeConfig(last_blocks=1), tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    assert {value.dtype for value in written.values()} == {torch.float32}
    assert all(torch.equal(written[name], value) for name, value in weights.items())
    frozen = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(written[frozen], model.get_parameter(frozen).float())


def test_virtual_tokens_are_written_in_fp32_whatever_the_model_computes_in(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    method = PromptTuningConfig(tokens=3)
    model = apply_method(tiny_llama(VOCABULARY).bfloat16(), method, seed=1)
    weights = {name: weight.float() + 1e-6 for name, weight in taught(model).items()}
    export(model, weights, method, tmp_path)
    (written,) = load_file(tmp_path / "adapter_model.safetensors").values()
    assert torch.equal(written, next(iter(weights.values())))


@pytest.mark.parametrize("rows", [124, 125])
def test_virtual_tokens_take_their_part_of_the_context(rows: int) -> None:
    model = apply_method(tiny_llama(VOCABULARY, context=128), PromptTuningConfig(tokens=4), seed=1)
    if rows == 124:
        context_left(model, rows)
        return
    with pytest.raises(
        TrainError, match=r"rows of 125 tokens and 4 virtual tokens do not fit .* at most 124"
    ):
        context_left(model, rows)


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
