"""Methods on models with a head: it is trained by each, written, and answers the same when read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from headed import OBJECTIVES, asking, headed
from loops import small_model
from tunewright.config import RunConfig, TrainConfig
from tunewright.config.methods import DoraConfig, FreezeConfig, FullConfig, Ia3Config, LoraConfig, Method
from tunewright.errors import TrainError
from tunewright.models.heads import head_name, load_classifier
from tunewright.train.methods import apply_method, export, trainable_names
from tunewright.train.objectives import Answer, Places, make_objective

SCORE_TOLERANCE = 1e-6
FP32 = torch.float32
METHODS: list[Method] = [
    FullConfig(),
    FreezeConfig(last_blocks=1),
    LoraConfig(rank=4),
    DoraConfig(rank=4),
    Ia3Config(),
]
CASES = [
    *((method, name, kind) for method in METHODS for name in OBJECTIVES for kind in ("llama", "gpt2")),
    *((method, "classify", kind) for method in METHODS[2:4] for kind in ("qwen2", "qwen3", "gemma", "phi")),
]


def objective_of(name: str) -> Any:
    config = TrainConfig.model_validate({"objective": name, "max_steps": 1})
    return make_objective(config, OBJECTIVES[name][2])


def taught(name: str, kind: str, method: Method) -> Any:
    """A model after a step that moved what the method trains alone, the head with it, and helped."""
    model = apply_method(headed(name, kind), method, seed=1).eval()
    weights = {n: w for n, w in model.named_parameters() if w.requires_grad}
    assert set(weights) == trainable_names(model, method)
    heads = [
        n for n in weights if n.split(".")[-2] == head_name(model) or f".{head_name(model)}.modules" in n
    ]
    assert heads
    before = {n: w.detach().clone() for n, w in model.named_parameters()}
    optimizer = torch.optim.SGD(weights.values(), lr=0.05)
    first = loss_of(model, name)
    first.backward()
    optimizer.step()
    assert float(loss_of(model, name).detach()) < float(first.detach())
    moved = {n for n, w in model.named_parameters() if not torch.equal(w, before[n])}
    assert moved <= set(weights) and set(heads) <= moved
    return model


def loss_of(model: Any, name: str) -> torch.Tensor:
    objective = objective_of(name)
    rows = OBJECTIVES[name][0](4).take(range(4))
    places = Places.of(objective.places(rows))
    answer = Answer(rows, places, scores_NC=asking(model).scores(rows, places))
    loss: torch.Tensor = objective.loss(answer) / objective.units(rows)
    return loss


@torch.no_grad()
def scores(model: Any) -> torch.Tensor:
    out: torch.Tensor = model.eval()(input_ids=torch.arange(9)[None]).logits
    return out


@pytest.mark.parametrize(
    ("method", "name", "kind"), CASES, ids=lambda case: case if isinstance(case, str) else case.type
)
def test_the_head_is_trained_and_what_is_written_answers_the_same_with_plain_peft(
    tmp_path: Path, method: Method, name: str, kind: str
) -> None:
    import transformers
    from peft import PeftModel

    model = taught(name, kind, method)
    weights = {n: w.detach().clone() for n, w in model.named_parameters() if w.requires_grad}
    small_model(kind).save_pretrained(tmp_path / "base")
    export(model, weights, method, tmp_path / "out")
    _, head, labels = OBJECTIVES[name]
    assert json.loads((tmp_path / "out" / "labels.json").read_text(encoding="utf-8")) == list(labels)
    auto = (
        transformers.AutoModelForSequenceClassification
        if head == "sequence"
        else transformers.AutoModelForTokenClassification
    )
    if method.result == "adapter":
        base = auto.from_pretrained(tmp_path / "base", num_labels=len(labels))
        plain: Any = PeftModel.from_pretrained(base, str(tmp_path / "out"))
        ours, found = load_classifier(tmp_path / "base", tmp_path / "out", FP32)
    else:
        plain = auto.from_pretrained(tmp_path / "out")
        assert plain.config.id2label == dict(enumerate(labels))
        ours, found = load_classifier(tmp_path / "out", None, FP32)
    assert found == labels
    for reopened in (plain, ours):
        torch.testing.assert_close(scores(reopened), scores(model), rtol=0, atol=SCORE_TOLERANCE)
    assert (scores(model) - scores(headed(name, kind))).abs().max() > 100 * SCORE_TOLERANCE


@pytest.mark.parametrize("name", OBJECTIVES)
def test_all_linear_puts_no_update_on_the_head(name: str) -> None:
    model = apply_method(headed(name), LoraConfig(rank=4), seed=1)
    updated = {n.split(".")[-4] for n, _ in model.named_parameters() if ".lora_A." in n}
    assert updated == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize(
    "method", [LoraConfig(target_modules=("q_proj", "score")), Ia3Config(target_modules=("score",))], ids=str
)
def test_an_update_on_the_head_is_refused(method: Method) -> None:
    with pytest.raises(
        TrainError, match="target_modules: score is the head of the classes, which is trained"
    ):
        apply_method(headed(), method, seed=1)


def test_a_head_that_is_named_to_be_saved_is_the_same_head() -> None:
    asked = LoraConfig(rank=4, modules_to_save=("score", "embed_tokens"))
    model = apply_method(headed(), asked, seed=1)
    whole = [n for n, w in model.named_parameters() if w.requires_grad and "modules_to_save" in n]
    assert sorted(n.split(".")[-4] for n in whole) == ["embed_tokens", "score"]


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_virtual_tokens_in_front_of_a_head_are_refused_by_the_configuration(
    objective: str, method: str
) -> None:
    with pytest.raises(
        ValueError, match=f"objective {objective} trains a head of its own; choose lora, dora"
    ):
        TrainConfig.model_validate({"objective": objective, "max_steps": 1, "method": {"type": method}})


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_run_that_trains_a_head_neither_serves_nor_answers_tasks(objective: str) -> None:
    source = {"type": "builtin", "part": "train"}
    run: dict[str, Any] = {
        "name": "intents",
        "base": {"model": "tiny"},
        "data": {"sources": [source]},
        "train": {"objective": objective, "max_steps": 1},
    }
    assert RunConfig.model_validate(run).train.objective == objective
    with pytest.raises(ValueError, match=f"serve: the endpoint answers with text, and objective {objective}"):
        RunConfig.model_validate({**run, "serve": {}})
    tasks = [{"name": "held out", "source": source}]
    with pytest.raises(ValueError, match="evaluate.tasks: they are answered with text"):
        RunConfig.model_validate({**run, "evaluate": {"tasks": tasks}})


def test_a_base_in_four_bits_keeps_its_head_whole(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra [qlora] is not installed")
    from tunewright.config.methods import QloraConfig

    wide = {"hidden_size": 64, "intermediate_size": 128}
    method = QloraConfig(rank=4)
    model: Any = apply_method(headed("classify", **wide), method, seed=1)
    head = model.base_model.model.score
    assert type(head.modules_to_save["default"]) is torch.nn.Linear
    loss_of(model, "classify").backward()
    weights = {n: w.detach().clone() for n, w in model.named_parameters() if w.requires_grad}
    export(model, weights, method, tmp_path / "out")
    small_model(**wide).save_pretrained(tmp_path / "base")
    reopened, _ = load_classifier(tmp_path / "base", tmp_path / "out", FP32)
    torch.testing.assert_close(scores(reopened), scores(model), rtol=0, atol=SCORE_TOLERANCE)
