"""Lists of messages, OpenAI's or ShareGPT's, with tools and tool calls -> messages of one shape.

    {"role": "assistant", "content": "", "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "find", "arguments": {"order": "TW-1"}}}]}

`arguments` are an object here, since chat templates want them so; what the assistant thought stands
under `reasoning_content`. Nothing that a model could have learned is left out: a field that holds
words and has no place here is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunewright.data.formats.fields import check_json, list_field, parse_json
from tunewright.errors import DataError

Message = dict[str, Any]

ROLES = {role: role for role in ("system", "developer", "user", "assistant", "tool")} | {"function": "tool"}
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "tool": "tool",
}
CALLS = ("function_call", "tool_call")
"""ShareGPT's roles whose value is a call, as JSON."""
INSTRUCTING = ("system", "developer")
WEIGHTS = ("weight", "loss_weight", "train")
REASONING = ("reasoning_content", "reasoning", "thinking")
LOST = ("refusal", "audio", "image", "images", "video", "videos")
"""Fields of a message that hold something to learn or to see, and have no place in a conversation here."""


def read_messages(value: Any, what: str = "`messages`") -> list[Message]:
    """The messages of a list, whoever they end with.

    Raises:
        DataError: one of them is not usable; names its index.
    """
    items = list_field(value, what)
    if not items:
        raise DataError(f"{what} is an empty list")
    messages: list[Message] = []
    for index, item in enumerate(items):
        if type(item) is dict and len(item) == 2:  # nearly all messages of nearly all rows
            role, content = item.get("role"), item.get("content")
            if type(role) is str and type(content) is str and ROLES.get(role) == role:
                if (not content or content.isspace()) and role != "tool":
                    raise DataError(f"message {index} ({role}) is empty")
                messages.append({"role": role, "content": content})
                continue
        messages.append(_message(index, item))
    return messages


def check_answer(messages: list[Message], what: str = "the conversation") -> None:
    """Ensure that messages end with the assistant and hold something to learn."""
    if messages[-1]["role"] != "assistant":
        raise DataError(f"{what} does not end with an assistant message")
    for message in messages:
        if message["role"] == "assistant" and "weight" not in message:
            return
    raise DataError(f"{what} has no assistant message with a weight other than 0, so nothing to learn")


def put_system(messages: list[Message], own: str | None, default: str | None) -> list[Message]:
    """The messages with a system message first: their own, or the row's, or the source's, if there is any."""
    first = own or default
    if first and (not messages or messages[0]["role"] not in INSTRUCTING):
        return [{"role": "system", "content": first}, *messages]
    return messages


def read_tools(row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The tools beside a conversation in OpenAI's shape; None where there are none."""
    value = row.get("tools")
    if value is None:
        value = row.get("functions")
    if isinstance(value, str):
        value = parse_json(value, "`tools`") if value.strip() else None
    if not value:
        return None
    if isinstance(value, dict):
        value = [value]
    tools = []
    for number, tool in enumerate(list_field(value, "`tools`")):
        what = f"tool {number}"
        tool = parse_json(tool, what) if isinstance(tool, str) else tool
        if not isinstance(tool, dict):
            raise DataError(f"{what} is {type(tool).__name__}, not an object")
        function = tool.get("function", tool)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(
                f"{what} has no name; expected {{type: function, function: {{name, parameters}}}}"
            )
        check_json(tool, what)
        tools.append(tool if "function" in tool else {"type": "function", "function": tool})
    return tools


def _message(index: int, item: Any) -> Message:
    """A message with more, or with less, than a role and a text."""
    if not isinstance(item, dict):
        raise DataError(f"message {index} is {type(item).__name__}, not an object")
    if "role" in item:
        named, content, roles = item["role"], item.get("content"), ROLES
    elif "from" in item:
        named, content, roles = item["from"], item.get("value"), SHAREGPT_ROLES
    else:
        raise DataError(f"message {index} has neither `role` and `content` nor `from` and `value`")
    role = roles.get(named) if isinstance(named, str) else None
    if role is None:
        raise DataError(f"message {index} has role {named!r:.40}; expected one of {', '.join(roles)}")
    where = f"message {index} ({named})"
    for field in LOST:
        if item.get(field):
            raise DataError(
                f"{where} has `{field}`, which has no place in a conversation here and would be "
                f"lost; put it into the content, or leave it out"
            )
    if named in CALLS and roles is SHAREGPT_ROLES:
        calls, content = _sharegpt_calls(content, where), ""
    else:
        calls, content = _calls(item, role, where), _content(content, where)
    if not calls and role != "tool" and (not content or content.isspace()):
        raise DataError(f"{where} is empty")
    message: Message = {"role": role, "content": content}
    reasoning = next((item[field] for field in REASONING if item.get(field)), None)
    if reasoning is not None:
        message["reasoning_content"] = _reasoning(reasoning, role, where)
    if calls:
        message["tool_calls"] = calls
    for field in ("tool_call_id", "name"):
        if item.get(field):
            message[field] = str(item[field])
    if role == "assistant" and _weight(item, where) == 0:
        message["weight"] = 0
    return message


def _content(value: Any, where: str) -> str:
    """The text of a message; parts of type text are put together as templates do, with nothing between."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if not isinstance(value, list):
        raise DataError(f"{where} has {type(value).__name__} for its content, not text")
    out = ""
    for part in value:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        text = part.get("text", part.get("value")) if isinstance(part, dict) else part
        if kind != "text":
            raise DataError(f"{where} has a part of type {kind!r:.40}; only text can be trained on here")
        if not isinstance(text, str):
            raise DataError(f"{where} has a part of its content without a text")
        out += text
    return out


def _reasoning(value: Any, role: str, where: str) -> str:
    if role != "assistant" or not isinstance(value, str):
        raise DataError(f"{where} has reasoning that is not a text of the assistant")
    return value


def _calls(item: dict[str, Any], role: str, where: str) -> list[dict[str, Any]]:
    value = item.get("tool_calls")
    if not value and item.get("function_call"):  # OpenAI's form of 2023
        value = [item["function_call"]]
    if not value:
        return []
    if role != "assistant":
        raise DataError(f"{where} calls tools; only the assistant may")
    calls = list_field(value, f"{where}: `tool_calls`")
    return [_call(call, f"{where}: tool call {number}") for number, call in enumerate(calls)]


def _sharegpt_calls(value: Any, where: str) -> list[dict[str, Any]]:
    if isinstance(value, str):
        value = parse_json(value, f"{where}: the call")
    calls = value if isinstance(value, list) else [value]
    return [_call(call, f"{where}: tool call {number}") for number, call in enumerate(calls)]


def _call(value: Any, where: str) -> dict[str, Any]:
    """One call: {"id"?, "type": "function", "function": {"name", "arguments": {...}}}."""
    if not isinstance(value, dict):
        raise DataError(f"{where} is {type(value).__name__}, not an object")
    function = value.get("function", value)
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{where} names no function")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = parse_json(arguments, f"{where}: arguments") if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise DataError(f"{where}: arguments are {type(arguments).__name__}, not an object")
    check_json(arguments, f"{where}: arguments")
    call: dict[str, Any] = {"id": str(value["id"])} if value.get("id") else {}
    return {**call, "type": "function", "function": {"name": name, "arguments": arguments}}


def _weight(item: dict[str, Any], where: str) -> int:
    """0 or 1: whether the message is learned, under whichever name the row says so."""
    found = {field: item[field] for field in WEIGHTS if item.get(field) is not None}
    for field, value in found.items():
        if not isinstance(value, int | float) or value not in (0, 1):
            raise DataError(f"{where} has {field} {value!r:.40}; 0 and 1 are possible")
    if len(set(found.values())) > 1:
        raise DataError(f"{where} says two things: {', '.join(f'{f} {v}' for f, v in found.items())}")
    return int(next(iter(found.values()), 1))
