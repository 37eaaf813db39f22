"""What the gateway asks of an engine, and what an engine answers. Knows nothing of HTTP, Ray or torch."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class GenerateRequest:
    """One answer to be written: either to `messages` or after `prompt`.

    Attributes:
        model: as the client wrote it; one of the engine's `models()`.
        max_new_tokens: the engine's own bound when None.
        seed: the same seed gives the same text; drawn when None.
        stream: whether text is wanted as it comes, or in one piece at the end.
    """

    model: str
    messages: tuple[dict[str, str], ...] | None = None
    prompt: str | None = None
    max_new_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    stream: bool = True


@dataclass(frozen=True)
class Delta:
    """More of an answer. The first comes, with no text, when the request is accepted; the last
    carries `finish_reason`.

    Attributes:
        version: what answers: `model@v3`, or the reference of the base.
        template: short hash of the chat template.
        completion_tokens: tokens so far, the one that ended the answer included.
    """

    text: str
    version: str
    template: str
    prompt_tokens: int
    completion_tokens: int = 0
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class ServedModel:
    """A name that clients may give as `model`, and what it means.

    Attributes:
        version: what answers under the name.
        base: reference of the base model below it; None for the base itself.
        created: seconds since 1970.
    """

    id: str
    version: str
    template: str
    base: str | None
    created: int


class Engine(Protocol):
    """Writes answers. All methods may be called concurrently from one event loop."""

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        """The answer, piece by piece; closing the generator cancels it.

        Raises:
            ServeError: before the first Delta when the request is refused, later when the engine fails.
        """

    async def models(self) -> list[ServedModel]:
        """Every name that a request may give."""

    async def health(self) -> None:
        """Return when requests can be answered; raise `ServeError` when they cannot."""
