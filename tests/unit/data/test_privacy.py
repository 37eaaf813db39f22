"""Whatever is found is replaced, the same value by the same placeholder, and a second look finds nothing."""

from __future__ import annotations

import json
import pickle
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.config.data import Privacy
from tunewright.data.privacy import Redactor, redact
from tunewright.data.privacy.found import KINDS, PLACEHOLDER, Found, settled
from tunewright.data.support_desk import TEST_CARD_NUMBERS

OWN_KINDS = ("email", "phone", "iban", "card", "ip", "national_id", "secret")
# One of each, as it may be written; none is anybody's.
PLANTED = {
    "email": ["ana@example.com", "A.B+c@x-y.co.uk"],
    "phone": ["+49 170 1234567", "(415) 555-0100", "415-555-0100", "020 7946 0958"],
    "iban": ["DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432"],
    "card": [*TEST_CARD_NUMBERS],
    "ip": ["203.0.113.7", "2001:db8::7"],
    "national_id": ["219-09-9999", "86 095 742 719", "529.982.247-25", "12345678Z", "RSSMRA85T10A562S"],
    "secret": [
        "AKIA" + "IOSFODNN7EXAMPLE",
        "sk-" + "proj-a1b2c3d4e5f6g7h8i9j0",
        "xox" + "b-1234567890-abcdef",
    ],
}
ALL_PLANTED = [(kind, value) for kind, values in PLANTED.items() for value in values]
junk = st.text(st.sampled_from("0123456789 -.,:/@+()ab\n[]_=eyAK"), max_size=14)
placeholders = st.builds("[{}]".format, st.sampled_from([*KINDS, "email_2", "card_13"]))
pieces = st.sampled_from([value for _, value in ALL_PLANTED]) | junk | placeholders
texts = st.lists(st.tuples(pieces, st.sampled_from(["", " ", "-", ", "])), max_size=12).map(
    lambda parts: "".join(piece + gap for piece, gap in parts)
)


@pytest.mark.parametrize(("kind", "value"), ALL_PLANTED)
def test_each_kind_is_found_when_all_are_looked_for(kind: str, value: str) -> None:
    assert redact(f"It is {value}, thanks", OWN_KINDS) == (f"It is [{kind}], thanks", {kind: 1})


@pytest.mark.parametrize(("kind", "value"), ALL_PLANTED)
def test_each_kind_is_found_in_chinese_text_without_blanks(kind: str, value: str) -> None:
    assert redact(f"是{value}。", OWN_KINDS) == (f"是[{kind}]。", {kind: 1})


def test_only_the_kinds_asked_for_are_looked_for() -> None:
    text = "ana@example.com 4111111111111111"
    assert redact(text, ["email"]) == ("[email] 4111111111111111", {"email": 1})
    assert redact(text, ["card"]) == ("ana@example.com [card]", {"card": 1})
    assert redact(text, []) == (text, {})


def test_a_text_without_findings_is_the_same_object() -> None:
    text = "Natalia sold 48 clips on 2026-11-21 at 12:30:45, 1,234,567.89 in all"
    assert redact(text, OWN_KINDS)[0] is text


@given(texts)
@settings(max_examples=100, deadline=None)
def test_redacting_twice_is_redacting_once(text: str) -> None:
    once, _ = redact(text, OWN_KINDS)
    assert redact(once, OWN_KINDS) == (once, {})


@given(st.lists(st.sampled_from(ALL_PLANTED), min_size=1, max_size=6), junk)
@settings(max_examples=100, deadline=None)
def test_nothing_planted_among_words_stays(planted: list[tuple[str, str]], noise: str) -> None:
    text = f"{noise} word {' and '.join(value for _, value in planted)}"
    redacted, _ = redact(text, OWN_KINDS)
    assert [value for _, value in planted if value in redacted] == []


@pytest.mark.parametrize("kind", KINDS)
def test_no_placeholder_is_a_finding(kind: str) -> None:
    text = f"[{kind}] password: [{kind}_2] 12 [{kind}_3]4111 +[{kind}]"
    assert redact(text, OWN_KINDS) == (text, {})
    assert len(PLACEHOLDER.findall(text)) == 4


def test_the_same_value_has_the_same_placeholder_in_all_texts_of_a_row() -> None:
    row = Redactor(Privacy()).row()
    assert row.text("ana@example.com or bo@example.com") == "[email] or [email_2]"
    assert row.text("Mail ANA@example.com and cy@example.com") == "Mail [email] and [email_3]"
    assert row.text("4242 4242 4242 4242") == row.text("4242-4242-4242-4242") == "[card]"
    assert row.counts == {"email": 4, "card": 2}


def test_rows_do_not_know_of_each_other() -> None:
    redactor = Redactor(Privacy())
    assert redactor.row().text("ana@example.com") == redactor.row().text("bo@example.com") == "[email]"


def test_a_placeholder_of_an_earlier_redaction_is_not_given_to_another_value() -> None:
    assert redact("[email] and ana@example.com", ["email"])[0] == "[email] and [email_2]"


def test_keep_looks_at_nothing_and_yet_masks_what_is_shown() -> None:
    redactor = Redactor(Privacy(action="keep"))
    row = redactor.row()
    assert row.text("ana@example.com") == "ana@example.com"
    assert row.counts == {}
    assert redactor.masked("ana@example.com") == "[email]"


def test_masked_hides_every_kind_whatever_the_settings_look_for() -> None:
    text = " ".join(values[0] for values in PLANTED.values())
    assert Redactor(Privacy(kinds=())).masked(text) == " ".join(f"[{kind}]" for kind in PLANTED)


@pytest.mark.parametrize(("kind", "value"), ALL_PLANTED)
def test_masked_sees_through_the_escapes_of_raw_json(kind: str, value: str) -> None:
    raw = json.dumps({"content": f"first line\n{value}\nlast"})
    assert Redactor(Privacy()).masked(raw) == raw.replace(value, f"[{kind}]")


def test_masked_finds_what_is_quoted_or_takes_several_lines_in_raw_json() -> None:
    key = "-----BEGIN PRIVATE KEY-----\n" + "MIIEvQIBADANBgkqhkiG9w0BAQE\n" * 3 + "-----END PRIVATE KEY-----"
    raw = json.dumps({"content": f'api_key = "a1B2c3D4e5F6g7H8"\n{key}\nlast'})
    expected = json.dumps({"content": 'api_key = "[secret]"\n[secret_2]\nlast'})
    assert Redactor(Privacy()).masked(raw) == expected


def test_of_findings_that_overlap_the_earliest_and_then_the_fixed_order_counts() -> None:
    early, late = Found(0, 4, "phone", "a"), Found(2, 9, "secret", "b")
    assert settled([late, early]) == [early]
    card, secret = Found(0, 9, "card", "a"), Found(0, 4, "secret", "b")
    assert settled([card, secret]) == [secret]


def test_a_redactor_travels_to_workers() -> None:
    redactor = pickle.loads(pickle.dumps(Redactor(Privacy(kinds=OWN_KINDS))))
    assert redactor.row().text("ana@example.com at 203.0.113.7") == "[email] at [ip]"


@pytest.mark.parametrize(
    "unit",
    [
        *["a", "@", "1", ".", ":", "a@", "@a.", "1.", "+1", "0 ", "12 ", "4 ", "4444 ", "AA1"],
        *["eyJ", "sk-", "api_key=", "://a:", "-----BEGIN ", "-----BEGIN PRIVATE KEY-----"],
    ],
)
def test_a_long_run_of_anything_is_looked_at_once(unit: str) -> None:
    # A quarter of a second at most; work that grows with the square of the length takes minutes.
    text = (unit * (200_000 // len(unit) + 1))[:200_000]
    begun = time.process_time()
    redact(text, OWN_KINDS)
    assert time.process_time() - begun < 2
