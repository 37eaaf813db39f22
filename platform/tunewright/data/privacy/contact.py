"""E-mail addresses, phone numbers, IP addresses."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from tunewright.data.privacy.found import Found, bare, stands_alone

LOCAL = (
    "".join(map(chr, range(0xC0, 0x250)))
    + "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._%+-"
)
LOCAL_LENGTH = 64  # RFC 5321
DOMAIN = re.compile(
    r"@(?:[A-Za-z0-9\u00c0-\u024f-]{1,63}\.){1,8}(?:xn--[A-Za-z0-9-]{2,59}|[A-Za-z\u00c0-\u024f]{2,24})(?![A-Za-z0-9])"
)

PHONE_DIGITS = range(8, 16)  # E.164 allows 15
SEPARATOR = r"[ \u00a0()./-]"
INTERNATIONAL = re.compile(rf"(?:\+|00)[1-9](?:{SEPARATOR}{{0,2}}[0-9]){{6,40}}")
# 415-555-0100, 415.555.0100, 415 555 0100, and (415) 555-0100 without its first parenthesis
AMERICAN = re.compile(
    r"[0-9](?<![0-9].)[0-9]{2}(?:\) ?[0-9]{3}[ .-]|([.-])[0-9]{3}\1|(?<=[2-9]..) [2-9][0-9]{2} )"
    r"[0-9]{4}(?![0-9])"
)
# 020 7946 0958, 030/1234567, 06 12 34 56 78, 0170-1234567: the 0 that is dialled within a country
NATIONAL = re.compile(r"0[1-9][0-9]{0,4}\)?(?:[ \u00a0/.-]{1,2}[0-9]{2,8}){1,5}(?![0-9])")
DATE = re.compile(r"[0-9]{1,2}([./-])[0-9]{1,2}\1[12][0-9]{3}(?![0-9])")

IPV4 = re.compile(r"[0-9](?<![0-9].)[0-9]{0,2}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}(?![0-9A-Za-z_]|\.[0-9])")
IPV6 = re.compile(r"(?<![0-9A-Za-z_:.])[0-9A-Fa-f:][0-9A-Fa-f:.]{2,45}(?![0-9A-Za-z_])")
NUMBERED = re.compile(
    r"(?:version|release|build|section|chapter|ver\.?|rev\.?|no\.?|§|v)[ :=]*$", re.IGNORECASE
)
"""What comes before four numbers that are no address."""


def find_emails(text: str) -> Sequence[Found]:
    """ana@example.com; the domain ends in letters."""
    if "@" not in text:
        return ()
    found = []
    for match in DOMAIN.finditer(text):
        at = match.start()
        before = text[max(0, at - LOCAL_LENGTH) : at]
        local = before[len(before.rstrip(LOCAL)) :].lstrip("._%+-")
        if local:
            start, end = at - len(local), match.end()
            found.append(Found(start, end, "email", text[start:end].lower()))
    return found


def find_phones(text: str) -> Sequence[Found]:
    """Numbers with a country code, and national ones that are written with separators.

    Dates, times, decimals, thousands and groups of four are left alone.
    """
    found = []
    if "+" in text or "00" in text:
        found += [_international(text, match) for match in INTERNATIONAL.finditer(text)]
    found += [_american(text, match) for match in AMERICAN.finditer(text)]
    if "0" in text:
        found += [_national(text, match) for match in NATIONAL.finditer(text)]
    return [finding for finding in found if finding]


def _international(text: str, match: re.Match[str]) -> Found | None:
    number = match.group()
    if number.count("(") != number.count(")"):
        number = number[: max(number.rfind("("), number.rfind(")"))]
    prefix = 2 * number.startswith("00")
    end = 0
    for group in re.finditer("[0-9]+", number):
        if len(bare(number[: group.end()])) - prefix > PHONE_DIGITS[-1]:
            break
        end = group.end()
    number = number[:end]
    separators = re.sub("[0-9]", "", number)
    # +1.25000000 is a decimal; 0012345678, with no separator at all, may be any number
    if separators in ("+.", "") or len(bare(number)) - prefix not in PHONE_DIGITS:
        return None
    return _phone(text, match.start(), match.start() + end)


def _american(text: str, match: re.Match[str]) -> Found | None:
    start = match.start()
    if ")" in match.group():
        if text[start - 1 : start] != "(":
            return None
        start -= 1
    if re.fullmatch(r"1[ .-]", text[max(0, start - 2) : start]):
        start -= 2
    return _phone(text, start, match.end())


def _national(text: str, match: re.Match[str]) -> Found | None:
    number, start = match.group(), match.start()
    groups = re.findall("[0-9]+", number)
    pairs = all(len(group) == 2 for group in groups)
    # 01.23.45.67.89: five pairs and one kind of separator; other numbers with dots are no phones
    uniform = len(set(re.sub("[0-9]", "", number))) == 1
    if not 9 <= len(bare(number)) <= 12 or DATE.match(number) or number.count("/") > 1:
        return None
    if (pairs or "." in number) and not (pairs and uniform and len(groups) == 5):
        return None
    if ")" in number:
        if text[start - 1 : start] != "(":
            return None
        start -= 1
    return _phone(text, start, match.end())


def _phone(text: str, start: int, end: int) -> Found | None:
    if not stands_alone(text, start, end):
        return None
    return Found(start, end, "phone", bare(text[start:end]).removeprefix("00"))


def find_ips(text: str) -> Sequence[Found]:
    """Addresses of version 4 and 6, but for loopback and unspecified ones and net masks."""
    found = []
    if text.count(".") >= 3:
        for match in IPV4.finditer(text):
            start = match.start()
            before = text[max(0, start - 12) : start]
            if stands_alone(text, start, match.end()) and not NUMBERED.search(before):
                found.append(_ip(start, match.group()))
    if "::" in text or text.count(":") >= 7:
        for match in IPV6.finditer(text):
            address = match.group().rstrip(".")
            address = address if address.endswith("::") else address.rstrip(":")
            # a::b is an address too, but more often a name in C++
            if address.count(":") > 1 and any(c.isdigit() for c in address):
                found.append(_ip(match.start(), address))
    return [finding for finding in found if finding]


def _ip(start: int, text: str) -> Found | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if address.is_loopback or address.is_unspecified or text.startswith("255."):
        return None
    return Found(start, start + len(text), "ip", str(address))
