"""Each defect, planted in a small real training, is caught by its claim, with its sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from certified import training, write_data, written
from loops import on_two_workers
from tunewright.data.rows import Document
from tunewright.errors import CertificateFailed
from tunewright.models import attention
from tunewright.models.attention import Documents
from tunewright.train import engine, methods
from tunewright.train.certificate import written as written_check
from tunewright.train.loop import Loop
from tunewright.train.methods import apply
from tunewright.train.objectives.language import NextToken
from tunewright.train.worker import WorkerSpec, run_spec

pytestmark = [
    pytest.mark.usefixtures("one_worker"),
    # DeepSpeed's:
    pytest.mark.filterwarnings("ignore:`torch.distributed:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]

Patch = pytest.MonkeyPatch
BASE_WEIGHT = "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a base and data that these trainings share."""
    return tmp_path_factory.mktemp("defects")


@pytest.fixture
def spec(made: Path, tmp_path: Path) -> WorkerSpec:
    return replace(training(made, method={"type": "lora", "rank": 2}), work=str(tmp_path))


def caught(spec: WorkerSpec, number: int, told: str, trained: bool) -> dict[str, Any]:
    """The entry that fails the training; whether any step was taken is part of the claim."""
    with pytest.raises(CertificateFailed, match=told) as raised:
        run_spec(spec, 0, lambda _: None)
    assert raised.value.number == number
    assert (Path(spec.work) / "metrics.jsonl").exists() == trained
    entry = written(spec)[number]
    assert entry["passed"] is False and entry["sentence"] == raised.value.sentence
    return entry


def spoiled(folder: Path, change: Callable[[Document], Document]) -> Path:
    """A data set of which every training document is changed before it is packed."""
    return write_data(folder, "conversation", change=change)


def with_data(spec: WorkerSpec, folder: Path) -> WorkerSpec:
    return replace(spec, tasks=(replace(spec.tasks[0], data=str(folder)),))


# 1: what is learned


def test_answers_whose_end_carries_no_loss(spec: WorkerSpec, tmp_path: Path) -> None:
    def endless(document: Document) -> Document:
        mask = document.loss_mask.copy()
        mask[np.flatnonzero(mask)[-1]] = 0
        return replace(document, loss_mask=mask)

    asked = with_data(spec, spoiled(tmp_path / "data", endless))
    entry = caught(asked, 1, "of 113 sampled answers end without an end token that carries loss", False)
    assert entry["measured"]["answers_without_end"] >= 90


def test_rows_without_a_supervised_token(spec: WorkerSpec, tmp_path: Path) -> None:
    data = spoiled(tmp_path / "data", lambda d: replace(d, loss_mask=np.zeros_like(d.loss_mask)))
    entry = caught(with_data(spec, data), 1, "no token of .* carries loss, so nothing would be", False)
    assert entry["measured"]["supervised"] == 0


# 2: packed as alone


def test_documents_that_see_each_other(spec: WorkerSpec, monkeypatch: Patch) -> None:
    def one_document(segments_BS: Any) -> Documents:
        spans = tuple((row, 0, int((s > 0).sum())) for row, s in enumerate(segments_BS))
        return Documents(spans, *segments_BS.shape)

    monkeypatch.setattr(Documents, "of", one_document)
    entry = caught(spec, 2, "packed documents leak into each other: other tokens in one change", False)
    assert entry["measured"]["foreign_tokens"] > 1e-3
    assert entry["measured"]["relative_difference"] > 1e-5


def test_masks_under_which_documents_see_each_other(spec: WorkerSpec, monkeypatch: Patch) -> None:
    from tunewright.train import forward

    right = forward.packed_masks
    monkeypatch.setattr(attention, "why_masks", lambda *_: "planted")
    monkeypatch.setattr(forward, "packed_masks", lambda segments, *rest: right(segments.clamp(max=1), *rest))
    caught(spec, 2, "packed documents leak into each other", False)


def test_positions_that_do_not_begin_anew(spec: WorkerSpec, monkeypatch: Patch) -> None:
    """No token sees another document, and yet packing changes what is learned, where positions matter."""
    from tunewright.train.forward import Forward

    right = Forward._inputs

    def stretched(self: Any, rows: Any) -> Any:
        return right(self, rows | {"position_ids": rows["position_ids"] * 2})

    monkeypatch.setattr(Forward, "_inputs", stretched)
    entry = caught(spec, 2, "packing changes what is learned", False)
    assert entry["measured"]["foreign_tokens"] == 0.0


# 3: any split of a batch


def test_a_mean_of_means(spec: WorkerSpec, monkeypatch: Patch) -> None:
    """The objective's own: each pass is divided by its tokens, and then all by all of them."""
    right = NextToken.loss
    monkeypatch.setattr(
        NextToken, "loss", lambda self, a, training=True: right(self, a, training) / len(a.places)
    )
    caught(spec, 3, "another loss or gradient when they are divided otherwise: .* passes of one", False)


def test_a_mean_of_means_in_the_loop(spec: WorkerSpec, monkeypatch: Patch) -> None:
    right = Loop._micro_loss

    def by_own_tokens(self: Loop, step: int, micro: Any, weights: Any, *rest: Any) -> Any:
        own = self.streams[0].objective.units(micro.rows)
        return right(self, step, micro, [1 / (2 * own)], *rest)

    monkeypatch.setattr(Loop, "_micro_loss", by_own_tokens)
    entry = caught(spec, 3, "divided otherwise: .* 1 worker with 2 micro batches of 2: loss", False)
    assert entry["measured"]["gradient_norm_difference"] > 1e-3


def test_gradients_that_are_scaled_by_the_accumulation(spec: WorkerSpec, monkeypatch: Patch) -> None:
    right = engine.Engine.backward
    monkeypatch.setattr(engine.Engine, "backward", lambda self, loss: right(self, loss / 2))
    entry = caught(spec, 3, "divided otherwise", False)
    assert entry["measured"]["gradient_norm_difference"] == pytest.approx(0.5, rel=1e-3)


# 4: saved and read again


def changed_after_writing(monkeypatch: Patch, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    right = methods.export

    def writes(model: Any, weights: Any, method: Any, folder: Path) -> None:
        right(model, weights, method, folder)
        path = folder / "adapter_model.safetensors"
        save_file({name: change(value) for name, value in load_file(path).items()}, path, {"format": "pt"})

    monkeypatch.setattr(methods, "export", writes)


@pytest.mark.parametrize(
    "change", [torch.zeros_like, lambda value: value * 1.01], ids=["an empty adapter", "another one"]
)
def test_an_adapter_that_is_not_the_trained_one(
    spec: WorkerSpec, monkeypatch: Patch, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    changed_after_writing(monkeypatch, change)
    entry = caught(spec, 4, "the adapter that was written, read again .*, is not what was trained", True)
    assert entry["measured"]["relative_difference"] > 1e-4


# 5: merged as with adapter


def test_a_merge_that_is_wrong(spec: WorkerSpec, monkeypatch: Patch) -> None:
    right = written_check.merged_model

    def forgets_a_layer(base: Path, adapter: Path) -> Any:
        merged = right(base, adapter)
        untouched = load_file(base / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
        merged.get_parameter("model.layers.1.mlp.up_proj.weight").data.copy_(untouched)
        return merged

    monkeypatch.setattr(written_check, "merged_model", forgets_a_layer)
    entry = caught(spec, 5, "base and adapter merged are another model: mean KL divergence", True)
    assert entry["measured"]["kl"] > 1e-6


# 6: weights that move


def test_a_weight_that_the_method_does_not_name(spec: WorkerSpec, monkeypatch: Patch) -> None:
    def unfrozen(model: Any, method: Any) -> None:
        model.get_parameter(BASE_WEIGHT).requires_grad_(True)

    monkeypatch.setattr(apply, "check_trainable", unfrozen)
    caught(spec, 6, f"1 weights would be trained that lora does not name, first {BASE_WEIGHT}", False)


def test_an_adapter_that_does_not_move(spec: WorkerSpec, monkeypatch: Patch) -> None:
    right = engine.Engine.set_learning_rate
    monkeypatch.setattr(engine.Engine, "set_learning_rate", lambda self, rate: right(self, 0.0))
    entry = caught(spec, 6, "0 of 28 trained weights moved: training did not reach the others", True)
    assert entry["measured"]["moved"] == 0


@pytest.mark.parametrize("zero", [2, 3])
def test_a_base_weight_that_changes(spec: WorkerSpec, monkeypatch: Patch, zero: int) -> None:
    right = Loop.run

    def nudges(self: Loop) -> Any:
        outcome = right(self)
        weight = self.engine.deepspeed.module.get_parameter(BASE_WEIGHT)
        getattr(weight, "ds_tensor", weight).data.reshape(-1)[5] += 1e-6
        return outcome

    monkeypatch.setattr(Loop, "run", nudges)
    values = {"stage": zero, "stage3_param_persistence_threshold": 0}
    config = type(spec.config).model_validate({**spec.config.model_dump(), "zero": values})
    asked = replace(spec, config=config)
    entry = caught(asked, 6, f"1 of 21 weights that lora does not train changed, first {BASE_WEIGHT}$", True)
    assert entry["measured"]["frozen_changed"] == 1


def differing(rank: int, spec: WorkerSpec) -> str:
    """What a training says whose second worker begins with another weight."""
    from tunewright.train import methods

    right = methods.apply_method

    methods.apply_method = lambda model, method, seed: right(model, method, seed + rank)
    with pytest.raises(CertificateFailed) as raised:
        run_spec(spec, rank, lambda _: None)
    return str(raised.value)


def test_workers_that_begin_with_other_weights(made: Path, tmp_path: Path) -> None:
    spec = training(made, method={"type": "lora", "rank": 2}, workers=2, micro_batch_size=1)
    told = on_two_workers(differing, replace(spec, work=str(tmp_path / "work")), tmp_path / "two")
    assert told[0] == told[1]
    assert "6 (weights that move): before training, workers 1 hold other weights than worker 0" in told[0]


# 7: served as trained


def test_a_template_that_is_not_the_one_of_the_data(spec: WorkerSpec, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", "conversation")
    path = data / "tokenizer" / "chat_template.jinja"
    template = path.read_text(encoding="utf-8")
    path.write_text(template.replace("<|im_start|>", "<|im_start|> "), encoding="utf-8")
    assert template != path.read_text(encoding="utf-8")
    entry = caught(with_data(spec, data), 7, "serving would not ask in the ids that were trained on", False)
    assert entry["measured"]["examples_that_differ"] == 12
    assert (
        entry["measured"]["prompts_that_differ"] == 0
    )  # the prompt is the new template's own, as is its row


def change_tokenizer(data: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = data / "tokenizer" / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    change(tokenizer["model"])
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


def test_a_tokenizer_that_is_not_the_one_of_the_data(spec: WorkerSpec, tmp_path: Path) -> None:
    def swapped(model: dict[str, Any]) -> None:
        model["vocab"]["e"], model["vocab"]["o"] = model["vocab"]["o"], model["vocab"]["e"]

    data = write_data(tmp_path / "data", "conversation")
    change_tokenizer(data, swapped)
    caught(with_data(spec, data), 7, "an example becomes other ids, or has its loss elsewhere", False)


def test_a_tokenizer_that_joins_other_letters_where_no_example_was_kept(
    spec: WorkerSpec, tmp_path: Path
) -> None:
    def joining(model: dict[str, Any]) -> None:
        model["vocab"]["re"] = model["vocab"].pop("Z")
        model["vocab"]["ed"] = model["vocab"].pop("Y")
        model["merges"] = [["e", "d"], ["r", "e"]]

    data = write_data(tmp_path / "data", "conversation", {"train": 90, "eval": 0})
    change_tokenizer(data, joining)
    told = "the text of training documents becomes other ids when it is tokenized again"
    entry = caught(with_data(spec, data), 7, told, False)
    assert entry["measured"]["tokenized_otherwise"] > 20
