"""Answers from a registered version with torch, on whatever device there is. Knows nothing of Ray or HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tunewright.artifacts import Store
from tunewright.config import ServeConfig
from tunewright.errors import BadRequest, DataError, EngineFailed, ModelNotFound, ServeError
from tunewright.models.base import model_folder
from tunewright.models.decode import Sampling, decode_batch
from tunewright.models.load import load_model, load_renderer
from tunewright.models.prompted import virtual_tokens
from tunewright.registry import Version
from tunewright.serve.batcher import Batcher, Ticket
from tunewright.serve.detokenize import TextStream
from tunewright.serve.engine import Delta, FinishReason, GenerateRequest, ServedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunewright.models.chat import ChatRenderer

BASE = "base"
TUNED = "tuned"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Weights:
    """The tuned model and its base, which share their memory where the tuned one is an adapter.

    Args:
        tuned: a PEFT model, or a model trained in full.
        load_base: loads the base of a fully trained model, at the first request for it.
    """

    def __init__(self, tuned: PreTrainedModel, load_base: Callable[[], PreTrainedModel] | None = None):
        self.tuned, self._load_base = tuned, load_base
        self._base: PreTrainedModel | None = None

    @contextlib.contextmanager
    def active(self, group: str) -> Iterator[PreTrainedModel]:
        """The model of `TUNED` or `BASE`; only one thread may be in here."""
        if group == TUNED:
            yield self.tuned
        elif self._load_base is None:
            tuned: Any = self.tuned
            with tuned.disable_adapter():
                yield self.tuned
        else:
            if self._base is None:
                self._base = self._load_base()
            yield self._base


class TorchEngine:
    """An `Engine` over one model and its base.

    Args:
        served: name that clients use -> what it means; those without a `base` are the base itself.
        limits: max_batch_size, max_ongoing_requests (how many may wait) and max_new_tokens.
    """

    def __init__(
        self,
        weights: Weights,
        renderer: ChatRenderer,
        served: Sequence[ServedModel],
        limits: ServeConfig,
    ):
        self._weights, self._renderer, self._limits = weights, renderer, limits
        self._served: Mapping[str, ServedModel] = {model.id: model for model in served}
        positions = int(weights.tuned.config.max_position_embeddings)
        self._context_tokens = positions - virtual_tokens(weights.tuned)
        # One thread, because tokenizers refuse to be used and reconfigured at once.
        self._rendering = ThreadPoolExecutor(1, thread_name_prefix="render")
        self._batcher = Batcher(self._decode, limits.max_batch_size, limits.max_ongoing_requests)

    @classmethod
    def load(cls, store: Store, version: Version, names: Sequence[str], config: ServeConfig) -> TorchEngine:
        """The engine of a version; clients call it by `names` and its base by `base`.

        Raises:
            StoreError: an artifact is gone or differs from its manifest.
            ModelError: its weights or tokenizer cannot be loaded.
        """
        torch.set_num_threads(max(1, math.ceil(config.replica_cpus)))
        train = store.load(version.train)
        base_folder = model_folder(store.load(version.base))
        if (train.path / "adapter").is_dir():
            weights = Weights(_load(config, base_folder, train.path / "adapter"))
        else:
            weights = Weights(_load(config, train.path / "model"), lambda: _load(config, base_folder))
        renderer = load_renderer(train.path / "tokenizer")
        created = int(datetime.fromisoformat(version.created).timestamp())
        tuned = ServedModel("", version.name, renderer.template_hash, version.base, created)
        served = [replace(tuned, id=name) for name in names]
        served.append(ServedModel(BASE, version.base, renderer.template_hash, None, created))
        return cls(weights, renderer, served, config)

    async def models(self) -> list[ServedModel]:
        return list(self._served.values())

    async def health(self) -> None:
        if not self._batcher.alive:
            raise EngineFailed("the decoding thread has ended")

    def close(self) -> None:
        """End the threads; requests that still wait fail."""
        self._batcher.close()
        self._rendering.shutdown()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        served = self._served.get(request.model)
        if served is None:
            raise ModelNotFound(
                f"the model does not exist here; models: {', '.join(self._served)}",
                param="model",
                code="model_not_found",
            )
        loop = asyncio.get_running_loop()
        prompt = await loop.run_in_executor(self._rendering, self._prompt, request)
        answer = _Answer(loop, request, self._renderer, served, len(prompt), self._room(request, prompt))
        sampling = Sampling(
            max_new_tokens=answer.max_new_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            # Drawn here, so that a request decoded a second time gets the same tokens.
            seed=secrets.randbits(63) if request.seed is None else request.seed,
        )
        ticket = Ticket(TUNED if served.base else BASE, prompt, sampling, answer)
        self._batcher.submit(ticket)
        try:
            yield answer.accepted
            while True:
                delta = await answer.next()
                yield delta
                if delta.finish_reason:
                    return
        finally:
            ticket.over = True

    def _prompt(self, request: GenerateRequest) -> list[int]:
        """Token ids that the answer follows.

        Raises:
            BadRequest: nothing to answer, or no room for an answer.
        """
        if request.messages is None:
            ids = list(self._renderer.tokenizer(request.prompt or "")["input_ids"])
            if not ids:
                raise BadRequest("the prompt is empty", param="prompt")
        else:
            if len(request.messages) > self._context_tokens:  # without rendering them all
                raise self._too_long(len(request.messages), "messages")
            try:
                ids = self._renderer.prompt(request.messages)
            except DataError as error:
                raise BadRequest(str(error), param="messages") from None
        if len(ids) >= self._context_tokens:
            raise self._too_long(len(ids), "messages" if request.messages else "prompt")
        return ids

    def _room(self, request: GenerateRequest, prompt: Sequence[int]) -> int:
        """Tokens that the answer may have: what is asked, as far as the model's context holds it."""
        bound = self._limits.max_new_tokens
        asked = bound if request.max_new_tokens is None else request.max_new_tokens
        if asked > bound:
            raise BadRequest(
                f"max_tokens={asked} is above this endpoint's bound of {bound}", param="max_tokens"
            )
        return min(asked, self._context_tokens - len(prompt))

    def _too_long(self, length: int, param: str) -> BadRequest:
        return BadRequest(
            f"the prompt has at least {length} tokens; "
            f"the model holds {self._context_tokens}, answer included",
            param=param,
            code="context_length_exceeded",
        )

    def _decode(self, group: str, tickets: Sequence[Ticket]) -> Iterator[list[int | None]]:
        with self._weights.active(group) as model:
            yield from decode_batch(
                model,
                [ticket.prompt for ticket in tickets],
                [ticket.sampling for ticket in tickets],
                self._renderer.stop_ids,
                self._renderer.pad_id,
                cancelled=lambda i: tickets[i].over,
            )


def _load(config: ServeConfig, folder: Path, adapter: Path | None = None) -> PreTrainedModel:
    model: Any = load_model(folder, adapter, DTYPES[config.precision])
    loaded: PreTrainedModel = model.to("cuda" if config.replica_gpus > 0 else "cpu")
    return loaded


@dataclass
class _Progress:
    """What has come since the client was last told."""

    text: str = ""
    tokens: int = 0
    reason: FinishReason | None = None


class _Answer:
    """A growing answer: the decoding thread adds tokens, the event loop takes text."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        request: GenerateRequest,
        renderer: ChatRenderer,
        served: ServedModel,
        prompt_tokens: int,
        max_new_tokens: int,
    ):
        self.max_new_tokens = max_new_tokens
        self.accepted = Delta("", served.version, served.template, prompt_tokens)
        self._stop_ids = renderer.stop_ids
        self._text = TextStream(renderer.text, request.stop)
        self._piecewise = request.stream
        self._loop = loop
        self._lock = threading.Lock()
        self._progress = _Progress()
        self._error: ServeError | None = None
        self._news = asyncio.Event()

    def token(self, token: int) -> bool:
        """Called by the decoding thread; True when the answer is complete."""
        ended = token in self._stop_ids
        text = "" if ended else self._text.add(token)
        with self._lock:
            progress = self._progress
            progress.tokens += 1
            if ended or self._text.stopped:
                progress.reason = "stop"
            elif progress.tokens == self.max_new_tokens:
                progress.reason = "length"
            if progress.reason:
                text += self._text.finish()
                # A stop string may have been completed by the very last piece.
                progress.reason = "stop" if self._text.stopped else progress.reason
            progress.text += text
        if progress.reason or (self._piecewise and text):
            self._tell()
        return progress.reason is not None

    def fail(self, error: ServeError) -> None:
        """Called by the decoding thread."""
        self._error = error
        self._tell()

    async def next(self) -> Delta:
        """What has come since the last call, once something has; a slow client gets larger pieces."""
        await self._news.wait()
        self._news.clear()
        if self._error is not None:
            raise self._error
        with self._lock:
            text, self._progress.text = self._progress.text, ""
            return replace(
                self.accepted,
                text=text,
                completion_tokens=self._progress.tokens,
                finish_reason=self._progress.reason,
            )

    def _tell(self) -> None:
        # The loop is closed when the server has stopped and nobody waits any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._news.set)
