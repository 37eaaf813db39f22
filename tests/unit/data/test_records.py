"""Rows of each format become the same conversations, and a row that cannot says why."""

from __future__ import annotations

from typing import Any

import pytest

from tunewright.data.records import content_key, detect_format, to_messages, to_text
from tunewright.errors import DataError

TURN = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("record", "form"),
    [
        ({"messages": TURN, "text": "other"}, "messages"),
        ({"prompt": "q", "completion": "a"}, "prompt_completion"),
        ({"instruction": "q", "input": "", "output": "a"}, "alpaca"),
        ({"text": "q", "id": 3}, "text"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_format_is_told_by_its_columns(record: dict[str, Any], form: str) -> None:
    found, reason = detect_format([record, {**record, "more": 1}], {})
    assert found == form
    assert reason.startswith("every one of the first 2 rows has ")


def test_renamed_columns_count_for_the_format() -> None:
    rows = [{"question": "q", "answer": "a"}]
    assert detect_format(rows, {"prompt": "question", "completion": "answer"})[0] == "prompt_completion"


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        ([{"q": 1, "b": 2}], "columns are b, q"),
        ([{"text": "a"}, {"other": "b"}], "columns are none in common"),
        ([], "columns are none in common"),
    ],
    ids=["unknown", "mixed", "none"],
)
def test_columns_of_no_format_are_named(rows: list[dict[str, Any]], columns: str) -> None:
    with pytest.raises(DataError, match=columns) as caught:
        detect_format(rows, {})
    assert "name the columns, such as columns: {prompt: question, completion: answer}" in str(caught.value)


@pytest.mark.parametrize(
    ("record", "form", "columns"),
    [
        ({"messages": TURN}, "messages", {}),
        ({"chat": TURN}, "messages", {"messages": "chat"}),
        ({"prompt": "q", "completion": "a"}, "prompt_completion", {}),
        ({"question": "q", "label": "a"}, "prompt_completion", {"prompt": "question", "completion": "label"}),
        ({"instruction": "q", "input": " ", "output": "a"}, "alpaca", {}),
        ({"instruction": "q", "output": "a"}, "alpaca", {}),
    ],
)
def test_each_format_gives_the_same_conversation(
    record: dict[str, Any], form: str, columns: dict[str, str]
) -> None:
    assert to_messages(record, form, columns, None) == TURN


def test_an_alpaca_input_follows_its_instruction() -> None:
    record = {"instruction": "add", "input": "1 2", "output": "3"}
    assert to_messages(record, "alpaca", {}, None)[0] == {"role": "user", "content": "add\n\n1 2"}


def test_a_system_message_comes_first_and_the_rows_own_is_preferred() -> None:
    row = {"messages": TURN}
    assert to_messages(row, "messages", {}, "kind")[0] == {"role": "system", "content": "kind"}
    assert to_messages({**row, "system": "own"}, "messages", {}, "kind")[0]["content"] == "own"
    first = [{"role": "system", "content": "first"}, *TURN]
    assert to_messages({"messages": first}, "messages", {}, "kind") == first


def test_messages_keep_their_role_and_content_alone() -> None:
    extra = [{**message, "name": "x", "weight": 1} for message in TURN]
    assert to_messages({"messages": extra}, "messages", {}, None) == TURN


def test_numbers_become_text_and_text_stays_as_it_is() -> None:
    record = {"prompt": "007", "completion": 7}
    assert [m["content"] for m in to_messages(record, "prompt_completion", {}, None)] == ["007", "7"]
    assert to_text({"text": " 1.50 "}, {}) == " 1.50 "


def test_lists_of_words_are_joined() -> None:
    record = {"tokens": ["I", "am"], "tags": ["O", "B-x"]}
    columns = {"prompt": "tokens", "completion": "tags"}
    assert [m["content"] for m in to_messages(record, "prompt_completion", columns, None)] == [
        "I am",
        "O B-x",
    ]


@pytest.mark.parametrize(
    ("record", "form", "words"),
    [
        ({"prompt": "q"}, "prompt_completion", "column `completion` is missing"),
        ({"prompt": "q", "completion": None}, "prompt_completion", "column `completion` is missing"),
        ({"prompt": "q", "completion": " \n"}, "prompt_completion", "column `completion` is empty"),
        ({"prompt": True, "completion": "a"}, "prompt_completion", "column `prompt` is bool"),
        ({"prompt": {"a": 1}, "completion": "a"}, "prompt_completion", "column `prompt` is dict"),
        ({"prompt": ["a", 1], "completion": "a"}, "prompt_completion", "column `prompt` is list"),
        ({"instruction": "q", "input": 3, "output": "a"}, "alpaca", "`input` is int, not text"),
        ({}, "messages", "`messages` is not a list of messages"),
        ({"messages": []}, "messages", "`messages` is not a list of messages"),
        ({"messages": "hello"}, "messages", "`messages` is not a list of messages"),
        ({"messages": ["hello"]}, "messages", "message 0 is str, not an object"),
        ({"messages": [{"role": "user"}]}, "messages", "message 0 has no text under `role` and `content`"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages", r"message 0 \(user\) is empty"),
        ({"messages": TURN[:1]}, "messages", "does not end with an assistant message"),
        ({"text": "q"}, "text", "format text does not hold conversations"),
    ],
)
def test_a_row_that_is_no_conversation_says_why(record: dict[str, Any], form: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        to_messages(record, form, {}, None)


def test_the_key_of_a_content_ignores_white_space_and_unicode_forms_alone() -> None:
    key = content_key("caf\u00e9 au lait")
    assert content_key(" cafe\u0301  au\nlait ") == key
    assert content_key("Caf\u00e9 au lait") != key
    assert content_key(TURN) == content_key([{**m, "content": f" {m['content']}\n"} for m in TURN])


def test_the_key_of_a_conversation_knows_who_said_what() -> None:
    swapped = [{"role": "assistant", "content": "q"}, {"role": "user", "content": "a"}]
    joined = [{"role": "user", "content": "q assistant a"}]
    assert len({content_key(TURN), content_key(swapped), content_key(joined)}) == 3
