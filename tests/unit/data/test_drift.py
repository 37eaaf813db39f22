"""Drift: what changed is found, what did not is left alone, and chance is not called change."""

from __future__ import annotations

import copy
import json
import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.data.accounts import check_adds_up, funnel_steps
from tunewright.data.drift import drift, psi, psi_by_chance
from tunewright.errors import DataError

EDGES = [0, 16, 32, 64, 128, 256, 512, 1024, 1 << 30]
counts = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 10_000), min_size=1)


def report(**changes: Any) -> dict[str, Any]:
    """A report of 10,000 rows read and 9,500 kept; `changes` replace its parts."""
    funnel = {
        "source": "tickets.jsonl",
        "type": "jsonl",
        "format": "messages",
        "format_because": "stated",
        "read": 10_000,
        "parsed": 9_980,
        "valid": 9_800,
        "clean": 9_700,
        "unique": 9_500,
        "kept": 9_500,
        "drawn": 9_500,
        "losses": {
            "parsed": {"not JSON": 20},
            "valid": {"no answer": 180},
            "clean": {"too short": 100},
            "unique": {"exact duplicate": 150, "near duplicate": 50},
            "kept": {},
        },
        "examples": [],
    }
    split = {
        "rows": 1_800,
        "documents": 9_000,
        "tokens": 1_800_000,
        "supervised_tokens": 540_000,
        "packing_efficiency": 0.98,
    }
    tokens = [0, 100, 900, 2_500, 3_500, 1_700, 300, 0]
    value = {
        "task": "conversation",
        "seq_len": 1024,
        "encrypted": False,
        "funnel": [funnel],
        "splits": {"train": split, "eval": {**split, "rows": 100, "documents": 500}},
        "histograms": {"tokens": {"edges": EDGES, "counts": {"train": tokens, "eval": [0] * 8}}},
        "duplicates": {"exact": 150, "near": 50, "clusters": []},
        "labels": {"billing": 5_000, "delivery": 3_000, "return": 1_000},
        "sources": {"tickets.jsonl": {"asked": 1.0, "rows": 9_500, "share": 1.0}},
        "personal_data": {"email": 300},
        "scripts": {"Latin": 9_400, "Greek": 100},
    }
    return copy.deepcopy(value | changes)


def level(rows: list[Any], what: str) -> str:
    found = [row["level"] for row in rows if row["what"].startswith(what)]
    assert len(found) == 1, [row["what"] for row in rows]
    return str(found[0])


def test_a_set_has_not_drifted_from_itself() -> None:
    rows = drift(report(), report())
    assert len(rows) >= 10
    assert {row["level"] for row in rows} == {"none"}
    assert {row.get("psi", 0.0) for row in rows} == {0.0}
    assert {row.get("ratio", 1.0) for row in rows} == {1.0}
    json.dumps(rows, allow_nan=False)


def test_longer_documents_are_much_drift() -> None:
    longer = report()
    longer["histograms"]["tokens"]["counts"]["train"] = [0, 0, 100, 900, 2_500, 3_500, 1_700, 300]
    longer["splits"]["train"]["tokens"] *= 2
    row = drift(longer, report())[0]
    assert (row["what"], row["level"], row["before"], row["now"]) == ("tokens a document", "much", 200, 400)
    assert row["psi"] > 0.25


def test_another_share_of_a_label_is_named() -> None:
    moved = report(labels={"billing": 2_500, "delivery": 5_500, "return": 1_000})
    row = next(row for row in drift(moved, report()) if row["what"].startswith("labels"))
    assert row["what"] == "labels; most moved: delivery"
    assert (row["before"], row["now"], row["level"]) == (0.3333, 0.6111, "much")


def test_a_new_label_counts() -> None:
    rows = drift(report(labels={"billing": 5_000, "delivery": 3_000, "spam": 1_000}), report())
    assert level(rows, "labels") == "much"


def test_sources_are_compared_only_where_there_are_several() -> None:
    two = {"a.jsonl": {"asked": 0.5, "rows": 5_000, "share": 0.5}, "b.jsonl": {"asked": 0.5, "rows": 5_000}}
    moved = {"a.jsonl": {"asked": 0.5, "rows": 9_000}, "b.jsonl": {"asked": 0.5, "rows": 1_000}}
    assert not [row for row in drift(report(), report()) if row["what"].startswith("sources")]
    assert level(drift(report(sources=moved), report(sources=two)), "sources") == "much"


def test_a_set_may_grow_but_not_shrink() -> None:
    grown, shrunk = report(), report()
    grown["splits"]["train"]["documents"] = 90_000
    shrunk["splits"]["train"]["documents"] = 3_000
    assert level(drift(grown, report()), "documents to train on") == "none"
    assert level(drift(shrunk, report()), "documents to train on") == "much"


def test_fewer_tokens_with_loss_are_drift() -> None:
    fewer = report()
    fewer["splits"]["train"]["supervised_tokens"] = 300_000
    row = next(row for row in drift(fewer, report()) if row["what"] == "tokens that carry loss")
    assert (row["before"], row["now"], row["ratio"], row["level"]) == (0.3, 0.1667, 0.5556, "much")


def test_losses_duplicates_and_personal_data_are_compared_as_rates() -> None:
    worse = report(personal_data={"email": 900, "iban": 40})
    entry = worse["funnel"][0]
    entry["losses"]["valid"]["no answer"] += 700
    for stage in ("valid", "clean", "unique", "kept"):
        entry[stage] -= 700
    worse["duplicates"]["exact"] = 400
    rows = drift(worse, report())
    changed = {row["what"] for row in rows if row["level"] == "much"}
    assert changed == {"lost: not valid", "exact duplicates", "personal data: email", "personal data: iban"}
    iban = next(row for row in rows if row["what"] == "personal data: iban")
    assert (iban["unit"], iban["before"], iban["now"], iban["ratio"]) == ("per 1,000 rows", 0, 4, None)
    json.dumps(rows, allow_nan=False)


def test_a_few_more_cases_are_chance() -> None:
    rows = drift(report(personal_data={"email": 320, "card": 1}), report())
    assert level(rows, "personal data: email") == "none"
    assert level(rows, "personal data: card") == "none"


@pytest.mark.parametrize("size", [40, 400, 4_000])
def test_samples_of_one_population_hardly_ever_drift(size: int) -> None:
    source, shares = random.Random(size), [1, 9, 25, 35, 17, 13]
    found = 0
    for _ in range(200):
        sets = []
        for _ in range(2):
            drawn = source.choices(range(6), shares, k=size)
            one = report()
            one["histograms"]["tokens"]["counts"]["train"] = [*np.bincount(drawn, minlength=8).tolist()]
            sets.append(one)
        found += level(drift(*sets), "tokens a document") != "none"
    assert found <= 20, f"{found} of 200 pairs of equal sets of {size} documents drifted"


def test_histograms_of_other_borders_are_compared_over_common_ones() -> None:
    finer = report()
    finer["histograms"]["tokens"] = {
        "edges": [0, 16, 24, 32, 64, 128, 256, 512, 1024, 1 << 30],
        "counts": {"train": [0, 60, 40, 900, 2_500, 3_500, 1_700, 300, 0]},
    }
    assert drift(finer, report())[0]["level"] == "none"
    assert next(r for r in drift(finer, report()) if r["what"] == "tokens a document")["psi"] == 0.0


def test_histograms_without_a_common_border_are_refused() -> None:
    other = report()
    other["histograms"]["tokens"]["edges"] = [1, 3, 5, 7, 9, 11, 13, 15, 17]
    with pytest.raises(DataError, match="no borders in common"):
        drift(other, report())


def test_another_task_is_refused() -> None:
    with pytest.raises(DataError, match="task text cannot be compared with one of task conversation"):
        drift(report(task="text"), report())


def test_empty_sets_are_compared_without_an_error() -> None:
    empty = report(labels={}, sources={}, scripts={}, personal_data={})
    empty["histograms"]["tokens"]["counts"] = {"train": [0] * 8}
    empty["splits"]["train"] = dict.fromkeys(empty["splits"]["train"], 0)
    empty["funnel"] = []
    for pair in ((empty, report()), (report(), empty), (empty, empty)):
        rows = drift(*pair)
        json.dumps(rows, allow_nan=False)
    assert level(drift(empty, report()), "documents to train on") == "much"
    assert level(drift(empty, empty), "documents to train on") == "none"


def test_psi_is_that_of_the_formula() -> None:
    expected = (0.5 - 0.8) * math.log(0.5 / 0.8) + (0.5 - 0.2) * math.log(0.5 / 0.2)
    assert psi({"a": 50, "b": 50}, {"a": 800, "b": 200}) == pytest.approx(expected)


@settings(max_examples=80)
@given(now=counts, before=counts)
def test_psi_is_symmetric_and_not_negative(now: dict[str, int], before: dict[str, int]) -> None:
    assert psi(now, before) >= 0
    assert psi(now, before) == pytest.approx(psi(before, now))
    assert psi(now, now) == 0


@settings(max_examples=50)
@given(pairs=st.lists(st.tuples(st.integers(1, 999), st.integers(1, 999)), min_size=1, max_size=9),
       factor=st.integers(2, 50))  # fmt: skip
def test_psi_is_of_shares_not_of_sizes(pairs: list[tuple[int, int]], factor: int) -> None:
    now, before = (dict(enumerate(side)) for side in zip(*pairs, strict=True))
    grown = {key: n * factor for key, n in now.items()}
    assert psi(grown, before) == pytest.approx(psi(now, before))


@pytest.mark.parametrize("cells", [2, 5, 10, 40])
def test_the_bound_of_chance_is_that_of_many_samples(cells: int) -> None:
    drawn = np.random.default_rng(cells)
    shares = drawn.dirichlet(np.full(cells, 20.0))
    values = sorted(
        psi(*(dict(enumerate(drawn.multinomial(2_000, shares).tolist())) for _ in range(2)))
        for _ in range(1_000)
    )
    assert psi_by_chance(cells, 2_000, 2_000) == pytest.approx(values[950], rel=0.2)


def test_a_funnel_that_adds_up_passes() -> None:
    check_adds_up(report())
    steps = funnel_steps(report()["funnel"][0])
    assert [step.stage for step in steps] == ["parsed", "valid", "clean", "unique", "kept"]
    assert all(step.before == step.after + step.lost for step in steps)
    assert list(steps[3].reasons) == ["exact duplicate", "near duplicate"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"valid": 9_799}, "tickets.jsonl, valid: 9,980 rows came, 9,799 went on and 180 were lost"),
        ({"kept": 9_501}, "tickets.jsonl, kept: 9,500 rows came, 9,501 went on and 0 were lost"),
        ({"read": 9_999}, "tickets.jsonl, parsed: 9,999 rows came"),
    ],
)
def test_a_funnel_that_does_not_add_up_is_refused_with_its_line(change: dict[str, int], said: str) -> None:
    wrong = report()
    wrong["funnel"][0] |= change
    with pytest.raises(DataError, match="does not add up") as told:
        check_adds_up(wrong)
    assert said in str(told.value)


def test_negative_losses_cannot_make_a_funnel_add_up() -> None:
    wrong = report()
    wrong["funnel"][0]["losses"]["kept"] = {"not sampled": -3, "other": 3}
    with pytest.raises(DataError, match="-3 rows lost as 'not sampled'"):
        check_adds_up(wrong)
