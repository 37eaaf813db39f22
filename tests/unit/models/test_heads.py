"""Models with a head: packed scores are those of each text alone, and what is no classifier is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from headed import INTENTS, OBJECTIVES, asking, headed, places_of
from loops import SEQ_LEN, small_model
from tunewright.errors import ModelError
from tunewright.models.heads import (
    head_of,
    kind_of,
    load_classifier,
    load_headed,
    pad_that_ends_no_text,
    write_labels,
)
from tunewright.models.load import load_model
from tunewright.models.packed import windows_of
from tunewright.train.objectives import Places

SCORE_TOLERANCE = 1e-5
"""fp32, of scores around 1: a row of another length is summed in another order."""
FP32 = torch.float32
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 6},
    "gemma": {},
    "phi": {},
}


@torch.no_grad()
def scores_alone(model: Any, rows: dict[str, Any], kind: str) -> torch.Tensor:
    """Each text by itself through the library's own forward pass: its one answer, or one for each token."""
    answers = []
    for row, begin, end in places_of(rows):
        logits = model(input_ids=torch.from_numpy(rows["input_ids"][row, begin:end])[None]).logits
        answers.append(logits if kind == "sequence" else logits[0])
    return torch.cat(answers)


@torch.no_grad()
def scores_packed(model: Any, rows: dict[str, Any], kind: str) -> torch.Tensor:
    """At the last place of each text, or at every place."""
    asked = rows["segment_ids"] > 0
    if kind == "sequence":
        asked[:] = False
        for row, _, end in places_of(rows):
            asked[row, end - 1] = True
    scores: torch.Tensor = asking(model, windows_of(model.config, SEQ_LEN)).scores(rows, Places.of(asked))
    return scores


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_packed_scores_are_those_of_each_text_alone(objective: str, kind: str) -> None:
    rows_class, head, labels = OBJECTIVES[objective]
    model = headed(objective, kind, **ARCHITECTURES[kind])
    with torch.no_grad():
        head_of(model).weight.mul_(20)  # scores around 1
    rows = rows_class(4).take(range(4))
    packed = scores_packed(model, rows, head)
    assert packed.shape[1] == len(labels) and packed.dtype == FP32
    assert len(packed) > 8 and packed.abs().max() > 0.5
    alone = scores_alone(model, rows, head)
    torch.testing.assert_close(packed, alone, rtol=0, atol=SCORE_TOLERANCE)
    rows["segment_ids"][rows["segment_ids"] > 0] = 1  # a leak between documents is seen by this comparison
    rows_leaking = scores_packed(model, rows, "token")
    assert (rows_leaking[-1] - alone[-1]).abs().max() > 100 * SCORE_TOLERANCE


def test_an_architecture_without_such_a_class_is_refused(tmp_path: Path) -> None:
    small_model("gemma3", layer_types=["full_attention"] * 2).save_pretrained(tmp_path)
    assert kind_of(load_headed(tmp_path, "sequence", INTENTS, FP32, seed=1)) == "sequence"
    with pytest.raises(ModelError, match="no ForTokenClassification class for gemma3_text models; choose"):
        load_headed(tmp_path, "token", INTENTS, FP32, seed=1)


def test_every_worker_draws_the_same_head_in_whatever_precision(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path)

    def drawn(seed: int, dtype: Any = FP32, noise: int = 0) -> torch.Tensor:
        torch.manual_seed(noise)
        weight: torch.Tensor = head_of(load_headed(tmp_path, "token", INTENTS, dtype, seed)).weight
        return weight.detach()

    assert torch.equal(drawn(1), drawn(1, noise=1))
    assert not torch.equal(drawn(1), drawn(2))
    assert torch.equal(drawn(1, torch.bfloat16), drawn(1).bfloat16())
    assert 0.005 < float(drawn(1).std()) < 0.05


def test_a_weight_that_is_missing_is_not_drawn_at_random(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    small_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="no weights for 1 places, first model.layers.1.mlp.up_proj.weight"):
        load_headed(tmp_path, "sequence", INTENTS, FP32, seed=1)


def test_a_head_for_the_same_classes_is_kept_and_one_for_others_is_drawn_anew(tmp_path: Path) -> None:
    model = headed()
    model.save_pretrained(tmp_path)
    kept = load_headed(tmp_path, "sequence", INTENTS, FP32, seed=9)
    assert torch.equal(head_of(kept).weight, head_of(model).weight)
    renamed = load_headed(tmp_path, "sequence", ("a", "b", "c"), FP32, seed=9)
    assert not torch.equal(head_of(renamed).weight, head_of(model).weight)
    assert head_of(load_headed(tmp_path, "sequence", ("a", "b"), FP32, seed=9)).weight.shape[0] == 2
    assert kind_of(load_headed(tmp_path, "token", INTENTS, FP32, seed=9)) == "token"


def test_a_classifier_is_not_taken_for_a_language_model_nor_the_other_way_round(tmp_path: Path) -> None:
    model = headed()
    model.save_pretrained(tmp_path / "classifier")
    write_labels(model, tmp_path / "classifier")
    opened, labels = load_classifier(tmp_path / "classifier", None, FP32)
    assert (kind_of(opened), labels) == ("sequence", INTENTS)
    with pytest.raises(ModelError, match="holds a model for sequence classification, which gives scores"):
        load_model(tmp_path / "classifier", None, FP32)
    small_model().save_pretrained(tmp_path / "language")
    with pytest.raises(ModelError, match=r"language holds no classifier: it has no labels.json"):
        load_classifier(tmp_path / "language", None, FP32)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"task_type": "TOKEN_CLS"}), encoding="utf-8")
    with pytest.raises(ModelError, match="adapter holds a model for token classification"):
        load_model(tmp_path / "language", adapter, FP32)


@pytest.mark.parametrize(
    ("pad", "begin", "end", "chosen"),
    [
        (0, 1, 2, 0),
        (2, 1, 2, 1),
        (2, 2, 2, 0),
        (None, None, None, 0),
        (None, 0, [0, 1], 2),
        (7, None, [5, 7], 0),
    ],
)
def test_padding_is_no_token_that_a_text_ends_with(pad: Any, begin: Any, end: Any, chosen: int) -> None:
    config = SimpleNamespace(pad_token_id=pad, bos_token_id=begin, eos_token_id=end)
    assert pad_that_ends_no_text(config) == chosen


def test_a_text_padded_with_the_models_padding_is_answered_at_its_end(tmp_path: Path) -> None:
    small_model(pad_token_id=2, eos_token_id=2).save_pretrained(tmp_path)  # as some bases have it
    model: Any = load_headed(tmp_path, "sequence", INTENTS, FP32, seed=1)
    text = [9, 4, 31, 2]
    with torch.no_grad():
        alone = model(input_ids=torch.tensor([text])).logits[0]
        padding = [model.config.pad_token_id] * 3
        padded = model(
            input_ids=torch.tensor([text + padding, [5] * 6 + [2]]),
            attention_mask=torch.tensor([[1, 1, 1, 1, 0, 0, 0], [1] * 7]),
        ).logits[0]
    torch.testing.assert_close(padded, alone, rtol=0, atol=SCORE_TOLERANCE)
