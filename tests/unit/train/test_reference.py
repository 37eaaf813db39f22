"""What the model said before training: of each document alone, kept, gone on with, never trusted blindly."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from judged import pairs, prepared, rated
from loops import small_model
from tunewright.config import ObjectiveConfig
from tunewright.config.methods import LoraConfig, PromptTuningConfig
from tunewright.errors import DataError, StoreError, TrainError
from tunewright.train import reference
from tunewright.train.methods import apply_method
from tunewright.train.objectives.kto import mismatched
from tunewright.train.reference import Kept, Ragged, Reference, untrained, with_references
from tunewright.train.streams import Stream
from tunewright.train.worker import TaskSpec, open_stream

pytestmark = pytest.mark.usefixtures("one_worker")

ALONE_TOLERANCE = 1e-5
"""Relative, fp32: sums over another number of tokens are taken in another order."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    return {
        "dpo": prepared(folder / "dpo", pairs(40, 1), pairs(7, 2)),
        "kto": prepared(folder / "kto", rated(60, 3), rated(9, 4)),
    }


def stream(data: dict[str, str], objective: str) -> Stream:
    return open_stream(
        TaskSpec("", ObjectiveConfig.model_validate({"objective": objective}), data[objective])
    )


def asked(
    streams: list[Stream], work: Path, identity: str = "the same", size: int = 2, model: Any = None
) -> list[Stream]:
    given = (model or small_model(), torch.device("cpu"), torch.float32)
    return with_references(streams, *given, work, identity, size)


def values_of(found: Reference) -> dict[str, np.ndarray]:
    return {name: getattr(found, name).values for name in ("train", "eval", "other_train", "other_eval")}


@torch.no_grad()
def alone(model: Any, row: dict[str, np.ndarray]) -> list[float]:
    """Each document's sum of log-probabilities, by transformers' own forward pass of it and a loop."""
    out = []
    for number in range(1, int(row["segment_ids"].max()) + 1):
        at = np.flatnonzero(row["segment_ids"] == number)
        ids, mask = torch.from_numpy(row["input_ids"][at]), row["loss_mask"][at]
        scores = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
        out.append(sum(float(scores[i - 1, ids[i]]) for i in range(1, len(ids)) if mask[i]))
    return out


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_each_document_has_what_the_model_says_of_it_alone(
    tmp_path: Path, data: dict[str, str], objective: str
) -> None:
    given, model = stream(data, objective), small_model()
    (found,) = asked([given], tmp_path)
    assert found.reference is not None
    checked = 0
    for split, rows in {"train": given.rows, "eval": given.eval_rows}.items():
        for index in range(len(rows)):
            taken = rows.take([index])
            changes = {"": taken} | ({"other_": mismatched(taken)} if objective == "kto" else {})
            for prefix, changed in changes.items():
                said = getattr(found.reference, prefix + split)[index]
                expected = alone(model, {name: values[0] for name, values in changed.items()})
                assert said.tolist() == pytest.approx(expected, rel=ALONE_TOLERANCE)
                checked += len(said)
    assert checked == {"dpo": 2 * (40 + 7), "kto": 2 * (60 + 9)}[objective]


def test_what_is_kept_is_not_asked_again(
    tmp_path: Path, data: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = asked([stream(data, "kto")], tmp_path)
    monkeypatch.setattr(reference, "_pass", None)  # whoever asks fails
    (second,) = asked([stream(data, "kto")], tmp_path)
    assert first.reference and second.reference
    for name, values in values_of(first.reference).items():
        assert np.array_equal(values, values_of(second.reference)[name])


def test_a_killed_try_is_gone_on_with(
    tmp_path: Path, data: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (whole,) = asked([stream(data, "dpo")], tmp_path / "whole", size=1)
    passes = len(stream(data, "dpo").rows)
    assert passes > reference.PASSES_PER_EXCHANGE + 3
    real, done = reference._pass, []

    def dying(*given: Any) -> Ragged:
        if len(done) == reference.PASSES_PER_EXCHANGE + 2:
            raise KeyboardInterrupt
        done.append(given)
        return real(*given)

    monkeypatch.setattr(reference, "SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr(reference, "_pass", dying)
    with caplog.at_level(logging.INFO, logger=reference.log.name), pytest.raises(KeyboardInterrupt):
        asked([stream(data, "dpo")], tmp_path / "halves", size=1)
    (said,) = [record.__dict__ for record in caplog.records]
    assert (said["rows"], said["of"], said["what"]) == (reference.PASSES_PER_EXCHANGE, passes, "train")
    monkeypatch.setattr(reference, "_pass", lambda *given: done.append(given) or real(*given))
    done.clear()
    (second,) = asked([stream(data, "dpo")], tmp_path / "halves", size=1)
    evals = len(stream(data, "dpo").eval_rows)
    assert len(done) == passes - reference.PASSES_PER_EXCHANGE + evals
    assert whole.reference and second.reference
    assert np.array_equal(whole.reference.train.values, second.reference.train.values)
    assert np.array_equal(whole.reference.eval.values, second.reference.eval.values)


@pytest.mark.parametrize("damage", ["cut off", "a bit", "emptied"])
def test_a_damaged_one_is_asked_again_with_a_warning(
    tmp_path: Path, data: dict[str, str], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    (first,) = asked([stream(data, "dpo")], tmp_path)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes({"cut off": content[:-5], "a bit": content, "emptied": b""}[damage])
    (second,) = asked([stream(data, "dpo")], tmp_path)
    assert "reference damaged, asking again" in caplog.messages
    assert first.reference and second.reference
    assert np.array_equal(first.reference.train.values, second.reference.train.values)
    assert Kept(path, "").read() == {} and len(path.read_bytes()) == len(content)


@pytest.mark.parametrize(("identity", "size"), [("another", 2), ("the same", 3)])
def test_one_of_another_training_is_not_used(
    tmp_path: Path, data: dict[str, str], identity: str, size: int
) -> None:
    (first,) = asked([stream(data, "dpo")], tmp_path, model=small_model(initializer_range=0.5))
    with torch.no_grad():
        other = small_model()
        for weight in other.parameters():
            weight.mul_(1.5)
    (second,) = asked([stream(data, "dpo")], tmp_path, identity, size, model=other)
    assert first.reference and second.reference
    assert not np.allclose(first.reference.train.values, second.reference.train.values)


def test_a_disk_that_is_full_is_said_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.numpy

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise safetensors.SafetensorError("Error while serializing: I/O error: (os error 28)")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(StoreError, match=r"writing reference-main.safetensors: the disk is full"):
        Kept(tmp_path / "reference-main.safetensors", "the same").write({"train": Ragged()})
    assert list(tmp_path.iterdir()) == []


def test_objectives_that_need_none_are_not_asked_about(tmp_path: Path, data: dict[str, str]) -> None:
    orpo = open_stream(TaskSpec("", ObjectiveConfig(objective="orpo"), data["dpo"]))
    assert asked([orpo], tmp_path) == [orpo]
    found = asked([orpo, stream(data, "dpo")], tmp_path)
    assert found[0] is orpo and found[1].reference is not None


def test_rows_that_an_objective_cannot_learn_from_are_named_before_training(
    tmp_path: Path, data: dict[str, str]
) -> None:
    wrong = open_stream(TaskSpec("", ObjectiveConfig(objective="dpo"), data["kto"]))
    with pytest.raises(DataError, match=r"rows \d+ to \d+ of train: a row has \d segments, which cannot be"):
        asked([wrong], tmp_path)


def test_a_model_that_says_nothing_finite_is_refused(tmp_path: Path, data: dict[str, str]) -> None:
    model = small_model()
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(TrainError, match="rows 0 to 1 of train: the base model's .* are not finite"):
        asked([stream(data, "dpo")], tmp_path, model=model)


def test_the_model_before_training_has_no_virtual_tokens_unless_they_were_trained_before() -> None:
    prompt = PromptTuningConfig(tokens=3)
    trained = apply_method(small_model(), prompt, seed=1)
    assert untrained(trained, prompt, goes_on=False) is trained.get_base_model()
    assert untrained(trained, prompt, goes_on=True) is trained
    adapted = apply_method(small_model(), LoraConfig(rank=2), seed=1)
    assert untrained(adapted, LoraConfig(rank=2), goes_on=False) is adapted


def test_it_takes_four_bytes_a_document_and_four_a_row() -> None:
    ragged = Ragged(np.arange(5, dtype=np.float32), np.array([2, 0, 3], np.int32))
    assert [ragged[row].tolist() for row in range(3)] == [[0, 1], [], [2, 3, 4]]
    both = ragged.followed_by([Ragged(), ragged])
    assert [both[row].tolist() for row in range(6)] == [[0, 1], [], [2, 3, 4]] * 2
    assert (both.values.itemsize, both.counts.itemsize) == (4, 4)


def test_the_model_is_left_as_it_was(tmp_path: Path, data: dict[str, str]) -> None:
    model = small_model().train()
    asked([stream(data, "dpo")], tmp_path, model=model)
    assert model.training and all(weight.grad is None for weight in model.parameters())
