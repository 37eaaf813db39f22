"""The HTTP interface: OpenAI's routes over any `Engine`. Knows nothing of Ray, torch or files."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse

import tunewright
from tunewright.errors import BadRequest, EngineFailed, ModelNotFound, ServeError
from tunewright.serve import openai
from tunewright.serve.edge import Edge, error_headers
from tunewright.serve.engine import Delta, Engine, GenerateRequest

log = logging.getLogger(__name__)

HEALTH_TIMEOUT_S = 5.0
PING_EVERY_S = 15.0
CLIENT_GONE = 499


class NotReady(EngineFailed):
    status = 503
    retry_after_s = 1


def make_app(engine: Engine, keys: Collection[str]) -> FastAPI:
    """The gateway over `engine`.

    Args:
        keys: SHA-256 hashes of the API keys that are let in; with none, nobody is.
    """
    # No pages of its own: they would show every route without a key.
    app = FastAPI(title="Tunewright", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.add_middleware(Edge, hashes=keys)
    app.add_exception_handler(ServeError, _serve_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        await _check(engine)
        return {"status": "ready"}

    @app.get("/version")
    async def version() -> dict[str, Any]:
        models = {m.id: {"version": m.version, "template": m.template} for m in await engine.models()}
        return {"tunewright": tunewright.__version__, "models": models}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [openai.model_object(m) for m in await engine.models()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        known = await engine.models()
        for served in known:
            if served.id == name:
                return openai.model_object(served)
        names = ", ".join(served.id for served in known)
        raise ModelNotFound(f"no such model; models: {names}", param="model", code="model_not_found")

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        asked = openai.parse(openai.ChatRequest, await request.body())
        return await _reply(request, engine, asked.generate(), openai.Reply(chat=True), asked.include_usage)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        asked = openai.parse(openai.CompletionRequest, await request.body())
        return await _reply(request, engine, asked.generate(), openai.Reply(chat=False), asked.include_usage)

    return app


async def _reply(
    request: Request, engine: Engine, asked: GenerateRequest, reply: openai.Reply, include_usage: bool
) -> Response:
    deltas = engine.generate(asked)
    if not asked.stream:
        return await _unless_gone(request, _whole(deltas, reply))
    # The engine accepts or refuses first: a refusal still has its own status then.
    accepted = await anext(deltas)
    return StreamingResponse(
        _events(deltas, accepted, reply, include_usage),
        media_type="text/event-stream",
        headers={**_headers(accepted), "cache-control": "no-cache", "x-accel-buffering": "no"},
    )


async def _whole(deltas: AsyncGenerator[Delta, None], reply: openai.Reply) -> Response:
    pieces = []
    async with contextlib.aclosing(deltas):
        async for delta in deltas:
            pieces.append(delta.text)
    if not pieces or delta.finish_reason is None:
        raise EngineFailed("the engine ended the answer without a reason")
    return JSONResponse(reply.whole("".join(pieces), delta), headers=_headers(delta))


async def _events(
    deltas: AsyncGenerator[Delta, None], accepted: Delta, reply: openai.Reply, include_usage: bool
) -> AsyncIterator[str]:
    """Server-sent events of an answer; one that fails ends with an error and without [DONE]."""
    try:
        yield openai.event(reply.chunk(accepted, include_usage, first=True))
        last = accepted
        async for delta in _with_pings(deltas):
            if delta is None:
                yield openai.PING
                continue
            last = delta
            if delta.text or delta.finish_reason:
                yield openai.event(reply.chunk(delta, include_usage))
        if last.finish_reason is None:
            raise EngineFailed("the engine ended the answer without a reason")
        if include_usage:
            yield openai.event(reply.usage_chunk(last))
        yield openai.DONE
    except ServeError as error:
        yield openai.error_event(error)
    except Exception:
        log.exception("a stream failed", extra={"id": reply.id})
        yield openai.error_event(EngineFailed("an unexpected error; the server's log has it"))


async def _with_pings(deltas: AsyncGenerator[Delta, None]) -> AsyncIterator[Delta | None]:
    """The deltas, and None whenever none has come for a while, so that no proxy hangs up."""
    following: asyncio.Task[Delta] | None = None
    try:
        while True:
            following = following or asyncio.ensure_future(anext(deltas))
            done, _ = await asyncio.wait({following}, timeout=PING_EVERY_S)
            if not done:
                yield None
                continue
            task, following = following, None
            try:
                delta = task.result()
            except StopAsyncIteration:
                return
            yield delta
    finally:
        if following is not None:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await following
        await deltas.aclose()


async def _unless_gone(request: Request, work: Any) -> Response:
    """The result of `work`, which is cancelled when the client hangs up."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return Response(status_code=CLIENT_GONE)
        response: Response = working.result()
        return response
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _check(engine: Engine) -> None:
    try:
        await asyncio.wait_for(engine.health(), HEALTH_TIMEOUT_S)
    except (ServeError, TimeoutError):
        raise NotReady("no engine can answer yet") from None


def _headers(delta: Delta) -> dict[str, str]:
    return {"x-tunewright-version": delta.version, "x-tunewright-template": delta.template}


async def _serve_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ServeError)
    return JSONResponse(error.body(), status_code=error.status, headers=error_headers(error))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    refused = BadRequest(
        {404: "there is no such route", 405: "the route does not take this method"}.get(
            error.status_code, "the request cannot be read"
        )
    )
    return JSONResponse(refused.body(), status_code=error.status_code, headers=error.headers)


async def _validation_error(request: Request, error: Exception) -> Response:
    return await _serve_error(request, BadRequest("the request is not valid"))
