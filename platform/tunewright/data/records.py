"""One raw row -> one conversation or one text. Says why when it cannot."""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from tunewright.errors import DataError

Message = dict[str, str]

COLUMNS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
"""Columns that a row of each format must have; `alpaca` may have `input`, all may have `system`."""


def detect_format(records: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> tuple[str, str]:
    """The format of the rows, and the reason, from the columns that all of the first rows have.

    Raises:
        DataError: no format fits; names the columns that were found.
    """
    shared = set.intersection(*(set(renamed(r, columns)) for r in records)) if records else set()
    for name, needed in COLUMNS.items():
        if shared.issuperset(needed):
            return name, f"every one of the first {len(records)} rows has {' and '.join(needed)}"
    raise DataError(
        f"the rows' format is not known: columns are {', '.join(sorted(shared)) or 'none in common'}; "
        f"state `format`, and name the columns, such as columns: {{prompt: question, completion: answer}}"
    )


def renamed(record: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The record with the user's columns under the names that the format expects."""
    out = dict(record)
    for name, column in columns.items():
        if column in record:
            out[name] = record[column]
    return out


def to_messages(
    record: Mapping[str, Any], form: str, columns: Mapping[str, str], system: str | None
) -> list[Message]:
    """The conversation that a row stands for.

    Raises:
        DataError: a column is missing, empty or of another type.
    """
    row = renamed(record, columns)
    if form == "messages":
        messages = _checked_messages(row.get("messages"))
    elif form == "prompt_completion":
        messages = _turn(_text(row, "prompt"), _text(row, "completion"))
    elif form == "alpaca":
        extra = row.get("input") or ""
        if not isinstance(extra, str):
            raise DataError(f"`input` is {type(extra).__name__}, not text")
        instruction = _text(row, "instruction")
        messages = _turn(f"{instruction}\n\n{extra}" if extra.strip() else instruction, _text(row, "output"))
    else:
        raise DataError(f"format {form} does not hold conversations")
    own = row.get("system")
    first = own if isinstance(own, str) and own.strip() else system
    if first and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": first})
    return messages


def to_text(record: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    """The text that a row of format `text` stands for."""
    return _text(renamed(record, columns), "text")


def content_key(value: str | Sequence[Message]) -> str:
    """32 hexadecimal digits of the normalised content: Unicode NFC, white space collapsed."""
    if isinstance(value, str):
        parts = [value]
    else:
        parts = [part for message in value for part in (message["role"], message["content"])]
    plain = [" ".join(unicodedata.normalize("NFC", part).split()) for part in parts]
    return hashlib.sha256(json.dumps(plain, ensure_ascii=True).encode()).hexdigest()[:32]


def _checked_messages(value: Any) -> list[Message]:
    if not isinstance(value, list | tuple) or not value:
        raise DataError("`messages` is not a list of messages")
    messages: list[Message] = []
    for index, item in enumerate(value):
        if not isinstance(item, Mapping):
            raise DataError(f"message {index} is {type(item).__name__}, not an object")
        role, content = item.get("role"), item.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise DataError(f"message {index} has no text under `role` and `content`")
        if not content.strip():
            raise DataError(f"message {index} ({role}) is empty")
        messages.append({"role": role, "content": content})
    if messages[-1]["role"] != "assistant":
        raise DataError("the conversation does not end with an assistant message")
    return messages


def _turn(prompt: str, completion: str) -> list[Message]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if isinstance(value, float) and not math.isfinite(value):  # how tables write that nothing is there
        raise DataError(f"column `{column}` is {value}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, list | tuple) and value and all(isinstance(word, str) for word in value):
        value = " ".join(value)  # a list of words, as token-tagged data sets have
    if not isinstance(value, str):
        raise DataError(f"column `{column}` is {'missing' if value is None else type(value).__name__}")
    if not value.strip():
        raise DataError(f"column `{column}` is empty")
    return value
