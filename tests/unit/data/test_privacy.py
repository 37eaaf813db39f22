"""E-mail addresses and payment cards are found and replaced, and a second look finds nothing more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.data.privacy import passes_luhn, redact
from tunewright.data.support_desk import TEST_CARD_NUMBERS

BOTH = ("email", "card")
# Text as it might come: words, digits in groups, addresses, in any order.
pieces = st.sampled_from(
    [*TEST_CARD_NUMBERS, "ana@example.com", "[email]", "[card]", "12/26", "4242", "1234567890123", "a@b", "@"]
) | st.text(st.sampled_from("0123456789 -@.ab[]"), max_size=12)  # fmt: skip
texts = st.lists(st.tuples(pieces, st.sampled_from(["", " ", "-", ", "])), max_size=12).map(
    lambda parts: "".join(piece + gap for piece, gap in parts)
)


@pytest.mark.parametrize(
    ("text", "redacted", "counts"),
    [
        ("mail a@b.org", "mail [email]", {"email": 1}),
        ("A.B+c@x-y.co.uk, please", "[email], please", {"email": 1}),
        ("<ana@example.com>;bo@example.com", "<[email]>;[email]", {"email": 2}),
        ("a@b and @ana and ana@", "a@b and @ana and ana@", {}),
        ("card 4242 4242 4242 4242.", "card [card].", {"card": 1}),
        ("5555-5555-5555-4444 or 378282246310005", "[card] or [card]", {"card": 2}),
        ("4111111111111111", "[card]", {"card": 1}),
        ("4111111111111112", "4111111111111112", {}),
        ("order TW-48K1, 12 pieces, 2026-11-21", "order TW-48K1, 12 pieces, 2026-11-21", {}),
        ("041111111111111110000", "041111111111111110000", {}),
        ("ana@example.com paid with 4111111111111111", "[email] paid with [card]", {"email": 1, "card": 1}),
    ],
)
def test_what_is_personal_is_replaced_and_counted(text: str, redacted: str, counts: dict[str, int]) -> None:
    assert redact(text, BOTH) == (redacted, counts)


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("4242 4242 4242 4242 12/26", "[card] 12/26"),
        ("room 12 4242 4242 4242 4242", "room 12 [card]"),
        ("12 4111111111111111 35", "12 [card] 35"),
        ("4111111111111111 5555555555554444", "[card] [card]"),
        ("5555-5555-5555-4444-4242-4242-4242-4242", "[card]-[card]"),
    ],
)
def test_a_card_is_found_between_other_numbers(text: str, redacted: str) -> None:
    assert redact(text, ["card"])[0] == redacted


def test_a_card_at_the_end_of_a_long_table_of_numbers_is_found() -> None:
    table = " ".join(str(n) for n in range(20_000))
    assert redact(f"{table} 4111111111111111", BOTH)[0].endswith(" 19999 [card]")


def test_only_the_kinds_asked_for_are_looked_for() -> None:
    text = "ana@example.com 4111111111111111"
    assert redact(text, ["email"]) == ("[email] 4111111111111111", {"email": 1})
    assert redact(text, ["card"]) == ("ana@example.com [card]", {"card": 1})
    assert redact(text, []) == (text, {})


@given(texts)
def test_redacting_twice_is_redacting_once(text: str) -> None:
    once, _ = redact(text, BOTH)
    assert redact(once, BOTH) == (once, {})


@given(st.sampled_from(TEST_CARD_NUMBERS), st.text(st.sampled_from("ab ,.\n"), max_size=5))
def test_a_card_among_words_never_stays(card: str, word: str) -> None:
    assert card not in redact(f"{word} {card} {word}", BOTH)[0]


@given(st.integers(10**11, 10**17))
def test_exactly_one_check_digit_in_ten_passes(number: int) -> None:
    assert sum(passes_luhn(f"{number}{digit}") for digit in range(10)) == 1


def test_the_card_networks_test_numbers_pass() -> None:
    assert all(passes_luhn(number) for number in TEST_CARD_NUMBERS)
