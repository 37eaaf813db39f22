"""Who may come in, and what hostile requests get: OpenAI's error shape, never a 5xx, never an echo."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from starlette.routing import Route

from doubles import EchoEngine
from tunewright.serve.edge import MAX_BODY_BYTES, OPEN_PATHS
from tunewright.serve.gateway import make_app
from tunewright.serve.keys import key_hash

KEY = "tw-a-key-for-the-tests"
CANARY = "CANARY-4711"
CHAT = "/v1/chat/completions"
APP = make_app(EchoEngine(), [key_hash("tw-another-key-entirely"), key_hash(KEY)])
MESSAGES = '"messages":[{"role":"user","content":"hi"}]'


def send(method: str, path: str, content=None, headers=None, key: str | None = KEY) -> httpx.Response:
    """One request to the app in this process; an exception that leaves the app fails the test."""

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(APP, raise_app_exceptions=True), base_url="http://test"
        ) as client:
            auth = [("authorization", f"Bearer {key}")] if key else []
            return await client.request(method, path, content=content, headers=auth + list(headers or []))

    return asyncio.run(ask())


def assert_openai_error(reply: httpx.Response, status: int) -> dict:
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert CANARY not in reply.text
    assert reply.headers["x-request-id"]
    return error


def test_every_route_but_two_needs_a_key():
    closed = 0
    for route in APP.routes:
        assert isinstance(route, Route), f"{route} is not covered by this test"
        for method in route.methods:
            reply = send(method, route.path.replace("{name:path}", "prod"), key=None)
            if route.path in OPEN_PATHS:
                assert reply.status_code == 200
            else:
                assert assert_openai_error(reply, 401)["code"] == "invalid_api_key"
                closed += 1
    assert closed >= 5
    assert {"/healthz", "/readyz"} == OPEN_PATHS


@pytest.mark.parametrize(
    "path", ["/", "/nope", "/docs", "/openapi.json", "/healthz/", "//healthz", "/metrics"]
)
def test_a_path_that_is_not_listed_as_open_is_closed(path):
    assert_openai_error(send("GET", path, key=None), 401)


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", "Bearer wrong")],
        [("authorization", "Bearer ")],
        [("authorization", "Bearer")],
        [("authorization", KEY)],
        [("authorization", f"Basic {KEY}")],
        [("authorization", f"Bearer {key_hash(KEY)}")],
        [("authorization", f"Bearer {KEY}x")],
        [("authorization", "Bearer wrong"), ("authorization", f"Bearer {KEY}")],
        [("authorization", f"Bearer {KEY}"), ("authorization", "Bearer wrong")],
        [("x-api-key", KEY)],
        [("authorization", "Bearer \xff\xfe")],
    ],
)
def test_a_wrong_key_is_refused(headers):
    reply = send("GET", "/v1/models", headers=[(n, v.encode("latin-1")) for n, v in headers], key=None)
    assert_openai_error(reply, 401)
    assert reply.headers["www-authenticate"] == "Bearer"


def test_a_key_in_the_query_is_refused():
    assert_openai_error(send("GET", f"/v1/models?api_key={KEY}", key=None), 401)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_right_key_is_let_in(scheme):
    reply = send("GET", "/v1/models", headers=[("authorization", f"{scheme} {KEY}")], key=None)
    assert reply.status_code == 200


def test_without_any_key_configured_nobody_is_let_in():
    async def ask():
        transport = httpx.ASGITransport(make_app(EchoEngine(), []))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get("/v1/models", headers={"authorization": "Bearer "})

    assert asyncio.run(ask()).status_code == 401


def test_a_websocket_is_closed():
    sent = []

    async def connect():
        async def receive():
            return {"type": "websocket.connect"}

        async def take(message):
            sent.append(message)

        await APP({"type": "websocket", "path": "/healthz", "headers": []}, receive, take)

    asyncio.run(connect())
    assert sent == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("POST", "/v1/embeddings", 404),
        ("POST", "/v1/responses", 404),
        ("GET", "/v1/models/", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("OPTIONS", CHAT, 405),
        ("PUT", "/healthz", 405),
    ],
)
def test_an_unknown_route_or_method_has_openais_shape(method, path, status):
    assert_openai_error(send(method, path), status)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "null",
        "[]",
        '"text"',
        "1",
        f'{{"model":"prod",{MESSAGES},"temperature":NaN}}',
        f'{{"model":"prod",{MESSAGES},"temperature":Infinity}}',
        f'{{"model":"prod",{MESSAGES},"temperature":1e999}}',
        f'{{"model":"prod",{MESSAGES},"temperature":-1}}',
        f'{{"model":"prod",{MESSAGES},"temperature":"{CANARY}"}}',
        f'{{"model":"prod",{MESSAGES},"top_p":0}}',
        f'{{"model":"prod",{MESSAGES},"max_tokens":1e400}}',
        f'{{"model":"prod",{MESSAGES},"max_tokens":{"9" * 5000}}}',
        f'{{"model":"prod",{MESSAGES},"max_tokens":0}}',
        f'{{"model":"prod",{MESSAGES},"max_tokens":-5}}',
        f'{{"model":"prod",{MESSAGES},"max_tokens":1.5}}',
        f'{{"model":"prod",{MESSAGES},"max_tokens":true}}',
        f'{{"model":"prod",{MESSAGES},"max_tokens":5,"max_completion_tokens":5}}',
        f'{{"model":"prod",{MESSAGES},"seed":{2**63}}}',
        f'{{"model":"prod",{MESSAGES},"n":2}}',
        f'{{"model":"prod",{MESSAGES},"n":1000000000}}',
        f'{{"model":"prod",{MESSAGES},"n":true}}',
        f'{{"model":"prod",{MESSAGES},"stream":"yes"}}',
        f'{{"model":"prod",{MESSAGES},"stream":1}}',
        f'{{"model":"prod",{MESSAGES},"stream_options":{{"include_usage":true}}}}',
        f'{{"model":"prod",{MESSAGES},"stop":{json.dumps(["x"] * 100_000)}}}',
        f'{{"model":"prod",{MESSAGES},"stop":""}}',
        f'{{"model":"prod",{MESSAGES},"stop":["a","b","c","d","e"]}}',
        f'{{"model":"prod",{MESSAGES},"metadata":{{"a":1}}}}',
        f'{{"model":"prod",{MESSAGES},"metadata":{{"{CANARY} x":1}}}}',
        f'{{"model":"prod",{MESSAGES},"logit_bias":{json.dumps({str(i): 1 for i in range(50_000)})}}}',
        f'{{"model":"prod",{MESSAGES},"{CANARY} \\u0000 x":1}}',
        f'{{"model":"prod",{MESSAGES},"user":"\\ud800"}}',
        f'{{"model":"\\ud800",{MESSAGES}}}',
        '{"model":"prod","messages":[{"role":"user","content":"\\udc00 \\ud800"}]}',
        '{"model":"prod","messages":[]}',
        '{"model":"prod","messages":{}}',
        '{"model":"prod","messages":null}',
        f'{{"model":"prod","messages":"{CANARY}"}}',
        f'{{"model":"prod","messages":["{CANARY}"]}}',
        '{"model":"prod","messages":[{"role":"user"}]}',
        '{"model":"prod","messages":[{"role":"user","content":null}]}',
        f'{{"model":"prod","messages":[{{"role":"{CANARY}","content":"hi"}}]}}',
        '{"model":"prod","messages":[{"role":"user","content":"hi","extra":1}]}',
        f'{{"model":"prod","messages":[{{"role":"user","content":[{{"type":"image_url","image_url":"{CANARY}"}}]}}]}}',
        f'{{"model":"prod","messages":[{",".join(["{}"] * 100_000)}]}}',
        f'{{"model":"prod","messages":{"[" * 200_000}{"]" * 200_000}}}',
        f'{{"model":"prod","user":{"[" * 50_000}',
        f'{{"model":{{"a":"{CANARY}"}},{MESSAGES}}}',
        f"{{{MESSAGES}}}",
        b"\xff\xfe\x00",
        b'{"model":"prod","messages":[{"role":"user","content":"\xff\xfe"}]}',
    ],
    ids=lambda body: repr(body)[:60],
)
def test_a_hostile_body_is_a_400(body):
    reply = send("POST", CHAT, content=body)
    assert assert_openai_error(reply, 400)["type"] == "invalid_request_error"
    assert len(reply.content) < 600


@pytest.mark.parametrize(
    "field", ["logprobs", "tools", "response_format", "frequency_penalty", "echo", "Temperature"]
)
def test_an_unsupported_field_is_named(field):
    error = assert_openai_error(
        send("POST", CHAT, content=f'{{"model":"prod",{MESSAGES},"{field}":null}}'), 400
    )
    assert error["param"] == field
    assert f"`{field}`" in error["message"]
    assert error["code"] == "unsupported_parameter"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (f'{{"model":"prod",{MESSAGES},"temperature":3}}', "temperature"),
        ('{"model":"prod","messages":[{"role":"tool","content":"x"}]}', "messages.0.role"),
        ('{"model":"prod","messages":[{"role":"user","content":5}]}', "messages.0.content"),
        (f"{{{MESSAGES}}}", "model"),
        (f'{{"model":"prod",{MESSAGES},"stop":["a",5]}}', "stop"),
    ],
)
def test_a_wrong_value_names_its_field(body, param):
    error = assert_openai_error(send("POST", CHAT, content=body), 400)
    assert error["param"].startswith(param)
    assert "[" not in error["param"]


@pytest.mark.parametrize("prompt", ['["a","b"]', "[]", "[1,2]", "[[1]]", "5"])
def test_prompts_that_are_not_one_string_are_refused(prompt):
    reply = send("POST", "/v1/completions", content=f'{{"model":"prod","prompt":{prompt}}}')
    assert assert_openai_error(reply, 400)["param"].startswith("prompt")


@pytest.mark.parametrize(
    "content",
    ["\\u0000", "\\ud83d\\ude00", "\U0001f600 \u202e", "a" * 200_000],
    ids=["nul", "pair", "rtl", "long"],
)
def test_unusual_text_that_is_text_is_answered(content):
    reply = send(
        "POST", CHAT, content=f'{{"model":"prod","messages":[{{"role":"user","content":"{content}"}}]}}'
    )
    assert reply.status_code == 200
    assert reply.json()["choices"][0]["message"]["content"] == json.loads(f'"{content}"')


def test_a_body_over_the_limit_is_a_413_before_it_is_held():
    big = b"x" * (MAX_BODY_BYTES + 1)
    assert_openai_error(send("POST", CHAT, content=big), 413)
    taken = 0

    async def endless():
        nonlocal taken
        while True:
            taken += 65536
            yield b"x" * 65536

    assert_openai_error(send("POST", CHAT, content=endless()), 413)
    assert taken <= MAX_BODY_BYTES + 2 * 65536


@pytest.mark.parametrize("length", [b"-1", b"abc", b"9" * 400])
def test_a_senseless_content_length_is_refused(length):
    sent = []

    async def ask():
        async def receive():
            return {"type": "http.request", "body": b"{}", "more_body": False}

        async def take(message):
            sent.append(message)

        headers = [(b"authorization", f"Bearer {KEY}".encode()), (b"content-length", length)]
        scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers, "query_string": b""}
        await APP(scope, receive, take)

    asyncio.run(ask())
    assert sent[0]["status"] == 413


def test_the_largest_body_that_is_allowed_is_read():
    start, end = '{"model":"prod","messages":[{"role":"user","content":"', '"}]}'
    body = start + "a" * (MAX_BODY_BYTES - len(start) - len(end)) + end
    assert send("POST", CHAT, content=body).status_code == 200
