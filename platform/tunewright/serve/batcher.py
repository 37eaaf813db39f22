"""One thread that decodes waiting requests together. Knows nothing of models, HTTP, Ray or asyncio."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tunewright.errors import EngineFailed, QueueFull, ServeError
from tunewright.models.decode import Sampling

log = logging.getLogger(__name__)

GATHER_S = 0.004
"""After the first request of a batch, the time that others have to join it."""


class Sink(Protocol):
    """Where a request's tokens go. Called from the decoding thread."""

    def token(self, token: int) -> bool:
        """Take the next token; True when no more are wanted."""

    def fail(self, error: ServeError) -> None:
        """No more tokens will come."""


@dataclass(eq=False)
class Ticket:
    """A request in the queue.

    Attributes:
        group: only tickets of one group share a batch.
        over: no more tokens are wanted: complete, failed, or the client has gone.
        given: tokens that `sink` has had.
    """

    group: str
    prompt: Sequence[int]
    sampling: Sampling
    sink: Sink
    over: bool = False
    given: int = field(default=0, init=False)


Decode = Callable[[str, Sequence[Ticket]], Iterator[list[int | None]]]
"""Decodes tickets of one group; ends early those that are `over`."""


class Batcher:
    """Queue and decoding thread.

    Args:
        max_batch_size: requests decoded together.
        max_waiting: requests that may wait; more are refused.
    """

    def __init__(self, decode: Decode, max_batch_size: int, max_waiting: int):
        self._decode, self._max_batch_size, self._max_waiting = decode, max_batch_size, max_waiting
        self._changed = threading.Condition()
        self._waiting: list[Ticket] = []
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, ticket: Ticket) -> None:
        """Raises `QueueFull` when `max_waiting` requests wait already."""
        with self._changed:
            self._waiting = [t for t in self._waiting if not t.over]
            if len(self._waiting) >= self._max_waiting:
                raise QueueFull(
                    f"{len(self._waiting)} requests are waiting; try again later", code="queue_full"
                )
            if self._closed:
                raise EngineFailed("the engine is shutting down")
            self._waiting.append(ticket)
            self._changed.notify()

    def close(self) -> None:
        """End the thread after its batch; what still waits fails."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        for ticket in self._waiting:
            ticket.sink.fail(EngineFailed("the engine is shutting down"))

    def _run(self) -> None:
        while batch := self._next_batch():
            self._serve(batch)

    def _next_batch(self) -> list[Ticket]:
        """The oldest request and others of its group, in order; empty when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            # Answers of one batch end together, so their clients come back together: without this
            # moment the first of them would be decoded alone while the others wait.
            until = time.monotonic() + GATHER_S
            while len(self._waiting) < self._max_batch_size and not self._closed:
                left_s = until - time.monotonic()
                if left_s <= 0:
                    break
                self._changed.wait(left_s)
            if self._closed:
                return []
            group = self._waiting[0].group
            batch = [t for t in self._waiting if t.group == group][: self._max_batch_size]
            self._waiting = [t for t in self._waiting if t not in batch]
            return batch

    def _serve(self, batch: Sequence[Ticket]) -> None:
        """Decode a batch; when it fails, each that is left alone: only the guilty one fails."""
        try:
            self._decode_batch([t for t in batch if not t.over])
            return
        except Exception:
            log.exception("decoding failed", extra={"requests": len(batch)})
        for ticket in [t for t in batch if not t.over]:
            if len(batch) > 1:
                self._serve([ticket])
            else:
                self._fail(ticket)

    def _decode_batch(self, batch: Sequence[Ticket]) -> None:
        # A ticket decoded again after a failure gets the same tokens: those it has had are skipped.
        seen = [0] * len(batch)
        for step in self._decode(batch[0].group, batch) if batch else ():
            for i, (ticket, token) in enumerate(zip(batch, step, strict=True)):
                if token is None or ticket.over:
                    continue
                seen[i] += 1
                if seen[i] > ticket.given:
                    self._give(ticket, token)

    def _give(self, ticket: Ticket, token: int) -> None:
        ticket.given += 1
        try:
            complete = ticket.sink.token(token)
        except Exception:
            log.exception("an answer cannot go on")
            self._fail(ticket)
        else:
            ticket.over = ticket.over or complete

    @staticmethod
    def _fail(ticket: Ticket) -> None:
        ticket.over = True
        ticket.sink.fail(
            EngineFailed("the engine failed on this request; its log says why", code="engine_failed")
        )
