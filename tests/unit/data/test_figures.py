"""Figures of many tasks add up to the same whole, in whatever order they come."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tunewright.config import DataConfig
from tunewright.data.figures import EXAMPLES_KEPT, REASONS_KEPT, Figures, general
from tunewright.data.funnel import check_rules, data_facts, data_report

EVENTS = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.sampled_from(["parsed", "valid", "clean"]),
        st.sampled_from(["not JSON: x", "empty", "12 tokens do not fit", "13 tokens do not fit"]),
        st.integers(1, 999),
    ),
    max_size=40,
    unique_by=lambda event: event[3],
)


def of(events: list[Any]) -> Figures:
    figures = Figures()
    for source, stage, reason, line in events:
        figures.count(source, "read")
        figures.lose(source, stage, reason, "rows.jsonl", line, f"text {line}")
        figures.add("personal_data", {"email": line})
    return figures


@given(EVENTS, st.integers(0, 40))
def test_parts_add_up_to_the_whole_in_any_order(events: list[Any], cut: int) -> None:
    events = sorted(events, key=lambda event: event[3])
    whole, first, second = of(events), of(events[:cut]), of(events[cut:])
    for one, other in ((first, second), (second, first)):
        merged = Figures(one.as_dict())
        merged.merge(Figures(other.as_dict()))
        assert merged.as_dict() == whole.as_dict()


def test_reasons_that_differ_in_a_figure_are_counted_together() -> None:
    assert general("4096 tokens do not fit a row of seq_len=1024") == "N tokens do not fit a row of seq_len=N"


def test_of_each_reason_the_first_rows_are_shown_and_of_very_many_reasons_the_rest_are_others() -> None:
    figures = Figures()
    for line in range(10):
        figures.lose(0, "valid", "empty", "a", line, "text")
    assert [row[1] for row in figures.examples["0"]["valid"]["empty"]] == list(range(EXAMPLES_KEPT))
    for number in range(2 * REASONS_KEPT):
        name = "".join(chr(97 + int(digit)) for digit in str(number))
        figures.lose(0, "parsed", f"reason {name}", "a", number, "")
    assert len(figures.losses["0"]["parsed"]) == REASONS_KEPT + 1
    assert figures.losses["0"]["parsed"]["other reasons"] == REASONS_KEPT


def report(config: DataConfig, figures: Figures, tokens: int = 900, supervised: int = 300) -> dict[str, Any]:
    train = {"rows": 1, "documents": 5, "tokens": tokens, "supervised_tokens": supervised}
    nothing = dict.fromkeys(train, 0)
    return data_report(
        config,
        "conversation",
        ["messages"],
        ["stated"],
        figures,
        {"train": train, "eval": nothing},
        {"asked": {}, "labels": []},
    )


def ten_rows() -> Figures:
    """Ten rows: 2 unreadable, 1 too long, 1 of low quality, 1 duplicate, 5 kept."""
    figures = Figures()
    for line, (stage, reason) in enumerate(
        [
            ("parsed", "not JSON: x"),
            ("parsed", "not JSON: x"),
            ("valid", "2000 tokens do not fit a row of seq_len=1024"),
            ("clean", "repeats itself"),
            ("unique", "exact duplicate"),
        ]
    ):
        figures.lose(0, stage, reason, "rows.jsonl", line, "text")
    for stage, rows in (("read", 10), ("clean", 6), ("unique", 5), ("kept", 5), ("drawn", 5)):
        figures.count(0, stage, rows)
    return figures


def config(**changes: Any) -> DataConfig:
    return DataConfig.model_validate({"sources": [{"type": "jsonl", "path": "rows.jsonl"}], **changes})


def test_every_row_of_the_funnel_is_accounted_for() -> None:
    (entry,) = report(config(), ten_rows())["funnel"]
    assert [entry[s] for s in ("read", "parsed", "valid", "clean", "unique", "kept")] == [10, 8, 7, 6, 5, 5]
    assert entry["losses"]["valid"] == {"N tokens do not fit a row of seq_len=N": 1}
    (facts,) = data_facts(report(config(), ten_rows()))["funnel"]
    assert (facts["read"], facts["rejected"], facts["duplicates"], facts["kept"]) == (10, 4, 1, 5)


def test_a_row_that_goes_missing_without_a_reason_is_noticed() -> None:
    figures = ten_rows()
    figures.count(0, "kept", -1)
    try:
        report(config(), figures)
    except AssertionError as error:
        assert "source 0: kept" in str(error)
    else:
        raise AssertionError("a lost row went unnoticed")


def test_a_refusal_names_every_figure_that_failed(tmp_path: Any) -> None:
    rules = {
        "max_bad_fraction": 0.2,
        "max_duplicate_fraction": 0.05,
        "min_rows": 6,
        "min_supervised_fraction": 0.5,
        "min_packing_efficiency": 0.99,
    }
    strict = config(rules=rules)
    try:
        check_rules(strict, report(strict, ten_rows()), tmp_path)
    except ValueError as error:
        told = str(error)
    assert "rows.jsonl: 3 of 10 rows (30.0%) were rejected, above data.rules.max_bad_fraction=0.2" in told
    assert "2 x not JSON: x; 1 x N tokens do not fit a row of seq_len=N" in told
    assert "1 of 10 rows (10.0%) were duplicates, above data.rules.max_duplicate_fraction=0.05" in told
    assert "rows is 5, below data.rules.min_rows=6" in told
    assert "supervised fraction is 0.333333, below data.rules.min_supervised_fraction=0.5" in told
    assert "packing efficiency is 0.8789, below data.rules.min_packing_efficiency=0.99" in told
    assert str(tmp_path / "quarantine") in told


def test_a_set_that_keeps_its_rules_is_not_refused(tmp_path: Any) -> None:
    lenient = config(rules={"max_bad_fraction": 0.3, "max_duplicate_fraction": 0.1, "min_rows": 5})
    made = report(lenient, ten_rows())
    check_rules(lenient, made, tmp_path)
    assert [gate["ok"] for gate in made["gates"]] == [True] * 3
