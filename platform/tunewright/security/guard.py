"""Which URLs may be asked, and at which address they are asked.

    scheme   https, or http where the rules allow it
    host     listed in the rules, letter for letter once its case, a final dot and IDNA are undone
    address  each address of the host must be fit to be asked; see addresses.py

A host is looked up once and asked at the addresses found then, so that a name server that answers
something else the second time is never heard. No redirect is followed and no proxy is used. A
request ends in time and its answer is of bounded size. Knows nothing of rows, pages or secrets.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import httpcore
import httpx

from tunewright.errors import DataError
from tunewright.security.addresses import refusal

if TYPE_CHECKING:
    import ssl

Resolve = Callable[[str, int], Sequence[str]]
"""Host and port -> addresses."""

# The parsers of C libraries read 0x7f000001, 0177.1 and 2130706433 as 127.0.0.1.
NUMERIC = re.compile(r"(0x[0-9a-f]*|[0-9]+)\Z")
ENCODINGS = frozenset({"", "identity", "gzip", "deflate"})


@dataclass(frozen=True)
class UrlRules:
    """What may be asked; see `config.HttpSource`."""

    hosts: tuple[str, ...]
    allow_http: bool = False
    allow_private: bool = False


def checked_url(url: str, rules: UrlRules) -> httpx.URL:
    """The URL with its host in plain form, if its scheme and host may be asked.

    Raises:
        DataError: it may not; shows scheme and host alone, as the rest may hold a secret.
    """
    try:
        parsed = httpx.URL(url)
        host = _plain_host(parsed.raw_host.decode())
    except (httpx.InvalidURL, ValueError, TypeError):
        raise DataError("a URL cannot be read; expected https://HOST/PATH") from None
    shown = f"{parsed.scheme}://{host}"
    if parsed.scheme not in ("https", "http") or not host:
        raise DataError(f"{shown}: only https:// can be asked (and http:// with allow_http: true)")
    if parsed.scheme == "http" and not rules.allow_http:
        raise DataError(
            f"{shown}: http:// can be read and changed on its way; use https:// or allow_http: true"
        )
    if parsed.userinfo:
        raise DataError(f"{shown}: a user or password (`@`) in a URL is refused; use headers")
    if NUMERIC.match(host.rsplit(".", 1)[-1]) and not _is_address(host):
        raise DataError(f"{shown}: not a host name and not an address in its usual form")
    if host not in {_listed(name) for name in rules.hosts}:
        raise DataError(f"{shown}: the host is not listed in hosts: {', '.join(rules.hosts)}")
    if parsed.port is not None and not 0 < parsed.port < 1 << 16:
        raise DataError(f"{shown}: {parsed.port} is not a port")
    return parsed.copy_with(host=host)


def system_addresses(host: str, port: int) -> list[str]:
    """The addresses of a host as the system finds them, the preferred first.

    Raises:
        httpcore.ConnectError: there are none.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpcore.ConnectError(f"the host {host} is not found: {error}") from None
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class GuardedTransport(httpx.HTTPTransport):
    """Asks what the rules allow, at the addresses that were checked.

    TLS still names and verifies the host, not its address.

    Args:
        request_s: seconds for a whole request, from looking up the host to the answer's last byte.
        resolve: looks up a host; asked once for each.
        verify: certificates to trust; the system's and certifi's when left out.
    """

    def __init__(
        self,
        rules: UrlRules,
        request_s: float,
        resolve: Resolve = system_addresses,
        verify: ssl.SSLContext | None = None,
    ):
        verify = verify or _trusted()
        super().__init__(verify=verify)
        self._rules = rules
        self._deadline = _Deadline(request_s)
        # httpx has no parameter for this; the pool is what HTTPTransport sends every request through.
        self._pool = httpcore.ConnectionPool(
            ssl_context=verify,
            network_backend=_PinnedBackend(rules, resolve, self._deadline),
            max_connections=4,
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """The answer, its body not yet read.

        Raises:
            DataError: the URL or the address of its host may not be asked.
            httpx.TransportError: it does not answer, or not in time.
        """
        checked_url(str(request.url), self._rules)
        self._deadline.start()
        return super().handle_request(request)


def read_capped(response: httpx.Response, max_bytes: int, limit: str | None = None) -> bytes:
    """The body of an answer, decoded.

    Args:
        limit: what the error calls `max_bytes`, where it follows from a setting.
    Raises:
        DataError: it is larger than `max_bytes`, or packed in a way that could hold a bomb.
        httpx.TransportError: it breaks off, or does not come in time.
    """
    packing = response.headers.get("content-encoding", "").strip().lower()
    if packing not in ENCODINGS:
        raise DataError(f"the answer is packed as `{packing[:40]}`; only gzip and deflate are undone")
    parts, size = [], 0
    for part in response.iter_bytes():
        size += len(part)
        if size > max_bytes:
            raise DataError(f"the answer is larger than {limit or f'{max_bytes:,} bytes'}")
        parts.append(part)
    return b"".join(parts)


@cache
def _trusted() -> ssl.SSLContext:
    """Made once: reading all certificates takes longer than many an answer."""
    return httpx.create_ssl_context()


def _listed(name: str) -> str:
    try:
        return _plain_host(httpx.URL(scheme="https", host=name.strip("[]")).raw_host.decode())
    except (httpx.InvalidURL, ValueError):
        raise DataError(
            f"hosts: `{name}` is not a host; give names alone, without scheme, port or path"
        ) from None


def _plain_host(host: str) -> str:
    return host.lower().removesuffix(".")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class _Deadline:
    """The moment when the request under way must be done."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.at = 0.0

    def start(self) -> None:
        self.at = time.monotonic() + self.seconds

    def left(self) -> float:
        """Seconds left, as the timeout of the next wait.

        Raises:
            httpcore.ReadTimeout: there are none.
        """
        left = self.at - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout(f"no complete answer within {self.seconds:g} s")
        return left


class _PinnedBackend(httpcore.NetworkBackend):
    """Connects to the checked addresses of a host, looked up once."""

    def __init__(self, rules: UrlRules, resolve: Resolve, deadline: _Deadline):
        self.rules, self.resolve, self.deadline = rules, resolve, deadline
        self.tcp = httpcore.SyncBackend()
        self.pinned: dict[str, tuple[str, ...]] = {}

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        if host not in self.pinned:
            self.pinned[host] = self._checked(host, port)
        failed: httpcore.ConnectError | httpcore.ConnectTimeout | None = None
        for address in self.pinned[host]:
            try:
                stream = self.tcp.connect_tcp(address, port, self.deadline.left(), None, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
            else:
                return _TimedStream(stream, self.deadline)
        assert failed is not None, "a host without addresses is refused"
        raise failed

    def _checked(self, host: str, port: int) -> tuple[str, ...]:
        addresses = tuple(self.resolve(host, port))
        for address in addresses:
            why = refusal(address, self.rules.allow_private)
            if why:
                raise DataError(f"{host}: its address {address} may not be asked: {why}")
        if not addresses:
            raise httpcore.ConnectError(f"the host {host} has no address")
        return addresses


class _TimedStream(httpcore.NetworkStream):
    """A connection whose every wait ends at the request's deadline, however slowly bytes drip in."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: _Deadline):
        self.stream, self.deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.stream.read(max_bytes, self.deadline.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.stream.write(buffer, self.deadline.left())

    def close(self) -> None:
        self.stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        return _TimedStream(
            self.stream.start_tls(ssl_context, server_hostname, self.deadline.left()), self.deadline
        )

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)
