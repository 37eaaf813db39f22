"""OpenAI's protocol: what a request may say, and how answers, chunks and errors are written.

A field that is unknown, or known to OpenAI and not done here, is refused by name: nothing that a
client asks for is dropped in silence. Knows nothing of HTTP or engines.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from tunewright.errors import BadRequest, ServeError
from tunewright.serve.engine import Delta, GenerateRequest, ServedModel

MAX_MESSAGES = 1000
MAX_STOPS = 4
MAX_TOKENS = 1_000_000
Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]
PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


class Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )


class TextPart(Strict):
    type: Literal["text"]
    text: str


class Message(Strict):
    role: Literal["system", "user", "assistant"]
    content: str | list[TextPart]

    def plain(self) -> dict[str, str]:
        """{"role", "content"} with the parts of the content joined."""
        content = self.content
        return {
            "role": self.role,
            "content": content if isinstance(content, str) else "".join(part.text for part in content),
        }


class StreamOptions(Strict):
    include_usage: bool = False


class CommonRequest(Strict):
    """What chat and plain completions share. Null means left out, as OpenAI's clients send it."""

    model: str = Field(max_length=256)
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    seed: Int64 | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=1)
    user: str | None = Field(None, max_length=512)
    metadata: dict[str, str] | None = Field(None, max_length=16)

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def _generate(self, max_tokens: int | None, **what: Any) -> GenerateRequest:
        if self.stream_options is not None and not self.stream:
            raise BadRequest("`stream_options` needs `stream`: true", param="stream_options")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return GenerateRequest(
            model=self.model,
            max_new_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            stop=stop,
            seed=self.seed,
            stream=bool(self.stream),
            **what,
        )


class ChatRequest(CommonRequest):
    """POST /v1/chat/completions"""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)

    def generate(self) -> GenerateRequest:
        """Raises `BadRequest` when two fields contradict each other."""
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise BadRequest("give `max_completion_tokens` or `max_tokens`, not both", param="max_tokens")
        asked = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return self._generate(asked, messages=tuple(message.plain() for message in self.messages))


class CompletionRequest(CommonRequest):
    """POST /v1/completions"""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]

    def generate(self) -> GenerateRequest:
        """Raises `BadRequest` when two fields contradict each other."""
        prompt = self.prompt if isinstance(self.prompt, str) else self.prompt[0]
        return self._generate(self.max_tokens, prompt=prompt)


AnyRequest = TypeVar("AnyRequest", ChatRequest, CompletionRequest)


def parse(kind: type[AnyRequest], body: bytes) -> AnyRequest:
    """The request in `body`.

    Raises:
        BadRequest: not JSON, or not such a request; names the field and never repeats the input.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _explained(error) from None


def _explained(error: ValidationError) -> BadRequest:
    # An unknown field says more than what may follow from it.
    found = error.errors(include_url=False, include_context=False, include_input=False)
    first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])
    if first["type"] == "json_invalid":
        return BadRequest("the body is not valid JSON", code="invalid_json")
    if not first["loc"]:
        return BadRequest("the body is not a JSON object")
    param = _written(first["loc"])
    if first["type"] == "extra_forbidden":
        return BadRequest(
            f"`{param}` is not a field that this endpoint supports", param, "unsupported_parameter"
        )
    if first["type"] == "missing":
        return BadRequest(f"`{param}` is required", param, "missing_required_parameter")
    return BadRequest(f"`{param}`: {first['msg']}", param, "invalid_value")


def _written(loc: Iterable[int | str]) -> str:
    """`messages.0.content`: only plain names and indices, so that no text of the client comes back."""
    parts: list[str] = []
    for part in loc:
        if (isinstance(part, str) and part in ("str", "constrained-str")) or str(part).startswith("list["):
            continue  # pydantic's name for the branch of a union
        plain = isinstance(part, int) or PLAIN_NAME.fullmatch(part)
        parts.append(str(part) if plain else "(unprintable name)")
    return ".".join(parts)


class Reply:
    """Builds the objects of one answer: the whole, or its chunks. All share id and time."""

    def __init__(self, chat: bool):
        self.chat = chat
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())

    def whole(self, text: str, last: Delta) -> dict[str, Any]:
        """The answer in one object."""
        what = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        kind = "chat.completion" if self.chat else "text_completion"
        return self._object(kind, last, [self._choice(what, last)]) | {"usage": usage(last)}

    def chunk(self, delta: Delta, include_usage: bool, first: bool = False) -> dict[str, Any]:
        """One piece of a streamed answer; the first says the role, the last why it ends."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        content: dict[str, Any] = {"content": delta.text} if delta.text or first else {}
        if first:
            content = {"role": "assistant", **content}
        what = {"delta": content} if self.chat else {"text": delta.text}
        chunk = self._object(kind, delta, [self._choice(what, delta)])
        return chunk | {"usage": None} if include_usage else chunk

    def usage_chunk(self, last: Delta) -> dict[str, Any]:
        """The chunk after the last, for clients that asked for usage."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return self._object(kind, last, []) | {"usage": usage(last)}

    def _choice(self, what: dict[str, Any], delta: Delta) -> dict[str, Any]:
        return {"index": 0, **what, "logprobs": None, "finish_reason": delta.finish_reason}

    def _object(self, kind: str, delta: Delta, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": delta.version,
            "system_fingerprint": f"{delta.version}:{delta.template}",
            "choices": choices,
        }


def usage(last: Delta) -> dict[str, int]:
    return {
        "prompt_tokens": last.prompt_tokens,
        "completion_tokens": last.completion_tokens,
        "total_tokens": last.prompt_tokens + last.completion_tokens,
    }


def model_object(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": "tunewright",
        "root": model.version,
        "parent": model.base,
    }


def event(value: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


def error_event(error: ServeError) -> str:
    """The event that ends a stream which cannot go on."""
    return event(error.body())


DONE = "data: [DONE]\n\n"
PING = ": ping\n\n"
