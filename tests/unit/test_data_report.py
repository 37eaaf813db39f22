"""The data report: what it shows adds up, and hostile rows stay text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_reports import Page, nothing, sample
from tunewright.artifacts import Artifact, Plan, Store, read_json, write_json
from tunewright.closing import write_data_report
from tunewright.data.drift import drift
from tunewright.errors import DataError
from tunewright.report.data_page import MOST_BARS, MOST_EXAMPLES, data_page
from tunewright.report.data_table import data_text
from tunewright.report.data_words import compact, percent, visible
from tunewright.report.table import WIDTH

EVIL = "<script>alert('$x$')</script>&\"\x1b[31m\u202e\u2028\ud800\x00|[bold]"
MINUS = "\u2212"


def page_of(report: dict[str, Any], **more: Any) -> Page:
    html = data_page(report, more.get("drift"), more.get("before"))
    html.encode("utf-8")
    return Page(html)


def test_page_shows_the_figures_of_the_report() -> None:
    text = page_of(sample()).text
    for wanted in (
        "Task conversation, 2 sources, packed into rows of 1,024 tokens", "19,618", "93.2 % of 21,040 read",
        "4.81 M", "in 18,100 documents", "31.2 %", "1,501,447 tokens", "98.3 %", "of 4,780 rows filled",
        "tickets.jsonl:1207", '{"messages": [{"role"', "message N (assistant) is empty",
        "37 rows had their oldest turns", "210 rows became one document", "118 exact", "ok thanks",
        "billing 5,210 73.3 %", "tickets.jsonl 61.5 % asked 50.0 %", "email 1,288 99.1 %", "gsm8k test 2",
        "Latin 19,000 96.8 %", "318 rows with the same content", "146 rows almost the same",
        "train 4,780 18,100 4,812,330 1,501,447 31.2 % 98.3 %", "eval 251 950 250,000 77,000 30.8 %",
    ):  # fmt: skip
        assert wanted in text, wanted


def test_page_shows_that_every_stage_adds_up() -> None:
    text = page_of(sample()).text
    for wanted in (
        "21,040 = 19,618 + 1,422", "12,840 = 12,809 + 31", "12,809 = 12,522 + 287", "12,522 = 12,058 + 464",
        "8,200 = 7,560 + 640", f"{MINUS}31 not JSON: Expecting ',' delimiter", f"{MINUS}230 no answer",
        f"{MINUS}57 message N",
    ):  # fmt: skip
        assert wanted in text, wanted


@pytest.mark.parametrize("show", [lambda r: data_page(r, None, None), lambda r: data_text(r, None)])
def test_a_report_that_does_not_add_up_is_not_shown(show: Any) -> None:
    report = sample()
    report["funnel"][1]["kept"] += 1
    with pytest.raises(DataError, match=r"s3://chats/\*\.parquet, kept: 7,560 rows came, 7,561 went on"):
        show(report)


def test_broken_rules_come_first_and_are_named_at_the_top() -> None:
    text = page_of(sample()).text
    assert "This data set is refused: 1 of 3 rules is broken." in text
    assert "max_bad_fraction of s3://chats/*.parquet is 7.8 %, needed at most 5 %." in text
    rules = text[text.index("Rules Rule Source") :]
    assert rules.index("✗ broken") < rules.index("✓ kept")
    kept = sample()
    kept["gates"][1]["ok"] = True
    assert "refused" not in page_of(kept).text


def test_bars_are_as_wide_as_the_rows_that_passed() -> None:
    styles = [value for name, value in page_of(sample()).attributes if name == "style"]
    for share in (12_809 / 12_840, 12_522 / 12_840, 287 / 12_840, 7_560 / 8_200, 640 / 8_200):
        assert f"width: {100 * share:.2f}%" in styles


def test_histograms_say_each_bin_and_draw_its_share() -> None:
    page = page_of(sample())
    said = next(value for name, value in page.attributes if name == "aria-label" and "Tokens a doc" in value)
    assert "128 to 256 tokens: train 49.7 % (9,000), eval 0 % (0)." in said
    assert "2,048 to more tokens: train 0 % (0), eval 100 % (950)." in said
    assert "0 to 16" not in said, "empty bins at the ends are left out"
    heights = {value for name, value in page.attributes if name == "style" and value.startswith("height")}
    assert f"height: {100 * 9_000 / 18_100:.2f}%" in heights
    marks = [value for name, value in page.attributes if name == "style" and "left:" in value]
    assert "left: 71.43%" in marks, "1,024 is the fifth of seven bins' ends"


def test_page_needs_nothing_from_elsewhere_and_runs_nothing() -> None:
    html = data_page(sample(), None, None)
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "href") or name.startswith("on")]
    assert "@import" not in html and "url(" not in html and "http" not in html.replace("http-equiv", "")
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def evil() -> dict[str, Any]:
    """A report in which every text that comes from outside is hostile."""
    report = sample()
    entry = report["funnel"][0]
    entry |= {"source": EVIL, "format_because": EVIL}
    entry["losses"]["valid"] = {EVIL: 287}
    entry["examples"] = [{"stage": "valid", "reason": EVIL, "file": EVIL, "line": 1, "text": EVIL}]
    report["duplicates"]["clusters"] = [{"size": 2, "kind": "near", "kept": EVIL, "text": EVIL}]
    for name in ("labels", "personal_data", "scripts", "contamination"):
        report[name] = {EVIL: 5}
    report["sources"] = {
        EVIL: report["sources"]["tickets.jsonl"],
        "b": {"asked": 0.5, "rows": 1, "share": 0.5},
    }
    for gate in report["gates"]:
        gate |= {"source": EVIL, "ok": False}
    return report


def test_hostile_rows_are_shown_and_never_run() -> None:
    changed = drift(evil(), sample())
    html = data_page(evil(), changed, EVIL)
    html.encode("utf-8")
    page = Page(html)
    assert "script" not in page.tags and "<script" not in html
    shown = "<script>alert('$x$')</script>&\"⟨U+001B⟩[31m⟨U+202E⟩⟨U+2028⟩⟨U+D800⟩⟨U+0000⟩|[bold]"
    assert page.text.count(shown) >= 18
    assert not set(html) & set("\x1b\u202e\u2028\x00\ud800")


@settings(max_examples=60)
@given(text=st.text(max_size=60))
def test_what_is_shown_of_a_text_cannot_steer_a_terminal(text: str) -> None:
    shown = visible(text)
    assert all(c in "\n\t" or (c.isprintable() or c.isspace()) for c in shown if ord(c) < 0x2000)
    assert not set(shown) & set("\x1b\x07\x08\r\x7f\x9b\u202a\u202e\u2066\u200f\ufeff")
    shown.encode("utf-8")
    if text.isascii() and text.isprintable():
        assert shown == text


def test_no_text_of_an_encrypted_set_is_missed() -> None:
    report = sample() | {"encrypted": True}
    for entry in report["funnel"]:
        for example in entry["examples"]:
            example["text"] = ""
    text = page_of(report).text
    assert "The data set is encrypted, so no text of its rows is shown" in text
    assert text.count("(not shown)") == 2
    assert data_text(report, None).splitlines()[0].endswith("; encrypted")


def test_a_set_of_which_nothing_is_left_has_a_page_and_a_table() -> None:
    text = page_of(nothing()).text
    assert "3 = 0 + 3" in text and "empty.csv" in text
    assert not {"Mixture", "Labels", "Duplicates", "Scripts", "Rules"} & set(text.split())
    assert data_text(nothing(), None).startswith("0 of 3 rows kept (0 %)")


def test_long_lists_are_cut_and_say_so() -> None:
    report = sample()
    report["labels"] = {f"label {i:03}": 1000 - i for i in range(MOST_BARS + 7)}
    examples = report["funnel"][0]["examples"]
    many = [{**examples[1], "reason": f"reason {i}", "line": n} for i in range(50) for n in range(3)]
    report["funnel"][0]["examples"] = many
    page = page_of(report)
    assert "And 7 more, with" in page.text and f"label {MOST_BARS:03}" not in page.text
    assert page.text.count("not valid reason") == MOST_EXAMPLES
    assert all(f"not valid reason {i} " in page.text for i in range(50)), "the first of each reason is there"


def test_drift_is_shown_with_its_measure_and_what_it_was_compared_with() -> None:
    moved = sample()
    moved["labels"] = {"billing": 2_000, "delivery": 5_110}
    moved["personal_data"] = {"email": 5_000, "iban": 12, "card": 90}
    rows = drift(moved, sample())
    text = page_of(moved, drift=rows, before="data/0123456789abcdef").text
    assert "compared with data/0123456789abcdef" in text
    assert "labels; most moved: delivery 26.7 % 71.9 % PSI 0.88 much" in text
    assert "personal data: email per 1,000 rows 61.2 237.6 x 3.88 much" in text
    assert "personal data: card per 1,000 rows 0 4.3 new much" in text
    assert "What changed" not in page_of(moved).text
    told = [" ".join(line.split()) for line in data_text(moved, rows).splitlines()]
    assert "labels; most moved: delivery 26.7 % 71.9 % PSI 0.88 much" in told
    assert told[-1] == f"{len(rows) - 3} other figures hardly changed"
    assert data_text(sample(), drift(sample(), sample())).endswith("figures changed by much")


def test_table_shows_the_funnel_and_the_findings() -> None:
    lines = [" ".join(line.split()) for line in data_text(sample(), None).splitlines()]
    for wanted in (
        "19,618 of 21,040 rows kept (93.2 %); task conversation, packed into rows of 1,024 tokens",
        "REFUSED max_bad_fraction 7.8 % at most 5 % s3://chats/*.parquet",
        "ok min_rows 18,100 at least 100",
        "read 12,840",
        "parsed 12,809 -31 not JSON: Expecting ',' delimiter",
        "valid 12,522 -230 no answer",
        "-57 message N (assistant) is empty",
        "train 4,780 18,100 4,812,330 31.2 % 98.3 %",
        "tickets.jsonl 50.0 % 61.5 % 12,058",
        "duplicates exact 318, near 146",
        "personal data email 1,288, iban 12",
        "fitted rows expanded 210, truncated 37",
    ):
        assert wanted in lines, wanted


def test_table_is_never_wider_than_a_terminal_and_cannot_steer_it() -> None:
    report = evil()
    report["funnel"][0]["losses"]["valid"] = {f"reason {i} " + "x" * 200: 41 for i in range(7)}
    table = data_text(report, drift(report, sample()))
    assert all(len(line) <= WIDTH for line in table.split("\n"))
    assert not set(table) & set("\x1b\x00\u202e\u2028\ud800\t\r")
    assert "-41  other reasons (1)" in table


@pytest.mark.parametrize(
    ("part", "said"),
    [(0, "0 %"), (1, "100 %"), (0.1234, "12.3 %"), (0.0001, "<0.1 %"), (0.99999, ">99.9 %"), (0.5, "50.0 %")],
)
def test_percentages_never_round_to_nothing_or_all(part: float, said: str) -> None:
    assert percent(part) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (99_999, "99,999"), (123_456, "123 k"), (2_143_000, "2.14 M"), (7.3e10, "73 G")],
)
def test_large_figures_are_short(value: float, said: str) -> None:
    assert compact(value) == said


def test_a_run_keeps_a_page_with_the_drift_since_its_last_other_data_set(tmp_path: Path) -> None:
    store, run = Store(tmp_path / "store"), tmp_path / "run"

    def published(report: dict[str, Any], number: int) -> Artifact:
        plan = Plan("data", {}, {"number": number}, "")
        work = store.work_dir(plan)
        write_json(work / "report.json", report)
        return store.publish(plan, work, {})

    first = published(sample(), 1)
    page = write_data_report(run, first)
    assert page == run / "data" / "report.html"
    assert read_json(run / "data" / "report.json")["drift"] is None
    other = sample()
    other["personal_data"] = {"email": 9_000}
    second = published(other, 2)
    for _ in range(2):  # the second time nothing is new, and the comparison stays
        write_data_report(run, second)
        kept = read_json(run / "data" / "report.json")
        assert (kept["artifact"], kept["before"]) == (second.ref, first.ref)
        levels = {row["what"]: row["level"] for row in kept["drift"]}
        assert "much" in levels.values()
    assert first.ref in page.read_text(encoding="utf-8")
    third = published({**sample(), "task": "text"}, 3)
    write_data_report(run, third)
    assert read_json(run / "data" / "report.json")["before"] is None
