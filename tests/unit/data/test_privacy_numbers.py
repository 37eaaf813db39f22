"""Cards, accounts and identity numbers are found by the rules that make them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.data.privacy import redact
from tunewright.data.privacy.numbers import IBAN_LENGTH, passes_luhn, passes_mod_97
from tunewright.data.support_desk import TEST_CARD_NUMBERS

# Published by the countries' banks and authorities as examples.
IBANS = [
    "DE89370400440532013000",
    "GB82WEST12345698765432",
    "FR1420041010050500013M02606",
    "NL91ABNA0417164300",
    "NO9386011117947",
    "MT84MALT011000012345MTLCAST001S",
]
NATIONAL_IDS = [
    "219-09-9999",
    "219 09 9999",
    "AB 12 34 56 C",
    "AB123456C",
    "86095742719",
    "86 095 742 719",
    "2 55 08 14 168 025 38",
    "255081416802538",
    "12345678Z",
    "12345678-Z",
    "X1234567L",
    "RSSMRA85T10A562S",
    "529.982.247-25",
    "11010519491231002X",
]


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("card 4242 4242 4242 4242.", "card [card]."),
        ("5555-5555-5555-4444 or 378282246310005", "[card] or [card_2]"),
        ("3782 822463 10005", "[card]"),
        ("3056-930902-5904", "[card]"),
        ("4242 4242 4242 4242 005", "[card] 005"),
        ("4242 4242 4242 4242 12/26", "[card] 12/26"),
        ("room 12 4242 4242 4242 4242", "room 12 [card]"),
        ("12 4111111111111111 35", "12 [card] 35"),
        ("4111111111111111 5555555555554444", "[card] [card_2]"),
        ("5555-5555-5555-4444-4242-4242-4242-4242", "[card]-[card_2]"),
        ("Visa4111111111111111", "Visa[card]"),
    ],
)
def test_a_card_is_found_between_other_numbers(text: str, redacted: str) -> None:
    assert redact(text, ["card"])[0] == redacted


@pytest.mark.parametrize(
    "text",
    [
        "4111111111111112",
        "2010 2011 2012 2018",
        "4222222222222",
        "041111111111111110000",
        "0.4111111111111111",
        "sha a4111111111111111b",
        "order TW-48K1, 12 pieces, 2026-11-21",
        "1111 2222 3333",
        "9411111111111111",
    ],
)
def test_other_numbers_are_no_cards(text: str) -> None:
    assert redact(text, ["card"]) == (text, {})


def test_a_card_at_the_end_of_a_long_table_of_numbers_is_found() -> None:
    table = " ".join(str(n) for n in range(20_000))
    assert re.search(r" 19999 \[card(_[0-9]+)?\]$", redact(f"{table} 4111111111111111", ["card"])[0])


def test_years_and_amounts_in_a_table_are_no_cards() -> None:
    table = "\n".join(
        f"{year} {year + 1} {year + 2} {year + 3} {n * 10_007}" for n, year in enumerate(range(1900, 2100))
    )
    assert redact(table, ["card"]) == (table, {})


@given(st.sampled_from(TEST_CARD_NUMBERS), st.text(st.sampled_from("ab ,.\n"), max_size=5))
@settings(max_examples=50, deadline=None)
def test_a_card_among_words_never_stays(card: str, word: str) -> None:
    assert card not in redact(f"{word} {card} {word}", ["card"])[0]


@given(st.integers(10**11, 10**17))
@settings(max_examples=50, deadline=None)
def test_exactly_one_check_digit_in_ten_passes(number: int) -> None:
    assert sum(passes_luhn(f"{number}{digit}") for digit in range(10)) == 1


def test_the_card_networks_test_numbers_pass() -> None:
    assert all(passes_luhn(number.translate({32: "", 45: ""})) for number in TEST_CARD_NUMBERS)


@pytest.mark.parametrize("iban", IBANS)
def test_an_iban_is_found_in_one_piece_in_groups_and_in_small_letters(iban: str) -> None:
    groups = " ".join(iban[i : i + 4] for i in range(0, len(iban), 4))
    for written in (iban, groups, groups.lower()):
        assert redact(f"to {written} 2026, please", ["iban"]) == ("to [iban] 2026, please", {"iban": 1})


@pytest.mark.parametrize("iban", IBANS)
def test_an_iban_with_one_digit_wrong_or_missing_is_none(iban: str) -> None:
    wrong = iban[:4] + iban[4:].translate(
        str.maketrans("0123456789", "1234567890"),
    )
    for written in (wrong, iban[:-1], f"{iban}9", f"X{iban}"):
        assert redact(f"to {written}, please", ["iban"])[1] == {}


@given(st.sampled_from(sorted(IBAN_LENGTH)), st.integers(0, 10**33))
@settings(max_examples=50, deadline=None)
def test_exactly_one_pair_of_check_digits_passes(country: str, number: int) -> None:
    account = str(number).zfill(33)[: IBAN_LENGTH[country] - 4]
    assert sum(passes_mod_97(f"{country}{check:02}{account}") for check in range(2, 99)) == 1


@pytest.mark.parametrize("number", NATIONAL_IDS)
def test_national_numbers_are_found(number: str) -> None:
    assert redact(f"my number {number}.", ["national_id"]) == ("my number [national_id].", {"national_id": 1})


@pytest.mark.parametrize("number", [n for n in NATIONAL_IDS if n[:3] not in ("219", "AB ", "AB1")])
def test_national_numbers_with_a_wrong_check_are_none(number: str) -> None:
    last = number[-1]
    wrong = number[:-1] + (str((int(last) + 1) % 10) if last.isdigit() else "A" if last != "A" else "B")
    assert redact(f"my number {wrong}.", ["national_id"])[1] == {}


@pytest.mark.parametrize(
    "text",
    [
        *["000-12-3456", "666-12-3456", "912-12-3456", "219-00-9999", "219-09-0000"],
        *["219-09-99991", "x219-09-9999", "GB 12 34 56 C", "QQ 12 34 56 C", "AB 12 34 56 E"],
        *["11111111111", "111.111.111-11", "110105194913310029"],
    ],
)
def test_numbers_that_were_never_given_out_are_none(text: str) -> None:
    assert redact(text, ["national_id"]) == (text, {})
