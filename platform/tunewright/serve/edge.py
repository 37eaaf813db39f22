"""The outermost layer of the gateway: who may come in, how much they may send, and that every
error leaves in OpenAI's shape. Knows nothing of routes, requests or engines."""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Collection
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect

from tunewright.errors import BadRequest, EngineFailed, ServeError, Unauthorized
from tunewright.serve.keys import key_is_known

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""The only paths without a key; whatever is added later is closed until it is listed here."""
MAX_BODY_BYTES = 1_000_000
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class BodyTooLarge(BadRequest):
    status = 413


class Edge:
    """ASGI middleware: key, body size, request id, and an answer to every exception.

    Args:
        hashes: SHA-256 of the keys that are let in.
    """

    def __init__(self, app: ASGIApp, hashes: Collection[str]):
        self.app, self.hashes = app, tuple(hashes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        request_id = _request_id(scope)

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            if scope["path"] not in OPEN_PATHS:
                _authorize(scope, self.hashes)
            await self.app(scope, _limited(scope, receive), send_with_id)
        except ServeError as error:
            if not started:
                await send_error(send_with_id, error)
        except ClientDisconnect:
            log.info("client gone", extra={"request_id": request_id})
        except Exception:
            log.exception("unexpected error", extra={"request_id": request_id})
            if not started:
                told = EngineFailed("an unexpected error; the server's log has it under x-request-id")
                await send_error(send_with_id, told)


async def send_error(send: Send, error: ServeError) -> None:
    body = json.dumps(error.body()).encode()
    headers = [(name.encode(), value.encode()) for name, value in error_headers(error).items()]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def error_headers(error: ServeError) -> dict[str, str]:
    """What a client needs besides the body: when to come again, how to log in."""
    if isinstance(error, Unauthorized):
        return {"www-authenticate": "Bearer"}
    retry_after_s = getattr(error, "retry_after_s", None)
    return {} if retry_after_s is None else {"retry-after": str(retry_after_s)}


def _authorize(scope: Scope, hashes: Collection[str]) -> None:
    given = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
    if not given:
        raise Unauthorized("no API key: send it as `Authorization: Bearer KEY`", code="invalid_api_key")
    scheme, _, key = given[0].decode("latin-1").partition(" ")
    if len(given) != 1 or scheme.lower() != "bearer" or not key_is_known(key.strip(), hashes):
        raise Unauthorized("the API key is not valid", code="invalid_api_key")


def _limited(scope: Scope, receive: Receive) -> Receive:
    """`receive` that raises `BodyTooLarge` before more than the limit is held."""
    too_large = BodyTooLarge(f"the body exceeds {MAX_BODY_BYTES} bytes", code="body_too_large")
    for name, value in scope["headers"]:
        if name.lower() == b"content-length" and (not value.isdigit() or int(value[:19]) > MAX_BODY_BYTES):
            raise too_large
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY_BYTES:
            raise too_large
        return message

    return limited


def _request_id(scope: Scope) -> str:
    """The client's own id where it is harmless, else a new one."""
    for name, value in scope["headers"]:
        if name.lower() == b"x-request-id" and REQUEST_ID.fullmatch(value.decode("latin-1")):
            return str(value.decode("latin-1"))
    return uuid.uuid4().hex
