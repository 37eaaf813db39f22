"""Paged APIs: every page once, faults that pass are tried again, and an unclear end is an error."""

from __future__ import annotations

import email.utils
import gzip
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from json_api import Api, Asked, Reply, running_api
from tunewright.config import HttpSource
from tunewright.data.sources import http
from tunewright.data.sources.http import http_rows
from tunewright.errors import DataError

ROWS = [{"id": n, "text": f"row {n} é"} for n in range(23)]


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, which no test waits for."""
    made: list[float] = []
    monkeypatch.setattr(http, "pause", made.append)
    return made


def source(api: Api, **changes: Any) -> HttpSource:
    values: dict[str, Any] = {
        "url": api.url,
        "hosts": ["127.0.0.1"],
        "allow_http": True,
        "allow_private": True,
    }
    return HttpSource.model_validate({"type": "http", "timeout_s": 5, **values, **changes})


def rows(api: Api, **changes: Any) -> list[Any]:
    return [json.loads(row) for row in http_rows(source(api, **changes))]


def scripted(*replies: Reply) -> Callable[[Asked], Reply]:
    """One reply after the other; the last again and again."""
    left = itertools.chain(replies, itertools.repeat(replies[-1]))
    return lambda asked: next(left)


def numbered(asked: Asked) -> Reply:
    page, size = int(asked.params["page"]), int(asked.params.get("limit", 10))
    return Reply({"data": {"items": ROWS[(page - 1) * size : page * size]}})


def test_one_answer_is_a_list_of_rows() -> None:
    with running_api(scripted(Reply(ROWS))) as api:
        assert rows(api) == ROWS
        assert len(api.asked) == 1


def test_numbered_pages_are_read_until_one_is_empty() -> None:
    with running_api(numbered) as api:
        assert rows(api, rows="data.items", pages={"by": "number"}) == ROWS
        assert [asked.params["page"] for asked in api.asked] == ["1", "2", "3", "4"]


def test_page_number_size_and_parameters_are_sent_under_their_names() -> None:
    def answer(asked: Asked) -> Reply:
        return Reply([asked.params] if asked.params["p"] == "0" else [])

    with running_api(answer) as api:
        pages = {"by": "number", "param": "p", "start": 0, "size": 7, "size_param": "per"}
        (params,) = rows(api, url=api.url + "?kept=1", params={"lang": "en us&x"}, pages=pages)
    assert params == {"kept": "1", "lang": "en us&x", "per": "7", "p": "0"}


def test_a_cursor_is_sent_back_until_there_is_none() -> None:
    def answer(asked: Asked) -> Reply:
        at = int(asked.params.get("after", 0))
        following = at + 10 if at + 10 < len(ROWS) else None
        return Reply({"rows": ROWS[at : at + 10], "meta": {"next": following}})

    with running_api(answer) as api:
        pages = {"by": "cursor", "param": "after", "cursor": "meta.next"}
        assert rows(api, rows="rows", pages=pages) == ROWS
        assert [asked.params.get("after") for asked in api.asked] == [None, "10", "20"]


def test_an_empty_page_with_a_cursor_is_not_the_end() -> None:
    replies = [Reply({"rows": [1], "next": "a"}), Reply({"rows": [], "next": "b"}), Reply({"rows": [2]})]
    with running_api(scripted(*replies)) as api:
        assert rows(api, rows="rows", pages={"by": "cursor", "cursor": "next"}) == [1, 2]


def test_a_link_may_be_relative_and_keeps_its_own_parameters() -> None:
    def answer(asked: Asked) -> Reply:
        if asked.path == "/rows":
            return Reply({"rows": [1], "next": "/more?token=x%26y"})
        return Reply({"rows": [asked.params], "next": None})

    with running_api(answer) as api:
        pages = {"by": "link", "cursor": "next"}
        assert rows(api, rows="rows", params={"q": "1"}, pages=pages) == [1, {"token": "x&y"}]


def test_max_rows_ends_the_asking() -> None:
    with running_api(numbered) as api:
        assert rows(api, rows="data.items", pages={"by": "number"}, max_rows=11) == ROWS[:11]
        assert len(api.asked) == 2


def test_a_packed_answer_is_unpacked() -> None:
    reply = Reply(gzip.compress(json.dumps(ROWS).encode()), headers={"Content-Encoding": "gzip"})
    with running_api(scripted(reply)) as api:
        assert rows(api) == ROWS


@pytest.mark.parametrize(
    "fault",
    [
        Reply({}, status=429),
        Reply({}, status=500),
        Reply({}, status=503),
        Reply(ROWS, cut=100),
        Reply(ROWS, cut=0),
        Reply(b"no gzip", headers={"Content-Encoding": "gzip"}),
    ],
    ids=["429", "500", "503", "broken in mid-body", "broken before the body", "packed badly"],
)
def test_a_fault_that_passes_costs_no_row_and_doubles_none(fault: Reply, waits: list[float]) -> None:
    replies = [Reply({"rows": [1], "next": 1}), fault, fault, Reply({"rows": [2], "next": None})]
    with running_api(scripted(*replies)) as api:
        assert rows(api, rows="rows", pages={"by": "cursor", "cursor": "next"}) == [1, 2]
    assert len(waits) == 2
    assert 0.25 <= waits[0] <= 0.5 <= waits[1] <= 1.0


def test_tries_end_and_the_error_says_how_many(waits: list[float]) -> None:
    with running_api(scripted(Reply({}, status=502))) as api:
        with pytest.raises(DataError, match="it answers 502; tried 4 times"):
            rows(api, retries=3)
        assert len(api.asked) == 4
    assert len(waits) == 3


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_waited_for(as_date: bool, waits: list[float]) -> None:
    text = email.utils.formatdate(time.time() + 100, usegmt=True) if as_date else "100"
    with running_api(scripted(Reply({}, 429, {"Retry-After": text}), Reply([1]))) as api:
        assert rows(api) == [1]
    assert 95 < waits[0] <= 100


def test_a_pause_of_an_hour_is_an_error() -> None:
    with (
        running_api(scripted(Reply({}, 429, {"Retry-After": "3600"}))) as api,
        pytest.raises(DataError, match="asks to come back in 3,600 s"),
    ):
        rows(api)


def test_nobody_listening_is_one_sentence() -> None:
    with running_api(numbered) as api:
        pass
    with pytest.raises(DataError, match=r"127\.0\.0\.1.*refused.*tried 2 times"):
        rows(api, retries=1)


def test_a_cursor_that_repeats_is_an_error() -> None:
    replies = [Reply({"rows": [1], "next": cursor}) for cursor in "abab"]
    with (
        running_api(scripted(*replies)) as api,
        pytest.raises(DataError, match="`next` comes a second time, so the pages would never end"),
    ):
        rows(api, rows="rows", pages={"by": "cursor", "cursor": "next"})


def test_an_api_that_ignores_the_page_number_is_found_out() -> None:
    with (
        running_api(scripted(Reply(ROWS))) as api,
        pytest.raises(DataError, match=r"page 2 holds the rows of one before it; is pages\.param `pg` right"),
    ):
        rows(api, pages={"by": "number", "param": "pg"})


def test_more_pages_than_allowed_is_an_error_not_a_shorter_set() -> None:
    pages = {"by": "number", "max_pages": 2}
    with (
        running_api(numbered) as api,
        pytest.raises(DataError, match="more than 2 pages; raise pages.max_pages"),
    ):
        rows(api, rows="data.items", pages=pages)


def test_a_misspelt_cursor_is_an_error_not_a_single_page() -> None:
    reply = Reply({"rows": [1, 2], "meta": {"next": "x"}})
    pages: dict[str, Any] = {"by": "cursor", "cursor": "meta.nxt"}
    with running_api(scripted(reply)) as api:
        with pytest.raises(
            DataError, match=r"nothing at pages\.cursor `meta\.nxt`; the answer has rows, meta\.next"
        ):
            rows(api, rows="rows", pages=pages)
        assert rows(api, rows="rows", pages={**pages, "size": 3}) == [1, 2]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            {"data": {"itms": [], "count": 3}},
            r"at rows: `data\.items`, found nothing; the answer has data\.itms",
        ),
        ({"data": {"items": {"a": 1}}}, r"at rows: `data\.items`, found dict"),
        ({"data": {"items": None}}, "found NoneType"),
        ([1], "the answer is a list"),
        ({}, "the answer is empty"),
        (b"<html>Log in</html>", "not JSON but application/json: '<html>Log in"),
        (b'{"data": ', "not JSON"),
        (b"[" * 200_000, "not JSON"),
        (b"", "not JSON"),
    ],
)
def test_an_answer_without_rows_says_what_was_found(body: Any, said: str) -> None:
    with running_api(scripted(Reply(body))) as api, pytest.raises(DataError, match=said) as caught:
        rows(api, rows="data.items")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("status", [204, 400, 401, 404])
def test_a_refusal_is_not_tried_again(status: int) -> None:
    body = b"" if status == 204 else b"x" * 5000
    with running_api(scripted(Reply(body, status))) as api:
        with pytest.raises(DataError, match=f"it answers {status}") as caught:
            rows(api)
        assert len(api.asked) == 1
    assert len(str(caught.value)) < 400


def test_answers_above_max_mib_are_refused_together_too() -> None:
    page = [{"text": "x" * 1000}] * 700
    with (
        running_api(lambda asked: Reply([*page, asked.params["page"]])) as api,
        pytest.raises(DataError, match="larger than what is left of max_mib: 1"),
    ):
        rows(api, max_mib=1, pages={"by": "number"})


def test_rows_are_kept_as_they_are() -> None:
    odd = [{"zip": "007", "n": 1, "f": 1.0, "deep": {"b": [None, True]}, "nul": "\0"}, "no object", None]
    with running_api(scripted(Reply(odd))) as api:
        assert list(http_rows(source(api))) == [
            '{"zip":"007","n":1,"f":1.0,"deep":{"b":[null,true]},"nul":"\\u0000"}',
            '"no object"',
            "null",
        ]


def test_a_lone_surrogate_costs_its_row_alone() -> None:
    with running_api(scripted(Reply(b'[{"a": "\\ud800"}, {"a": "b"}]'))) as api:
        assert list(http_rows(source(api))) == ['{"a":"\\ud800"}', '{"a":"b"}']


def test_headers_take_secrets_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWT_TOKEN", "s3cret/+value")
    with running_api(scripted(Reply([]))) as api:
        rows(api, headers={"Authorization": "Bearer ${TWT_TOKEN}"}, params={"key": "${TWT_TOKEN}"})
        (asked,) = api.asked
        assert asked.headers["Authorization"] == "Bearer s3cret/+value"
        assert asked.params["key"] == "s3cret/+value"
        rows(api, url=api.url + "?key=${TWT_TOKEN}")
        assert api.asked[1].params["key"] == "s3cret/+value"


@pytest.mark.parametrize("name", ["", "two words", "colon:", "line\n", "ümlaut"])
def test_a_header_that_is_none_is_refused_before_asking(name: str) -> None:
    with running_api(scripted(Reply([]))) as api:
        with pytest.raises(DataError, match="is not a name"):
            rows(api, headers={name: "x"})
        assert api.asked == []
