"""What a finding is, and which of two that overlap counts."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

KINDS = ("secret", "email", "iban", "card", "national_id", "phone", "ip", "person", "place")
"""Of two findings that begin at the same character the kind named first counts."""
PLACEHOLDER = re.compile(rf"\[(?:{'|'.join(KINDS)})(?:_[1-9][0-9]*)?\]")


class Found(NamedTuple):
    """`text[start:end]` is of a kind; `value` is what it stands for, however it is written."""

    start: int
    end: int
    kind: str
    value: str


Finder = Callable[[str], Sequence[Found]]


def settled(found: Sequence[Found]) -> list[Found]:
    """The findings that do not overlap, in order: the earliest, then by kind, then the longest."""
    kept: list[Found] = []
    for finding in sorted(found, key=lambda f: (f.start, KINDS.index(f.kind), -f.end)):
        if not kept or finding.start >= kept[-1].end:
            kept.append(finding)
    return kept


def stands_alone(text: str, start: int, end: int) -> bool:
    """Whether text[start:end] is no part of a longer word or number.

    Only ASCII letters make a word here: Chinese puts no blank before a number.
    """
    return not (
        _sticks(text[start - 1 : start], text[start - 2 : start - 1] if start > 1 else "", "-./:+")
        or _sticks(text[end : end + 1], text[end + 1 : end + 2], "-.")
    )


def _sticks(near: str, far: str, joints: str) -> bool:
    if near == "_" or (near.isascii() and near.isalnum()):
        return True
    return near != "" and near in joints and far.isdigit()


def bare(number: str) -> str:
    """Letters and digits alone: `4242-4242 x` -> `42424242X`."""
    return "".join(c for c in number if c.isalnum()).upper()
