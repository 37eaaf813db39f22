"""A task: conversations whose last assistant turn is the expected answer. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tunewright.artifacts import digest
from tunewright.config import TaskConfig
from tunewright.errors import EvaluateError
from tunewright.evaluate.metrics import parse_json

Message = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What is asked and what is wanted; `prompts[i]` is answered by `expected[i]`."""

    name: str
    answer: Literal["json", "text"]
    prompts: list[list[Message]]
    expected: list[str]
    max_new_tokens: int

    @property
    def conversations(self) -> list[list[Message]]:
        """The prompts with their expected answers, as training would see them."""
        return [
            [*prompt, {"role": "assistant", "content": expected}]
            for prompt, expected in zip(self.prompts, self.expected, strict=True)
        ]

    @property
    def rows_digest(self) -> str:
        """Identifies the rows, so that figures of different rows are never compared."""
        return digest([self.answer, self.prompts, self.expected])

    def shard(self, rank: int, workers: int) -> Task:
        """Every `workers`-th row from `rank` on; scores of all shards add up to the whole task's."""
        return replace(self, prompts=self.prompts[rank::workers], expected=self.expected[rank::workers])


def task_from_messages(config: TaskConfig, conversations: Sequence[Sequence[Message]]) -> Task:
    """The first `config.max_rows` conversations as a task; what follows the last answer is left out.

    Raises:
        EvaluateError: no conversation, one without a question or an answer, or, for `answer: json`,
            an expected answer that is not JSON; names the row, from 1.
    """
    prompts, expected = [], []
    for row, messages in enumerate(conversations[: config.max_rows], start=1):
        where = f"evaluate task {config.name}, row {row}"
        prompt, answer = _split(messages, where)
        if config.answer == "json" and parse_json(answer) is None:
            raise EvaluateError(
                f"{where}: the expected answer is not valid JSON; use `answer: text`, or fix it"
            )
        prompts.append(prompt)
        expected.append(answer)
    if not prompts:
        raise EvaluateError(f"evaluate task {config.name}: its source has no usable conversation")
    return Task(config.name, config.answer, prompts, expected, config.max_new_tokens)


def _split(messages: Sequence[Message], where: str) -> tuple[list[Message], str]:
    last = max((i for i, m in enumerate(messages) if m.get("role") == "assistant"), default=None)
    if last is None:
        raise EvaluateError(f"{where}: no assistant message, so nothing says which answer is expected")
    if last == 0:
        raise EvaluateError(f"{where}: begins with the assistant's answer, so there is nothing to ask")
    answer = messages[last].get("content")
    if not isinstance(answer, str):
        raise EvaluateError(f"{where}: the expected answer is a {type(answer).__name__}, not text")
    return [dict(m) for m in messages[:last]], answer
