"""Rows of each format become the same examples, and a row that cannot says why."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.config.sources import RowFormat
from tunewright.data.records import (
    content_key,
    example_texts,
    from_payload,
    map_texts,
    payload,
    question_and_answer,
    renamed,
    to_example,
)
from tunewright.data.rows import Example
from tunewright.errors import DataError

TURN = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SAID = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": {"order": "TW-1"}}}
CALLED: list[dict[str, Any]] = [
    {"role": "user", "content": "where is TW-1?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "on its way", "tool_call_id": "c1"},
    {"role": "assistant", "content": "It is on its way."},
]
SWAPPED = {"prompt": "completion", "completion": "prompt"}
TOOL = {"type": "function", "function": {"name": "find", "description": "Finds an order", "parameters": {}}}
FORMATS = [form for form in RowFormat.__args__ if form != "auto"]  # type: ignore[attr-defined]


def messages_of(record: dict[str, Any], form: str, columns: Any = None, system: str | None = None) -> Any:
    example = to_example(record, form, columns or {}, system)
    assert example.task == "conversation"
    return example.content["messages"]


@pytest.mark.parametrize(
    ("record", "form", "columns"),
    [
        ({"messages": TURN}, "messages", {}),
        ({"messages": json.dumps(TURN)}, "messages", {}),
        ({"chat": TURN}, "messages", {"messages": "chat"}),
        ({"conversations": TURN}, "messages", {}),
        ({"conversations": SAID}, "sharegpt", {}),
        ({"conversation": SAID}, "sharegpt", {}),
        ({"prompt": "q", "completion": "a"}, "prompt_completion", {}),
        ({"prompt": TURN[:1], "completion": TURN[1:]}, "prompt_completion", {}),
        ({"question": "q", "label": "a"}, "prompt_completion", {"prompt": "question", "completion": "label"}),
        ({"completion": "q", "prompt": "a"}, "prompt_completion", SWAPPED),
        ({"instruction": "q", "input": " ", "output": "a"}, "alpaca", {}),
        ({"instruction": "q", "output": "a", "history": []}, "alpaca", {}),
    ],
)
def test_each_format_gives_the_same_conversation(
    record: dict[str, Any], form: str, columns: dict[str, str]
) -> None:
    assert messages_of(record, form, columns) == TURN


def test_an_alpaca_row_has_its_input_after_the_instruction_and_its_history_before() -> None:
    record = {"instruction": "add", "input": "1 2", "output": "3", "history": [["hi", "hello"]]}
    assert [m["content"] for m in messages_of(record, "alpaca")] == ["hi", "hello", "add\n\n1 2", "3"]


def test_a_system_message_comes_first_and_the_rows_own_is_preferred() -> None:
    row = {"messages": TURN}
    assert messages_of(row, "messages", system="kind")[0] == {"role": "system", "content": "kind"}
    assert messages_of({**row, "system": "own"}, "messages", system="kind")[0]["content"] == "own"
    assert messages_of({**row, "system": " "}, "messages", system="kind")[0]["content"] == "kind"
    for role in ("system", "developer"):
        first = [{"role": role, "content": "first"}, *TURN]
        assert messages_of({"messages": first}, "messages", system="kind") == first


def test_a_column_that_was_renamed_is_not_read_under_its_old_name() -> None:
    record = {"system": "q", "completion": "a"}
    assert messages_of(record, "prompt_completion", {"prompt": "system"}) == TURN
    assert renamed(record, {"prompt": "system"})["system"] == "q"


def test_numbers_become_text_and_text_stays_as_it_is() -> None:
    record = {"prompt": "007", "completion": 7}
    assert [m["content"] for m in messages_of(record, "prompt_completion")] == ["007", "7"]
    assert to_example({"text": " 1.50 "}, "text", {}, None).content == {"text": " 1.50 "}


def test_lists_of_words_are_joined() -> None:
    columns = {"prompt": "tokens", "completion": "tags"}
    record = {"tokens": ["I", "am"], "tags": ["O", "B-x"]}
    assert [m["content"] for m in messages_of(record, "prompt_completion", columns)] == ["I am", "O B-x"]


def test_text_that_looks_like_json_stays_text_where_text_is_expected() -> None:
    answer = '[{"role": "user", "content": "x"}]'
    assert messages_of({"prompt": "q", "completion": answer}, "prompt_completion")[1]["content"] == answer


def test_content_in_parts_is_joined() -> None:
    parts = [{"type": "text", "text": "one "}, "two ", {"type": "text", "value": "three"}]
    assert messages_of({"messages": [{"role": "user", "content": parts}, TURN[1]]}, "messages")[0] == {
        "role": "user",
        "content": "one two three",
    }


@pytest.mark.parametrize("arguments", [{"order": "TW-1"}, '{"order": "TW-1"}'], ids=["object", "text"])
@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)], TOOL, [TOOL["function"]]])
def test_tools_and_calls_have_one_shape_however_they_are_written(tools: Any, arguments: Any) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": arguments}}
    messages = [CALLED[0], {"role": "assistant", "content": None, "tool_calls": [call]}, *CALLED[2:]]
    example = to_example({"messages": messages, "tools": tools}, "messages", {}, None)
    assert example.content == {"messages": CALLED, "tools": [TOOL]}


@pytest.mark.parametrize("nothing", [None, [], "", "[]", " "])
def test_no_tools_are_no_tools(nothing: Any) -> None:
    assert to_example({"messages": TURN, "tools": nothing}, "messages", {}, None).content == {
        "messages": TURN
    }


def test_sharegpts_calls_and_observations_become_tool_messages() -> None:
    turns = [
        {"from": "human", "value": "where is TW-1?"},
        {"from": "function_call", "value": '{"name": "find", "arguments": {"order": "TW-1"}}'},
        {"from": "observation", "value": "on its way"},
        {"from": "gpt", "value": "It is on its way."},
    ]
    found = messages_of({"conversations": turns}, "sharegpt")
    assert [m["role"] for m in found] == ["user", "assistant", "tool", "assistant"]
    assert found[1]["tool_calls"][0]["function"] == CALL["function"]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_what_the_assistant_thought_is_kept_and_is_text_like_any_other(field: str) -> None:
    example = to_example({"messages": [TURN[0], {**TURN[1], field: "hm"}]}, "messages", {}, None)
    assert example.content["messages"][1] == {**TURN[1], "reasoning_content": "hm"}
    assert example_texts(example) == ["q", "hm", "a"]
    assert map_texts(example, str.upper).content["messages"][1]["reasoning_content"] == "HM"
    assert content_key(example) != content_key(to_example({"messages": TURN}, "messages", {}, None))


def test_a_tool_may_answer_nothing() -> None:
    messages = [*CALLED[:2], {"role": "tool", "content": ""}, CALLED[3]]
    assert messages_of({"messages": messages}, "messages") == messages


def test_a_call_of_2023_is_a_tool_call() -> None:
    old = {
        "role": "assistant",
        "content": None,
        "function_call": {"name": "find", "arguments": '{"order": "TW-1"}'},
    }
    back = {"role": "function", "name": "find", "content": "on its way"}
    found = messages_of({"messages": [CALLED[0], old, back, CALLED[3]]}, "messages")
    assert found[1]["tool_calls"][0]["function"] == CALL["function"]
    assert found[2] == {"role": "tool", "content": "on its way", "name": "find"}


@pytest.mark.parametrize("mark", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss_weight": 0}])
def test_a_message_of_weight_0_is_marked_and_one_of_weight_1_is_not(mark: dict[str, Any]) -> None:
    full = {name: 1 - value for name, value in mark.items()}
    messages = [TURN[0], {**TURN[1], **mark}, {**TURN[0], **full}, {**TURN[1], **full}]
    assert messages_of({"messages": messages}, "messages") == [TURN[0], {**TURN[1], "weight": 0}, *TURN]


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"instruction": "q", "chosen": "a", "rejected": "b"},
        {"prompt": TURN[:1], "chosen": TURN[1], "rejected": [{"role": "assistant", "content": "b"}]},
        {"chosen": TURN, "rejected": [TURN[0], {"role": "assistant", "content": "b"}]},
        {"prompt": "q", "chosen": TURN, "rejected": [TURN[0], {"role": "assistant", "content": "b"}]},
        {"conversations": SAID[:1], "chosen": SAID[1], "rejected": {"from": "gpt", "value": "b"}},
    ],
)
def test_preferences_have_one_shape_however_they_are_written(record: dict[str, Any]) -> None:
    content = {"messages": TURN[:1], "chosen": TURN[1:], "rejected": [{"role": "assistant", "content": "b"}]}
    assert to_example(record, "preference", {}, None) == Example("preference", content)
    with_system = to_example(record, "preference", {}, "kind").content["messages"]
    assert [m["role"] for m in with_system] == ["system", "user"]


def test_answers_that_begin_alike_differ_from_the_last_question_on() -> None:
    other = [*TURN, {"role": "user", "content": "more"}, {"role": "assistant", "content": "b"}]
    content = to_example({"chosen": [*other[:3], TURN[1]], "rejected": other}, "preference", {}, None).content
    assert (content["messages"], content["chosen"]) == (other[:3], TURN[1:])


@pytest.mark.parametrize(
    ("label", "good"), [(True, True), (False, False), ("true", True), ("FALSE", False), (1, True), (0, False)]
)
def test_kto_rows_have_a_label(label: Any, good: bool) -> None:
    for row in ({"prompt": "q", "completion": "a"}, {"messages": TURN}, {"instruction": "q", "output": "a"}):
        for column in ("label", "kto_tag"):
            example = to_example({**row, column: label}, "kto", {}, None)
            assert example == Example("kto", {"messages": TURN, "label": good})


@pytest.mark.parametrize(("label", "name"), [("refund", "refund"), (3, "3"), (3.0, "3"), (False, "false")])
def test_a_class_is_named_by_its_label(label: Any, name: str) -> None:
    content = to_example({"text": "t", "label": label}, "classification", {}, None).content
    assert content == {"text": "t", "label": name}


@pytest.mark.parametrize("column", ["tags", "ner_tags"])
@pytest.mark.parametrize("tags", [["O", "B-place", "I-place"], ["DT", "NNP", "NNP"]])
def test_words_keep_their_tags(column: str, tags: list[str]) -> None:
    content = to_example({"tokens": ["in", "San", "Jose"], column: tags}, "tags", {}, None).content
    assert content == {"tokens": ["in", "San", "Jose"], "tags": tags}


def test_tags_that_are_numbers_are_named_by_them() -> None:
    assert to_example({"tokens": ["a", "b"], "tags": [0, 7]}, "tags", {}, None).content["tags"] == ["0", "7"]


def asked(**more: Any) -> dict[str, Any]:
    return {"messages": [TURN[0], {**TURN[1], **more}]}


def called(call: Any) -> dict[str, Any]:
    return asked(tool_calls=[call])


DEEP: Any = "x"
for _ in range(70):
    DEEP = [DEEP]
BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": "q"}, "prompt_completion", "column `completion` is missing"),
    ({"prompt": "q", "completion": None}, "prompt_completion", "column `completion` is missing"),
    ({"prompt": "q", "completion": " \n"}, "prompt_completion", "column `completion` is empty"),
    ({"prompt": "q", "completion": float("nan")}, "prompt_completion", "column `completion` is nan"),
    ({"prompt": True, "completion": "a"}, "prompt_completion", "column `prompt` is bool"),
    ({"prompt": {"a": 1}, "completion": "a"}, "prompt_completion", "column `prompt` is dict"),
    ({"prompt": ["a", 1], "completion": "a"}, "prompt_completion", "column `prompt` is list"),
    ({"instruction": "q", "input": 3, "output": "a"}, "alpaca", "column `input` is int, not text"),
    (
        {"instruction": "q", "output": "a", "history": [["q"]]},
        "alpaca",
        "exchange 0 of `history` is not a question and an answer",
    ),
    ({"instruction": "q", "output": "a", "history": 7}, "alpaca", "`history` is int, not a list"),
    ({}, "messages", "`messages` is missing, not a list"),
    ({"messages": []}, "messages", "`messages` is an empty list"),
    ({"messages": "hello"}, "messages", "`messages` is not JSON"),
    ({"messages": '"hello"'}, "messages", "`messages` is str, not a list"),
    ({"messages": '[{"role": "user", "content": "\\ud800"}]'}, "messages", "half of a surrogate pair"),
    ({"messages": "[" * 100_000}, "messages", "`messages` is n"),
    ({"messages": ["hello"]}, "messages", "message 0 is str, not an object"),
    ({"messages": [{"a": 1}]}, "messages", "message 0 has neither `role` and `content` nor `from`"),
    ({"messages": [{"role": "user"}]}, "messages", r"message 0 \(user\) is empty"),
    ({"messages": [{"role": "user", "content": ""}]}, "messages", r"message 0 \(user\) is empty"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages", "int for its content, not text"),
    ({"messages": [{"role": "bot", "content": "x"}]}, "messages", "has role 'bot'; expected one of system,"),
    ({"messages": [{"role": ["a"], "content": "x"}]}, "messages", "has role .'a'.; expected"),
    ({"messages": [{"from": "bot", "value": "x"}]}, "sharegpt", "has role 'bot'; expected one of human,"),
    ({"messages": TURN[:1]}, "messages", "does not end with an assistant message"),
    (asked(weight=0.5), "messages", "has weight 0.5; 0 and 1 are possible"),
    (asked(weight="1"), "messages", "has weight '1'; 0 and 1 are possible"),
    (asked(weight=1, train=False), "messages", "says two things: weight 1, train False"),
    (asked(weight=0), "messages", "no assistant message with a weight other than 0"),
    (asked(refusal="no"), "messages", "has `refusal`, which .* would be lost"),
    (asked(thinking=["hm"]), "messages", "has reasoning that is not a text of the assistant"),
    ({"messages": [{**TURN[0], "reasoning": "hm"}, TURN[1]]}, "messages", "not a text of the assistant"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "url": "x"}]}, TURN[1]]},
        "messages",
        "has a part of type 'image_url'; only text can be trained on",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}, TURN[1]]},
        "messages",
        "a part of its content without a text",
    ),
    (called("find"), "messages", "tool call 0 is str, not an object"),
    (called({"function": {"arguments": "{}"}}), "messages", "tool call 0 names no function"),
    (called({"function": {"name": "f", "arguments": "{"}}), "messages", "arguments is not JSON"),
    (
        called({"function": {"name": "f", "arguments": "[1]"}}),
        "messages",
        "arguments are list, not an object",
    ),
    (called({"function": {"name": "f", "arguments": {"a": DEEP}}}), "messages", "more than 64 levels deep"),
    (called({"function": {"name": "f", "arguments": '{"a": NaN}'}}), "messages", "holds nan, which JSON"),
    (
        {"messages": [{**TURN[0], "tool_calls": [CALL]}, TURN[1]]},
        "messages",
        r"message 0 \(user\) calls tools; only the assistant may",
    ),
    ({"messages": TURN, "tools": "x"}, "messages", "`tools` is not JSON"),
    ({"messages": TURN, "tools": [3]}, "messages", "tool 0 is int, not an object"),
    ({"messages": TURN, "tools": [{"type": "function"}]}, "messages", "tool 0 has no name"),
    ({"prompt": "q", "chosen": "a", "rejected": "a"}, "preference", "chosen and rejected are the same"),
    ({"prompt": "q", "chosen": "a", "rejected": ""}, "preference", "column `rejected` is empty"),
    ({"chosen": "a", "rejected": "b"}, "preference", "there is no question"),
    ({"prompt": TURN, "chosen": "a", "rejected": "b"}, "preference", "ends with an assistant message"),
    (
        {"prompt": "other", "chosen": TURN, "rejected": [TURN[0], {"role": "assistant", "content": "b"}]},
        "preference",
        "do not both begin with the question beside them",
    ),
    ({"chosen": TURN[:1], "rejected": TURN}, "preference", "`chosen` is only the beginning of the other"),
    (
        {"chosen": TURN, "rejected": [TURN[0], {"role": "tool", "content": "x"}]},
        "preference",
        "`rejected` does not begin with an assistant message",
    ),
    ({"messages": TURN}, "kto", "`label` is missing; a KTO row needs true"),
    ({"messages": TURN, "label": "good"}, "kto", "`label` is 'good'; a KTO row needs true"),
    ({"messages": [*TURN, *asked(weight=0)["messages"]], "label": 1}, "kto", "the last answer has weight 0"),
    ({"text": "t"}, "classification", "column `label` is missing"),
    ({"text": "t", "label": " "}, "classification", "column `label` is empty"),
    ({"text": "t", "label": 0.5}, "classification", "column `label` is 0.5; a class is"),
    ({"text": "t", "label": ["a"]}, "classification", "column `label` is list; a class is"),
    ({"text": "", "label": "a"}, "classification", "column `text` is empty"),
    ({"tokens": ["a"]}, "tags", "`tags` is missing, not a list"),
    ({"tokens": [], "tags": []}, "tags", "`tokens` is an empty list"),
    ({"tokens": ["a"], "tags": ["O", "O"]}, "tags", "1 tokens have 2 tags"),
    ({"tokens": ["a", " "], "tags": ["O", "O"]}, "tags", "token 1 is empty"),
    ({"tokens": ["a", 3], "tags": ["O", "O"]}, "tags", "token 1 is int, not text"),
    ({"tokens": ["a", "b"], "tags": ["O", 3]}, "tags", "the tags are of several types"),
    ({"tokens": ["a"], "tags": [None]}, "tags", r"column `tags.0.` is missing"),
    ({"tokens": ["a"], "tags": ["I-x"]}, "tags", "tag 0 is I-x after nothing; in BIO it must follow B-x or"),
    ({"tokens": ["a", "b"], "tags": ["O", "I-x"]}, "tags", "tag 1 is I-x after O"),
    ({"tokens": ["a", "b"], "tags": ["B-y", "I-x"]}, "tags", "tag 1 is I-x after B-y"),
]


@pytest.mark.parametrize(("record", "form", "words"), BAD)
def test_a_row_that_is_no_example_says_why(record: dict[str, Any], form: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        to_example(record, form, {}, None)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.sampled_from(["", "a", "user", "[]"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "from", "value", "tool_calls", "function", "name", "arguments"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
COLUMNS = ["messages", "conversations", "prompt", "completion", "instruction", "input", "output", "history"]
COLUMNS += ["text", "label", "kto_tag", "tokens", "tags", "chosen", "rejected", "system", "tools"]


@settings(max_examples=100)
@given(
    row=st.dictionaries(st.sampled_from(COLUMNS), json_values, max_size=5),
    messages=st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant", "tool"]), "content": json_values},
            optional={"tool_calls": json_values, "weight": json_values},
        ),
        max_size=3,
    ),
)
def test_any_row_is_an_example_or_says_why_it_is_none(
    row: dict[str, Any], messages: list[dict[str, Any]]
) -> None:
    for record in (row, {**row, "messages": messages}, {**row, "chosen": messages}):
        for form in FORMATS:
            try:
                example = to_example(record, form, {}, None)
            except DataError as error:
                assert str(error)
            else:
                assert from_payload(payload(example)) == example
                assert len(content_key(example)) == 32


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
leaves = st.dictionaries(words, words | st.integers() | st.lists(words, max_size=2), max_size=3)
calls = st.lists(
    st.builds(
        lambda name, arguments: {"type": "function", "function": {"name": name, "arguments": arguments}},
        words,
        leaves,
    ),
    min_size=1,
    max_size=2,
)
user = st.fixed_dictionaries({"role": st.just("user"), "content": words})
assistant = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": words}, optional={"tool_calls": calls, "weight": st.just(0)}
)
tools = st.lists(
    st.builds(
        lambda name, text: {"type": "function", "function": {"name": name, "description": text}}, words, words
    ),
    min_size=1,
    max_size=2,
)
chats = st.lists(user | assistant, min_size=1, max_size=4)
examples = st.one_of(
    st.builds(
        Example,
        st.just("conversation"),
        st.fixed_dictionaries({"messages": chats}, optional={"tools": tools}),
    ),
    st.builds(Example, st.just("kto"), st.fixed_dictionaries({"messages": chats, "label": st.booleans()})),
    st.builds(
        Example,
        st.just("preference"),
        st.fixed_dictionaries({"messages": chats, "chosen": chats, "rejected": chats}),
    ),
    st.builds(Example, st.just("text"), st.fixed_dictionaries({"text": words})),
    st.builds(Example, st.just("classification"), st.fixed_dictionaries({"text": words, "label": words})),
    st.lists(st.tuples(words, st.sampled_from(["O", "B-x"])), min_size=1, max_size=4).map(
        lambda pairs: Example("tags", {"tokens": [p[0] for p in pairs], "tags": [p[1] for p in pairs]})
    ),
)


@settings(max_examples=100)
@given(example=examples)
def test_a_payload_is_the_example(example: Example) -> None:
    text = payload(example)
    assert "\n" not in text
    assert from_payload(text) == example
    assert payload(from_payload(text)) == text


@settings(max_examples=100)
@given(example=examples)
def test_mapping_texts_to_themselves_is_the_same_object(example: Example) -> None:
    assert map_texts(example, lambda text: text) is example


@settings(max_examples=100)
@given(example=examples)
def test_mapping_reaches_every_text_and_leaves_the_original(example: Example) -> None:
    before, seen = payload(example), []
    mapped = map_texts(example, lambda text: seen.append(text) or "X")
    assert payload(example) == before
    assert set(" ".join(example_texts(mapped)).split()) <= {"X"}
    assert len(example_texts(mapped)) == len(example_texts(example))
    if example.task == "tags":
        assert mapped.content["tokens"] == ["X"] * len(example.content["tags"])
    else:
        assert set(example_texts(example)) <= set(seen)


@settings(max_examples=100)
@given(example=examples)
def test_the_key_ignores_white_space_alone(example: Example) -> None:
    key = content_key(example)
    if example.task != "tags":  # a token is a word
        assert content_key(map_texts(example, lambda text: f" {text}\n\n")) == key
    changed = map_texts(example, lambda text: f"{text}x")
    assert content_key(changed) != key


def test_mapping_leaves_names_roles_and_numbers_and_reaches_descriptions() -> None:
    content = {"messages": CALLED, "tools": [TOOL]}
    mapped = map_texts(Example("conversation", content), str.upper).content
    assert mapped["messages"][1]["tool_calls"][0] == {
        **CALL,
        "function": {"name": "find", "arguments": {"order": "TW-1"}},
    }
    assert mapped["messages"][3] == {"role": "assistant", "content": "IT IS ON ITS WAY."}
    assert mapped["tools"][0]["function"] == {
        "name": "find",
        "description": "FINDS AN ORDER",
        "parameters": {},
    }
    assert mapped["tools"][0]["type"] == "function"


def test_the_texts_of_an_example_are_all_that_is_said_in_it() -> None:
    texts = example_texts(Example("conversation", {"messages": CALLED, "tools": [TOOL]}))
    assert texts == ["where is TW-1?", "TW-1", "on its way", "It is on its way."]
    pair = Example("preference", {"messages": TURN[:1], "chosen": TURN[1:], "rejected": CALLED[3:]})
    assert example_texts(pair) == ["q", "a", "It is on its way."]


def test_the_question_is_what_stands_before_the_answer() -> None:
    def parts(record: dict[str, Any], form: str) -> tuple[str, str]:
        return question_and_answer(to_example(record, form, {}, None))

    assert parts({"messages": CALLED}, "messages") == (
        "where is TW-1?\nTW-1\non its way",
        "It is on its way.",
    )
    assert parts({"messages": CALLED[:2]}, "messages") == ("where is TW-1?", "find\nTW-1")
    assert parts({"prompt": "q", "chosen": "good", "rejected": "bad"}, "preference") == ("q", "good")
    assert parts({"text": "t", "label": "c"}, "classification") == ("", "t")
    assert parts({"tokens": ["a", "b"], "tags": ["O", "O"]}, "tags") == ("", "a b")


def test_the_key_of_a_content_ignores_unicode_forms() -> None:
    def key(text: str) -> str:
        return content_key(Example("text", {"text": text}))

    assert key("caf\u00e9 au lait") == key(" cafe\u0301  au\nlait ")
    assert key("caf\u00e9 au lait") != key("Caf\u00e9 au lait")


def test_the_key_knows_who_said_what_and_with_which_tools_and_label() -> None:
    swapped = [{"role": "assistant", "content": "q"}, {"role": "user", "content": "a"}]
    joined = [{"role": "user", "content": "q assistant a"}]
    call = [{**TURN[0]}, {**TURN[1], "tool_calls": [CALL]}]
    contents = [{"messages": m} for m in (TURN, swapped, joined, call)] + [
        {"messages": TURN, "tools": [TOOL]}
    ]
    keys = {content_key(Example("conversation", content)) for content in contents}
    keys |= {content_key(Example("kto", {"messages": TURN, "label": label})) for label in (True, False)}
    keys |= {content_key(Example("classification", {"text": "q", "label": label})) for label in ("a", "b")}
    assert len(keys) == 9


def test_the_key_ignores_ids_of_calls_weights_and_the_order_of_arguments() -> None:
    def chat(**more: Any) -> Example:
        arguments = {"b": "2", "a": "1"} if more else {"a": "1", "b": "2"}
        call = {"type": "function", "function": {"name": "find", "arguments": arguments}}
        message = {"role": "assistant", "content": "", "tool_calls": [{**call, **more}]}
        return Example(
            "conversation", {"messages": [TURN[0], message, {**TURN[1], **({"weight": 0} if more else {})}]}
        )

    assert content_key(chat()) == content_key(chat(id="c7"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"task": "poem"}', '{"messages": []}'])
def test_what_is_no_payload_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="not an example of a prepared data set|an example has task 'poem'"):
        from_payload(text)
