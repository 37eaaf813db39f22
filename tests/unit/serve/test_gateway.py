"""The gateway over an echo engine, driven by the official client: answers, streams, refusals."""

from __future__ import annotations

import time

import httpx
import openai
import pytest

from doubles import EchoEngine, serving
from tunewright.errors import EngineFailed, QueueFull
from tunewright.serve.gateway import make_app
from tunewright.serve.keys import key_hash

KEY = "tw-a-key-for-the-tests"
HELLO = [{"role": "user", "content": "one two three"}]


@pytest.fixture(scope="module")
def engine():
    return EchoEngine()


@pytest.fixture(scope="module")
def url(engine):
    with serving(make_app(engine, [key_hash(KEY)])) as address:
        yield address


@pytest.fixture(autouse=True)
def fresh(engine):
    engine.script.clear()
    engine.requests.clear()
    engine.cancelled, engine.unhealthy = 0, None


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=20) as opened:
        yield opened


@pytest.fixture
def http(url):
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=20) as opened:
        yield opened


def test_models_are_listed_and_found(client):
    listed = client.models.list().data
    assert [(m.id, m.root, m.parent) for m in listed] == [
        ("prod", "desk@v1", "base/1234"),
        ("base", "base/1234", None),
    ]
    assert client.models.retrieve("prod").id == "prod"
    with pytest.raises(openai.NotFoundError, match="models: prod, base"):
        client.models.retrieve("nope")


def test_a_chat_answer_has_text_reason_usage_and_version(client):
    raw = client.chat.completions.with_raw_response.create(model="prod", messages=HELLO)
    answer = raw.parse()
    assert answer.choices[0].message.content == "one two three"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "total_tokens": 10,
    }
    assert answer.model == "desk@v1"
    assert raw.headers["x-tunewright-version"] == "desk@v1"
    assert raw.headers["x-tunewright-template"] == "abc123def456"
    assert raw.headers["x-request-id"]


def test_max_tokens_ends_an_answer_by_length(client):
    for field in ("max_tokens", "max_completion_tokens"):
        answer = client.chat.completions.create(model="prod", messages=HELLO, **{field: 2})
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("one two", "length")


def test_every_supported_field_reaches_the_engine(client, engine):
    client.chat.completions.create(
        model="prod",
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]},
        ],
        max_tokens=5,
        temperature=0,
        top_p=0.5,
        stop=["x", "y"],
        seed=-3,
        n=1,
        user="u",
        metadata={"k": "v"},
    )
    (asked,) = engine.requests
    assert asked.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a b"},
    )
    assert (asked.max_new_tokens, asked.temperature, asked.top_p) == (5, 0.0, 0.5)
    assert (asked.stop, asked.seed, asked.stream) == (("x", "y"), -3, False)


def test_left_out_fields_have_openais_defaults(client, engine):
    client.chat.completions.create(model="prod", messages=HELLO)
    (asked,) = engine.requests
    assert (asked.max_new_tokens, asked.temperature, asked.top_p, asked.stop, asked.seed) == (
        None,
        1.0,
        1.0,
        (),
        None,
    )


def test_a_stream_is_the_answer_in_pieces(client):
    chunks = list(client.chat.completions.create(model="prod", messages=HELLO, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].delta.content or "" for c in chunks] == ["", "one", " two", " three"]
    assert [c.choices[0].finish_reason for c in chunks] == [None, None, None, "stop"]
    assert len({(c.id, c.created, c.object, c.model) for c in chunks}) == 1
    assert all(c.usage is None for c in chunks)


def test_a_stream_gives_usage_last_when_asked(client):
    chunks = list(
        client.chat.completions.create(
            model="prod", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 10
    assert all(c.usage is None for c in chunks[:-1])


def test_the_stream_helper_of_the_client_understands_the_stream(client):
    with client.chat.completions.stream(model="prod", messages=HELLO) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "one two three"


@pytest.mark.parametrize("prompt", ["one two", ["one two"]])
def test_completions_answer_and_stream(client, prompt):
    answer = client.completions.create(model="base", prompt=prompt)
    assert (answer.object, answer.choices[0].text) == ("text_completion", "one two")
    assert answer.usage.total_tokens == 9
    chunks = list(client.completions.create(model="base", prompt=prompt, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == "one two"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_events_end_with_done_and_have_version_headers(http):
    body = {"model": "prod", "messages": HELLO, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as reply:
        text = reply.read().decode()
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["x-tunewright-version"] == "desk@v1"
    assert text.endswith("data: [DONE]\n\n")
    assert all(line == "" or line.startswith("data: ") for line in text.split("\n"))


def test_a_stream_that_fails_ends_with_an_error_and_without_done(http, engine):
    engine.script.append((2, EngineFailed("the engine failed", code="engine_failed")))
    text = http.post("/v1/chat/completions", json={"model": "prod", "messages": HELLO, "stream": True}).text
    assert '"error":{"message":"the engine failed"' in text.split("\n\n")[-2]
    assert "[DONE]" not in text
    assert " two" in text


def test_the_client_sees_the_error_of_a_failed_stream(client, engine):
    engine.script.append((1, EngineFailed("the engine failed")))
    stream = client.chat.completions.create(model="prod", messages=HELLO, stream=True)
    with pytest.raises(openai.APIError, match="the engine failed"):
        list(stream)


def test_a_bug_in_the_engine_is_a_500_without_its_message(client, engine, caplog):
    engine.script += [RuntimeError("the secret"), (1, RuntimeError("the secret"))]
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="prod", messages=HELLO)
    assert caught.value.body["type"] == "server_error"
    assert "secret" not in str(caught.value)
    with pytest.raises(openai.APIError) as streamed:
        list(client.chat.completions.create(model="prod", messages=HELLO, stream=True))
    assert "secret" not in str(streamed.value)
    assert "the secret" in caplog.text


def test_a_refused_stream_has_its_own_status(client, engine):
    engine.script.append(QueueFull("128 requests are waiting", code="queue_full"))
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model="prod", messages=HELLO, stream=True)
    assert caught.value.response.headers["retry-after"] == "1"
    assert caught.value.body["code"] == "queue_full"


def test_the_client_retries_when_the_queue_was_full(url, engine):
    engine.script.append(QueueFull("full"))
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=1, timeout=20) as patient:
        answer = patient.chat.completions.create(model="prod", messages=HELLO)
    assert answer.choices[0].message.content == "one two three"
    assert len(engine.requests) == 2


def test_an_unknown_model_is_a_404(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert (caught.value.body["param"], caught.value.body["code"]) == ("model", "model_not_found")


@pytest.mark.parametrize("stream", [True, False])
def test_generation_is_cancelled_when_the_client_hangs_up(http, engine, stream):
    engine.script.append(0.05)
    body = {"model": "prod", "messages": [{"role": "user", "content": "w " * 400}], "stream": stream}
    with (
        pytest.raises(httpx.ReadTimeout),
        http.stream("POST", "/v1/chat/completions", json=body, timeout=0.3 if not stream else 5) as reply,
    ):
        for _ in zip(range(3), reply.iter_lines(), strict=False):
            pass
        raise httpx.ReadTimeout("left on purpose")
    deadline = time.monotonic() + 10
    while not engine.cancelled and time.monotonic() < deadline:
        time.sleep(0.02)
    assert engine.cancelled == 1


def test_a_silent_stream_is_kept_alive_by_comments(http, engine, monkeypatch):
    monkeypatch.setattr("tunewright.serve.gateway.PING_EVERY_S", 0.05)
    engine.script.append(0.2)
    text = http.post("/v1/completions", json={"model": "prod", "prompt": "a b", "stream": True}).text
    assert text.count(": ping\n\n") >= 2
    assert text.endswith("data: [DONE]\n\n")


def test_health_is_open_and_readiness_follows_the_engine(url, engine):
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{url}/readyz").json() == {"status": "ready"}
    engine.unhealthy = EngineFailed("the thread of replica 7 has ended")
    reply = httpx.get(f"{url}/readyz")
    assert (reply.status_code, reply.json()["error"]["type"]) == (503, "server_error")
    assert "replica 7" not in reply.text
    assert httpx.get(f"{url}/healthz").status_code == 200


def test_version_says_what_answers(http):
    told = http.get("/version").json()
    assert told["models"]["prod"] == {"version": "desk@v1", "template": "abc123def456"}
    assert told["tunewright"]


def test_the_request_id_is_the_clients_when_it_is_harmless(http):
    assert http.get("/healthz", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert http.get("/healthz", headers={"x-request-id": "a b<c>"}).headers["x-request-id"] != "a b<c>"
