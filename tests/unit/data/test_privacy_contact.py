"""E-mail addresses, phone numbers and IP addresses are found; dates, versions and amounts are not."""

from __future__ import annotations

import pytest

from tunewright.data.privacy import redact


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("mail a@b.org", "mail [email]"),
        ("A.B+c@x-y.co.uk, please", "[email], please"),
        ("<ana@example.com>;bo@example.com", "<[email]>;[email_2]"),
        ("Write to jörg@müller.de.", "Write to [email]."),
        ("邮箱是ana@example.com请回复", "邮箱是[email]请回复"),
        ("...ana@example.com...", "...[email]..."),
        ("https://ana:pass@example.com/", "https://ana:[email]/"),
        ("x" * 100 + "@example.com", "x" * 36 + "[email]"),
    ],
)
def test_addresses_are_found_in_whatever_stands_around_them(text: str, redacted: str) -> None:
    assert redact(text, ["email"])[0] == redacted


@pytest.mark.parametrize(
    "text", ["a@b and @ana and ana@", "@app.route", "react@18.2.0", "x @ y.com", "a@b.c", "ana@localhost"]
)
def test_what_only_holds_an_at_sign_is_no_address(text: str) -> None:
    assert redact(text, ["email"]) == (text, {})


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("+49 170 1234567", "[phone]"),
        ("+1 (415) 555-0100 or +44 20 7946 0958", "[phone] or [phone_2]"),
        ("tel:+4915112345678", "tel:[phone]"),
        ("0049 170 1234567", "[phone]"),
        ("+49 (0)30 901820", "[phone]"),
        ("+49 170 1234567 (2 calls)", "[phone] (2 calls)"),
        ("(415) 555-0100", "[phone]"),
        ("1-415-555-0100", "[phone]"),
        ("415.555.0100", "[phone]"),
        ("415 555 0100", "[phone]"),
        ("020 7946 0958", "[phone]"),
        ("030/1234567", "[phone]"),
        ("(030) 1234567", "[phone]"),
        ("Tel.0170-1234567", "Tel.[phone]"),
        ("06 12 34 56 78", "[phone]"),
        ("01.23.45.67.89", "[phone]"),
        ("电话0170 1234567。", "电话[phone]。"),
    ],
)
def test_phone_numbers_are_found_as_people_write_them(text: str, redacted: str) -> None:
    assert redact(text, ["phone"])[0] == redacted


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-21",
        "01-02-2024 12-30",
        "01/02/2024 14:15",
        "21.11.2026",
        "12:30:45",
        "08-12 14-18",
        "1 234 567 890",
        "1,234,567,890",
        "3.14159265358979",
        "+1.23456789",
        "0.123456789",
        "1234 5678 9012",
        "4242 4242 4242 4242",
        "5+12345678",
        "order 0012345678",
        "123-456-78901",
        "9415-555-0100",
        "415-555-0100-7",
        "+12",
        "+1234567890123456789",
        "pages 100-200, 300-400",
        "ISBN 978-3-16-148410-0",
        "2**31 = 2147483648",
    ],
)
def test_other_numbers_are_no_phones(text: str) -> None:
    assert redact(text, ["phone"]) == (text, {})


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("from 203.0.113.7:8080", "from [ip]:8080"),
        ("203.0.113.0/24 and 198.51.100.9.", "[ip]/24 and [ip_2]."),
        ("2001:db8::7, fe80::1.", "[ip], [ip_2]."),
        ("2001:0db8:0000:0000:0000:0000:0000:0007 = 2001:db8::7", "[ip] = [ip]"),
        ("::ffff:203.0.113.7", "[ip]"),
    ],
)
def test_addresses_of_both_versions_are_found(text: str, redacted: str) -> None:
    assert redact(text, ["ip"])[0] == redacted


@pytest.mark.parametrize(
    "text",
    [
        "version 1.2.3 and 1.2.3.4.5",
        "v10.0.0.7",
        "Version: 10.0.0.7",
        "section 1.2.3.4",
        "Chrome 96.0.4664.110",
        "256.1.1.1",
        "1.2.3.4a",
        "127.0.0.1 and 0.0.0.0 and ::1 and ::",
        "netmask 255.255.255.0",
        "std::vector<int>::iterator a::b",
        "12:30:45",
        "aa:bb:cc:dd:ee:ff",
    ],
)
def test_versions_masks_and_the_machine_itself_are_no_addresses(text: str) -> None:
    assert redact(text, ["ip"]) == (text, {})
