"""Counts of right answers. Only counts are kept, so that scores of several workers add exactly."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from tunewright.errors import EvaluateError

if TYPE_CHECKING:
    from tunewright.evaluate.tasks import Task

# Standard normal quantile of a two-sided 95 % interval.
Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Parsed:
    """A JSON value; the wrapper tells `null` from text that is no JSON."""

    value: Any


@dataclass(frozen=True)
class Scores:
    """How many of `n` answers were right, and how many of each field's.

    Attributes:
        valid_json: answers that parse; None when the task is not about JSON.
        fields: name -> (right, wanted), counted over the rows whose expected answer has the field.
    """

    n: int
    exact: int
    valid_json: int | None = None
    fields: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def __add__(self, other: Scores) -> Scores:
        if (self.valid_json is None) != (other.valid_json is None):
            raise EvaluateError("scores of a json task and of a text task cannot be added")
        valid = None if self.valid_json is None else self.valid_json + (other.valid_json or 0)
        fields = dict(self.fields)
        for name, (right, wanted) in other.fields.items():
            before = fields.get(name, (0, 0))
            fields[name] = (before[0] + right, before[1] + wanted)
        return Scores(self.n + other.n, self.exact + other.exact, valid, fields)

    @property
    def exact_match(self) -> float:
        return self.exact / self._rows

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of exact match."""
        return wilson_interval(self.exact, self._rows)

    @property
    def valid_json_share(self) -> float | None:
        return None if self.valid_json is None else self.valid_json / self._rows

    @property
    def field_accuracy(self) -> dict[str, float]:
        return {name: right / wanted for name, (right, wanted) in self.fields.items()}

    @property
    def _rows(self) -> int:
        if not self.n:
            raise EvaluateError("no row was scored, so there is no share of right answers")
        return self.n


def score(task: Task, answers: Sequence[str]) -> Scores:
    """Counts for one answer to each of the task's rows.

    Raises:
        EvaluateError: not as many answers as rows.
    """
    if len(answers) != len(task.expected):
        raise EvaluateError(f"task {task.name}: {len(answers)} answers for {len(task.expected)} rows")
    right = sum(is_right(task, e, a) for e, a in zip(task.expected, answers, strict=True))
    if task.answer == "text":
        return Scores(len(answers), right)
    total = Scores(0, 0, valid_json=0)
    for expected, answer in zip(task.expected, answers, strict=True):
        parsed = parse_json(answer)
        total += Scores(1, 0, int(parsed is not None), _field_counts(parse_json(expected), parsed))
    return Scores(total.n, right, total.valid_json, total.fields)


def is_right(task: Task, expected: str, answer: str) -> bool:
    """Equal as JSON values, or as text without surrounding white space.

    >>> is_right(json_task, '{"a": 1, "b": null}', ' {"b":null,"a":1}')
    True
    """
    if task.answer == "text":
        return expected.strip() == answer.strip()
    wanted, found = parse_json(expected), parse_json(answer)
    return wanted is not None and found is not None and same_json(wanted.value, found.value)


def parse_json(text: str) -> Parsed | None:
    """The JSON value of `text`, or None: also for NaN, and for an object that names a key twice."""
    try:
        value = json.loads(text.strip(), parse_constant=_no_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        return None
    return Parsed(value)


def same_json(a: Any, b: Any) -> bool:
    """Equal as JSON: key order does not count, 1 equals 1.0, and true is not 1 as it is in Python."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_json(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same_json, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def wilson_interval(right: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Interval of a share: holds at 0 and n of n, where the normal one collapses to a point.

    8 of 10  ->  (0.490, 0.943)

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.
    """
    share, scale = right / n, 1 + z * z / n
    middle = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # Rounding error must not put 0 of n above 0, or n of n below 1.
    return (0.0 if right == 0 else middle - half, 1.0 if right == n else middle + half)


def _field_counts(wanted: Parsed | None, found: Parsed | None) -> dict[str, tuple[int, int]]:
    """One row's (right, wanted) of each expected field; all wrong when the answer is not an object."""
    if wanted is None or not isinstance(wanted.value, dict):
        return {}
    answer = found.value if found is not None and isinstance(found.value, dict) else {}
    return {
        name: (int(name in answer and same_json(value, answer[name])), 1)
        for name, value in wanted.value.items()
    }


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key is given twice")
    return value
