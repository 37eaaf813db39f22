"""What counts as right, and that counts add exactly."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.config import BuiltinSource, TaskConfig
from tunewright.errors import EvaluateError
from tunewright.evaluate.metrics import Scores, is_right, parse_json, same_json, score, wilson_interval
from tunewright.evaluate.tasks import Task, task_from_messages

RECORD = {"intent": "billing", "product": "router", "order": None}
SOURCE = BuiltinSource(type="builtin")


def json_task(*expected: object) -> Task:
    chats = [
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": json.dumps(value)}]
        for value in expected
    ]
    return task_from_messages(TaskConfig(name="desk", source=SOURCE, answer="json"), chats)


def text_task(*expected: str) -> Task:
    return Task("chat", "text", [[{"role": "user", "content": "q"}]] * len(expected), list(expected), 8)


@pytest.mark.parametrize(
    ("expected", "answer", "right"),
    [
        ('{"a":1,"b":null}', ' {"b": null, "a": 1}\n', True),
        ('{"a":1}', '{"a":1.0}', True),
        ('{"a":1}', '{"a":true}', False),
        ('{"a":0}', '{"a":false}', False),
        ("[1,[true]]", "[1,[1]]", False),
        ("[1,2]", "[2,1]", False),
        ('{"a":1}', '{"a":1,"b":2}', False),
        ('{"a":null}', "{}", False),
        ('{"a":1}', '{"a":1} and more', False),
        ('{"a":1}', '```json\n{"a":1}\n```', False),
        ('{"a":1}', '{"a":2,"a":1}', False),
        ("null", "", False),
        ("null", "null", True),
    ],
)
def test_json_answers_are_compared_as_values(expected: str, answer: str, right: bool) -> None:
    assert is_right(Task("t", "json", [], [], 8), expected, answer) is right


@pytest.mark.parametrize("text", ["", "{", "NaN", "[Infinity]", "9" * 5000, "[" * 100_000, '{"a":1,"a":1}'])
def test_what_is_no_json_parses_to_none(text: str) -> None:
    assert parse_json(text) is None


def test_text_answers_ignore_surrounding_white_space_only() -> None:
    task = text_task("an answer")
    assert is_right(task, "an answer", "  an answer\n")
    assert not is_right(task, "an answer", "an  answer")
    assert not is_right(task, "an answer", "An answer")


def test_fields_are_counted_where_they_are_expected() -> None:
    task = json_task(RECORD, {"intent": "refund"}, RECORD)
    answers = [json.dumps({**RECORD, "product": "tablet"}), '{"intent":"refund"}', "no json"]
    scores = score(task, answers)
    assert (scores.n, scores.exact, scores.valid_json) == (3, 1, 2)
    assert scores.fields == {"intent": (2, 3), "product": (0, 2), "order": (1, 2)}
    assert scores.field_accuracy["intent"] == 2 / 3


def test_a_missing_field_is_not_a_null_field() -> None:
    scores = score(json_task(RECORD), ['{"intent":"billing","product":"router"}'])
    assert scores.fields["order"] == (0, 1)


def test_an_answer_that_is_no_object_has_all_fields_wrong() -> None:
    scores = score(json_task(RECORD), ['["intent"]'])
    assert scores.valid_json == 1
    assert scores.fields == {"intent": (0, 1), "product": (0, 1), "order": (0, 1)}


@given(
    answers=st.lists(st.sampled_from(["broken", '{"a":1}', '{"a":2,"b":3}', "[]"]), min_size=1, max_size=30),
    workers=st.integers(1, 5),
)
def test_scores_of_workers_add_up_to_the_score_of_all(answers: list[str], workers: int) -> None:
    expected = [{"a": 1} if i % 3 else {"a": 2, "b": 3} for i in range(len(answers))]
    task = json_task(*expected)
    parts = [score(task.shard(rank, workers), answers[rank::workers]) for rank in range(workers)]
    assert sum(parts[1:], parts[0]) == score(task, answers)


def test_scores_of_different_kinds_do_not_add() -> None:
    with pytest.raises(EvaluateError, match="cannot be added"):
        _ = Scores(1, 1) + Scores(1, 1, valid_json=1)


def test_no_rows_have_no_exact_match() -> None:
    with pytest.raises(EvaluateError, match="no row was scored"):
        _ = Scores(0, 0).exact_match


def test_a_missing_answer_is_an_error_not_a_wrong_answer() -> None:
    with pytest.raises(EvaluateError, match="task chat: 1 answers for 2 rows"):
        score(text_task("a", "b"), ["a"])


def test_wilson_interval_matches_published_values() -> None:
    low, high = wilson_interval(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)


@pytest.mark.parametrize("n", [1, 7, 200])
def test_interval_stays_within_0_and_1_and_holds_the_share(n: int) -> None:
    for right in range(n + 1):
        low, high = wilson_interval(right, n)
        assert 0 <= low <= right / n <= high <= 1
        assert high - low > 0
    assert wilson_interval(n, n)[1] == 1 and wilson_interval(0, n)[0] == 0


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x, max_size=3)))
def test_every_json_value_equals_itself_after_a_round_trip(value: object) -> None:
    parsed = parse_json(json.dumps(value))
    assert parsed is not None and same_json(value, parsed.value)


def test_interval_narrows_as_rows_grow() -> None:
    widths = [high - low for low, high in (wilson_interval(n // 2, n) for n in (10, 100, 1000))]
    assert widths == sorted(widths, reverse=True)
    assert math.isclose(widths[0] / widths[2], 10, rel_tol=0.2)
