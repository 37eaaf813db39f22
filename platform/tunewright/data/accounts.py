"""The report's arithmetic: every row that was read is kept or lost for a reason that is named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tunewright.data.figures import STAGES
from tunewright.errors import DataError


@dataclass(frozen=True)
class Step:
    """One stage of a source's funnel: `before` rows came, `after` went on; `reasons` is where the rest is."""

    stage: str
    before: int
    after: int
    reasons: dict[str, int]

    @property
    def lost(self) -> int:
        return sum(self.reasons.values())


def funnel_steps(entry: Mapping[str, Any]) -> list[Step]:
    """The stages after reading, of one entry of the report's `funnel`; reasons with most rows first."""
    steps = []
    for earlier, stage in pairwise(STAGES):
        reasons = {reason: int(n) for reason, n in entry["losses"].get(stage, {}).items() if n}
        ordered = dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
        steps.append(Step(stage, int(entry[earlier]), int(entry[stage]), ordered))
    return steps


def check_adds_up(report: Mapping[str, Any]) -> None:
    """Return if each stage's rows are those of the stage before less its losses.

    Raises:
        DataError: a line that does not; names source, stage and figures. It is a fault of Tunewright's,
            not of the rows.
    """
    for problem in _problems(report):
        raise DataError(f"the data report does not add up, which is a fault of Tunewright: {problem}")


def _problems(report: Mapping[str, Any]) -> Iterator[str]:
    for entry in report["funnel"]:
        for step in funnel_steps(entry):
            for reason, rows in step.reasons.items():
                if rows < 0:
                    yield f"{entry['source']}, {step.stage}: {rows} rows lost as {reason!r}"
            if step.before != step.after + step.lost:
                yield (
                    f"{entry['source']}, {step.stage}: {step.before:,} rows came, "
                    f"{step.after:,} went on and {step.lost:,} were lost"
                )
