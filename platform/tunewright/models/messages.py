"""What a conversation may hold, and that a template leaves none of it out. Knows nothing of tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from tunewright.errors import DataError

Message = Mapping[str, Any]
Turns = Literal["all", "last"]
ROLES = ("system", "developer", "user", "assistant", "tool")
_SPOKEN = frozenset({"user", "assistant"})
_REASONING = ("reasoning_content", "thinking", "reasoning")


class MessageRules:
    """Checks conversations and puts them as the template expects them.

    Args:
        special_tokens: which no message may contain.
        developer: the template knows the role `developer`; else such a message is a system message.
        text_arguments: the template wants a tool call's arguments as JSON text.
    """

    def __init__(self, special_tokens: Iterable[str], developer: bool, text_arguments: bool):
        longest_first = sorted(special_tokens, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._developer, self._text_arguments = developer, text_arguments

    def seen(self, messages: Sequence[Message]) -> list[Message]:
        """The messages as the template gets them; plain ones are not copied.

        Raises:
            DataError: a message that is not one, or that holds a special token.
        """
        seen: list[Message] = []
        texts: list[str] = []
        for index, message in enumerate(messages):
            content, role = message.get("content"), message.get("role")
            known = role in _SPOKEN or (role == "system" and index == 0)
            if known and type(content) is str and len(message) == 2 and content and not content.isspace():
                seen.append(message if type(message) is dict else dict(message))
                texts.append(content)
                continue
            self._check(index, message, messages[index - 1] if index else {})
            seen.append(self._plain(index, message))
            texts.extend(_strings(message))
        text = "\n".join(texts)
        if self._special.search(text) or not _is_unicode(text):
            self._name_bad_text(messages)
        return seen

    def seen_tools(self, tools: Sequence[Mapping[str, Any]] | None) -> list[Any] | None:
        """The tools as the template gets them; None where there are none.

        Raises:
            DataError: a tool without a name, or with a special token in it.
        """
        if not tools:
            return None
        for index, tool in enumerate(tools):
            if not _tool_name(tool):
                raise DataError(
                    f"tool {index} has no name; expected OpenAI's {{'type', 'function': {{'name'}}}}"
                )
            self._refuse(f"tool {index}", tool)
        return [_data(tool) for tool in tools]

    def _check(self, index: int, message: Message, before: Message) -> None:
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise DataError(f"message {index} has role {role!r}; expected one of {', '.join(ROLES)}")
        if index and role in ("system", "developer"):
            raise DataError(f"message {index} is a system message; only the first may be")
        calls = message.get("tool_calls")
        if calls and role != "assistant":
            raise DataError(f"message {index} ({role}) calls tools; only the assistant may")
        if role == "tool" and not (before.get("tool_calls") or before.get("role") == "tool"):
            raise DataError(f"message {index} is a tool's answer, but no call of a tool comes before it")
        may_be_empty = bool(calls) or role == "tool"
        if content is None and may_be_empty:
            content = ""
        if not isinstance(content, str) or not (may_be_empty or content.strip()):
            raise DataError(f"message {index} ({role}) has no text")
        weight = message.get("weight")
        if weight is not None and weight not in (0, 1):
            raise DataError(f"message {index} has weight {weight!r}; expected 0 (no loss) or 1")

    def _plain(self, index: int, message: Message) -> Message:
        """A copy of plain data without empty fields, as Hugging Face's tokenizers make one."""
        plain = {key: _data(value) for key, value in message.items() if value is not None}
        if plain["role"] == "developer" and not self._developer:
            plain["role"] = "system"
        reasoning = next((plain[key] for key in _REASONING if key in plain), None)
        if reasoning is not None:
            plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
        if plain.get("tool_calls"):
            plain["tool_calls"] = [
                self._call(index, number, call) for number, call in enumerate(plain["tool_calls"])
            ]
        else:
            plain.pop("tool_calls", None)
        return plain

    def _call(self, index: int, number: int, call: Any) -> dict[str, Any]:
        where = f"message {index}, tool call {number}"
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(
                f"{where} has no function name; expected OpenAI's {{'function': {{'name', 'arguments'}}}}"
            )
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError as error:
                raise DataError(f"{where}: its arguments are not JSON: {error}") from None
        if not isinstance(arguments, dict):
            raise DataError(f"{where}: its arguments are a {type(arguments).__name__}, not an object")
        given = json.dumps(arguments, ensure_ascii=False) if self._text_arguments else arguments
        shaped = {**function, "arguments": given}
        return (
            {**call, "type": "function", "function": shaped}
            if "function" in call
            else {
                "type": "function",
                "function": shaped,
            }
        )

    def _name_bad_text(self, messages: Sequence[Message]) -> None:
        """Refuses the message at fault; two that only look like a special token together are not."""
        for index, message in enumerate(messages):
            self._refuse(f"message {index} ({message['role']})", message)

    def _refuse(self, what: str, value: Any) -> None:
        for text in _strings(value):
            found = self._special.search(text)
            if found:
                raise DataError(f"{what} contains the special token {found.group()}")
            if not _is_unicode(text):
                raise DataError(f"{what} contains half of a surrogate pair, which is not Unicode text")


def supervised(messages: Sequence[Message], turns: Turns) -> list[int]:
    """Indexes of the assistant's messages that carry loss.

    Raises:
        DataError: none does.
    """
    last = len(messages) - 1
    found = [
        index
        for index, message in enumerate(messages)
        if message["role"] == "assistant"
        and (turns == "all" or index == last)
        and (len(message) == 2 or message.get("weight") != 0)
    ]
    if not found:
        raise DataError(f"no assistant message carries loss (loss.turns: {turns}, and weight 0 excludes one)")
    return found


def refuse_losses(
    messages: Sequence[Message], tools: Sequence[Any] | None, text: str, answers: Mapping[int, str]
) -> None:
    """Raises `DataError` when a text lacks part of the conversation that it was rendered from.

    Args:
        text: the whole conversation.
        answers: index of a message that carries loss -> what is to be learned of it.
    """
    for index, message in enumerate(messages):
        role = message["role"]
        where = answers.get(index, "") if role == "assistant" else text
        if role != "assistant" or index in answers:
            content = message.get("content") or ""
            if content.strip() not in where and not _is_told(content, where):
                raise DataError(
                    f"the chat template leaves out text of message {index} ({role}); choose one that shows it"
                )
        if len(message) > 2 or "tool_calls" in message:
            _refuse_lost_fields(index, message, text, answers.get(index))
    for index, tool in enumerate(tools or ()):
        if not _is_told(_tool_name(tool), text):
            raise DataError(f"the chat template does not show tool {index} of the row; choose one that does")


def _refuse_lost_fields(index: int, message: Message, text: str, answer: str | None) -> None:
    for call in message.get("tool_calls", ()):
        function = call["function"]
        arguments = function["arguments"]
        named = json.loads(arguments) if isinstance(arguments, str) else arguments
        for word in (function["name"], *_strings(named)):
            if not _is_told(word, text):
                raise DataError(
                    f"the chat template leaves out a tool call of message {index} or part of it; "
                    f"choose one that knows tools"
                )
    reasoning = message.get("reasoning_content")
    if answer is not None and isinstance(reasoning, str) and not _is_told(reasoning, answer):
        raise DataError(
            f"the chat template leaves out the reasoning of message {index}; "
            f"choose one that shows it, or remove it from the row"
        )


def _is_told(words: str, text: str) -> bool:
    """Whether a text holds some words, as they are, as JSON, or with other blanks between them."""
    if words.strip() in text:
        return True
    escaped = json.dumps(words, ensure_ascii=False)[1:-1]
    for form in (words, escaped, json.dumps(words)[1:-1], json.dumps(escaped, ensure_ascii=False)[1:-1]):
        if form in text or "".join(form.split()) in "".join(text.split()):
            return True
    # A template may put words of its own between thoughts and answer.
    head, mark, answer = words.partition("</think>")
    return bool(mark) and _is_told(head.replace("<think>", ""), text) and _is_told(answer, text)


def _tool_name(tool: Any) -> str:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else ""


def _strings(value: Any) -> Iterator[str]:
    """Every string in plain data, names of fields included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _data(value: Any) -> Any:
    """The value as plain data: a template is not to get at methods of anything else."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_data(item) for item in value]
    return str(value)


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
