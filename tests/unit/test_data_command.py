"""`tunewright data report` finds a run's or a data set's report, prints it, and shows its page."""

from __future__ import annotations

import json
import webbrowser
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from data_reports import Page, sample
from tunewright.artifacts import write_json
from tunewright.data.drift import drift
from tunewright.data_cli import data_app, find_report
from tunewright.errors import StoreError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with the run `desk`, its data set, and a run that has prepared nothing."""
    run = tmp_path / "runs" / "desk" / "data"
    artifact = tmp_path / "artifacts" / "data" / "0123456789abcdef"
    for folder in (run, artifact, tmp_path / "runs" / "stopped", tmp_path / "artifacts" / "data" / "old"):
        folder.mkdir(parents=True)
    before = sample()
    before["personal_data"] = {"email": 10, "iban": 12}
    moved = drift(sample(), before)
    write_json(run / "report.json", {**sample(), "artifact": "data/x", "before": "data/y", "drift": moved})
    (run / "report.html").write_text("the page")
    write_json(artifact / "report.json", before)
    return tmp_path


def call(root: Path, *args: str) -> Result:
    return CliRunner().invoke(data_app, [*args, "--store", str(root)])


def test_report_of_a_run_prints_the_table_its_drift_and_where_the_page_is(root: Path) -> None:
    done = call(root, "report", "desk")
    assert done.exit_code == 0, done.output
    assert "19,618 of 21,040 rows kept" in done.output
    assert "personal data: email per 1,000 rows" in done.output
    assert done.output.splitlines()[-1] == f"  page  {root / 'runs/desk/data/report.html'}"


@pytest.mark.parametrize("name", ["data/0123456789abcdef", "0123456789abcdef"])
def test_report_of_a_data_set_is_found_by_its_id(root: Path, name: str) -> None:
    assert find_report(root, name) == root / "artifacts/data/0123456789abcdef/report.json"
    done = call(root, "report", name)
    assert done.exit_code == 0 and f"tunewright data report {name} --html FILE" in done.output


def test_report_can_be_a_file(root: Path) -> None:
    path = root / "artifacts/data/0123456789abcdef/report.json"
    assert find_report(root / "elsewhere", str(path)) == path


def test_report_as_json_is_the_report_with_its_drift(root: Path) -> None:
    shown = json.loads(call(root, "report", "desk", "--json").output)
    assert {key: shown[key] for key in sample()} == sample()
    assert shown["drift"][0]["what"] == "personal data: email"
    assert (shown["before"], shown["page"]) == ("data/y", str(root / "runs/desk/data/report.html"))
    assert json.loads(call(root, "report", "data/0123456789abcdef", "--json").output)["page"] is None


def test_report_against_another_set_shows_what_differs(root: Path, tmp_path: Path) -> None:
    page = tmp_path / "out.html"
    done = call(root, "report", "data/0123456789abcdef", "--against", "desk", "--html", str(page))
    assert done.exit_code == 0, done.output
    assert "personal data: email per 1,000 rows" in done.output and str(page) in done.output
    assert "compared with desk" in Page(page.read_text(encoding="utf-8")).text


def test_report_opens_the_page_that_is_there(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or True)
    assert call(root, "report", "desk", "--open").exit_code == 0
    assert opened == [(root / "runs/desk/data/report.html").as_uri()]


def test_report_makes_a_page_to_open_where_there_is_none(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or True)
    assert call(root, "report", "data/0123456789abcdef", "--open").exit_code == 0
    page = Path(opened[0].removeprefix("file://"))
    assert tmp_path in page.parents and "19,618" in Page(page.read_text(encoding="utf-8")).text


def test_a_machine_without_a_browser_is_told_where_the_page_is(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    failed = call(root, "report", "desk", "--open").exception
    assert isinstance(failed, StoreError) and "no browser to open here; the page is /" in str(failed)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("desc", "there is no run or data set desc in .*; the nearest: desk"),
        ("0123456789abcdee", "the nearest: 0123456789abcdef"),
        ("stopped", "run stopped has no data report: its data stage has not come to its end"),
        ("data/old", "data/old has no report: an earlier version of Tunewright made it"),
        ("../../../etc/passwd", "there is no run or data set"),
        ("zzzz", "the nearest: desk"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(root: Path, name: str, said: str) -> None:
    with pytest.raises(StoreError, match=said):
        find_report(root, name)


def test_an_empty_store_says_that_nothing_was_prepared(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no run has prepared data yet"):
        find_report(tmp_path, "desk")
    assert list(tmp_path.iterdir()) == [], "looking makes nothing"


@pytest.mark.parametrize("content", ["{", "[1]", "{}"])
def test_a_damaged_report_is_named(root: Path, content: str) -> None:
    path = root / "runs/desk/data/report.json"
    path.write_text(content)
    failed = call(root, "report", "desk").exception
    assert isinstance(failed, StoreError) and str(path) in str(failed)


def test_a_page_that_cannot_be_written_says_why(root: Path) -> None:
    failed = call(root, "report", "desk", "--html", str(root / "missing" / "x.html")).exception
    assert isinstance(failed, StoreError) and "writing" in str(failed)
