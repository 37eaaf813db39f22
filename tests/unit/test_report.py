"""The page and the table show what they are given, whatever it is."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tunewright.errors import StoreError
from tunewright.evaluate.compare import compare
from tunewright.evaluate.suite import SuiteResult, task_result
from tunewright.evaluate.tasks import Task
from tunewright.report import summary_table, write_report
from tunewright.report.charts import spread
from tunewright.report.table import WIDTH
from tunewright.report.text import NONE, duration
from tunewright.report.training_charts import marks_of, write_pngs

PICTURES = 8
"""Of the sample: a task, the base's loss, five of the training, the sweep."""
EVIL = '<script>alert("$x$")</script>&\'\u2028'


def desk_task(
    rows: int = 20, ticket: str = "Hello, I was charged twice. My order number is TW-48{}."
) -> Task:
    prompts = [[{"role": "user", "content": ticket.replace("{}", f"{i:02}")}] for i in range(rows)]
    expected = [f'{{"intent":"billing","product":"router","order":"TW-48{i:02}"}}' for i in range(rows)]
    return Task("support desk", "json", prompts, expected, 32)


def desk_results(task: Task) -> tuple[SuiteResult, SuiteResult]:
    base = ["I was charged twice"] * (len(task.expected) - 1) + ['{"intent":"billing"}']
    tuned = [answer.replace("48", "84") if i % 7 == 3 else answer for i, answer in enumerate(task.expected)]
    return {task.name: task_result(task, base, 5.2)}, {task.name: task_result(task, tuned, 0.04)}


def sample() -> dict[str, Any]:
    """Arguments of `write_report` for a whole run."""
    task = desk_task()
    base, tuned = desk_results(task)
    before, after = base[task.name], tuned[task.name]
    params = [(3e-3, 8), (1e-3, 16), (3e-4, 8), (1e-2, 4)]
    trials = [
        {
            "trial": i,
            "params": {"train.learning_rate": rate, "train.method.rank": rank},
            "state": "stopped" if i == 2 else "finished",
            "steps": 20 if i == 2 else 60,
            "history": [
                {"step": s, "exact_match": min(1.0, s / 70 * (0.2, 0.8, 0.1, 0.75)[i]), "eval_loss": 1 / s}
                for s in range(20, 21 if i == 2 else 61, 20)
            ],
            "best": (0.17, 0.69, 0.03, 0.64)[i],
        }
        for i, (rate, rank) in enumerate(params)
    ]
    curve: list[dict[str, Any]] = [
        {
            "step": s, "loss": 5 / (1 + s / 9), "lr": 1e-3, "tokens_per_s": 9e3, "grad_norm": 1 + s % 3,
            "rss_gib": 1 + s / 400, "peak_rss_gib": 1.2 + s / 400, "attempt": 1 + (s > 90),
            "rollbacks": int(s > 150),
        }
        for s in range(0, 201, 5)
    ]  # fmt: skip
    for row in curve[::8]:
        row["eval_loss"] = row["loss"] * 1.04
    names = ("base", "data", "sweep", "train", "evaluate", "register", "deploy")
    summary = {
        "run": "quickstart",
        "seconds": 214.6,
        "stages": [
            {
                "name": name,
                "seconds": 9.5 * i,
                "state": "found" if i < 2 else "made",
                "artifact": f"{name}/0{i}",
            }
            for i, name in enumerate(names)
        ],
        "base": {
            "model": "tiny",
            "exact_match": before["exact_match"],
            "loss": 5.2,
            "fields": before["fields"],
        },
        "tuned": {
            "model": "tiny",
            "exact_match": after["exact_match"],
            "loss": 0.04,
            "fields": after["fields"],
        },
        "winner": {"trial": 1, "params": trials[1]["params"], "exact_match": 0.69},
        "trials": 4,
        "version": "quickstart@v1",
        "alias": "prod",
        "endpoint": "http://127.0.0.1:8000/v1",
        "served_equals_evaluated": {"asked": 8, "equal": 8},
        "tokens_per_s": 9123.4,
        "training": {
            "steps": 200,
            "weights_step": 160,
            "ended": "eval_loss was 0.24 at step 200, no better than 0.23 for 3 evaluations",
        },
        "data": {
            "funnel": [{"source": "builtin", "read": 5000, "rejected": 80, "duplicates": 41, "kept": 4879}],
            "reasons": {"broken JSON": 42, "message 1 (assistant) is empty": 38},
            "personal_data": {"email": 39, "card": 41},
            "train_rows": 463,
            "eval_rows": 24,
            "tokens": 412345,
        },
        "paths": {"store": "/data/tw", "report": "/data/tw/runs/quickstart/report.html"},
    }
    gates = [{"name": "support desk.min_exact_match", "value": 0.85, "needed": 0.8, "passed": True}]
    evaluation = {"base": base, "tuned": tuned, "compare": compare(base, tuned), "gates": gates}
    return {
        "summary": summary,
        "metrics": {"base": curve, "train": curve},
        "trials": trials,
        "evaluation": evaluation,
    }


def bare() -> dict[str, Any]:
    """A run that stopped after its first stage: what is not there is None."""
    run = sample()
    missing = ("base", "tuned", "winner", "version", "alias", "endpoint", "served_equals_evaluated", "data")
    run["summary"] |= dict.fromkeys((*missing, "tokens_per_s", "training")) | {"trials": 0}
    return run | {"metrics": {"train": []}, "trials": [], "evaluation": {}}


class Page(HTMLParser):
    """Elements, attributes and texts of a page, and whether every element is closed."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("meta", "br", "link", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)


def page_of(run: dict[str, Any], folder: Path) -> tuple[str, Page]:
    path = write_report(folder, **run)
    assert path == folder / "report.html"
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == [] and page.tags.count("html") == 1
    return html, page


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    """The page of a whole run; drawing its pictures takes a second."""
    return page_of(sample(), tmp_path_factory.mktemp("whole"))


def test_page_shows_the_figures_of_the_run(whole: tuple[str, Page]) -> None:
    _, page = whole
    text = " ".join("".join(page.texts).split())
    for wanted in (
        "quickstart@v1", "0.850", "17 of 20 right; 95 % interval 0.640 to 0.948", "8 of 8 equal", "prod",
        "http://127.0.0.1:8000/v1", "9,123 tokens/s", "fixed 17 and broke 0",
        "both models are right on 0 and wrong on 3",
        "My order number is TW-4803", '"order":"TW-8403"', "4,879", "412,345", "evaluate/04",
        "/data/tw/runs/quickstart/report.html", "learning_rate", "0.003", "stopped", "3 min 35 s",
        "min_exact_match", "✓ passed", "broken JSON (42); message 1 (assistant) is empty (38).",
        "found: email (39), card (41).",
    ):  # fmt: skip
        assert wanted in text, wanted
    assert page.tags.count("svg") == PICTURES


def test_page_needs_nothing_from_elsewhere(whole: tuple[str, Page]) -> None:
    html, page = whole
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    assert "@import" not in html
    linked = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "action")]
    assert all(value.startswith("#") for value in linked)
    for target in re.findall(r"url\(([^)]*)\)", html):
        assert target.startswith("#")


def test_pictures_are_valid_xml_with_ids_of_their_own(whole: tuple[str, Page]) -> None:
    html, page = whole
    pictures = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(pictures) == PICTURES
    for picture in pictures:
        ElementTree.fromstring(picture)
    ids = [value for name, value in page.attributes if name == "id"]
    assert ids and len(ids) == len(set(ids))
    used = {v[1:] for n, v in page.attributes if n == "xlink:href"} | set(
        re.findall(r"url\(#([^)]*)\)", html)
    )
    assert used and used <= set(ids)


def test_pictures_take_every_colour_and_font_from_the_page(whole: tuple[str, Page]) -> None:
    html, _ = whole
    for picture in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL):
        assert "var(--tuned)" in picture and "DejaVu" not in picture
        assert not re.search(r"#[0-9a-fA-F]{6}\b", picture)


def test_every_picture_is_described_in_words(whole: tuple[str, Page]) -> None:
    _, page = whole
    said = [value for name, value in page.attributes if name == "aria-label"]
    assert len(said) == PICTURES
    assert "whole answer right 0.000 before and 0.850 after" in said[0]
    for at in (1, 6):
        assert "training loss 5 at step 0, 0.215 at step 200; evaluation loss 5.2 at step 0" in said[at]
    assert [words.partition(":")[0] for words in said[1:7]] == [
        "Loss", "Learning rate", "Gradient norm, before clipping", "Speed", "Memory",
        "Loss in the pretraining of the base",
    ]  # fmt: skip
    assert "trial 2 stopped at 0.0286 after step 20" in said[-1]


def test_what_happened_to_the_training_is_marked_and_told(whole: tuple[str, Page]) -> None:
    run, (html, page) = sample(), whole
    text = " ".join("".join(page.texts).split())
    for wanted in (
        "Training was interrupted and went on from a checkpoint before step 95 (dotted lines).",
        "Training went back to a checkpoint before step 155, as the loss ran away (dashed lines).",
        "Training published the weights of step 160, which had the best evaluation (ring).",
        "Training ended early: eval_loss was 0.24 at step 200, no better than 0.23 for 3 evaluations.",
    ):
        assert text.count(wanted) == 1, wanted
    assert html.count("var(--bad)") > 5  # the rollback, in each picture of the training
    rows, training = run["metrics"]["train"], run["summary"]["training"]
    assert [(mark.step, mark.kind) for mark in marks_of(rows, training)] == [
        (95, "resumed"), (155, "rollback"), (160, "best"), (200, "ended"),
    ]  # fmt: skip
    assert marks_of(rows[:19], {"steps": 200, "weights_step": 200}) == []


def test_every_picture_is_a_png_too_and_one_without_figures_is_not_there(tmp_path: Path) -> None:
    run = sample()
    rows = run["metrics"]["train"]
    paths = write_pngs(tmp_path, rows, marks_of(rows, run["summary"]["training"]))
    names = ["loss", "learning_rate", "gradient_norm", "tokens_per_s", "memory"]
    assert [path.name for path in paths] == [f"{name}.png" for name in names]
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 9000 for path in paths)
    bare = [{"step": row["step"], "loss": row["loss"]} for row in rows]
    assert [path.name for path in write_pngs(tmp_path, bare, [])] == ["loss.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]
    assert write_pngs(tmp_path / "none", [], []) == []


def test_plots_that_cannot_be_written_say_why(tmp_path: Path) -> None:
    (tmp_path / "plots").write_text("", encoding="utf-8")
    with pytest.raises(StoreError, match=r"writing plots to .*plots: a file stands where a folder"):
        write_pngs(tmp_path / "plots", sample()["metrics"]["train"], [])


def evil_run() -> dict[str, Any]:
    """A run in which every text that comes from outside is hostile."""
    run = sample() | {"metrics": {}}
    task = Task(
        EVIL, "json", desk_task(ticket=EVIL).prompts, [f'{{"{EVIL.replace(chr(34), "")}":1}}'] * 20, 8
    )
    base = {EVIL: task_result(task, [EVIL] * 20, 1.0)}
    tuned = {EVIL: task_result(task, task.expected, 1.0)}
    run["evaluation"] = {"base": base, "tuned": tuned, "compare": compare(base, tuned), "gates": []}
    summary = run["summary"]
    summary |= {"run": EVIL, "version": EVIL, "alias": EVIL, "endpoint": EVIL, "paths": {EVIL: EVIL}}
    summary["base"] = summary["base"] | {"model": EVIL}
    summary["stages"] = [{"name": EVIL, "seconds": 0.0, "state": EVIL, "artifact": EVIL}]
    summary["data"] |= {"reasons": {EVIL: 1}}
    summary["data"]["funnel"][0]["source"] = EVIL
    for trial in run["trials"]:
        trial["params"] = {EVIL: EVIL}
    return run


def test_hostile_texts_are_shown_and_never_run(tmp_path: Path) -> None:
    html, page = page_of(evil_run(), tmp_path)
    assert "script" not in page.tags
    assert "<script" not in html.lower()
    assert sum(EVIL in text for text in page.texts) > 20


def test_a_run_that_stopped_early_has_a_page(tmp_path: Path) -> None:
    _, page = page_of(bare(), tmp_path)
    text = " ".join(page.texts)
    assert "No evaluation task was run" in text and "Where everything lies" in text
    assert not {"Sweep", "Endpoint", "Data", "Training"} & set(text.split()) and "svg" not in page.tags


def test_a_text_task_has_no_json_rows(tmp_path: Path) -> None:
    run = sample() | {"metrics": {}}
    prompt = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    task = Task("chat", "text", [prompt], ["hello"], 8)
    result = {"chat": task_result(task, [""])}
    run["evaluation"] = {"base": result, "tuned": result, "compare": compare(result, result)}
    html, page = page_of(run, tmp_path)
    text = " ".join(page.texts)
    assert "system: be kind\nuser: hi" in text and "(nothing)" in text
    assert "valid JSON" not in html and "Loss per answer token" not in text


def test_damaged_and_missing_figures_leave_gaps_not_errors(tmp_path: Path) -> None:
    run = sample()
    run["metrics"] = {"train": [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": float("inf")}]}
    run["trials"] = [
        {"trial": 0, "params": {}, "state": "failed", "steps": 0, "history": [], "best": None},
        {"trial": 1, "params": {"train.seed": 3}, "state": "finished", "steps": 5,
         "history": [{"step": 5, "eval_loss": 0.5}], "best": 0.5},
    ]  # fmt: skip
    _, page = page_of(run, tmp_path)
    said = [value for name, value in page.attributes if name == "aria-label"]
    assert any(label.startswith("Eval loss of each trial: trial 1") for label in said)


def test_a_page_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"writing .*report\.html"):
        write_report(tmp_path / "missing", **bare())


def test_names_at_line_ends_stand_apart_in_their_order() -> None:
    assert spread([0.9, 0.9, 0.2], gap=0.1) == pytest.approx([0.95, 0.85, 0.2])
    crowded = spread([0.5] * 5 + [0.52, 0.1], gap=0.1)
    heights = sorted(crowded)
    assert all(b - a >= 0.1 - 1e-9 for a, b in itertools.pairwise(heights))
    assert max(crowded) == crowded[5] and min(crowded) == crowded[6] and len(heights) == 7


def test_table_shows_base_against_tuned_trials_stages_and_places() -> None:
    table = summary_table(sample()["summary"])
    lines = [" ".join(line.split()) for line in table.splitlines()]
    for wanted in (
        "quickstart: quickstart@v1, alias prod, in 3 min 35 s",
        "exact match 0.000 0.850 +0.850",
        "loss 5.200 0.040 -5.160",
        "field intent 0.050 1.000 +0.950",
        "sweep 4 trials, best is trial 1: learning_rate 0.001, method.rank 16",
        "served 8 of 8 answers equal the evaluated ones",
        "sweep 19.0 made sweep/02",
        "data 9.5 found data/01",
        "report /data/tw/runs/quickstart/report.html",
    ):
        assert wanted in lines, wanted


def test_table_is_never_wider_than_a_terminal_and_cuts_no_path() -> None:
    run = sample()["summary"]
    path = "/" + "/".join(["a-folder-with-a-long-name"] * 9) + "/report.html"
    run["paths"] = {"report": path, "a name that is much longer than names of places are": "/x"}
    run["run"] = run["version"] = "r" * 64
    run["winner"]["params"] = {f"train.method.parameter_{i}": i / 7 for i in range(12)}
    run["tuned"]["fields"] = {"f" * 120: 0.5}
    run["stages"][0]["artifact"] = "x" * 150
    table = summary_table(run)
    assert all(len(line) <= WIDTH for line in table.splitlines())
    assert path in table.replace("\n", "").replace(" ", "")
    assert table == "\n".join(line.rstrip() for line in table.splitlines())


def test_table_of_a_run_that_stopped_early_has_what_there_is() -> None:
    table = summary_table(bare()["summary"])
    assert table.startswith("quickstart: no version registered, in 3 min 35 s\n\n  stage")
    assert "where everything lies" in table


def test_table_has_dashes_for_what_was_not_measured() -> None:
    summary = sample()["summary"]
    summary["base"]["loss"] = None
    assert ["loss", NONE, "0.040", NONE] in [line.split() for line in summary_table(summary).splitlines()]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (59.96, "1 min 0 s"), (75, "1 min 15 s"),
     (3599.7, "1 h 0 min"), (7260, "2 h 1 min")],
)  # fmt: skip
def test_durations_read_naturally(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_importing_the_report_imports_nothing_heavy() -> None:
    heavy = "{'matplotlib', 'jinja2', 'torch', 'ray'}"
    code = f"import sys, tunewright.report; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
