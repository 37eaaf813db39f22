"""Scores a model, or anything that answers, on tasks. The results are JSON: they go into an artifact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypedDict

from tunewright.evaluate.generate import Generator, LocalGenerator, answer_loss
from tunewright.evaluate.metrics import Scores, is_right, score
from tunewright.evaluate.tasks import Message, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunewright.models.chat import ChatRenderer

EXAMPLES = 5


class Example(TypedDict):
    """One row of a task, as a reader wants to see it."""

    prompt: list[Message]
    expected: str
    answer: str
    right: bool


class TaskResult(TypedDict):
    """Figures of one task.

    `exact` is the number of right answers, `right` says which; `loss` is per supervised token, None
    where no weights are at hand; `too_long` counts prompts that left no room for an answer, which
    are wrong; `rows` identifies the rows asked.
    """

    n: int
    exact: int
    exact_match: float
    interval: tuple[float, float]
    fields: dict[str, float]
    valid_json: float | None
    loss: float | None
    too_long: int
    rows: str
    right: list[bool]
    answers: list[str]
    examples: list[Example]


SuiteResult = dict[str, TaskResult]
"""Task name -> figures, in the order of `evaluate.tasks`."""

Progress = Callable[[str, int, int], None]
"""Called with (task name, prompts answered, prompts in all)."""


def evaluate_model(
    model: PreTrainedModel,
    renderer: ChatRenderer,
    tasks: Sequence[Task],
    batch_size: int,
    progress: Progress | None = None,
) -> SuiteResult:
    """Figures of each task, answers and loss included, for weights in this process."""
    results: SuiteResult = {}
    for task in tasks:
        generate = LocalGenerator(model, renderer, batch_size, _of_task(progress, task.name))
        loss_sum, tokens = answer_loss(model, renderer, task.conversations, batch_size)
        answers = generate(task.prompts, task.max_new_tokens)
        loss = loss_sum / tokens if tokens else None
        results[task.name] = task_result(task, answers, loss, generate.too_long(task.prompts))
    return results


def evaluate_generator(generate: Generator, tasks: Sequence[Task]) -> SuiteResult:
    """Figures of each task for anything that answers, such as a live endpoint; no loss."""
    return {task.name: task_result(task, generate(task.prompts, task.max_new_tokens)) for task in tasks}


def task_result(
    task: Task, answers: Sequence[str], loss: float | None = None, too_long: int = 0
) -> TaskResult:
    """The figures of one task's answers."""
    scores: Scores = score(task, answers)
    right = [is_right(task, e, a) for e, a in zip(task.expected, answers, strict=True)]
    examples: list[Example] = [
        {"prompt": prompt, "expected": expected, "answer": answer, "right": good}
        for prompt, expected, answer, good in zip(task.prompts, task.expected, answers, right, strict=True)
    ]
    return {
        "n": scores.n,
        "exact": scores.exact,
        "exact_match": scores.exact_match,
        "interval": scores.interval,
        "fields": scores.field_accuracy,
        "valid_json": scores.valid_json_share,
        "loss": loss,
        "too_long": too_long,
        "rows": task.rows_digest,
        "right": right,
        "answers": list(answers),
        "examples": examples[:EXAMPLES],
    }


def _of_task(progress: Progress | None, name: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(name, done, total)
