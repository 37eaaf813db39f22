"""Conversations become tasks; a bad one is named by its row."""

from __future__ import annotations

import pytest

from tunewright.config import BuiltinSource, TaskConfig
from tunewright.errors import EvaluateError
from tunewright.evaluate.tasks import task_from_messages

TEXT = TaskConfig(name="desk", source=BuiltinSource(type="builtin"), max_rows=2)
JSON = TEXT.model_copy(update={"answer": "json"})


def chat(*turns: str) -> list[dict[str, object]]:
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns]


def test_the_last_assistant_turn_is_expected_and_the_rest_is_asked() -> None:
    full = chat("s:be brief", "u:hello", "a:hi", "u:price?", "a:ten")
    task = task_from_messages(TEXT, [full])
    assert task.prompts == [full[:4]]
    assert task.expected == ["ten"]
    assert task.conversations == [full]


def test_turns_after_the_last_answer_are_left_out() -> None:
    task = task_from_messages(TEXT, [chat("u:price?", "a:ten", "u:thanks")])
    assert task.conversations == [chat("u:price?", "a:ten")]


def test_at_most_max_rows_are_taken() -> None:
    task = task_from_messages(TEXT, [chat("u:q", f"a:{i}") for i in range(5)])
    assert task.expected == ["0", "1"]


def test_shards_hold_every_row_once() -> None:
    config = TEXT.model_copy(update={"max_rows": 10})
    task = task_from_messages(config, [chat("u:q", f"a:{i}") for i in range(10)])
    shards = [task.shard(rank, 3) for rank in range(3)]
    assert sorted(row for shard in shards for row in shard.expected) == task.expected
    assert [len(shard.expected) for shard in shards] == [4, 3, 3]


def test_rows_digest_changes_with_any_row() -> None:
    first = task_from_messages(TEXT, [chat("u:q", "a:1")])
    assert first.rows_digest == task_from_messages(TEXT, [chat("u:q", "a:1")]).rows_digest
    assert first.rows_digest != task_from_messages(TEXT, [chat("u:q", "a:2")]).rows_digest
    assert first.rows_digest != task_from_messages(TEXT, [chat("u:p", "a:1")]).rows_digest


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        (chat("u:q"), "row 2: no assistant message"),
        (chat("a:1"), "row 2: begins with the assistant's answer"),
        (
            [{"role": "user", "content": "q"}, {"role": "assistant", "content": ["x"]}],
            "row 2: .* a list, not text",
        ),
    ],
)
def test_a_row_that_cannot_be_asked_is_named(conversation: list[dict[str, object]], message: str) -> None:
    with pytest.raises(EvaluateError, match=message):
        task_from_messages(TEXT, [chat("u:q", "a:1"), conversation])


def test_a_json_task_needs_json_answers() -> None:
    with pytest.raises(
        EvaluateError, match=r"evaluate task desk, row 1: .*not valid JSON; use `answer: text`"
    ):
        task_from_messages(JSON, [chat("u:q", "a:{broken")])


def test_a_task_without_rows_is_refused() -> None:
    with pytest.raises(EvaluateError, match="task desk: its source has no usable conversation"):
        task_from_messages(TEXT, [])
