"""One raw row -> one `Example`, and what the data stage asks of an example: its texts, key and JSON."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

import xxhash

from tunewright.data.formats.conversations import conversation, kto, preference
from tunewright.data.formats.fields import text_field
from tunewright.data.formats.texts import classification, tagged
from tunewright.data.rows import Example, Task
from tunewright.errors import DataError

MESSAGE_LISTS = ("messages", "chosen", "rejected")
FIXED = frozenset({"name", "type", "required", "$ref"})
"""Names in a tool's schema whose values are no human text."""
TASKS = get_args(Task)
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_encode_sorted = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode


def to_example(
    record: Mapping[str, Any], form: str, columns: Mapping[str, str], system: str | None
) -> Example:
    """What a row stands for, in the canonical form of its task.

    Args:
        form: a format, stated or of `detect_format`.
        columns: name that the format expects -> column of the row.
        system: the system message of conversations that have none.
    Raises:
        DataError: a column is missing, empty, of another type, or contradicts another one.
    """
    if columns:
        taken = set(columns.values()) - set(columns)
        record = {name: value for name, value in renamed(record, columns).items() if name not in taken}
    if form == "text":
        return Example("text", {"text": text_field(record, "text")})
    if form == "preference":
        return Example("preference", preference(record, system))
    if form == "kto":
        return Example("kto", kto(record, system))
    if form == "classification":
        return Example("classification", classification(record))
    if form == "tags":
        return Example("tags", tagged(record))
    return Example("conversation", conversation(record, form, system))


def renamed(record: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The record with the user's columns also under the names that the format expects."""
    out = dict(record)
    for name, column in columns.items():
        if column in record:
            out[name] = record[column]
    return out


def example_texts(example: Example) -> list[str]:
    """Every text that people or tools wrote in an example; not the tools' descriptions, which rows share."""
    content = example.content
    if example.task == "tags":
        return [" ".join(content["tokens"])]
    if "text" in content:
        return [content["text"]]
    return [text for part in MESSAGE_LISTS for message in content.get(part, ()) for text in _texts(message)]


def map_texts(example: Example, f: Callable[[str], str]) -> Example:
    """The example with `f` of each text, tools' descriptions included; the same object if none changes.

    Roles, classes, tags, names of functions and of arguments stay, and numbers do. A word of a tagged
    text stays one word, whatever it becomes, so that each keeps its tag.
    """
    content = example.content
    changed: dict[str, Any] = {}
    if example.task == "tags":
        tokens = [f(token) for token in content["tokens"]]
        if tokens != content["tokens"]:
            changed["tokens"] = tokens
    elif "text" in content:
        text = f(content["text"])
        if text != content["text"]:
            changed["text"] = text
    else:
        for part in MESSAGE_LISTS:
            if part in content:
                messages = [_mapped(message, f) for message in content[part]]
                if any(new is not old for new, old in zip(messages, content[part], strict=True)):
                    changed[part] = messages
        if "tools" in content:
            tools = _map_leaves(content["tools"], f)
            if tools != content["tools"]:
                changed["tools"] = tools
    return Example(example.task, {**content, **changed}) if changed else example


def question_and_answer(example: Example) -> tuple[str, str]:
    """What is asked and what is to be learned from it, for limits on their lengths and wording.

    The answer of a conversation is its last message, of a preference the chosen one; all before it is
    the question. Where nothing is asked (texts, classes, tags) the text stands for the answer.
    """
    content = example.content
    if "messages" not in content:
        return "", example_texts(example)[0]
    messages = content["messages"]
    if example.task == "preference":
        asked, answered = messages, content["chosen"]
    else:
        asked, answered = messages[:-1], messages[-1:]
    question = "\n".join([text for message in asked for text in _texts(message)])
    parts = [text for message in answered for text in (*_names(message), *_texts(message))]
    return question, "\n".join(parts)


def content_key(example: Example) -> str:
    """32 hexadecimal digits (XXH3-128) of the content: who said what, tools, classes and labels.

    Unicode forms (NFC), runs of white space, the ids of tool calls and the weights of messages make no
    difference.
    """
    text = _canonical(example)
    if not text.isascii() and not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    return xxhash.xxh3_128_hexdigest(text.encode())


def payload(example: Example) -> str:
    """The example as one line of JSON: {"task": ..., "messages": [...], ...}."""
    return _encode({"task": example.task, **example.content})


def from_payload(text: str) -> Example:
    """The example of which `payload` made `text`.

    Raises:
        DataError: it is none.
    """
    try:
        content = json.loads(text)
        task = content.pop("task")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(f"not an example of a prepared data set: {type(error).__name__}: {error}") from None
    if task not in TASKS:
        raise DataError(f"an example has task {task!r}; expected one of {', '.join(TASKS)}")
    return Example(task, content)


def _texts(message: Mapping[str, Any]) -> Iterator[str]:
    if "reasoning_content" in message:
        yield message["reasoning_content"]
    if message["content"]:
        yield message["content"]
    for call in message.get("tool_calls", ()):
        yield from _leaves(call["function"]["arguments"])


def _names(message: Mapping[str, Any]) -> list[str]:
    return [call["function"]["name"] for call in message.get("tool_calls", ())]


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)


def _map_leaves(value: Any, f: Callable[[str], str], fixed: frozenset[str] = FIXED) -> Any:
    if isinstance(value, str):
        return f(value)
    if isinstance(value, list):
        return [_map_leaves(item, f, fixed) for item in value]
    if isinstance(value, dict):
        return {
            name: item if name in fixed and not isinstance(item, dict) else _map_leaves(item, f, fixed)
            for name, item in value.items()
        }
    return value


def _mapped(message: dict[str, Any], f: Callable[[str], str]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for field in ("content", "reasoning_content") if len(message) > 2 else ("content",):
        text = message.get(field)
        if text:
            new = f(text)
            if new != text:
                changed[field] = new
    if "tool_calls" in message:
        calls = []
        for call in message["tool_calls"]:
            function = call["function"]
            arguments = _map_leaves(function["arguments"], f, frozenset())
            calls.append({**call, "function": {**function, "arguments": arguments}})
        if calls != message["tool_calls"]:
            changed["tool_calls"] = calls
    return {**message, **changed} if changed else message


def _canonical(example: Example) -> str:
    """The content as one text. Its separators are white space, so no collapsed text can hold them."""
    content = example.content
    if example.task == "conversation":
        parts = [_said(content["messages"])]
    elif example.task == "tags":
        parts = ["tags", *map(_collapsed, content["tokens"]), "\x1d", *content["tags"]]
    elif "text" in content:
        parts = [example.task, _collapsed(content["text"]), content.get("label", "")]
    else:
        parts = [example.task, *(_said(content[part]) for part in MESSAGE_LISTS if part in content)]
        parts.append(str(content.get("label", "")))
    if "tools" in content:
        parts.append(_encode_sorted(_map_leaves(content["tools"], _collapsed, frozenset())))
    return "\x1c".join(parts)


def _said(messages: list[dict[str, Any]]) -> str:
    parts = []
    for message in messages:
        parts.append(message["role"])
        parts.append(" ".join(message["content"].split()))
        if len(message) > 2:
            for mark, field in (("\x1d", "name"), ("\x1e\x1d", "reasoning_content")):
                if field in message:
                    parts.append(mark + _collapsed(message[field]))
            for call in message.get("tool_calls", ()):
                arguments = _map_leaves(call["function"]["arguments"], _collapsed, frozenset())
                parts.append(f"\x1e{call['function']['name']}\x1f{_encode_sorted(arguments)}")
    return "\x1f".join(parts)


def _collapsed(text: str) -> str:
    return " ".join(text.split())
