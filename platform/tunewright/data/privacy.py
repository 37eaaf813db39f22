"""Finds e-mail addresses and payment card numbers in text, and replaces them.

`redact` is idempotent: the placeholders match none of the patterns.
"""

from __future__ import annotations

import re
from collections.abc import Collection

EMAIL = re.compile(r"\b[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,4}\b")
DIGITS = re.compile(r"(?<![\d-])\d(?:[ -]?\d){12,}(?![\d-])")
"""Numbers with at most a space or a hyphen between them: a card, perhaps among others."""
CARD_DIGITS = range(13, 20)
PLACEHOLDER = {"email": "[email]", "card": "[card]"}


def redact(text: str, kinds: Collection[str]) -> tuple[str, dict[str, int]]:
    """The text with each finding replaced by its placeholder, and how many of each kind there were.

    redact("mail a@b.org", ["email"])  ->  ("mail [email]", {"email": 1})
    """
    counts: dict[str, int] = {}
    if "email" in kinds:
        text, counts["email"] = EMAIL.subn(PLACEHOLDER["email"], text)
    if "card" in kinds:
        before = text.count(PLACEHOLDER["card"])
        text = DIGITS.sub(lambda match: _without_cards(match.group()), text)
        counts["card"] = text.count(PLACEHOLDER["card"]) - before
    return text, {kind: count for kind, count in counts.items() if count}


def _without_cards(numbers: str) -> str:
    """Replace the cards among neighbouring numbers: 4242 4242 4242 4242 12 -> [card] 12."""
    parts = re.split(r"([ -])", numbers)  # groups of digits at the even places
    out, at = "", 0
    while at < len(parts):
        for end in range(min(len(parts), at + 2 * CARD_DIGITS[-1] - 1), at, -2):
            span = "".join(parts[at:end])
            if sum(map(str.isdigit, span)) in CARD_DIGITS and passes_luhn(span):
                out, at = out + PLACEHOLDER["card"], end
                break
        else:
            out, at = out + parts[at], at + 1
        if at < len(parts) and at % 2:
            out, at = out + parts[at], at + 1
    return out


def passes_luhn(number: str) -> bool:
    """Whether the digits of `number` pass the check of payment card numbers (ISO/IEC 7812-1)."""
    digits = [int(c) for c in number if c.isdigit()]
    doubled = [d * 2 - 9 * (d > 4) for d in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0
