"""Paired counts and gates."""

from __future__ import annotations

import json

import pytest

from tunewright.config import Gates
from tunewright.errors import EvaluateError
from tunewright.evaluate.compare import apply_gates, compare
from tunewright.evaluate.suite import SuiteResult, task_result
from tunewright.evaluate.tasks import Task


def result(answers: list[str], loss: float | None = None, expected: str = "a") -> SuiteResult:
    prompts = [[{"role": "user", "content": "q"}]] * len(answers)
    return {"desk": task_result(Task("desk", "text", prompts, [expected] * len(answers), 4), answers, loss)}


def test_each_row_is_counted_once_by_what_became_of_it() -> None:
    found = compare(result(["a", "a", "b", "b", "b"], loss=2.0), result(["a", "b", "a", "a", "b"], loss=0.5))
    desk = found["desk"]
    assert (desk["both_right"], desk["broken"], desk["fixed"], desk["both_wrong"]) == (1, 1, 2, 1)
    assert desk["exact_match"] == pytest.approx(0.2)
    assert desk["loss"] == -1.5


def test_fields_are_compared_by_name() -> None:
    task = Task("desk", "json", [[{"role": "user", "content": "q"}]], ['{"x":1,"y":2}'], 4)
    base = {"desk": task_result(task, ['{"x":1}'])}
    tuned = {"desk": task_result(task, ['{"x":0,"y":2}'])}
    assert compare(base, tuned)["desk"]["fields"] == {"x": -1.0, "y": 1.0}


def test_results_compare_equal_after_a_round_trip_through_json() -> None:
    base, tuned = result(["b", "b"], 1.0), result(["a", "b"], 0.5)
    again = compare(json.loads(json.dumps(base)), json.loads(json.dumps(tuned)))
    assert again == compare(base, tuned)


def test_figures_of_different_rows_are_never_compared() -> None:
    with pytest.raises(EvaluateError, match="task desk: base and tuned model were asked different rows"):
        compare(result(["a"]), result(["a"], expected="b"))
    with pytest.raises(EvaluateError, match="base was scored on"):
        compare({}, result(["a"]))


def test_gates_are_exact_at_their_edge() -> None:
    base, tuned = result(["a"] * 8 + ["b"] * 2), result(["a"] * 9 + ["b"])
    assert 0.9 - 0.8 < 0.1  # what floating point would have decided
    (gate,) = apply_gates(Gates(must_beat_base_by=0.1), base, tuned)
    assert gate == {"name": "desk.must_beat_base_by", "value": 0.1, "needed": 0.1, "passed": True}


def test_a_figure_below_its_gate_does_not_pass() -> None:
    gates = apply_gates(Gates(min_exact_match=0.95, must_beat_base_by=0.2), result(["a"]), result(["a"]))
    assert [(gate["name"], gate["value"], gate["passed"]) for gate in gates] == [
        ("desk.min_exact_match", 1.0, True),
        ("desk.must_beat_base_by", 0.0, False),
    ]


@pytest.mark.parametrize("name", sorted(Gates.model_fields))
def test_every_configurable_gate_is_applied(name: str) -> None:
    (gate,) = apply_gates(Gates.model_validate({name: 0.5}), result(["b"]), result(["a"]))
    assert gate["name"] == f"desk.{name}"


def test_no_gates_is_an_empty_list_and_gates_without_tasks_are_refused() -> None:
    assert apply_gates(Gates(), result(["a"]), result(["a"])) == []
    with pytest.raises(EvaluateError, match=r"evaluate.gates.min_exact_match needs something to measure"):
        apply_gates(Gates(min_exact_match=0.5), {}, {})
