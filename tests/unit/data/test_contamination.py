"""Contamination: a passage of an evaluation set is found, whatever stands around it; others are not."""

from __future__ import annotations

import pickle
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.data.contamination import build

QUESTION = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."
SHORT = "What is the capital of Peru?"
KNOWN = build({"gsm8k": [QUESTION], "facts": [SHORT, "Who knows?", QUESTION]}, 13)


@pytest.mark.parametrize(
    "text",
    [
        QUESTION,
        f"Here is one: {QUESTION} Good luck!",
        QUESTION.upper().replace(",", " --"),
        QUESTION.split(" ", 5)[5],  # 14 of its 19 words
    ],
)
def test_as_many_words_in_a_row_as_asked_are_found(text: str) -> None:
    found = KNOWN.find(text)
    assert found is not None
    name, passage = found
    assert name == "gsm8k"
    assert len(passage.split()) == 13
    assert passage in QUESTION.lower().replace(",", "")


@pytest.mark.parametrize(
    "text", ["", " ".join(QUESTION.split()[:12]), QUESTION.replace("April", "March", 1)[:60]]
)
def test_fewer_words_in_a_row_are_not(text: str) -> None:
    assert KNOWN.find(text) is None


def test_a_short_evaluation_text_is_found_as_a_whole() -> None:
    assert KNOWN.find("Tell me: what is the capital of Peru") == ("facts", "what is the capital of peru")
    assert KNOWN.find("What is the capital of Chile?") is None


def test_an_evaluation_text_of_too_few_words_is_ignored() -> None:
    assert KNOWN.find("Who knows? Who knows!") is None
    assert build({"short": ["Who knows?"]}, 13).find("Who knows?") is None


def test_a_small_ngram_takes_texts_of_its_own_length() -> None:
    assert build({"short": ["one two three four"]}, 3).find("two three four") == ("short", "two three four")


def test_nothing_is_found_in_nothing() -> None:
    assert build({}, 13).find(QUESTION) is None
    assert build({"empty": ["", "..."]}, 13).find("...") is None


def test_chinese_is_read_by_characters() -> None:
    known = build({"zh": ["娜塔莉亚在四月份卖给了她的四十八位朋友"]}, 13)
    assert known.find("题目。娜塔莉亚在四月份卖给了她的四十八位朋友。") is not None
    assert known.find("娜塔莉亚在五月份卖给了她的三位朋友。") is None


def test_it_travels_to_workers() -> None:
    assert pickle.loads(pickle.dumps(KNOWN)).find(QUESTION) == KNOWN.find(QUESTION)


@given(st.integers(0, 2**32), st.integers(3, 8))
@settings(max_examples=60, deadline=None)
def test_find_agrees_with_comparing_every_passage(seed: int, n: int) -> None:
    rng = random.Random(seed)
    evaluation = [" ".join(rng.choices("abcd", k=rng.randrange(n, 20))) for _ in range(3)]
    text = " ".join(rng.choices("abcd", k=30))
    passages = {" ".join(e.split()[i : i + n]) for e in evaluation for i in range(len(e.split()) - n + 1)}
    mine = [" ".join(text.split()[i : i + n]) for i in range(30 - n + 1)]
    expected = next((passage for passage in mine if passage in passages), None)
    found = build({"e": evaluation}, n).find(text)
    assert found == (("e", expected) if expected else None)
