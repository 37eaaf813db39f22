"""A worker without Ray: loads, trains, writes what the method writes, and says why it did not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loops import MemoryRows, small_model, worker_spec
from tunewright.config import TrainConfig
from tunewright.data import dataset
from tunewright.errors import TrainError
from tunewright.models.load import load_model
from tunewright.train.worker import WorkerEnds, WorkerSpec, run_spec

pytestmark = [
    pytest.mark.usefixtures("one_worker"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # DeepSpeed's:
    pytest.mark.filterwarnings("ignore:`torch.distributed:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"train": 16, "eval": 3}
    monkeypatch.setattr(dataset, "open_rows", lambda folder, split: MemoryRows(sizes[split]))


def spec(folder: Path, **values: Any) -> WorkerSpec:
    small_model().save_pretrained(folder / "base")
    shape = {"max_steps": 3, "global_batch_size": 4, "micro_batch_size": 2, "logging_steps": 1}
    config = TrainConfig.model_validate({**shape, "precision": "fp32", **values})
    return worker_spec(folder, config)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("method", "zero", "kind"),
    [
        ({"type": "lora", "rank": 2, "dropout": 0.1}, 2, "adapter"),
        ({"type": "prompt_tuning", "tokens": 3}, 2, "adapter"),
        ({"type": "freeze", "last_blocks": 1}, 3, "model"),
    ],
    ids=["lora", "prompt", "freeze, ZeRO-3"],
)
def test_what_was_trained_is_written_and_opens(
    tmp_path: Path, method: dict[str, Any], zero: int, kind: str
) -> None:
    reports: list[dict[str, float]] = []
    asked = spec(tmp_path, method=method, zero={"stage": zero}, gradient_checkpointing=True)
    outcome = run_spec(asked, 0, reports.append)
    assert (outcome.step, outcome.weights_step, outcome.stopped) == (3, 3, None)
    assert [r["training_step"] for r in reports] == [3]
    out = tmp_path / "out" / kind
    if kind == "model":
        model = load_model(out, None, torch.float32)
        frozen = "model.layers.0.mlp.up_proj.weight"
        assert torch.equal(model.get_parameter(frozen), small_model().get_parameter(frozen))
        for name, weight in outcome.weights.items():
            assert torch.equal(model.get_parameter(name), weight)
    else:
        load_model(tmp_path / "base", out, torch.float32)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [kind]


def test_rows_longer_than_the_context_are_refused_before_training(tmp_path: Path) -> None:
    asked = spec(tmp_path, method={"type": "prefix_tuning", "tokens": 50})
    with pytest.raises(
        TrainError, match="rows of 24 tokens and 50 virtual tokens do not fit .* context of 64"
    ):
        run_spec(asked, 0, lambda _: None)
    assert not (tmp_path / "checkpoints").exists()


def test_a_training_that_was_asked_to_stop_says_so_and_writes_no_result(tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    with pytest.raises(TrainError, match="asked to stop after step 1 of 3, and has saved; start it again"):
        run_spec(spec(tmp_path), 0, lambda _: None)
    assert not (tmp_path / "out").exists()
    (tmp_path / "stop").unlink()
    assert run_spec(spec(tmp_path), 0, lambda _: None).began_at == 1


def test_a_worker_that_was_told_to_end_fails_as_a_lost_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunewright.train import stopping

    monkeypatch.setattr(stopping, "signalled", lambda: True)
    with pytest.raises(WorkerEnds, match="told to end after step 1; its work is saved"):
        run_spec(spec(tmp_path), 0, lambda _: None)
    assert not issubclass(WorkerEnds, TrainError)  # which would end the run instead of restarting it
    assert (tmp_path / "checkpoints" / "step-000001").is_dir()
