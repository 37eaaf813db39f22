"""A JSON text -> a raw row: an object, or the reason why it is none."""

from __future__ import annotations

import json
from typing import Any

from tunewright.data.rows import RawRow

ROW_BYTES = 32 << 20
"""A larger row is rejected: it is a file that lost its line ends, and would take a worker's memory."""
MAX_DEPTH = 100
"""Lists and objects inside one another: what walks through rows later takes Python frames for each."""
EXCERPT_CHARS = 4096
"""What is kept of a row that is too large."""
TOO_LARGE = f"larger than {ROW_BYTES >> 20} MiB"
SURROGATE = "holds a lone surrogate"
NUL = "holds a NUL byte"
TOO_DEEP = f"nested deeper than {MAX_DEPTH}"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_decode = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode


def parse_row(file: str, line: int, text: str) -> RawRow:
    """The row that is written as JSON in `text`, which has no blanks around it."""
    try:
        value, end = _decode(text)
        if end < len(text):
            raise ValueError("Extra data")
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", None) or str(error)
        return RawRow(file, line, text, None, f"not JSON: {reason}")
    problem = problem_of(value, text)
    if problem:
        return RawRow(file, line, encodable(text), None, problem)
    return RawRow(file, line, text, value)


def problem_of(value: Any, text: str) -> str:
    """Why what was parsed from `text` cannot be a row; empty if it can."""
    if not isinstance(value, dict):
        return f"a row must be an object, found {type(value).__name__}"
    # Each of these is looked for in detail only where the text can hold it at all.
    if ("\\ud" in text or "\\uD" in text) and _has_surrogate(value):
        return SURROGATE
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deep(value):
        return TOO_DEEP
    return ""


def encodable(text: str) -> str:
    """The text, with a mark for what UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode()


def too_large(file: str, line: int, excerpt: str) -> RawRow:
    return RawRow(file, line, f"{encodable(excerpt[:EXCERPT_CHARS])}\u2026", None, TOO_LARGE)


def _has_surrogate(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True
