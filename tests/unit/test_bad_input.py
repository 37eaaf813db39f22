"""What a person reads when something that the run names is wrong: before anything is started."""

import gzip
import sys
from pathlib import Path
from typing import Any

import pytest

from tiny_runs import newborn_base, small_run, write_run
from tunewright.artifacts import Store
from tunewright.config import load_run
from tunewright.errors import StoreLocked
from tunewright.pipeline import main, run_line


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return newborn_base(tmp_path_factory.mktemp("base") / "model")


def told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], run: dict[str, Any], *options: str
) -> tuple[int, str]:
    """Exit code and stderr of the pipeline; Ray must not have been touched."""
    ray_before = "ray" in sys.modules
    code = main([str(write_run(tmp_path / "run.yaml", run)), *options])
    assert ("ray" in sys.modules) == ray_before, "nothing may start before the input is checked"
    return code, capfd.readouterr().err


def with_rows(base: Path, tmp_path: Path, path: Path, kind: str = "jsonl") -> dict[str, Any]:
    run = small_run(base, tmp_path / "store")
    run["data"]["sources"] = [{"type": kind, "path": str(path)}]
    return run


def test_a_misspelt_key_names_the_nearest_and_the_line(
    base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = small_run(base, tmp_path / "store")
    run["train"]["lerning_rate"] = 0.1
    code, err = told(tmp_path, capfd, run)
    assert code == 2
    assert "unknown key `train.lerning_rate`; did you mean `learning_rate`?" in err
    line = next(
        number
        for number, text in enumerate((tmp_path / "run.yaml").read_text().splitlines(), start=1)
        if "lerning_rate" in text
    )
    assert f"run.yaml:{line}:" in err


def test_malformed_yaml_names_the_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text("name: x\nbase: {model: tiny\ndata: 1\n")
    assert main([str(tmp_path / "run.yaml")]) == 2
    assert "run.yaml:3: not valid YAML" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file or folder"),
        (b"", "the file is empty"),
        (gzip.compress(b'{"prompt": "a"}')[:-9], "the gzip file is cut off at byte"),
        (b'[{"prompt": "a"}]', "the file is one JSON list; say type: json"),
    ],
    ids=["missing", "empty", "gzip", "json-list"],
)
def test_a_data_file_that_cannot_be_used(
    base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], content: bytes | None, message: str
) -> None:
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_bytes(content)
    code, err = told(tmp_path, capfd, with_rows(base, tmp_path, path))
    assert code == 1
    assert f"error: {path}: " in err
    assert message in err


def test_a_base_model_that_is_not_there(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, err = told(tmp_path, capfd, small_run(tmp_path / "nowhere", tmp_path / "store"))
    assert code == 1
    assert f"base model {tmp_path / 'nowhere'}: no such folder" in err


def test_a_hub_model_without_a_revision(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = small_run(tmp_path, tmp_path / "store")
    run["base"]["model"] = "Qwen/Qwen3-0.6B"
    code, err = told(tmp_path, capfd, run)
    assert code == 1
    assert "base model Qwen/Qwen3-0.6B: a Hugging Face id needs base.revision" in err


def test_a_search_space_with_a_key_that_training_has_not(
    base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "space.yaml"
    run = small_run(base, tmp_path / "store", sweep__space=str(space))
    space.write_text("train.learning_rat: {grid: [1, 2]}\n")
    code, err = told(tmp_path, capfd, run)
    assert code == 2
    assert "training has no key `train.learning_rat`" in err


def test_a_grid_of_more_points_than_trials_is_refused(
    base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, err = told(tmp_path, capfd, small_run(base, tmp_path / "store", sweep__trials=1))
    assert code == 2
    assert "the grids have 2 points, more than sweep.trials=1; raise trials to 2" in err


def test_gates_without_a_task_are_refused(
    base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = small_run(base, tmp_path / "store", evaluate={"gates": {"min_exact_match": 0.5}})
    code, err = told(tmp_path, capfd, run)
    assert code == 2
    assert "needs something to measure: name a task under evaluate.tasks" in err


def test_a_store_where_a_file_stands_is_refused(
    base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "store").write_text("not a folder")
    code, err = told(tmp_path, capfd, small_run(base, tmp_path / "store"))
    assert code == 1
    assert "a file stands where a folder is needed" in err


def test_a_run_that_another_process_is_making_is_refused(base: Path, tmp_path: Path) -> None:
    config = load_run(write_run(tmp_path / "run.yaml", small_run(base, tmp_path / "store")))
    with (
        Store(tmp_path / "store").lock("run-small", "run small"),
        pytest.raises(StoreLocked, match=r"being written by another run: run small \(process \d+ on "),
    ):
        run_line(config)
