"""An honest training holds every claim of its certificate, whatever method, objective and workers it has."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from certified import certificate, training, with_task, written
from loops import on_two_workers
from tunewright.errors import CertificateFailed, TrainError
from tunewright.train.certificate import certificate_rows, read_certificate, told
from tunewright.train.worker import WorkerSpec, read_metrics, run_spec

pytestmark = [
    pytest.mark.usefixtures("one_worker"),
    # DeepSpeed's:
    pytest.mark.filterwarnings("ignore:`torch.distributed:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]

WHOLE = "changes the model itself: there is no adapter to merge"
VIRTUAL = "cannot be merged: it puts 3 virtual tokens"
HEADED = "a classifier keeps its adapter"
ZERO_3 = {"stage": 3, "stage3_param_persistence_threshold": 0}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of bases and data that these trainings share."""
    return tmp_path_factory.mktemp("certified")


def holds(entries: dict[int, dict[str, Any]], apart: str = "") -> None:
    """Every claim does, but that of a merge where `apart` says why it does not apply."""
    assert list(entries) == [1, 2, 3, 4, 5, 6, 7]
    assert [n for n, e in entries.items() if e["passed"] is not True] == ([5] if apart else []), entries
    assert apart in entries[5]["sentence"]
    for entry in entries.values():
        assert all(entry["measured"][name] <= bound for name, bound in entry["tolerance"].items())
        assert entry["seconds"] >= 0 and entry["sentence"]


@pytest.mark.parametrize(
    ("method", "apart"),
    [
        ({"type": "lora", "rank": 2, "dropout": 0.1}, ""),
        ({"type": "dora", "rank": 2}, ""),
        ({"type": "ia3"}, ""),
        ({"type": "full"}, WHOLE),
        ({"type": "freeze", "last_blocks": 1}, WHOLE),
        ({"type": "prompt_tuning", "tokens": 3}, VIRTUAL),
        ({"type": "prefix_tuning", "tokens": 3}, VIRTUAL),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)
def test_every_method_holds_what_it_claims(
    made: Path, tmp_path: Path, method: dict[str, Any], apart: str
) -> None:
    spec = replace(training(made, method=method), work=str(tmp_path))
    entries = certificate(spec)
    holds(entries, apart)
    assert entries[2]["measured"]["foreign_tokens"] == 0.0
    assert entries[4]["measured"]["kl"] < 1e-9
    assert entries[6]["measured"]["frozen_weights"] > 0 or method["type"] == "full"


@pytest.mark.parametrize(
    ("objective", "apart"),
    [("pretrain", ""), ("dpo", ""), ("kto", ""), ("classify", HEADED), ("tag", HEADED), ("reward", HEADED)],
)
def test_every_objective_does(made: Path, tmp_path: Path, objective: str, apart: str) -> None:
    entries = certificate(replace(training(made, objective), work=str(tmp_path)))
    holds(entries, apart)
    assert entries[1]["measured"]["supervised"] > 0


def test_a_task_beside_the_main_one_is_measured_too(made: Path, tmp_path: Path) -> None:
    spec = with_task(training(made), made, "texts", "pretrain", 0.25)
    entries = certificate(replace(spec, work=str(tmp_path)))
    holds(entries)
    assert entries[1]["measured"]["supervised_share/texts"] > entries[1]["measured"]["supervised_share"]
    assert "task texts: " in entries[2]["sentence"] and "relative_difference/texts" in entries[2]["measured"]
    assert "task texts: serving renders 12 texts" in entries[7]["sentence"]


def trained_by(rank: int, specs: list[WorkerSpec]) -> list[dict[int, dict[str, Any]]]:
    return [certificate(spec, rank) for spec in specs]


def test_two_workers_under_zero_3_do(made: Path, tmp_path: Path) -> None:
    methods = {"lora": {"type": "lora", "rank": 2}, "freeze": {"type": "freeze", "last_blocks": 1}}
    specs = [
        replace(
            training(made, method=method, zero=ZERO_3, workers=2, micro_batch_size=1),
            work=str(tmp_path / name),
        )
        for name, method in methods.items()
    ]
    found, none = on_two_workers(trained_by, specs, tmp_path / "two")
    assert none == [{}, {}]
    for entries, apart in zip(found, ("", WHOLE), strict=True):
        holds(entries, apart)
        assert "2 workers with 2 micro batches of 1" in entries[3]["sentence"]
        assert entries[6]["measured"]["workers"] == 2


def test_a_run_in_16_bits_does(made: Path, tmp_path: Path) -> None:
    entries = certificate(replace(training(made, precision="bf16"), work=str(tmp_path)))
    holds(entries)
    assert entries[2]["measured"]["foreign_tokens"] == 0.0
    assert 0 < entries[2]["measured"]["relative_difference"] < 1e-2
    assert entries[4]["measured"]["kl"] < 1e-3


@pytest.mark.parametrize("zero", [0, 2])
def test_measuring_changes_no_bit_of_the_training(made: Path, tmp_path: Path, zero: int) -> None:
    method = {"type": "lora", "rank": 2, "dropout": 0.1}
    asked = training(made, method=method, zero={"stage": zero}, neftune_alpha=5.0, label_smoothing=0.1)
    losses, weights = [], []
    for name, certify in (("with", True), ("without", False)):
        spec = replace(asked, work=str(tmp_path / name), certify=certify)
        weights.append(run_spec(spec, 0, lambda _: None).weights)
        losses.append([m["loss"] for m in read_metrics(Path(spec.work) / "metrics.jsonl")])
    assert losses[0] == losses[1] and len(losses[0]) == 3
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())
    assert not (tmp_path / "without" / "out" / "certificate.json").exists()


def test_without_evaluation_rows_the_text_of_training_documents_is_tokenized_again(tmp_path: Path) -> None:
    spec = training(tmp_path, examples={"train": 90, "eval": 0})
    entries = certificate(spec)
    holds(entries)
    assert "the text of 39 of 39 training documents becomes the same ids again" in entries[7]["sentence"]
    assert entries[4]["measured"]["tokens"] > 100  # of training rows, then


def test_the_certificate_is_told_in_a_line_and_shown_in_a_table(made: Path, tmp_path: Path) -> None:
    spec = replace(training(made, method={"type": "full"}), work=str(tmp_path))
    certificate(spec)
    entries = read_certificate(tmp_path / "out")
    assert told(entries).startswith("6 of 7 hold, 1 does not apply, in ")
    rows = certificate_rows(entries)
    assert [row[1] for row in rows] == [*["holds"] * 4, "does not apply", *["holds"] * 2]
    assert rows[1][0] == "2. packed as alone" and "relative difference " in rows[1][3]
    assert "(at most 1e-05)" in rows[1][3]
    assert read_certificate(tmp_path) == []
    whole = json.loads((tmp_path / "out" / "certificate.json").read_text(encoding="utf-8"))
    assert whole["told"] == told(entries) and written(spec)[2] == entries[1]


def test_the_error_keeps_its_claim_on_its_way_to_the_driver() -> None:
    error = pickle.loads(pickle.dumps(CertificateFailed(2, "packed as alone", "documents leak")))
    assert isinstance(error, TrainError)
    assert (error.number, error.name, error.sentence) == (2, "packed as alone", "documents leak")
    assert str(error) == "certificate, 2 (packed as alone): documents leak"
