"""Rows of a paged JSON API.

Asks page after page until there is no next one; what looks like the end but need not be is an
error, never a shorter data set. Header and parameter secrets come from the environment and go to
the first page's host alone. `security.guard` decides what may be asked.
"""

from __future__ import annotations

import email.utils
import hashlib
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx

from tunewright.config import HttpSource, source_label
from tunewright.data.sources.secrets import masked, refuse_literals, resolve_secrets
from tunewright.data.sources.snapshot import row_text
from tunewright.errors import DataError
from tunewright.security.guard import GuardedTransport, UrlRules, checked_url, read_capped

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 60.0
LONGEST_ASKED_WAIT_S = 300.0
"""A server that asks for a longer pause (Retry-After) ends the run."""
SHOWN_CHARS = 200
MISSING = object()
HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


def http_rows(source: HttpSource, transport: httpx.BaseTransport | None = None) -> Iterator[str]:
    """The rows as JSON, in the API's order, at most `max_rows`.

    Args:
        transport: asks for the answers; a guarded one when left out.
    Raises:
        DataError: the API cannot be asked, refuses, or answers something else than rows; says what
            to change and shows no secret.
    """
    refuse_literals(source.headers, f"{source_label(source)}: headers")
    refuse_literals(source.params, f"{source_label(source)}: params")
    rules = UrlRules(source.hosts, source.allow_http, source.allow_private)
    refuse_literals(dict(checked_url(source.url, rules).params), f"{source_label(source)}: url")
    transport = transport or GuardedTransport(rules, source.timeout_s)
    texts = (source.url, *source.headers.values(), *source.params.values())
    number = 0
    with transport:
        api = _Api(source, rules, transport)
        try:
            for row in api.rows():
                number += 1
                yield row_text(row)
                if number == source.max_rows:
                    return
        except DataError as error:
            raise DataError(masked(f"{source_label(source)}: {error}", *texts)) from None


class _Api:
    """One walk through the pages."""

    def __init__(self, source: HttpSource, rules: UrlRules, transport: httpx.BaseTransport):
        self.source, self.rules, self.transport = source, rules, transport
        self.first = checked_url(resolve_secrets(source.url, in_url=True), rules)
        self.headers = {name: resolve_secrets(value) for name, value in source.headers.items()}
        for name, value in self.headers.items():
            if not HEADER.fullmatch(name) or not value.isascii() or not value.isprintable():
                raise DataError(f"headers: `{name}` is not a name, or holds what is not printable ASCII")
        self.params = {name: resolve_secrets(value) for name, value in source.params.items()}
        self.bytes_left = source.max_mib << 20

    def rows(self) -> Iterator[Any]:
        """The rows of all pages.

        Raises:
            DataError: there are more pages than `max_pages`, or the pages never end.
        """
        pages = self.source.pages
        url, seen = self._first_url(), set[str]()
        for number in range(pages.start, pages.start + pages.max_pages):
            answer = self._answer(url)
            rows = _rows_of(answer, self.source.rows)
            yield from rows
            if pages.by == "none" or (pages.by == "number" and not rows):
                return
            if pages.by == "number":
                url = url.copy_set_param(pages.param, str(number + 1))
                mark = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
                problem = (
                    f"page {number} holds the rows of one before it; is pages.param `{pages.param}` right?"
                )
            else:
                following = self._following(answer, len(rows), first=not seen)
                if following is None:
                    return
                mark = following
                problem = f"what stands at `{pages.cursor}` comes a second time, so the pages would never end"
                url = self._next_url(url, following)
            # A page of one row may well hold the same as another.
            if mark in seen and (pages.by != "number" or len(rows) > 1):
                raise DataError(problem)
            seen.add(mark)
        raise DataError(f"there are more than {pages.max_pages} pages; raise pages.max_pages")

    def _first_url(self) -> httpx.URL:
        pages = self.source.pages
        url = self.first.copy_merge_params(self.params) if self.params else self.first
        if pages.size is not None:
            url = url.copy_set_param(pages.size_param, str(pages.size))
        return url.copy_set_param(pages.param, str(pages.start)) if pages.by == "number" else url

    def _following(self, answer: Any, count: int, first: bool) -> str | None:
        """The cursor or link to the next page, None after the last.

        Raises:
            DataError: the first answer has no such place, so that nobody can tell whether it is all.
        """
        pages = self.source.pages
        assert pages.cursor is not None, "the schema requires it"
        found = _at(answer, pages.cursor)
        if found is MISSING:
            if first and (pages.size is None or count >= pages.size):
                raise DataError(
                    f"the first answer has nothing at pages.cursor `{pages.cursor}`; {_keys(answer)}. "
                    f"Where it is the only page, give pages.size above its {count} rows or pages.by: none"
                )
            return None
        if found is None or found == "" or found is False:
            return None
        if not isinstance(found, str | int):
            raise DataError(f"`{pages.cursor}` should be a text or number, found {type(found).__name__}")
        return str(found)

    def _next_url(self, url: httpx.URL, following: str) -> httpx.URL:
        if self.source.pages.by == "cursor":
            return url.copy_set_param(self.source.pages.param, following)
        try:
            joined = url.join(following)
        except httpx.InvalidURL:
            raise DataError(f"the link at `{self.source.pages.cursor}` is not a URL") from None
        return checked_url(str(joined), self.rules)

    def _answer(self, url: httpx.URL) -> Any:
        """The JSON of a page, tried again where the fault may pass.

        Raises:
            DataError: it was tried `retries` times more, or the fault will not pass.
        """
        tries = self.source.retries + 1
        for number in range(tries):
            wait = min(FIRST_WAIT_S * 2**number, LONGEST_WAIT_S) * random.uniform(0.5, 1)
            try:
                response = self._ask(url)
                try:
                    if response.status_code != 429 and response.status_code < 500:
                        return self._json(response)
                    problem = f"it answers {response.status_code}"
                    wait = max(wait, _asked_wait(response))
                finally:
                    response.close()
            except httpx.RequestError as error:
                problem = str(error) or type(error).__name__
            if number + 1 < tries:
                pause(wait)
        raise DataError(f"{problem}; tried {tries} times")

    def _ask(self, url: httpx.URL) -> httpx.Response:
        own = (url.scheme, url.host, url.port) == (self.first.scheme, self.first.host, self.first.port)
        headers = {"Accept": "application/json", "Accept-Encoding": "gzip", "User-Agent": "tunewright"}
        # Straight to the transport: httpx.Client would log the URL with its parameters, and keep cookies.
        return self.transport.handle_request(
            httpx.Request("GET", url, headers={**headers, **self.headers} if own else headers)
        )

    def _json(self, response: httpx.Response) -> Any:
        status = response.status_code
        if 300 <= status < 400:
            raise DataError(
                f"it redirects to {_host_of(response)}, which is not followed; give the final URL"
            )
        body = read_capped(response, self.bytes_left, f"what is left of max_mib: {self.source.max_mib}")
        self.bytes_left -= len(body)
        if status != 200:
            raise DataError(f"it answers {status}: {_shown(body)}")
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            kind = response.headers.get("content-type", "no content type")[:60]
            raise DataError(f"the answer is not JSON but {kind}: {_shown(body)}") from None


pause: Callable[[float], None] = time.sleep


def _asked_wait(response: httpx.Response) -> float:
    """Seconds that `Retry-After` asks for, as a number or a date; 0 without one.

    Raises:
        DataError: it asks for longer than anybody would wait.
    """
    text = response.headers.get("retry-after", "").strip()
    if text.isdecimal():
        wait = float(text)
    else:
        try:
            wait = email.utils.parsedate_to_datetime(text).timestamp() - time.time() if text else 0.0
        except (ValueError, TypeError):
            wait = 0.0
    if wait > LONGEST_ASKED_WAIT_S:
        raise DataError(
            f"it answers {response.status_code} and asks to come back in {wait:,.0f} s; run again later"
        )
    return max(wait, 0.0)


def _host_of(redirect: httpx.Response) -> str:
    try:
        return httpx.URL(redirect.headers.get("location", "")).host or "another page"
    except httpx.InvalidURL:
        return "no URL at all"


def _rows_of(answer: Any, path: str) -> list[Any]:
    found = _at(answer, path)
    if isinstance(found, list):
        return found
    where = f"at rows: `{path}`" if path else "in the answer itself (rows names another place)"
    what = "nothing" if found is MISSING else f"{type(found).__name__}"
    raise DataError(f"expected a list of rows {where}, found {what}; {_keys(answer)}")


def _at(answer: Any, path: str) -> Any:
    """What stands at `data.items`, or at `data.0.items`; MISSING where there is nothing."""
    for name in path.split(".") if path else ():
        if isinstance(answer, dict) and name in answer:
            answer = answer[name]
        elif isinstance(answer, list) and name.isdecimal() and int(name) < len(answer):
            answer = answer[int(name)]
        else:
            return MISSING
    return answer


def _keys(answer: Any) -> str:
    """The keys of an answer and of what stands below, for whoever looks for the right one."""
    if not isinstance(answer, dict):
        return f"the answer is a {type(answer).__name__}"
    names = []
    for name, value in list(answer.items())[:20]:
        below = list(value)[:5] if isinstance(value, dict) else []
        names += [f"{name}.{inner}" for inner in below] or [name]
    return f"the answer has {', '.join(names)[:SHOWN_CHARS]}" if names else "the answer is empty"


def _shown(body: bytes) -> str:
    return repr(body[: 4 * SHOWN_CHARS].decode("utf-8", "replace")[:SHOWN_CHARS])
