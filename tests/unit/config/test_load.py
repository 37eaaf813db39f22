"""A run's file, its overrides and its paths become one frozen object that survives a JSON round trip."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from tunewright.config import LoraConfig, RunConfig, load_run, resolved_json

GOOD = """\
name: desk
base: {model: tiny}
data:
  sources:
    - {type: builtin}
    - {type: builtin, seed: 2}
train:
  max_steps: 2
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(GOOD, encoding="utf-8")
    return path


def test_overrides_are_read_as_yaml_and_reach_every_level(run_file: Path) -> None:
    run = load_run(
        run_file,
        [
            "seed=3",
            "train.learning_rate=1e-4",
            "train.method.type=lora",  # makes the section that the file leaves out
            "train.method.rank=8",
            "data.sources.1.rows=70",
            "data.privacy.kinds=[card]",
            "sweep={space: a.yaml, trials: 2}",
            "store=/some where/a=b",
        ],
    )
    assert (run.seed, run.train.learning_rate) == (3, 0.0001)
    assert run.train.method == LoraConfig(rank=8)
    assert [source.rows for source in run.data.sources] == [5000, 70]  # type: ignore[union-attr]
    assert run.data.privacy.kinds == ("card",)
    assert run.sweep is not None
    assert run.sweep.trials == 2
    assert run.store == "/some where/a=b"


def test_a_list_is_replaced_as_a_whole_by_an_override(run_file: Path) -> None:
    run = load_run(run_file, ["data.sources=[{type: builtin, rows: 9}]"])
    assert [source.rows for source in run.data.sources] == [9]  # type: ignore[union-attr]


def test_of_two_overrides_the_last_counts(run_file: Path) -> None:
    assert load_run(run_file, ["seed=1", "seed=2"]).seed == 2


def test_a_number_with_an_exponent_and_no_point_is_a_number(run_file: Path) -> None:
    run_file.write_text(GOOD + "  learning_rate: 1e-4\n", encoding="utf-8")
    assert load_run(run_file).train.learning_rate == 1e-4


def test_a_resolved_run_read_again_is_the_same_run(run_file: Path) -> None:
    changes = ["train.method={type: lora, target_modules: [q_proj]}", "serve={}", "sweep={space: a.yaml}"]
    run = load_run(run_file, changes)
    assert RunConfig.model_validate_json(resolved_json(run)) == run


def test_a_resolved_run_states_every_default(run_file: Path) -> None:
    text = resolved_json(load_run(run_file))
    for key in ("dirty_fraction", "max_bad_fraction", "adam_beta2", "micro_batch_size", "target_modules"):
        assert f'"{key}"' in text


def test_a_run_cannot_be_changed(run_file: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_run(run_file).train.max_steps = 5  # type: ignore[misc]


def test_a_merge_key_is_yaml_like_any_other(run_file: Path) -> None:
    text = GOOD.replace("{type: builtin}\n", "&one {type: builtin, rows: 9}\n")
    run_file.write_text(text.replace("{type: builtin, seed: 2}", "{<<: *one, seed: 2}"), encoding="utf-8")
    assert [source.rows for source in load_run(run_file).data.sources] == [9, 9]  # type: ignore[union-attr]


def test_paths_are_looked_up_beside_the_file_and_then_in_its_parents(tmp_path: Path) -> None:
    for name in ("jobs/rows.jsonl", "tables/a.csv", "tables/b.csv", "spaces/s.yaml", "chat.jinja", "m/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    path = tmp_path / "jobs" / "run.yaml"
    path.write_text(
        "name: desk\nbase: {model: m}\ntrain: {max_steps: 1}\nsweep: {space: spaces/s.yaml}\n"
        "data:\n  chat_template: chat.jinja\n  sources:\n    - {type: jsonl, path: rows.jsonl}\n"
        "    - {type: csv, path: tables/*.csv}\n    - {type: jsonl, path: not/there.jsonl}\n"
        "evaluate: {tasks: [{name: t, source: {type: jsonl, path: rows.jsonl}}]}\n",
        encoding="utf-8",
    )
    run = load_run(path)
    found = [source.path for source in run.data.sources]  # type: ignore[union-attr]
    rows = str(tmp_path / "jobs" / "rows.jsonl")
    assert found == [rows, str(tmp_path / "tables/*.csv"), "not/there.jsonl"]
    assert run.evaluate.tasks[0].source.path == rows  # type: ignore[union-attr]
    assert run.base.model == str(tmp_path / "m")
    assert run.data.chat_template == str(tmp_path / "chat.jinja")
    assert run.sweep is not None
    assert run.sweep.space == str(tmp_path / "spaces" / "s.yaml")


def test_the_base_tiny_is_never_taken_for_a_folder_of_that_name(run_file: Path) -> None:
    (run_file.parent / "tiny").mkdir()
    assert load_run(run_file).base.model == "tiny"


def test_the_store_is_the_files_then_the_environments_then_at_home(
    run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TUNEWRIGHT_STORE", raising=False)
    monkeypatch.setenv("HOME", "/home/ada")
    assert load_run(run_file).store_root == Path("/home/ada/.tunewright")
    monkeypatch.setenv("TUNEWRIGHT_STORE", "~/there")
    assert load_run(run_file).store_root == Path("/home/ada/there")
    assert load_run(run_file, ["store=/mine"]).store_root == Path("/mine")
