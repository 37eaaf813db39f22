"""Rows that hold a conversation, with a label or a second answer or without -> content of an `Example`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunewright.data.formats.fields import list_field, optional_text, text_field
from tunewright.data.formats.turns import Message, check_answer, put_system, read_messages, read_tools
from tunewright.errors import DataError

TURN_COLUMNS = ("messages", "conversations", "conversation")
YES, NO = ("true", "1"), ("false", "0")


def conversation(row: Mapping[str, Any], form: str, system: str | None) -> dict[str, Any]:
    """{"messages", "tools"?} of a row of format messages, sharegpt, prompt_completion or alpaca."""
    if form == "prompt_completion":
        messages = [*_prompt(row, "prompt"), *_answer(row, "completion")]
    elif form == "alpaca":
        messages = [*_instruction(row), *_answer(row, "output")]
    else:
        messages = _turns(row, form)
    check_answer(messages)
    return _with_tools(row, put_system(messages, optional_text(row, "system"), system))


def preference(row: Mapping[str, Any], system: str | None) -> dict[str, Any]:
    """{"messages", "tools"?, "chosen", "rejected"}: a question and two answers, the better one first."""
    chosen, rejected = _answer(row, "chosen"), _answer(row, "rejected")
    question = _question(row)
    if chosen[0]["role"] != "assistant" or rejected[0]["role"] != "assistant":
        shared = _shared_length(chosen, rejected)
        _check_question(question, chosen[:shared])
        question, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if not question:
        raise DataError("there is no question: no `prompt`, no messages, and nothing that both answers share")
    if question[-1]["role"] == "assistant":
        raise DataError("the question ends with an assistant message, so there is nothing to answer")
    if chosen == rejected:
        raise DataError("chosen and rejected are the same")
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer:
            raise DataError(f"`{name}` is only the beginning of the other answer")
        if answer[0]["role"] != "assistant":
            raise DataError(f"`{name}` does not begin with an assistant message")
        check_answer(answer, f"`{name}`")
    content = _with_tools(row, put_system(question, optional_text(row, "system"), system))
    return {**content, "chosen": chosen, "rejected": rejected}


def kto(row: Mapping[str, Any], system: str | None) -> dict[str, Any]:
    """{"messages", "tools"?, "label"}: a conversation, and whether its last answer is a good one."""
    if row.get("completion") is not None:
        form = "prompt_completion"
    elif row.get("output") is not None:
        form = "alpaca"
    else:
        form = "messages"
    content = conversation(row, form, system)
    if "weight" in content["messages"][-1]:
        raise DataError("the last answer has weight 0, so its label would teach nothing")
    return {**content, "label": kto_label(row)}


def kto_label(row: Mapping[str, Any]) -> bool:
    """The label of a KTO row, under `label` or `kto_tag`: true, false, 1, 0, or these as text."""
    value = row.get("label")
    if value is None:
        value = row.get("kto_tag")
    text = value.strip().lower() if isinstance(value, str) else None
    if value in (True, 1) or text in YES:
        return True
    if value in (False, 0) or text in NO:
        return False
    raise DataError(
        f"`label` is {'missing' if value is None else format(repr(value), '.40')}; "
        f"a KTO row needs true (a good answer) or false"
    )


def _turns(row: Mapping[str, Any], form: str) -> list[Message]:
    names = TURN_COLUMNS if form == "messages" else (*TURN_COLUMNS[1:], *TURN_COLUMNS[:1])
    name = next((name for name in names if row.get(name) is not None), names[0])
    return read_messages(row.get(name), f"`{name}`")


def _prompt(row: Mapping[str, Any], column: str) -> list[Message]:
    """What is asked: a text, or messages."""
    value = row.get(column)
    if _is_messages(value):
        return read_messages(value, f"`{column}`")
    return [{"role": "user", "content": text_field(row, column)}]


def _answer(row: Mapping[str, Any], column: str) -> list[Message]:
    """What is answered: a text, a message, or messages. A text is never taken for anything else."""
    value = row.get(column)
    if isinstance(value, dict) and ("role" in value or "from" in value):
        value = [value]
    if _is_messages(value):
        return read_messages(value, f"`{column}`")
    return [{"role": "assistant", "content": text_field(row, column)}]


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _instruction(row: Mapping[str, Any]) -> list[Message]:
    """Alpaca's instruction and input, after the exchanges of `history` if the row has them."""
    messages: list[Message] = []
    for number, pair in enumerate(list_field(row.get("history") or [], "`history`")):
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(_is_text(part) for part in pair)):
            raise DataError(f"exchange {number} of `history` is not a question and an answer")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    instruction, more = text_field(row, "instruction"), optional_text(row, "input")
    asked = f"{instruction}\n\n{more}" if more else instruction
    return [*messages, {"role": "user", "content": asked}]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _question(row: Mapping[str, Any]) -> list[Message]:
    """What a preference row asks; empty where both answers are whole conversations."""
    if row.get("prompt") is not None:
        return _prompt(row, "prompt")
    if row.get("instruction") is not None:
        return _instruction(row)
    for name in TURN_COLUMNS:
        if row.get(name) is not None:
            return read_messages(row[name], f"`{name}`")
    return []


def _shared_length(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """How many messages both begin with, up to the last that is not the assistant's."""
    same = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        same += 1
    while same and chosen[same - 1]["role"] == "assistant":
        same -= 1
    return same


def _check_question(question: Sequence[Message], shared: Sequence[Message]) -> None:
    """A question that stands beside whole conversations must be what they begin with, or its last part."""
    if question and list(shared[-len(question) :]) != list(question):
        raise DataError("chosen and rejected do not both begin with the question beside them")


def _with_tools(row: Mapping[str, Any], messages: list[Message]) -> dict[str, Any]:
    tools = read_tools(row)
    return {"messages": messages} if tools is None else {"messages": messages, "tools": tools}
