"""A row's format is told from its columns and what they hold; what could be two things must be stated."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tunewright.data.formats.detect import detect_format
from tunewright.data.records import to_example
from tunewright.errors import DataError

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
TURN = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SAID = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
ANSWER, WORSE = {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}

DETECTED: list[tuple[dict[str, Any], str]] = [
    ({"messages": TURN, "text": "other"}, "messages"),
    ({"messages": json.dumps(TURN)}, "messages"),
    ({"conversations": TURN}, "messages"),
    ({"messages": TURN, "label": "harmless"}, "messages"),
    ({"conversations": SAID, "system": "s"}, "sharegpt"),
    ({"conversation": SAID}, "sharegpt"),
    ({"messages": SAID}, "sharegpt"),
    ({"prompt": "q", "completion": "a"}, "prompt_completion"),
    ({"prompt": TURN[:1], "completion": TURN[1:]}, "prompt_completion"),
    ({"prompt": "q", "completion": "[1, 2]"}, "prompt_completion"),
    ({"instruction": "q", "input": "", "output": "a"}, "alpaca"),
    ({"text": "q", "id": 3}, "text"),
    ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preference"),
    ({"chosen": TURN, "rejected": [TURN[0], WORSE]}, "preference"),
    ({"conversations": SAID[:1], "chosen": SAID[1], "rejected": SAID[1]}, "preference"),
    ({"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}, "preference"),
    ({"prompt": "q", "completion": "a", "label": True}, "kto"),
    ({"prompt": "q", "completion": "a", "label": "False"}, "kto"),
    ({"messages": TURN, "label": False}, "kto"),
    ({"conversations": SAID, "kto_tag": True}, "kto"),
    ({"text": "q", "label": "refund"}, "classification"),
    ({"text": "q", "label": 3}, "classification"),
    ({"text": "q", "label": True}, "classification"),
    ({"tokens": ["I", "am"], "ner_tags": ["O", "O"]}, "tags"),
    ({"tokens": ["I", "am"], "tags": [0, 1], "text": "I am"}, "tags"),
    ({"tokens": '["I", "am"]', "tags": '["O", "O"]'}, "tags"),
]


@pytest.mark.parametrize(("record", "form"), DETECTED, ids=lambda v: v if isinstance(v, str) else "")
def test_a_format_is_told_by_its_columns(record: dict[str, Any], form: str) -> None:
    found, reason = detect_format([record, {**record, "more": 1}], {})
    assert found == form
    assert reason.startswith("the first 2 rows have ")
    assert any(f" {column}" in reason for column in record)


def test_the_reason_names_the_columns_that_are_not_used() -> None:
    rows = [{"messages": TURN, "services": ["a"], "dialogue_id": "7"}]
    assert detect_format(rows, {}) == (
        "messages",
        "the first 1 rows have messages; its items have role and content; not used: dialogue_id, services",
    )


@pytest.mark.parametrize(
    ("record", "columns", "form"),
    [
        (
            {"question": "q", "answer": "a"},
            {"prompt": "question", "completion": "answer"},
            "prompt_completion",
        ),
        ({"text": "q", "category": "c"}, {"label": "category"}, "classification"),
        ({"text": "q", "label": "c"}, {"prompt": "text", "completion": "label"}, "prompt_completion"),
        ({"tokens": ["a"], "tags": ["O"]}, {"prompt": "tokens", "completion": "tags"}, "prompt_completion"),
        (
            {"q": "q", "good": "a", "bad": "b"},
            {"prompt": "q", "chosen": "good", "rejected": "bad"},
            "preference",
        ),
    ],
)
def test_a_column_counts_under_the_name_that_it_is_given(
    record: dict[str, Any], columns: dict[str, str], form: str
) -> None:
    assert detect_format([record], columns)[0] == form
    assert to_example(record, form, columns, None).content


def test_a_few_bad_rows_do_not_hide_the_format() -> None:
    rows: list[dict[str, Any]] = [{"prompt": "q", "completion": "a"}] * 19
    assert detect_format([*rows, {"text": "stray"}], {})[0] == "prompt_completion"
    assert detect_format([*rows, {"prompt": None, "completion": 3}], {})[0] == "prompt_completion"
    turns: list[dict[str, Any]] = [
        {"messages": TURN},
        {"messages": []},
        {"messages": TURN},
        {"messages": "x"},
    ]
    assert detect_format(turns, {})[0] == "messages"


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"prompt": "q", "completion": "a", "label": 1}, "format: kto.*format: prompt_completion"),
        ({"messages": TURN, "label": 0}, "format: kto.*format: messages"),
        ({"prompt": "q", "completion": "a", "instruction": "q", "output": "a"}, "prompt_completion.*alpaca"),
        ({"text": "q", "category": "c"}, r"format: text.*columns: \{label: category\}"),
        ({"text": "q", "label": {"a": 1}}, "a label that is other"),
        ({"chosen": "a", "rejected": "b"}, r"no question.*columns: \{prompt: question\}"),
    ],
)
def test_rows_that_may_be_two_things_must_be_stated(record: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        detect_format([record], {})


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        ([{"q": "a", "b": 2}], r"columns are b \(number\), q \(text\)"),
        ([{"text": "a"}, {"other": "b"}], "columns are none in common"),
        ([{"messages": "hello"}], r"columns are messages \(text\)"),
        ([{"messages": None, "a": True}], r"columns are a \(bool\)"),
        ([], "columns are none in common"),
    ],
    ids=["unknown", "mixed", "no list", "null", "none"],
)
def test_columns_of_no_format_are_named(rows: list[dict[str, Any]], columns: str) -> None:
    with pytest.raises(DataError, match=columns) as caught:
        detect_format(rows, {})
    assert "name the columns, such as columns: {prompt: question, completion: answer}" in str(caught.value)


QUESTION = {"prompt": "question", "completion": "answer"}
REAL: list[tuple[str, dict[str, str], str]] = [
    ("banking77/train.csv", {"label": "category"}, "classification"),
    ("clinc150/train.jsonl", {}, "classification"),
    ("clinc150/oos_test.jsonl", {}, "classification"),
    ("dolly-open-qa/chat.jsonl", {}, "messages"),
    ("gsm8k/train.jsonl", QUESTION, "prompt_completion"),
    ("mlx-lora-wikisql/wikisql_train.jsonl", {}, "text"),
    ("preference-demo/dpo_en_demo.json", {}, "preference"),
    ("scitldr-a/dev.jsonl", {"prompt": "document", "completion": "summary"}, "prompt_completion"),
    ("self-instruct-seed/alpaca.jsonl", {}, "alpaca"),
    ("sgd-dialogues/dev.jsonl", {}, "messages"),
    ("sharegpt-identity/dummy_conversation.json", {}, "sharegpt"),
    ("sharegpt-identity/messages.jsonl", {}, "messages"),
    ("tatoeba-en-zh/pairs.jsonl", {"prompt": "en", "completion": "zh"}, "prompt_completion"),
    ("wnut17/train.jsonl", {}, "tags"),
    ("wnut17/test.jsonl", {}, "tags"),
]


def real_rows(name: str) -> list[dict[str, Any]]:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"needs the real data in ../shared/data/{name}")
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            return list(csv.DictReader(file))
        return json.load(file) if path.suffix == ".json" else [json.loads(line) for line in file]


@pytest.mark.parametrize(("name", "columns", "form"), REAL, ids=lambda v: v if isinstance(v, str) else "")
def test_every_row_of_a_real_set_is_an_example(name: str, columns: dict[str, str], form: str) -> None:
    rows = real_rows(name)
    assert detect_format(rows[:50], columns)[0] == form
    examples = [to_example(row, form, columns, None) for row in rows]
    assert len(examples) == len(rows) > 90


def test_real_conversations_keep_every_word() -> None:
    rows = real_rows("sharegpt-identity/dummy_conversation.json")
    for row in rows:
        example = to_example(row, "sharegpt", {}, None)
        assert [m["content"] for m in example.content["messages"]] == [
            m["value"] for m in row["conversations"]
        ]
        assert {m["role"] for m in example.content["messages"]} == {"user", "assistant"}
    assert len(rows) == 500


def test_real_preferences_keep_question_and_both_answers() -> None:
    rows = real_rows("preference-demo/dpo_en_demo.json")
    for row in rows:
        content = to_example(row, "preference", {}, None).content
        assert len(content["messages"]) == len(row["conversations"])
        assert content["chosen"] == [{"role": "assistant", "content": row["chosen"]["value"]}]
        assert content["rejected"] == [{"role": "assistant", "content": row["rejected"]["value"]}]
    assert len(rows) == 300
