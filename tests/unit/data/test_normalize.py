"""Normalisation changes what the settings name, and doing it twice is doing it once."""

from __future__ import annotations

import itertools
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.config.data import Normalize
from tunewright.data.normalize import normalize

ALL = [
    Normalize(unicode=u, control=c, whitespace=w)
    for u, c, w in itertools.product(("keep", "nfc"), ("keep", "strip"), ("keep", "trim"))
]
STRIP, TRIM, NFC = Normalize(control="strip"), Normalize(whitespace="trim"), Normalize(unicode="nfc")
texts = st.text(
    st.sampled_from("ae\u0301\u0327\u1100\u1161 \t\n\r\x00\x0b\x85\u00a0\u2028\ufeff\ud800"), max_size=20
)


def test_a_clean_text_is_the_same_object() -> None:
    text = "Ein Satz.\n\n\n  Größe: 3\tm\n"[:-1]
    assert all(normalize(text, config) is text for config in ALL)


@pytest.mark.parametrize(
    ("config", "text", "expected"),
    [
        (Normalize(), " e\u0301\r\n\x00 ", " e\u0301\r\n\x00 "),
        (NFC, "e\u0301te\u0301", "été"),
        (STRIP, "a\x00b\x1b[0m\x7fc\x85d", "ab[0mcd"),
        (STRIP, "a\r\nb\rc\td\n", "a\nb\nc\td\n"),
        (STRIP, "zero\u200dwidth and\u00a0blank stay", "zero\u200dwidth and\u00a0blank stay"),
        (TRIM, "  a  \nb\t\n\u00a0\n c  ", "a\nb\n\n c"),
        (TRIM, "a\n\n\nb", "a\n\n\nb"),
        (TRIM, "a\n\n\n\nb", "a\n\nb"),
        (TRIM, "a\n \n\t\n  \nb", "a\n\nb"),
        (TRIM, " \n\t", ""),
        (ALL[-1], "e\x00\u0301 \r\n", "é"),
    ],
)
def test_each_setting_changes_what_it_names(config: Normalize, text: str, expected: str) -> None:
    assert normalize(text, config) == expected


@given(texts, st.sampled_from(ALL))
@settings(max_examples=100, deadline=None)
def test_normalising_twice_is_normalising_once(text: str, config: Normalize) -> None:
    once = normalize(text, config)
    assert normalize(once, config) == once


@given(texts)
@settings(max_examples=100, deadline=None)
def test_the_result_has_what_the_settings_promise(text: str) -> None:
    result = normalize(text, ALL[-1])
    assert unicodedata.is_normalized("NFC", result)
    assert all(c in "\t\n" or unicodedata.category(c) != "Cc" for c in result)
    assert "\n\n\n\n" not in result
    assert [line for line in result.split("\n") if line != line.rstrip()] == []


def test_a_long_run_of_blanks_is_looked_at_once() -> None:
    text = "a" + " " * 1_000_000 + "b" + "\n" * 1_000_000 + "c"
    assert normalize(text, TRIM) == "a" + " " * 1_000_000 + "b\n\nc"
