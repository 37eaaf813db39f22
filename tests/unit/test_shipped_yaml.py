"""Every YAML file that ships is valid by the schema of whoever reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tunewright.config import load_run

REPO = Path(__file__).resolve().parents[2]
RUNS = sorted((REPO / "jobs" / "configs").glob("*.yaml"))
SPACES = sorted((REPO / "tune_spaces").glob("*.yaml"))
SERVES = sorted((REPO / "serve").glob("*.yaml"))
EVERY = [
    path
    for path in sorted(REPO.rglob("*.y*ml"))
    if not any(part.startswith(".") or part == "node_modules" for part in path.relative_to(REPO).parts)
]


def name(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


def test_runs_spaces_and_applications_ship() -> None:
    assert "quickstart.yaml" in {path.name for path in RUNS}
    assert SPACES
    assert SERVES


@pytest.mark.parametrize("path", EVERY, ids=name)
def test_every_shipped_yaml_is_a_mapping(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


@pytest.mark.parametrize("path", RUNS, ids=name)
def test_every_run_loads(path: Path) -> None:
    run = load_run(path)
    assert run.name


@pytest.mark.parametrize("path", SERVES, ids=name)
def test_every_application_is_what_serve_deploy_accepts(path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    deploy = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert deploy.applications
    assert deploy.http_options.host == "127.0.0.1"
    for application in deploy.applications:
        module, _, attribute = application.import_path.partition(":")
        assert module.startswith("tunewright.serve")
        assert attribute
