"""Quality: each limit refuses what is out of line and nothing else; limits left out refuse nothing."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.config.data import Quality
from tunewright.data.quality import BLOCKS, check_quality, dominant_script, repetition, script_share

LOOP = "I do not know what to say. " * 20


@given(st.text(max_size=50), st.text(max_size=50))
@settings(max_examples=50, deadline=None)
def test_without_limits_nothing_is_refused(question: str, answer: str) -> None:
    assert check_quality(question, answer, Quality()) is None


@pytest.mark.parametrize(
    ("question", "answer", "limits", "reason"),
    [
        ("Hi", "Yes", {"min_chars": 6}, "shorter than data.quality.min_chars=6"),
        ("Hi", "Yes", {"max_chars": 4}, "longer than data.quality.max_chars=4"),
        ("Hello there", " Y ", {"min_answer_chars": 2}, "data.quality.min_answer_chars=2"),
        ("Hi", LOOP, {"max_repetition": 0.3}, "data.quality.max_repetition=0.3"),
        (LOOP, "Hi", {"max_repetition": 0.3}, "data.quality.max_repetition=0.3"),
        ("Hi", "Привет, как дела", {"scripts": ("Latin", "Greek")}, "too few letters of Latin, Greek"),
    ],
)
def test_a_row_out_of_line_is_refused_with_the_limit(
    question: str, answer: str, limits: dict[str, object], reason: str
) -> None:
    assert reason in str(check_quality(question, answer, Quality.model_validate(limits)))


@pytest.mark.parametrize(
    "limits",
    [
        {"min_chars": 15, "max_chars": 15, "min_answer_chars": 4},
        {"max_repetition": 0.01},
        {"scripts": ("Latin",), "min_script_share": 1.0},
    ],
)
def test_a_row_at_the_limit_is_not_refused(limits: dict[str, object]) -> None:
    assert check_quality("Is it here?", "Yes.", Quality.model_validate(limits)) is None


def test_an_answer_may_repeat_the_question() -> None:
    question = "The quick brown fox jumps over the lazy dog near the river bank"
    assert check_quality(question, question, Quality(max_repetition=0.01)) is None


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("one two three four five", 0.0),
        ("one two three four five one two three four", 0.0),
        ("a b c d e a b c d e", 1.0),
        ("a b c d e x a b c d e y", 10 / 12),
        ("no more of it please, " * 4, 1.0),
        ("ha " * 100, 1.0),
        ("哈" * 30, 1.0),
    ],
)
def test_repetition_is_the_share_of_words_in_repeated_phrases(text: str, share: float) -> None:
    assert repetition(text) == pytest.approx(share)


@given(st.lists(st.sampled_from("abc"), max_size=30))
@settings(max_examples=60, deadline=None)
def test_repetition_agrees_with_counting_phrases(tokens: list[str]) -> None:
    phrases = [tuple(tokens[i : i + 5]) for i in range(len(tokens) - 4)]
    inside = {i + k for i, p in enumerate(phrases) if phrases.count(p) > 1 for k in range(5)}
    assert repetition(" ".join(tokens)) == pytest.approx(len(inside) / len(tokens) if tokens else 0.0)


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Hello, мир", "Latin"),
        ("Größe über Äpfel", "Latin"),
        ("Привет, мир", "Cyrillic"),
        ("Καλημέρα", "Greek"),
        ("مرحبا بالعالم", "Arabic"),
        ("שלום עולם", "Hebrew"),
        ("नमस्ते दुनिया", "Devanagari"),
        ("你好。世界 OK", "Han"),
        ("𠀀𠀁𠀂", "Han"),
        ("こんにちは", "Hiragana"),
        ("コンピューター", "Katakana"),
        ("안녕하세요", "Hangul"),
        ("สวัสดี", "Thai"),
        ("Բարեւ", "other"),
        ("42 + 1 = 43!", "none"),
        ("", "none"),
        ("…—🙂", "none"),
        ("\ud800a", "Latin"),
    ],
)
def test_the_dominant_script_is_that_of_most_letters(text: str, script: str) -> None:
    assert dominant_script(text) == script


def test_a_script_is_what_unicode_names_its_letters_after() -> None:
    unnamed = ("CJK", "IDEOGRAPHIC", "MODIFIER", "FEMININE", "MASCULINE", "MICRO")
    letters = [
        (script, unicodedata.name(chr(code)))
        for script, blocks in BLOCKS.items()
        for first, last in blocks
        for code in range(first, last + 1)
        if chr(code).isalpha()
    ]
    assert len(letters) > 100_000
    assert [at for at in letters if at[0].upper() not in at[1] and not at[1].startswith(unnamed)] == []


def test_the_share_counts_letters_alone() -> None:
    assert script_share("ab 12 !! вг", ("Latin",)) == 0.5
    assert script_share("12 !!", ("Latin",)) == 1.0
    assert script_share("日本のカメラ", ("Han", "Hiragana", "Katakana")) == 1.0
