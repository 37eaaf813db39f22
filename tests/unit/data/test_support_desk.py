"""The generated task: what it says of itself is so, and what is held out never occurs in training."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter

import pytest

from tiny_runs import told_under_hash_seeds
from tunewright.data.privacy import redact
from tunewright.data.support_desk import (
    CLOSINGS,
    CUSTOMERS,
    DIRTY_KINDS,
    OPENINGS,
    RECORD_KEYS,
    dirty_counts,
    heldout_lines,
    is_heldout,
    pretraining_documents,
    training_lines,
)

ROWS, SEED, DIRTY = 1500, 3, 0.2
ORDER = re.compile(r"TW-\d\d[A-Z]\d")


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return list(training_lines(ROWS, SEED, DIRTY))


@pytest.fixture(scope="module")
def heldout() -> list[tuple[str, dict[str, str | None]]]:
    return [pair for line in heldout_lines(300, 9) if (pair := pair_of(line))]


def pair_of(line: str) -> tuple[str, dict[str, str | None]] | None:
    """The ticket and the record of a line; None for one that is broken or has no answer."""
    try:
        user, assistant = json.loads(line)["messages"]
        return user["content"], json.loads(assistant["content"])
    except ValueError:
        return None


def combination(record: dict[str, str | None]) -> str:
    return "|".join(str(record[key]) for key in ("intent", "product", "priority"))


def kind_of(line: str, seen: set[str]) -> str:
    """What is dirty about a line, found out from the line itself."""
    try:
        messages = json.loads(line)["messages"]
    except ValueError:
        return "broken_json"
    if not messages[1]["content"]:
        return "empty_answer"
    if line in seen:
        return "duplicate"
    seen.add(line)
    found = redact(messages[0]["content"], ["email", "card"])[1]
    assert len(found) <= 1
    return next(iter(found), "clean")


def test_dirty_rows_are_as_many_of_each_kind_as_is_said(lines: list[str]) -> None:
    seen: set[str] = set()
    counts = Counter(kind_of(line, seen) for line in lines)
    assert counts.pop("clean") > ROWS * (1 - DIRTY) * 0.9
    assert counts == dirty_counts(ROWS, SEED, DIRTY)
    assert set(counts) == set(DIRTY_KINDS)


def test_nothing_is_dirty_where_none_is_asked_for() -> None:
    assert set(dirty_counts(500, SEED, 0.0).values()) == {0}
    assert all(pair_of(line) for line in training_lines(100, SEED, 0.0))


def test_a_shorter_call_gives_the_first_lines_of_a_longer_one(lines: list[str]) -> None:
    assert list(training_lines(200, SEED, DIRTY)) == lines[:200]


def test_other_seeds_give_other_lines(lines: list[str]) -> None:
    assert set(training_lines(200, SEED + 1, DIRTY)).isdisjoint(lines)


def test_an_answer_is_a_record_of_the_task_and_its_order_stands_in_the_ticket(lines: list[str]) -> None:
    pairs = [pair for line in lines if (pair := pair_of(line))]
    assert len(pairs) > ROWS / 2
    for ticket, record in pairs:
        assert tuple(record) == RECORD_KEYS
        assert ORDER.findall(ticket) == ([] if record["order"] is None else [record["order"]])
    assert {record["order"] is None for _, record in pairs} == {True, False}


def test_no_held_out_combination_order_or_filler_occurs_in_training(
    lines: list[str], heldout: list[tuple[str, dict[str, str | None]]]
) -> None:
    assert len(heldout) == 300
    pairs = [pair for line in lines if (pair := pair_of(line))]
    for key in (combination, lambda record: record["order"]):
        trained = {key(record) for _, record in pairs} - {None}
        held = {key(record) for _, record in heldout} - {None}
        assert trained
        assert held
        assert trained.isdisjoint(held)
        assert not any(is_heldout(str(value)) for value in trained)
        assert all(is_heldout(str(value)) for value in held)
    assert {ticket for ticket, _ in pairs}.isdisjoint(ticket for ticket, _ in heldout)
    held_fillers = [name for name in (*OPENINGS, *CLOSINGS, *CUSTOMERS) if is_heldout(name)]
    assert held_fillers
    ends = {re.sub(r" Write to .*| I paid with .*", "", ticket).rsplit(" ", 1)[-1] for ticket, _ in pairs}
    starts = {ticket.partition(". ")[0] for ticket, _ in pairs}
    assert ends & set(CUSTOMERS)
    assert starts & set(OPENINGS)
    assert not (ends | starts) & set(held_fillers)


def test_the_whole_output_space_is_asked_for(heldout: list[tuple[str, dict[str, str | None]]]) -> None:
    for key in ("intent", "product", "priority"):
        assert len({record[key] for _, record in heldout}) >= 3


def test_no_held_out_order_is_in_a_pretraining_document() -> None:
    orders = [order for text in pretraining_documents(800, SEED) for order in ORDER.findall(text)]
    assert len(orders) > 500
    assert not any(map(is_heldout, orders))


def test_no_pretraining_document_holds_a_record_of_the_task() -> None:
    assert not any('{"intent":' in text for text in pretraining_documents(800, SEED))


def test_every_process_generates_the_same_text(lines: list[str]) -> None:
    code = (
        "import hashlib; from tunewright.data.support_desk import *;"
        f"text = [*training_lines({ROWS}, {SEED}, {DIRTY}), *heldout_lines(50, 9)];"
        "text += pretraining_documents(50, 1);"
        "print(hashlib.sha256('\\n'.join(text).encode()).hexdigest())"
    )
    told = told_under_hash_seeds(code, "1", "77")
    here = [*lines, *heldout_lines(50, 9), *pretraining_documents(50, 1)]
    assert told == {hashlib.sha256("\n".join(here).encode()).hexdigest()}
