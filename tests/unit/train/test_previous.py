"""A training that goes on with an earlier one's adapter: trained further, or built upon."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loops import MemoryRows, language_loss, on_two_workers, plain_forward, small_model, worker_spec
from tunewright.config import TrainConfig
from tunewright.data import dataset
from tunewright.errors import TrainError
from tunewright.models.heads import load_headed
from tunewright.models.load import load_model
from tunewright.train.methods import apply_method, export, trainable_names
from tunewright.train.methods.previous import export_sum, keep, stack
from tunewright.train.objectives.language import supervised_mask
from tunewright.train.worker import WorkerSpec, run_spec

pytestmark = [
    pytest.mark.usefixtures("one_worker"),
    # DeepSpeed's:
    pytest.mark.filterwarnings("ignore:`torch.distributed:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]

SUM_TOLERANCE = 1e-5
"""Of logits, fp32: two updates are added in another order than one of both ranks."""
LORA = {"type": "lora", "rank": 2, "dropout": 0.1}


@pytest.fixture(autouse=True)
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "open_rows", the_rows)


def the_rows(folder: Path, split: str) -> MemoryRows:
    return MemoryRows(16, seed=11 if folder.name == "other" else 7) if split == "train" else MemoryRows(3)


def method_of(values: dict[str, Any]) -> Any:
    return TrainConfig.model_validate({"max_steps": 1, "method": values}).method


def spec(folder: Path, name: str, values: dict[str, Any], **more: Any) -> WorkerSpec:
    """A training in its own folder, over the base of all in `folder`."""
    if not (folder / "base").exists():
        small_model().save_pretrained(folder / "base")
    shape = {"max_steps": 3, "global_batch_size": 16, "micro_batch_size": 4, "logging_steps": 1}
    config = TrainConfig.model_validate(
        {**shape, "method": LORA, "precision": "fp32", "learning_rate": 1e-2, **values}
    )
    return worker_spec(folder, config, name, identity=name, **more)  # type: ignore[no-any-return]


def losses(asked: WorkerSpec) -> list[float]:
    lines = (Path(asked.work) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


@torch.no_grad()
def loss_of(model: Any) -> float:
    """Of all rows, as the first step of a training sees them."""
    taken = the_rows(Path("data"), "train").take(range(16))
    return float(language_loss(plain_forward(model), taken)) / int(supervised_mask(taken).sum())


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    ids = torch.from_numpy(MemoryRows(2, seed=5).take([0, 1])["input_ids"])
    found: torch.Tensor = model(input_ids=ids).logits
    return found


@pytest.mark.parametrize(
    "method",
    [
        LORA,
        {"type": "dora", "rank": 2},
        {"type": "ia3"},
        {"type": "lora", "rank": 2, "modules_to_save": ["lm_head"]},
        {"type": "prefix_tuning", "tokens": 3},
        {"type": "prompt_tuning", "tokens": 3},
    ],
    ids=lambda method: f"{method['type']}{' and a module' if 'modules_to_save' in method else ''}",
)
def test_an_adapter_that_is_kept_begins_with_the_loss_it_ended_with(
    tmp_path: Path, method: dict[str, Any]
) -> None:
    first = spec(tmp_path, "first", {"method": method})
    run_spec(first, 0, lambda _: None)
    adapter = Path(first.work) / "out" / "adapter"
    quiet = {key: value for key, value in method.items() if key != "dropout"}
    second = spec(tmp_path, "second", {"method": quiet}, previous=str(adapter))
    run_spec(second, 0, lambda _: None)
    ended = loss_of(load_model(tmp_path / "base", adapter, torch.float32))
    assert losses(second)[0] == pytest.approx(ended, rel=1e-6)
    assert losses(second)[0] != pytest.approx(losses(first)[0], rel=1e-3)


def test_a_classifiers_adapter_is_kept_with_its_head(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path / "base")

    def classifier(seed: int) -> Any:
        return load_headed(tmp_path / "base", "sequence", ("a", "b", "c"), torch.float32, seed)

    first = made(tmp_path / "earlier", classifier(1), LORA)
    again: Any = apply_method(classifier(2), method_of(LORA), 2)
    assert not logits(again.eval()).equal(logits(first.eval()))
    keep(again, tmp_path / "earlier")
    assert logits(again).equal(logits(first))


def test_an_adapter_is_kept_with_its_embeddings_of_new_tokens(tmp_path: Path) -> None:
    def model() -> Any:
        return small_model(new_token_ids=[0, 5], tie_word_embeddings=True)

    first = made(tmp_path / "earlier", model(), LORA)
    assert any("trainable_tokens" in name for name in trained(first))
    again: Any = apply_method(model(), method_of(LORA), 2)
    assert not logits(again.eval()).equal(logits(first.eval()))
    keep(again, tmp_path / "earlier")
    assert logits(again).equal(logits(first))
    with pytest.raises(TrainError, match="the earlier one has embeddings of new tokens"):
        stack(apply_method(model(), method_of(LORA), 2), method_of(LORA), tmp_path / "earlier")


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_a_kept_adapter_loses_no_digits_in_a_bf16_model(tmp_path: Path, zero: int) -> None:
    first = spec(tmp_path, "first", {"method": {"type": "lora", "rank": 2}})
    run_spec(first, 0, lambda _: None)
    adapter = Path(first.work) / "out" / "adapter"
    still = {"precision": "bf16", "learning_rate": 1e-12, "max_steps": 1, "zero": {"stage": zero}}
    second = spec(tmp_path, "second", still, previous=str(adapter))
    run_spec(second, 0, lambda _: None)
    before, after = (
        load_file(Path(s.work) / "out/adapter/adapter_model.safetensors") for s in (first, second)
    )
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-6, atol=1e-9)
    assert any(not value.bfloat16().float().equal(value) for value in before.values())


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ({"type": "lora", "rank": 4}, "rank is 2 there and 4 here; alpha is 4.0 there and 8.0 here"),
        ({"type": "rslora", "rank": 2}, "rslora is None there and True here"),
        ({"type": "ia3"}, "method is LORA there and IA3 here"),
        (
            {"type": "lora", "rank": 2, "target_modules": ["q_proj"]},
            "weights differ, the first is .*there and none",
        ),
    ],
    ids=["rank", "scale", "method", "layers"],
)
def test_another_methods_adapter_is_not_trained_further(
    tmp_path: Path, method: dict[str, Any], told: str
) -> None:
    made(tmp_path / "earlier", small_model(), {"type": "lora", "rank": 2})
    with pytest.raises(TrainError, match=told):
        keep(apply_method(small_model(), method_of(method), 1), tmp_path / "earlier")


def made(folder: Path, model: Any, values: dict[str, Any], seed: int = 5) -> Any:
    """An adapter of random weights, written to a folder."""
    applied: Any = apply_method(model, method_of(values), seed)
    torch.manual_seed(seed)
    for weight in applied.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.2)
    export(applied, trained(applied), method_of(values), folder)
    return applied


def trained(model: Any) -> dict[str, torch.Tensor]:
    return {name: w.detach().clone() for name, w in model.named_parameters() if w.requires_grad}


@pytest.mark.parametrize(
    ("kind", "earlier", "newer"),
    [
        ("llama", {"type": "lora", "rank": 2}, {"type": "lora", "rank": 3}),
        ("llama", {"type": "rslora", "rank": 3, "alpha": 5.0, "dropout": 0.5}, {"type": "lora", "rank": 2}),
        (
            "qwen3",
            {"type": "lora", "rank": 2, "target_modules": ["q_proj", "embed_tokens", "layers.0.mlp.up_proj"]},
            {"type": "rslora", "rank": 4, "target_modules": ["v_proj", "q_proj", "embed_tokens"]},
        ),
        ("gpt2", {"type": "lora", "rank": 2}, {"type": "lora", "rank": 2, "target_modules": ["c_attn"]}),
    ],
    ids=["ranks", "scales", "layers", "gpt2"],
)
def test_the_adapter_that_is_published_is_the_sum_of_both(
    tmp_path: Path, kind: str, earlier: dict[str, Any], newer: dict[str, Any]
) -> None:
    small_model(kind).save_pretrained(tmp_path / "base")
    first = made(tmp_path / "earlier", small_model(kind), earlier)
    base, alone = logits(small_model(kind)), logits(first.eval())
    model: Any = apply_method(small_model(kind), method_of(newer), 9)
    stack(model, method_of(newer), tmp_path / "earlier")
    torch.testing.assert_close(logits(model.eval()), alone)
    assert set(trained(model)) == trainable_names(model, method_of(newer))
    for weight in filter(lambda weight: weight.requires_grad, model.parameters()):
        torch.nn.init.normal_(weight, std=0.2)
    # In training nothing of the earlier one is dropped; GPT-2 drops by itself.
    live = logits(model if kind == "gpt2" else model.train())
    out = tmp_path / "out" / "adapter"
    export_sum(model, trained(model), method_of(newer), tmp_path / "earlier", out)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["adapter"]
    opened = logits(load_model(tmp_path / "base", out, torch.float32))
    torch.testing.assert_close(opened, live, rtol=SUM_TOLERANCE, atol=SUM_TOLERANCE * float(live.abs().max()))
    assert float((live - alone).abs().max()) > 100 * SUM_TOLERANCE < float((alone - base).abs().max())
    ranks = {
        tensor.shape[0]
        for name, tensor in load_file(out / "adapter_model.safetensors").items()
        if "_A" in name
    }
    assert ranks == {earlier["rank"] + newer["rank"]}, "one rank for all layers, as servers expect"


@pytest.mark.parametrize(
    ("earlier", "newer", "told"),
    [
        ({"type": "dora", "rank": 2}, {"type": "lora", "rank": 2}, "the earlier one is dora"),
        ({"type": "ia3"}, {"type": "lora", "rank": 2}, "the earlier one is ia3"),
        ({"type": "lora", "rank": 2}, {"type": "dora", "rank": 2}, "the new one is dora"),
        (
            {"type": "lora", "rank": 2, "modules_to_save": ["lm_head"]},
            {"type": "lora", "rank": 2},
            r"modules that were trained whole \(lm_head\)",
        ),
    ],
    ids=["dora", "ia3", "onto dora", "modules"],
)
def test_what_cannot_be_added_up_is_not_built_upon(
    tmp_path: Path, earlier: dict[str, Any], newer: dict[str, Any], told: str
) -> None:
    made(tmp_path / "earlier", small_model(), earlier)
    model = apply_method(small_model(), method_of(newer), 1)
    with pytest.raises(TrainError, match=f"cannot be built upon: .*{told}"):
        stack(model, method_of(newer), tmp_path / "earlier")


def test_a_damaged_earlier_adapter_is_named(tmp_path: Path) -> None:
    made(tmp_path / "earlier", small_model(), LORA)
    path = tmp_path / "earlier" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(TrainError, match="earlier adapter's weights cannot be read: .*adapter_model"):
        keep(apply_method(small_model(), method_of(LORA), 1), tmp_path / "earlier")


def stacked_in(folder: Path, name: str, zero: int) -> WorkerSpec:
    earlier = str(folder / "first" / "out" / "adapter")
    return spec(folder, name, {"zero": {"stage": zero}}, previous=earlier, stacked=True, data="other")


def stacked_run(rank: int, folder: Path) -> float:
    """For `on_two_workers`: the evaluation's loss."""
    dataset.open_rows = the_rows  # type: ignore[assignment]
    return run_spec(stacked_in(folder, "two", 3), rank, lambda _: None).metrics["eval_loss"]


def test_a_stacked_training_is_the_same_on_two_workers_and_after_a_stop(tmp_path: Path) -> None:
    first = spec(tmp_path, "first", {})
    run_spec(first, 0, lambda _: None)
    begun = Path(first.work) / "out" / "adapter" / "adapter_model.safetensors"
    earlier = begun.read_bytes()
    one = run_spec(stacked_in(tmp_path, "one", 2), 0, lambda _: None)
    assert begun.read_bytes() == earlier
    run_spec(replace(stacked_in(tmp_path, "halves", 2), stop_step=1, export=False), 0, lambda _: None)
    halves = run_spec(stacked_in(tmp_path, "halves", 2), 0, lambda _: None)
    assert halves.began_at == 1
    assert all(".default." in name for name in one.weights)
    for name, weight in one.weights.items():
        assert torch.equal(weight, halves.weights[name]), name
    two = on_two_workers(stacked_run, tmp_path, tmp_path / "told")
    assert two == pytest.approx([one.metrics["eval_loss"]] * 2, rel=1e-6)
    alone, pair = (tmp_path / name / "out" / "adapter" for name in ("one", "two"))
    assert (alone / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "halves/out/adapter/adapter_model.safetensors"
    ).read_bytes()
    opened = [logits(load_model(tmp_path / "base", path, torch.float32)) for path in (alone, pair)]
    torch.testing.assert_close(opened[1], opened[0], rtol=1e-4, atol=1e-4)
