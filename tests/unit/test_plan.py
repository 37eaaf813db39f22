"""`tunewright plan` says what a run needs, and what to change when it does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tiny_runs import newborn_base
from tunewright.cli import app
from tunewright.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
RUN = """
name: planned
store: {store}
base: {{model: {base}}}
data:
  sources: [{{type: builtin, part: train, rows: 300, seed: 17}}]
  pack: {{seq_len: 128}}
  rules: {{max_bad_fraction: 0.2}}
train:
  method: {{type: lora, rank: 4}}
  num_train_epochs: 2
  global_batch_size: 8
  micro_batch_size: 4
  workers: 2
  zero: {{stage: {stage}}}
  worker_resources: {{gpus: {gpus}}}
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return newborn_base(tmp_path_factory.mktemp("base") / "model")


def planned(folder: Path, base: Path, *options: str, gpus: int = 1, stage: int = 2) -> Any:
    run = RUN.format(store=folder / "store", base=base, gpus=gpus, stage=stage)
    (folder / "run.yaml").write_text(run)
    return CliRunner().invoke(app, ["plan", str(folder / "run.yaml"), *options])


def test_a_plan_names_parameters_memory_steps_time_and_cost(tmp_path: Path, base: Path) -> None:
    told = planned(tmp_path, base, "--device", "h100", "--price", "3", "--rows", "100", "--json")
    (plan,) = json.loads(told.stdout)
    assert told.exit_code == 0 and plan["fits"]
    assert plan["rows"]["measured_on"].startswith("100 of 300 source rows")
    assert plan["batch"] == {"rows": 8, "micro": 4, "accumulation": 1}
    assert plan["steps"] == -(-2 * plan["rows"]["packed"] // 8)
    assert 0 < plan["parameters"]["trained"] < plan["parameters"]["total"]
    parts = {key: value for key, value in plan["memory"].items() if key not in ("stage", "total")}
    assert sum(parts.values()) == plan["memory"]["total"]
    assert set(plan["memory_by_stage"]) == {"0", "1", "2", "3"}
    assert plan["cost"] == pytest.approx(plan["seconds"] / 3600 * 2 * 3, abs=0.01)
    assert not (tmp_path / "store").exists(), "nothing is written"


def test_what_does_not_fit_is_named_with_what_would(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from tunewright.train.forecast import compute

    small = replace(compute.DEVICES["t4"], memory=4 * 2**20)
    monkeypatch.setitem(compute.DEVICES, "t4", small)
    # Undivided: what DeepSpeed copies together to divide is larger than this model.
    told = planned(tmp_path, base, "--device", "t4", "--rows", "50", stage=0)
    assert told.exit_code == 1
    assert "DOES NOT FIT: the most is for activations" in told.stdout
    assert "train.micro_batch_size: " in told.stdout
    assert "train.gradient_checkpointing: true" in told.stdout


def test_a_gpu_that_is_not_here_must_be_named(tmp_path: Path, base: Path) -> None:
    told = planned(tmp_path, base)
    assert isinstance(told.exception, ConfigError)
    assert "say which GPU it will be: --device h100" in str(told.exception)


def test_without_gpus_this_machine_is_measured(tmp_path: Path, base: Path) -> None:
    told = planned(tmp_path, base, "--rows", "50", gpus=0)
    assert told.exit_code == 0
    assert "this machine's processor, 1 threads a worker" in told.stdout
