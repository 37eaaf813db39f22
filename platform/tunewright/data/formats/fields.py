"""Single values of a row: texts, numbers, labels, JSON inside a column. Says what is wrong with one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from tunewright.errors import DataError

MAX_DEPTH = 64
"""Levels of a tool's schema or of a call's arguments; nobody nests deeper on purpose."""


def text_field(row: Mapping[str, Any], column: str) -> str:
    """The text in a column. Numbers are written out, lists of words joined by single spaces.

    Raises:
        DataError: missing, empty, not a number, or of another type.
    """
    value = row.get(column)
    if not isinstance(value, str):
        value = _as_text(value, column)
    if not value or value.isspace():
        raise DataError(f"column `{column}` is empty")
    return value


def optional_text(row: Mapping[str, Any], column: str) -> str | None:
    """The text in a column that may be missing, null or blank.

    Raises:
        DataError: it holds something else.
    """
    value = row.get(column)
    if value is None:
        return None
    if not isinstance(value, str):
        raise DataError(f"column `{column}` is {type(value).__name__}, not text")
    return value if value.strip() else None


def label_text(value: Any, column: str) -> str:
    """The name of a class: a text as it is, a whole number or a truth value written out."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # how tables write whole numbers when some are missing
    if isinstance(value, int):
        return str(value)
    if value is None:
        raise DataError(f"column `{column}` is missing")
    if not isinstance(value, str):
        raise DataError(
            f"column `{column}` is {value if isinstance(value, float) else type(value).__name__}; "
            f"a class is a text or a whole number"
        )
    if not value.strip():
        raise DataError(f"column `{column}` is empty")
    return value


def list_field(value: Any, what: str) -> list[Any]:
    """A list, also one that is written as JSON: databases and CSV have no other way to hold one."""
    if isinstance(value, str):
        value = parse_json(value, what)
    if not isinstance(value, list | tuple):
        raise DataError(f"{what} is {'missing' if value is None else type(value).__name__}, not a list")
    return list(value)


def parse_json(text: str, what: str) -> Any:
    """The value of a JSON text.

    Raises:
        DataError: not JSON, or with what no text or number may be: half a character, NaN.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise DataError(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{what} is not JSON: {error}") from None
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise DataError(f"{what} holds half of a surrogate pair, which is no character") from None
    return value


def check_json(value: Any, what: str) -> None:
    """Ensure that `value` can be written as JSON and is not nested beyond MAX_DEPTH."""
    todo = [(value, 1)]
    while todo:
        item, depth = todo.pop()
        if isinstance(item, dict | list):
            if depth > MAX_DEPTH:
                raise DataError(f"{what} is nested more than {MAX_DEPTH} levels deep")
            inner = item.values() if isinstance(item, dict) else item
            todo += [(one, depth + 1) for one in inner]
            if isinstance(item, dict) and not all(isinstance(key, str) for key in item):
                raise DataError(f"{what} has a name that is not text")
        elif isinstance(item, float) and not math.isfinite(item):
            raise DataError(f"{what} holds {item}, which JSON cannot write")
        elif not (item is None or isinstance(item, str | int | float)):
            raise DataError(f"{what} holds a {type(item).__name__}")


def _as_text(value: Any, column: str) -> str:
    if isinstance(value, float) and not math.isfinite(value):  # how tables write that nothing is there
        raise DataError(f"column `{column}` is {value}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list | tuple) and value and all(isinstance(word, str) for word in value):
        return " ".join(value)  # as data sets of tagged words have them
    raise DataError(f"column `{column}` is {'missing' if value is None else type(value).__name__}, not text")
