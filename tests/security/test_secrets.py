"""Secrets of sources: from the environment to the wire, and nowhere else."""

from __future__ import annotations

import json
import logging
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from json_api import Asked, Reply, running_api
from postgres import PASSWORD, PASSWORD_VARIABLE, Server, running_server
from tunewright.artifacts import Store
from tunewright.config import HttpSource, SqlSource
from tunewright.data.sources import http
from tunewright.data.sources.fetch import fetch_source
from tunewright.data.sources.secrets import masked, refuse_literals, resolve_secrets
from tunewright.errors import DataError

TOKEN = "tok-c4nary+/=&x"
FORMS = (TOKEN, "tok-c4nary%2B%2F%3D%26x", "c4nary")
"""The token as it is, as it stands in a URL, and what is common to all canaries of these tests."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as found:
        with found.connect() as connection:
            connection.execute("CREATE TABLE chats AS SELECT 1 AS id, 'a' AS answer")
            connection.execute("CREATE TABLE empty (id INTEGER)")
        yield found


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWT_TOKEN", TOKEN)
    monkeypatch.setenv("TWT_WRONG", "wrong-c4nary-password")
    monkeypatch.setenv(PASSWORD_VARIABLE, PASSWORD)
    monkeypatch.setattr(http, "pause", lambda seconds: None)


def leaks(text: str) -> list[str]:
    return [form for form in FORMS if form in text]


def traces_of(store: Store, source: Any, caplog: pytest.LogCaptureFixture) -> tuple[str, bool]:
    """All that a fetch leaves, and whether it worked: log records at DEBUG, the error as printed, files."""
    text = ""
    with caplog.at_level(logging.DEBUG):
        try:
            artifact, snapshot = fetch_source(store, 0, source)
            text += repr(artifact) + repr(snapshot) + json.dumps(snapshot.settings())
            worked = True
        except DataError as error:
            text += "".join(traceback.format_exception(error))
            worked = False
    for record in caplog.records:
        text += record.getMessage() + repr(record.__dict__)
    for path in store.root.rglob("*"):
        if path.is_file():
            text += path.read_bytes().decode("latin-1")
    return text, worked


def echo(asked: Asked) -> Reply:
    """An API that repeats what it was sent, as some do when they refuse."""
    return Reply({"error": f"bad key {asked.headers['Authorization']} for {asked.params}"}, 403)


ANSWERS: dict[str, tuple[Callable[[Asked], Reply], bool]] = {
    "rows": (lambda asked: Reply({"rows": [{"a": 1}], "next": None}), True),
    "no rows": (lambda asked: Reply({"rows": [], "next": None}), False),
    "echo": (echo, False),
    "echo that is no JSON": (lambda asked: Reply(f"<p>{asked.headers['Authorization']}".encode()), False),
    "500": (lambda asked: Reply({}, 500), False),
    "429": (lambda asked: Reply({}, 429, {"Retry-After": "9999"}), False),
    "broken": (lambda asked: Reply({"rows": [1]}, cut=3), False),
    "other keys": (lambda asked: Reply({asked.params["key"]: []}), False),
    "redirect": (
        lambda asked: Reply({}, 302, {"Location": f"http://x.example/?k={asked.params['key']}"}),
        False,
    ),
    "endless": (lambda asked: Reply({"rows": [1], "next": "/rows?key=again"}), False),
    "link away": (
        lambda asked: Reply({"rows": [1], "next": f"http://x.example/{asked.params['key']}"}),
        False,
    ),
    "set-cookie": (
        lambda asked: Reply({"rows": [1]}, headers={"Set-Cookie": f"s={asked.params['key']}"}),
        True,
    ),
}


@pytest.mark.usefixtures("canaries")
@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("place", ["params", "url"])
def test_an_api_token_leaves_no_trace(
    answer: str, place: str, tmp_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    reply, works = ANSWERS[answer]
    with running_api(reply) as api:
        values: dict[str, Any] = {
            "url": api.url + ("?key=${TWT_TOKEN}" if place == "url" else ""),
            "params": {"key": "${TWT_TOKEN}"} if place == "params" else {},
            "headers": {"Authorization": "Bearer ${TWT_TOKEN}"},
            "pages": {"by": "link", "cursor": "next", "size": 5},
        }
        fixed = {"type": "http", "hosts": ["127.0.0.1"], "allow_http": True, "allow_private": True}
        source = HttpSource.model_validate({**fixed, **values, "rows": "rows", "retries": 1})
        text, worked = traces_of(tmp_store, source, caplog)
        assert api.asked[0].headers["Authorization"] == f"Bearer {TOKEN}", "the secret was in use"
        assert api.asked[0].params["key"] == TOKEN
    assert worked == works
    # httpcore logs headers of answers at DEBUG; what a server sends back in a cookie is its own.
    if answer not in ("set-cookie", "redirect"):
        assert leaks(text) == []
    assert "${TWT_TOKEN}" in text or not worked


@pytest.mark.usefixtures("canaries")
@pytest.mark.parametrize(
    ("change", "works"),
    [
        (("", ""), True),
        ((PASSWORD_VARIABLE, "TWT_WRONG"), False),
        (("/chats", "/${TWT_TOKEN}"), False),
        (("app:", "${TWT_TOKEN}:"), False),
    ],
)
def test_a_database_password_leaves_no_trace(
    server: Server, tmp_store: Store, caplog: pytest.LogCaptureFixture, change: tuple[str, str], works: bool
) -> None:
    for table in ("chats", "chatz", "empty"):
        source = SqlSource(type="sql", url=server.url.replace(*change), table=table)
        text, worked = traces_of(tmp_store, source, caplog)
        assert worked == (works and table == "chats")
        assert leaks(text) == []


def test_the_canaries_would_be_seen(tmp_store: Store, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_store.root / "file").write_text(TOKEN, encoding="utf-8")
    source = SqlSource(type="sql", url="sqlite:///not/there.db", table="x")
    text, _ = traces_of(tmp_store, source, caplog)
    assert leaks(text) == [TOKEN, "c4nary"]


@pytest.mark.parametrize(
    "changes",
    [
        {"headers": {"Authorization": "Bearer tok-c4nary"}},
        {"headers": {"x-api-key": "tok-c4nary"}},
        {"headers": {"Cookie": "s=tok-c4nary"}},
        {"params": {"access_token": "tok-c4nary"}},
        {"params": {"apiKey": "tok-c4nary"}},
        {"url": "https://api.example/rows?key=tok-c4nary"},
    ],
)
def test_a_secret_written_out_is_refused_and_not_shown(changes: dict[str, Any], tmp_store: Store) -> None:
    source = HttpSource.model_validate(
        {"type": "http", "url": "https://api.example/rows", "hosts": ["api.example"], **changes}
    )
    with pytest.raises(DataError, match="is a secret written out") as caught:
        fetch_source(tmp_store, 0, source)
    assert "c4nary" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://app:c4nary@host/db",
        "postgresql://app@host/db?password=c4nary",
        "mysql://app:c4nary@host/db",
    ],
)
def test_a_password_written_out_is_refused_and_not_shown(url: str, tmp_store: Store) -> None:
    with pytest.raises(DataError, match="`password` is a secret written out") as caught:
        fetch_source(tmp_store, 0, SqlSource(type="sql", url=url, table="chats"))
    assert "c4nary" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["author", "tokenizer", "max_tokens", "sort_key", "monkey", "design", "page"]
)
def test_names_that_only_sound_like_secrets_are_fine(name: str) -> None:
    refuse_literals({name: "value"}, "params")


@pytest.mark.parametrize("value", ["line\nbreak", "end\n", "bell\a"])
def test_a_value_with_a_line_break_is_refused_and_not_shown(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWT_TOKEN", value)
    with pytest.raises(DataError, match=r"\$\{TWT_TOKEN\} holds a line break") as caught:
        resolve_secrets("Bearer ${TWT_TOKEN}")
    assert value not in str(caught.value)


@pytest.mark.parametrize("value", ["schlüssel-c4nary", "c4nary ✓"])
def test_a_header_outside_ascii_is_one_sentence(
    value: str, monkeypatch: pytest.MonkeyPatch, tmp_store: Store
) -> None:
    monkeypatch.setenv("TWT_TOKEN", value)
    source = HttpSource(
        type="http", url="https://api.example/", hosts=("api.example",), headers={"X-Token": "${TWT_TOKEN}"}
    )
    with pytest.raises(
        DataError, match="headers: `X-Token` is not a name, or holds what is not printable"
    ) as caught:
        fetch_source(tmp_store, 0, source)
    assert "c4nary" not in str(caught.value)


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TWT_TOKEN", raising=False)
    with pytest.raises(DataError, match=r"\$\{TWT_TOKEN\} is not set; set TWT_TOKEN in the environment"):
        resolve_secrets("a ${TWT_TOKEN} b")


@settings(max_examples=100, deadline=None)
@given(
    st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=8, max_size=30),
    st.text(max_size=20),
)
def test_a_message_never_shows_a_value(value: str, around: str) -> None:
    with ExitStack() as stack:
        os.environ["TWT_TOKEN"] = value
        stack.callback(os.environ.pop, "TWT_TOKEN")
        assert resolve_secrets("a${TWT_TOKEN}b") == f"a{value}b"
        message = masked(
            f"{around}{value}{around}{resolve_secrets('${TWT_TOKEN}', in_url=True)}", "x ${TWT_TOKEN}"
        )
    assert value not in message.replace("${TWT_TOKEN}", "")


def test_other_dollars_and_braces_stay() -> None:
    for text in ("$HOME", "${}", "${1}", "{x}", "$${", "100 $"):
        assert resolve_secrets(text) == text


def test_nothing_but_the_settings_is_kept_of_a_source(tmp_store: Store) -> None:
    with running_api(lambda asked: Reply([{"a": 1}])) as api:
        source = HttpSource(
            type="http",
            url=api.url,
            hosts=("127.0.0.1",),
            allow_http=True,
            allow_private=True,
            headers={"X-Lang": "en"},
        )
        artifact, _ = fetch_source(tmp_store, 0, source)
    kept = artifact.manifest.config["source"]
    assert kept["headers"] == ["X-Lang"]
    assert set(kept) == {"type", "url", "params", "rows", "pages", "max_rows", "headers"}
