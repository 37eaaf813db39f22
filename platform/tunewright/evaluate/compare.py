"""A tuned model against its base, row by row, and the gates that its figures must pass."""

from __future__ import annotations

from fractions import Fraction
from typing import TypedDict

from tunewright.config import Gates
from tunewright.errors import EvaluateError
from tunewright.evaluate.suite import SuiteResult, TaskResult


class Comparison(TypedDict):
    """Tuned minus base, and what became of each row; `fixed` is wrong before and right after."""

    exact_match: float
    loss: float | None
    fields: dict[str, float]
    fixed: int
    broken: int
    both_right: int
    both_wrong: int


class Gate(TypedDict):
    """A figure and the least it must be; `name` is `task.gate`."""

    name: str
    value: float
    needed: float
    passed: bool


def compare(base: SuiteResult, tuned: SuiteResult) -> dict[str, Comparison]:
    """Differences of each task.

    Raises:
        EvaluateError: the two were not asked the same rows.
    """
    _same_rows(base, tuned)
    return {name: _compare_task(base[name], tuned[name]) for name in base}


def apply_gates(gates: Gates, base: SuiteResult, tuned: SuiteResult) -> list[Gate]:
    """Every gate of every task; an empty list when no gate is configured.

    Raises:
        EvaluateError: a gate is set but there is no task to measure, or the rows differ.
    """
    _same_rows(base, tuned)
    configured = {name: needed for name, needed in gates if needed is not None}
    if configured and not tuned:
        names = ", ".join(f"evaluate.gates.{name}" for name in configured)
        raise EvaluateError(f"{names} needs something to measure: add a task to evaluate.tasks")
    return [_gate(task, name, needed, base, tuned) for task in tuned for name, needed in configured.items()]


def _gate(task: str, name: str, needed: float, base: SuiteResult, tuned: SuiteResult) -> Gate:
    # Fractions: in floating point, 0.9 - 0.8 misses a gate of 0.1.
    after = Fraction(tuned[task]["exact"], tuned[task]["n"])
    before = Fraction(base[task]["exact"], base[task]["n"])
    value = {"min_exact_match": after, "must_beat_base_by": after - before}[name]
    passed = value >= Fraction(str(needed))
    return {"name": f"{task}.{name}", "value": float(value), "needed": needed, "passed": passed}


def _compare_task(base: TaskResult, tuned: TaskResult) -> Comparison:
    pairs = list(zip(base["right"], tuned["right"], strict=True))
    losses = (base["loss"], tuned["loss"])
    return {
        "exact_match": tuned["exact_match"] - base["exact_match"],
        "loss": None if losses[0] is None or losses[1] is None else losses[1] - losses[0],
        "fields": {name: tuned["fields"][name] - share for name, share in base["fields"].items()},
        "fixed": pairs.count((False, True)),
        "broken": pairs.count((True, False)),
        "both_right": pairs.count((True, True)),
        "both_wrong": pairs.count((False, False)),
    }


def _same_rows(base: SuiteResult, tuned: SuiteResult) -> None:
    if base.keys() != tuned.keys():
        raise EvaluateError(f"base was scored on {sorted(base)}, the tuned model on {sorted(tuned)}")
    for name in base:
        if base[name]["rows"] != tuned[name]["rows"]:
            raise EvaluateError(f"task {name}: base and tuned model were asked different rows")
