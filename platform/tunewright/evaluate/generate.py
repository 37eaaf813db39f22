"""Answers to prompts: from weights in this process, or from a live endpoint."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

from tunewright.errors import EvaluateError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunewright.evaluate.tasks import Message
    from tunewright.models.chat import ChatRenderer

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (prompts answered, prompts in all)."""

ENDPOINT_TIMEOUT_S = 300.0


class Generator(Protocol):
    """Answers each prompt greedily; the answers are in the prompts' order."""

    def __call__(self, prompts: Sequence[Sequence[Message]], max_new_tokens: int) -> list[str]: ...


class LocalGenerator:
    """Greedy decoding with weights in this process, prompts of like length together.

    A prompt that leaves the model no room for an answer gets an empty one; `too_long` counts them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        renderer: ChatRenderer,
        batch_size: int,
        progress: Progress | None = None,
    ):
        self.model, self.renderer, self.batch_size = model, renderer, batch_size
        self.progress = progress
        self.context_tokens = context_tokens(model)

    def __call__(self, prompts: Sequence[Sequence[Message]], max_new_tokens: int) -> list[str]:
        ids = [self.renderer.prompt(prompt) for prompt in prompts]
        answers = [""] * len(ids)
        # Longest first: a batch that does not fit in memory fails at once, not after the others.
        order = sorted((i for i in range(len(ids)) if self._room(ids[i]) > 0), key=lambda i: -len(ids[i]))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            texts = self._answer([ids[i] for i in batch], max_new_tokens)
            for index, text in zip(batch, texts, strict=True):
                answers[index] = text
            if self.progress:
                self.progress(start + len(batch), len(order))
        return answers

    def too_long(self, prompts: Sequence[Sequence[Message]]) -> int:
        """How many of the prompts leave no room for an answer."""
        return sum(self._room(self.renderer.prompt(prompt)) <= 0 for prompt in prompts)

    def _room(self, ids: Sequence[int]) -> int:
        return self.context_tokens - len(ids)

    def _answer(self, ids: Sequence[Sequence[int]], max_new_tokens: int) -> list[str]:
        from tunewright.models.decode import Sampling, decode_batch

        sampling = [Sampling(min(max_new_tokens, self._room(prompt))) for prompt in ids]
        answers: list[list[int]] = [[] for _ in ids]
        for step in decode_batch(self.model, ids, sampling, self.renderer.stop_ids, self.renderer.pad_id):
            for answer, token in zip(answers, step, strict=True):
                if token is not None:
                    answer.append(token)
        return [self.renderer.text(answer) for answer in answers]


class EndpointGenerator:
    """Greedy answers of an OpenAI-compatible endpoint, asked with the official client.

    Args:
        url: the API's root, such as http://127.0.0.1:8000/v1.
        model: as `/v1/models` lists it.
        concurrency: requests in flight at once.
    """

    def __init__(self, url: str, key: str, model: str, concurrency: int = 8):
        from openai import OpenAI

        self.url, self.model, self.concurrency = url, model, concurrency
        self._client = OpenAI(base_url=url, api_key=key, timeout=ENDPOINT_TIMEOUT_S)

    def __call__(self, prompts: Sequence[Sequence[Message]], max_new_tokens: int) -> list[str]:
        """Raises `EvaluateError` when a request fails after the client's own retries."""
        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="ask") as pool:
            return list(pool.map(lambda prompt: self._ask(prompt, max_new_tokens), prompts))

    def stream(self, prompt: Sequence[Message], max_new_tokens: int) -> str:
        """The answer to one prompt, put together from a streaming reply."""
        messages: Any = [dict(message) for message in prompt]
        chunks = self._client.chat.completions.create(
            model=self.model, messages=messages, max_tokens=max_new_tokens, temperature=0, stream=True
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    def _ask(self, prompt: Sequence[Message], max_new_tokens: int) -> str:
        from openai import APIConnectionError, APIStatusError

        messages: Any = [dict(message) for message in prompt]
        try:
            reply = self._client.chat.completions.create(
                model=self.model, messages=messages, max_tokens=max_new_tokens, temperature=0
            )
        except APIStatusError as error:
            raise EvaluateError(
                f"{self.url}, model {self.model}: {error.status_code} {error.message}"
            ) from error
        except APIConnectionError as error:
            raise EvaluateError(f"{self.url} does not answer: {error}; is the endpoint up?") from error
        return reply.choices[0].message.content or ""


def answer_loss(
    model: PreTrainedModel,
    renderer: ChatRenderer,
    conversations: Sequence[Sequence[Message]],
    batch_size: int,
) -> tuple[float, int]:
    """Sum of the loss over supervised tokens, and their number: sums of several workers add.

    Conversations longer than the model's context are left out, whole.
    """
    from tunewright.models.loss import supervised_loss

    rows = [row for messages in conversations for row in renderer.render(messages, history="expand")]
    limit = context_tokens(model)
    fitting = [(row.ids, row.loss_mask) for row in rows if len(row.ids) <= limit]
    if len(fitting) < len(rows):
        log.warning("conversations beyond the context", extra={"left_out": len(rows) - len(fitting)})
    return supervised_loss(model, fitting, renderer.pad_id, batch_size)


def context_tokens(model: PreTrainedModel) -> int:
    """The most tokens the model can hold, prompt and answer together."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if not limit:
        raise EvaluateError(f"{type(model).__name__}: config.json has no max_position_embeddings")
    return int(limit)
