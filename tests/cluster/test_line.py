"""The line as one: what a missed gate does, and what is found the second time."""

from pathlib import Path

import pytest

from tiny_runs import newborn_base, small_run, write_run
from tunewright.artifacts import Store
from tunewright.config import load_run
from tunewright.errors import GateRefused
from tunewright.pipeline import run_line
from tunewright.registry import Registry

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_a_missed_gate_keeps_the_alias_and_leaves_a_report(ray_cluster: None, tmp_path: Path) -> None:
    run = small_run(newborn_base(tmp_path / "base"), tmp_path / "store", sweep=None)
    run["train"] |= {"max_steps": 1, "workers": 1}
    run["evaluate"]["gates"] = {"min_exact_match": 0.5}
    config = write_run(tmp_path / "run.yaml", run)
    with pytest.raises(GateRefused, match=r"min_exact_match is 0\.0, 0\.5 is needed"):
        run_line(load_run(config), "register")
    store = Store(tmp_path / "store")
    registry = Registry(store)
    assert [v.name for v in registry.versions("small")] == ["small@v1"], "the version is recorded"
    assert registry.aliases("small") == {}
    report = (store.root / "runs" / "small" / "report.html").read_text(encoding="utf-8")
    assert "min_exact_match" in report

    run["evaluate"]["gates"] = {"min_exact_match": 0.0}
    summary = run_line(load_run(write_run(config, run)), "register")
    made = [stage["name"] for stage in summary["stages"] if stage["state"] == "made"]
    assert made == ["evaluate", "register"], "another gate judges the same scores; nothing is trained again"
    assert summary["alias"] == "prod"
