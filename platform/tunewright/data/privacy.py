"""Finds e-mail addresses and payment card numbers in text, and replaces them.

`redact` is idempotent: the placeholders match none of the patterns.
"""

from __future__ import annotations

import re
from collections.abc import Collection

EMAIL = re.compile(r"\b[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,4}\b")
CARD = re.compile(r"(?<![\d-])\d(?:[ -]?\d){12,18}(?![\d-])")
PLACEHOLDER = {"email": "[email]", "card": "[card]"}


def redact(text: str, kinds: Collection[str]) -> tuple[str, dict[str, int]]:
    """The text with each finding replaced by its placeholder, and how many of each kind there were.

    redact("mail a@b.org", ["email"])  ->  ("mail [email]", {"email": 1})
    """
    counts: dict[str, int] = {}

    def replace(kind: str, match: re.Match[str]) -> str:
        if kind == "card" and not passes_luhn(match.group()):
            return match.group()
        counts[kind] = counts.get(kind, 0) + 1
        return PLACEHOLDER[kind]

    for kind, pattern in (("email", EMAIL), ("card", CARD)):
        if kind in kinds:
            text = pattern.sub(lambda match, kind=kind: replace(kind, match), text)  # type: ignore[misc]
    return text, counts


def passes_luhn(number: str) -> bool:
    """Whether the digits of `number` pass the check of payment card numbers (ISO/IEC 7812-1)."""
    digits = [int(c) for c in number if c.isdigit()]
    doubled = [d * 2 - 9 * (d > 4) for d in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0
