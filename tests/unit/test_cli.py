"""The command line: quick help, clear sentences, and exit codes that scripts can trust."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tunewright import __version__, cli, submit
from tunewright.artifacts import Artifact, Plan, Store, write_json
from tunewright.config import load_run
from tunewright.registry import Registry

VERBS = [
    *("run", "prepare", "train", "sweep", "evaluate", "register"),
    *("deploy", "chat", "runs", "models", "doctor", "version"),
]
HELP_S = 0.7
RUN = """
name: demo
base: {model: tiny}
data: {sources: [{type: builtin, rows: 10}]}
train: {max_steps: 2}
"""


def call(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    """The exit code of the command line in this process."""
    monkeypatch.setattr(sys, "argv", ["tunewright", *args])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    code = ended.value.code
    return code if isinstance(code, int) else 0


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "demo.yaml"
    path.write_text(RUN)
    return path


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What would be submitted; no Ray is started."""
    sent: list[dict[str, Any]] = []

    def submitted(
        address: str, entrypoint: list[str], env: dict[str, str], name: str, out: Any, working_dir: Any = None
    ) -> int:
        sent.append({"address": address, "entrypoint": entrypoint, "env": env, "working_dir": working_dir})
        return 0

    monkeypatch.setattr(submit, "submit_and_follow", submitted)
    return sent


@pytest.fixture
def models(tmp_store: Store) -> Registry:
    """A registry with two versions of `demo`; the second missed its gate."""
    registry = Registry(tmp_store)
    for number, passed in enumerate([True, False], start=1):
        base = publish(tmp_store, "base", {"n": number}, {}, {})
        train = publish(tmp_store, "train", {"n": number}, {"base": base.ref}, {"method": "lora"})
        gate = {"name": "min_exact_match", "value": 0.1 * number, "needed": 0.15, "passed": passed}
        judged = publish(tmp_store, "evaluation", {"n": number}, {"model": train.ref}, {"gates": [gate]})
        registry.register("demo", train, judged, "demo")
    return registry


def publish(
    store: Store, kind: str, config: dict[str, Any], parents: dict[str, str], facts: dict[str, Any]
) -> Artifact:
    plan = Plan(kind, parents, config, "code")
    folder = store.work_dir(plan)
    (folder / "x").write_text("x")
    return store.publish(plan, folder, facts)


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['tunewright', '--help']\n"
        "import tunewright.cli as cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'ray', 'transformers', 'numpy', 'pydantic', 'pyarrow'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))"
    )
    took = []
    for _ in range(3):  # the best of three: another test may have the cores
        started = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        took.append(time.monotonic() - started)
    assert done.stdout.endswith("heavy: []\n")
    assert all(verb in done.stdout for verb in VERBS)
    assert min(took) <= HELP_S


@pytest.mark.parametrize("verb", [*VERBS, "runs ls", "runs show", "models promote", "models rollback"])
def test_every_verb_explains_itself(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *verb.split(), "--help") == 0
    assert "Usage" in capsys.readouterr().out


@pytest.mark.parametrize(
    "args", [["fly"], ["run"], ["run", "x.yaml", "--colour"], ["chat", "--max-tokens", "0"]]
)
def test_wrong_usage_is_2(args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, *args) == 2


def test_version_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "version", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"version": __version__}


@pytest.mark.parametrize("verb", ["run", "prepare", "sweep", "train", "evaluate", "register"])
def test_a_wrong_description_is_2_and_starts_nothing(
    verb: str,
    config: Path,
    jobs: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(submit, "local_ray", None)
    assert call(monkeypatch, verb, str(config), "--set", "train.lerning_rate=1") == 2
    said = capsys.readouterr()
    assert "did you mean `learning_rate`?" in said.err
    assert "Traceback" not in said.err + said.out
    assert jobs == []


def test_a_missing_file_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "run", "nowhere.yaml") == 2
    assert capsys.readouterr().err == "error: nowhere.yaml: no such file\n"


def test_a_store_that_cannot_be_written_is_1_and_starts_nothing(
    config: Path,
    tmp_path: Path,
    jobs: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(submit, "local_ray", None)
    assert call(monkeypatch, "run", str(config), "--set", f"store={tmp_path}/file/store") == 1
    assert "a file stands where a folder is needed" in capsys.readouterr().err
    assert jobs == []


@pytest.mark.parametrize(
    ("verb", "until"),
    [("run", None), ("prepare", "data"), ("sweep", "sweep"), ("train", "train"), ("evaluate", "evaluate")],
)
def test_a_verb_is_the_line_until_its_stage(
    verb: str,
    until: str | None,
    config: Path,
    tmp_path: Path,
    jobs: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TUNEWRIGHT_STORE", str(tmp_path / "s"))
    assert call(monkeypatch, verb, str(config), "--set", "seed=3", "--address", "http://127.0.0.1:1") == 0
    (job,) = jobs
    expected = [str(config), "--set", "seed=3", *(["--until", until] if until else [])]
    assert job["entrypoint"][-len(expected) :] == expected
    assert job["entrypoint"][0] == sys.executable
    assert job["env"] == {"TUNEWRIGHT_STORE": str(tmp_path / "s")}


def test_relative_paths_reach_the_job_absolute(
    config: Path, tmp_path: Path, jobs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert call(monkeypatch, "run", "demo.yaml", "--set", "store=here") == 0
    (job,) = jobs
    assert job["address"] == "127.0.0.1:6379"
    assert str(config) in job["entrypoint"]
    assert f"store={tmp_path}/here" in job["entrypoint"]


def test_a_cluster_elsewhere_receives_the_working_folder(
    config: Path, jobs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(config.parent)
    assert call(monkeypatch, "run", str(config), "--address", "http://10.0.0.1:8265") == 0
    (job,) = jobs
    assert job["working_dir"] == config.parent
    assert job["entrypoint"] == ["python", "-m", "tunewright.pipeline", "demo.yaml"]


def test_a_cluster_elsewhere_cannot_have_a_file_outside_of_what_is_sent(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert call(monkeypatch, "run", str(config), "--address", "http://10.0.0.1:8265") == 2
    assert "run the command from a folder that holds the configuration" in capsys.readouterr().err


def test_no_cluster_at_the_address_is_1_with_what_to_do(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUNEWRIGHT_STORE", str(tmp_path / "s"))
    monkeypatch.setenv("RAY_AUTH_MODE", os.environ["RAY_AUTH_MODE"])
    assert call(monkeypatch, "run", str(config), "--address", "http://127.0.0.1:1") == 1
    assert "leave --address out to start a local Ray" in capsys.readouterr().err


def test_a_runs_summary_is_the_json_on_stdout(
    config: Path,
    tmp_store: Store,
    jobs: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    summary = {"run": "demo", "version": "demo@v1", "seconds": 1.5, "tuned": {"exact_match": 0.9}}
    (tmp_store.root / "runs" / "demo").mkdir()
    write_json(tmp_store.root / "runs" / "demo" / "summary.json", summary)
    override = ["--set", f"store={tmp_store.root}", "--address", "http://127.0.0.1:1"]
    assert call(monkeypatch, "run", str(config), *override, "--json") == 0
    assert json.loads(capsys.readouterr().out) == summary
    assert call(monkeypatch, "runs", "ls", "--store", str(tmp_store.root), "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["run"], row["state"], row["version"], row["tuned"]) == ("demo", "done", "demo@v1", 0.9)
    assert call(monkeypatch, "runs", "show", "demo", "--store", str(tmp_store.root), "--json") == 0
    assert json.loads(capsys.readouterr().out) == summary
    assert len(jobs) == 1


@pytest.mark.parametrize("name", ["absent", "../runs/demo", "../../etc"])
def test_a_run_that_is_not_there_is_named(
    name: str, tmp_store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_store.root / "runs" / "demo").mkdir()
    write_json(tmp_store.root / "runs" / "demo" / "summary.json", {})
    assert call(monkeypatch, "runs", "show", name, "--store", str(tmp_store.root)) == 1
    assert f"there is no run {name} in {tmp_store.root}; runs: demo" in capsys.readouterr().err


def test_an_unfinished_run_says_so(
    tmp_store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_store.root / "runs" / "demo").mkdir()
    assert call(monkeypatch, "runs", "show", "demo", "--store", str(tmp_store.root)) == 1
    assert "has not come to its end" in capsys.readouterr().err
    assert call(monkeypatch, "runs", "ls", "--store", str(tmp_store.root)) == 0
    assert "unfinished" in capsys.readouterr().out


def test_models_are_listed_newest_first_and_shown_with_lineage(
    models: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ["--store", str(models.store.root)]
    assert call(monkeypatch, "models", "ls", "--json", *store) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(r["version"], r["gates"]) for r in rows] == [("demo@v2", "missed"), ("demo@v1", "passed")]
    assert call(monkeypatch, "models", "show", "demo@v1", "--json", *store) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [ref.partition("/")[0] for ref in shown["lineage"]] == ["train", "evaluation", "base"]
    assert call(monkeypatch, "models", "show", "demo@v1", *store) == 0
    assert "lora" in capsys.readouterr().out


def test_an_alias_moves_is_refused_and_moves_back(
    models: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ["--store", str(models.store.root)]
    assert call(monkeypatch, "models", "promote", "demo@v1", *store) == 0
    assert "demo@prod is now demo@v1" in capsys.readouterr().out
    assert call(monkeypatch, "models", "promote", "demo@v2", "prod", *store) == 1
    assert "min_exact_match" in capsys.readouterr().err
    assert models.aliases("demo") == {"prod": 1}
    assert call(monkeypatch, "models", "promote", "demo@v2", "prod", "--force", "--json", *store) == 0
    assert json.loads(capsys.readouterr().out)["version"] == "demo@v2"
    assert call(monkeypatch, "models", "rollback", "demo", "--json", *store) == 0
    assert json.loads(capsys.readouterr().out)["version"] == "demo@v1"
    assert models.aliases("demo") == {"prod": 1}


def test_looking_for_models_makes_no_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "models", "ls", "--store", str(tmp_path / "none")) == 1
    assert "tunewright run CONFIG" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_deploying_what_is_not_registered_starts_nothing(
    config: Path, tmp_store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tunewright.endpoint.local_ray", None)
    assert call(monkeypatch, "deploy", str(config), "--set", f"store={tmp_store.root}") == 1
    assert "there is no model demo" in capsys.readouterr().err


def test_settings_without_a_file_are_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, "deploy", "--set", "serve.port=1") == 2


def test_doctor_prints_json_and_fails_when_a_run_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    assert call(monkeypatch, "doctor", "--json", "--store", str(tmp_path / "file" / "s")) == 1
    states = {check["name"]: check["state"] for check in json.loads(capsys.readouterr().out)}
    assert states["store"] == "fail"


def test_chat_without_a_key_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "chat", "hello", "--store", str(tmp_path)) == 1
    assert "tunewright deploy" in capsys.readouterr().err


def test_chat_without_an_endpoint_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "http://127.0.0.1:1/v1"
    assert call(monkeypatch, "chat", "hello", "--key", "tw-x", "--url", url, "--store", str(tmp_path)) == 1
    assert f"nothing answers at {url}" in capsys.readouterr().err


def test_the_demo_configuration_is_valid(config: Path) -> None:
    assert load_run(config).name == "demo"
