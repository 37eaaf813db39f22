"""The README's commands, run as they stand there: the quickstart, and the same run as a job by hand."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tiny_runs import ROOT, environment
from tunewright.ray_local import local_ray

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1500)]

BIN = Path(sys.executable).parent
QUICKSTART_S, AGAIN_S = 1200, 300


def readme_commands() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [
        line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()
    ]


def installed() -> bool:
    return (BIN / "tunewright").is_file()


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """`make quickstart` in a fresh store, in this environment instead of a new one."""
    assert "make quickstart" in readme_commands()
    store = tmp_path_factory.mktemp("quickstart")
    command = ["make", "quickstart", f"BIN={BIN}", "READY="]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(TUNEWRIGHT_STORE=str(store)),
        capture_output=True,
        text=True,
        timeout=QUICKSTART_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return store, done.stdout


@pytest.mark.skipif(not installed(), reason="needs `pip install -e .`: make test does that")
def test_make_quickstart_ends_with_an_endpoint_that_answers_as_evaluated(
    quickstart: tuple[Path, str],
) -> None:
    store, said = quickstart
    summary = json.loads((store / "runs" / "quickstart" / "summary.json").read_text())
    assert summary["base"]["exact_match"] <= 0.05
    assert summary["tuned"]["exact_match"] >= 0.85
    assert summary["served_equals_evaluated"] == {"asked": 8, "equal": 8}
    assert summary["trials"] >= 4
    assert {"stages", "base", "tuned", "winner", "version", "endpoint", "tokens_per_s"} <= set(summary)
    assert (store / "runs" / "quickstart" / "report.html").stat().st_size > 20_000
    assert "tokens/s" in said and "s left" in said, "a live line in training"
    assert "make serve" in said and "own_data.yaml" in said, "the two lines that a person copies next"


@pytest.mark.skipif(not installed(), reason="needs `pip install -e .`: make test does that")
def test_the_same_run_by_hand_as_a_ray_job_makes_nothing_again(
    quickstart: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = quickstart
    # A job sees what its Ray was started with: the store, and the activated environment.
    monkeypatch.setenv("TUNEWRIGHT_STORE", str(store))
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    (submit,) = [line for line in readme_commands() if line.startswith("ray job submit")]
    with local_ray() as ray:
        done = subprocess.run(
            [str(BIN / "ray"), *shlex.split(submit)[1:]],
            cwd=ROOT,
            env=environment(
                RAY_API_SERVER_ADDRESS=ray.address,
                RAY_AUTH_MODE="token",
                RAY_AUTH_TOKEN=ray.token,
            ),
            capture_output=True,
            text=True,
            timeout=AGAIN_S,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((store / "runs" / "quickstart" / "summary.json").read_text())
    made = [stage["name"] for stage in summary["stages"] if stage["state"] == "made"]
    assert made == ["deploy"]
    assert summary["version"] == "quickstart@v1"


def test_make_test_is_what_the_readme_says() -> None:
    assert "make test" in readme_commands()
    said = subprocess.run(
        ["make", "-n", "test", f"BIN={BIN}", "READY="], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "-m pytest" in said
