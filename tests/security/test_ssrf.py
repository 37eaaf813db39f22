"""No URL leads anywhere but to the hosts that were listed, at addresses that may be asked."""

from __future__ import annotations

import datetime
import gzip
import ipaddress
import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from json_api import Api, Reply, running_api
from tunewright.config import HttpSource
from tunewright.data.sources.http import http_rows
from tunewright.errors import DataError
from tunewright.security.addresses import refusal
from tunewright.security.guard import GuardedTransport, UrlRules, checked_url, read_capped

LISTED = UrlRules(("api.example",), allow_http=True)
METADATA = ["169.254.169.254", "169.254.170.2", "fd00:ec2::254", "100.100.100.200", "168.63.129.16"]


class FakeResolver:
    """Queued answers of a name server; what was asked is kept."""

    def __init__(self, *answers: Sequence[str]):
        self.answers, self.asked = list(answers), list[tuple[str, int]]()

    def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        return self.answers.pop(0)


def asked(url: str, rules: UrlRules, resolve: Any, **options: Any) -> bytes:
    """The body of the answer to one request."""
    with GuardedTransport(rules, 5, resolve, **options) as transport:
        response = transport.handle_request(httpx.Request("GET", url))
        try:
            return read_capped(response, 1 << 20)
        finally:
            response.close()


@pytest.mark.parametrize(
    "url",
    [
        "https://api.example/rows?x=1",
        "https://API.example./rows",
        "http://api.example:8080/",
        "HTTPS://api.example",
    ],
)
def test_a_listed_host_may_be_asked(url: str) -> None:
    assert checked_url(url, LISTED).host == "api.example"


def test_an_international_host_is_the_same_in_either_spelling() -> None:
    for listed in ("bücher.example", "BÜCHER.example", "xn--bcher-kva.example"):
        rules = UrlRules((listed,))
        assert checked_url("https://bücher.example/", rules) == checked_url(
            "https://xn--bcher-kva.example/", rules
        )


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("file:///etc/passwd", "only https"),
        ("gopher://api.example/", "only https"),
        ("ftp://api.example/", "only https"),
        ("//api.example/", "only https"),
        ("/rows", "only https"),
        ("", "only https"),
        ("https:///rows", "only https"),
        ("https://other.example/", "not listed"),
        ("https://api.example.evil.example/", "not listed"),
        ("https://evil-api.example/", "not listed"),
        ("https://evil.example/https://api.example/", "not listed"),
        ("https://evil.example#api.example", "not listed"),
        ("https://evil.example?api.example", "not listed"),
        ("https://api.example%00.evil.example/", "not listed"),
        ("https://api.example../", "not listed"),
        ("https://127.0.0.1/", "not listed"),
        ("https://[::1]/", "not listed"),
        ("https://api.example@evil.example/", "a user or password"),
        ("https://user:word@api.example/", "a user or password"),
        ("https://evil.example\\@api.example/", "a user or password"),
        ("https://api.example\\@evil.example/", "a user or password"),
        ("https://2130706433/", "usual form"),
        ("https://0x7f000001/", "usual form"),
        ("https://0x7f.0.0.1/", "usual form|cannot be read"),
        ("https://0177.0.0.1/", "cannot be read"),
        ("https://127.1/", "usual form"),
        ("https://api.example\r\nX: y/", "cannot be read"),
        ("https://api.example /", "cannot be read|not listed"),
        ("https://api.example:0/", "not a port"),
        ("https://api.example:99999/", "not a port"),
    ],
)
def test_other_urls_are_refused(url: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        checked_url(url, LISTED)


def test_http_needs_to_be_allowed() -> None:
    with pytest.raises(DataError, match="use https:// or allow_http: true"):
        checked_url("http://api.example/", UrlRules(("api.example",)))


@pytest.mark.parametrize("name", ["https://api.example", "api.example/path", "api.example:443", "a b"])
def test_a_listed_host_is_a_name_alone(name: str) -> None:
    with pytest.raises(DataError, match=r"hosts: .*is not a host|not listed"):
        checked_url("https://api.example/", UrlRules((name,)))


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "64:ff9b::8.8.8.8"])
def test_public_addresses_may_be_asked(address: str) -> None:
    assert refusal(address, allow_private=False) is None


@pytest.mark.parametrize(
    "address",
    [
        *["127.0.0.1", "127.9.9.9", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1"],
        *["::1", "fd12::1", "fec0::1", "64:ff9b::127.0.0.1"],
    ],
)
def test_private_addresses_may_be_asked_only_if_allowed(address: str) -> None:
    assert "allow_private" in str(refusal(address, allow_private=False))
    assert refusal(address, allow_private=True) is None


@pytest.mark.parametrize(
    "address",
    [
        *METADATA,
        *["0.0.0.0", "::", "0.1.2.3", "169.254.1.1", "fe80::1", "fe80::1%eth0", "224.0.0.1", "ff02::1"],
        *["240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "2001:db8::1"],
        *["::ffff:127.0.0.1", "::ffff:8.8.8.8", "::7f00:1", "2002:7f00:1::", "2001:0:1::", "64:ff9b:1::1"],
        *["64:ff9b::169.254.169.254", "2130706433", "0177.0.0.1", "127.1", "name", ""],
    ],
)
def test_some_addresses_are_never_asked(address: str) -> None:
    assert refusal(address, allow_private=False)
    assert refusal(address, allow_private=True)


@settings(max_examples=100, deadline=None)
@given(st.ip_addresses())
def test_what_may_be_asked_is_one_public_host(ip: Any) -> None:
    if refusal(str(ip), allow_private=False) is None and ip not in ipaddress.ip_network("64:ff9b::/96"):
        assert ip.is_global and not ip.is_multicast and not ip.is_loopback and not ip.is_link_local


def test_a_second_answer_of_the_name_server_is_never_heard() -> None:
    # The name server points at the API first and, once that was checked, elsewhere.
    resolver = FakeResolver(["127.0.0.1"], ["169.254.169.254"])
    rules = UrlRules(("api.example",), allow_http=True, allow_private=True)
    with running_api(lambda request: Reply({}, headers={"Connection": "close"})) as api:
        url = f"http://api.example:{api.port}/"
        with GuardedTransport(rules, 5, resolver) as transport:
            for _ in range(3):
                response = transport.handle_request(httpx.Request("GET", url))
                assert read_capped(response, 100) == b"{}"
                response.close()
        assert [request.headers["Host"] for request in api.asked] == [f"api.example:{api.port}"] * 3
    assert resolver.asked == [("api.example", api.port)]


@pytest.mark.parametrize(
    "answer", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::ffff:127.0.0.1"], *[[a] for a in METADATA]]
)
def test_a_listed_name_that_leads_inside_is_refused_before_connecting(answer: list[str]) -> None:
    with running_api(lambda request: Reply([])) as api:
        with pytest.raises(DataError, match=r"api\.example: its address .* may not be asked"):
            asked(f"http://api.example:{api.port}/", LISTED, FakeResolver(answer))
        assert api.asked == []


def test_metadata_is_refused_even_where_private_networks_are_allowed() -> None:
    rules = UrlRules(("169.254.169.254",), allow_http=True, allow_private=True)
    with pytest.raises(DataError, match="metadata"):
        asked("http://169.254.169.254/latest/meta-data/", rules, lambda host, port: [host])


def test_the_next_address_is_tried_where_one_does_not_answer() -> None:
    rules = UrlRules(("api.example",), allow_http=True, allow_private=True)
    with running_api(lambda request: Reply("here")) as api:
        # Nobody listens at the first of the two.
        assert (
            asked(f"http://api.example:{api.port}/", rules, FakeResolver(["127.0.0.9", "127.0.0.1"]))
            == b'"here"'
        )


def test_a_host_without_addresses_is_one_sentence() -> None:
    with pytest.raises(httpx.ConnectError, match="has no address"):
        asked("https://api.example/", LISTED, FakeResolver([]))


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = UrlRules(("127.0.0.1",), allow_http=True, allow_private=True)
    with (
        running_api(lambda request: Reply("direct")) as api,
        running_api(lambda request: Reply("proxy")) as proxy,
    ):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert asked(api.url, rules, lambda host, port: [host]) == b'"direct"'
        assert proxy.asked == []


def test_an_answer_that_drips_ends_at_the_deadline() -> None:
    rules = UrlRules(("127.0.0.1",), allow_http=True, allow_private=True)
    with running_api(lambda request: Reply(b"x" * 200, drip_s=0.05)) as api:
        begun = time.monotonic()
        with GuardedTransport(rules, 0.4) as transport:
            response = transport.handle_request(httpx.Request("GET", api.url))
            with pytest.raises(httpx.TimeoutException):
                read_capped(response, 1000)
            response.close()
        assert time.monotonic() - begun < 2


@pytest.mark.parametrize("packing", ["br", "zstd", "gzip, gzip", "gzip,deflate"])
def test_packings_that_can_hold_a_bomb_are_refused(packing: str) -> None:
    bomb = gzip.compress(gzip.compress(b"\0" * (1 << 24)))
    rules = UrlRules(("127.0.0.1",), allow_http=True, allow_private=True)
    with (
        running_api(lambda request: Reply(bomb, headers={"Content-Encoding": packing})) as api,
        pytest.raises(DataError, match="is packed as"),
    ):
        asked(api.url, rules, lambda host, port: [host])


def test_a_gzip_bomb_ends_at_the_size_limit() -> None:
    bomb = gzip.compress(b"\0" * (64 << 20))
    rules = UrlRules(("127.0.0.1",), allow_http=True, allow_private=True)
    with (
        running_api(lambda request: Reply(bomb, headers={"Content-Encoding": "gzip"})) as api,
        pytest.raises(DataError, match="larger than 1,048,576 bytes"),
    ):
        asked(api.url, rules, lambda host, port: [host])


def read_rows(api: Api, **changes: Any) -> list[str]:
    values = {"url": api.url, "hosts": ["127.0.0.1"], "allow_http": True, "allow_private": True, **changes}
    return list(http_rows(HttpSource.model_validate({"type": "http", **values})))


def test_a_redirect_is_not_followed_not_even_to_the_same_host() -> None:
    for target in (
        "http://169.254.169.254/latest/?secret=1",
        "/elsewhere",
        "file:///etc/passwd",
        "http://host:secret/",
    ):
        with running_api(lambda request, to=target: Reply({}, 302, {"Location": to})) as api:  # type: ignore[misc]
            with pytest.raises(DataError, match="it redirects to .*, which is not followed") as caught:
                read_rows(api)
            assert len(api.asked) == 1
            assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "link",
    [
        "http://169.254.169.254/latest",
        "file:///etc/passwd",
        "http://127.0.0.1@evil.example/",
        "//evil.example/x",
    ],
)
def test_a_link_in_an_answer_leads_to_listed_hosts_only(link: str) -> None:
    with running_api(lambda request: Reply({"rows": [1], "next": link})) as api:
        with pytest.raises(DataError, match="not listed|only https|a user or password"):
            read_rows(api, rows="rows", pages={"by": "link", "cursor": "next"})
        assert len(api.asked) == 1


def test_headers_stay_with_the_first_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWT_TOKEN", "s3cret-value")
    with running_api(lambda request: Reply({"rows": [2]})) as other:
        link = other.url
        with running_api(lambda request: Reply({"rows": [1], "next": link})) as api:
            pages = {"by": "link", "cursor": "next", "size": 5}
            read = read_rows(api, rows="rows", headers={"Authorization": "${TWT_TOKEN}"}, pages=pages)
            assert api.asked[0].headers["Authorization"] == "s3cret-value"
    assert read == ["1", "2"]
    assert "Authorization" not in other.asked[0].headers


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of `api.example`, with its key, signed by itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "api.example")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("api.example")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + made.public_bytes(pem))
    return path


def test_tls_names_and_verifies_the_host_not_its_address(certificate: Path) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)
    names: list[str | None] = []
    server.sni_callback = lambda socket, name, context: names.append(name)
    trusting = ssl.create_default_context(cafile=str(certificate))
    rules = UrlRules(("api.example", "other.example"), allow_private=True)
    with running_api(lambda request: Reply("over TLS"), tls=server) as api:
        for host in ("api.example", "other.example"):
            resolver = FakeResolver(["127.0.0.1"])
            if host == "api.example":
                assert asked(f"https://{host}:{api.port}/", rules, resolver, verify=trusting) == b'"over TLS"'
            else:
                with pytest.raises(httpx.ConnectError, match="(?i)certificate"):
                    asked(f"https://{host}:{api.port}/", rules, resolver, verify=trusting)
        with pytest.raises(httpx.ConnectError, match="(?i)certificate"):
            asked(f"https://api.example:{api.port}/", rules, FakeResolver(["127.0.0.1"]))
    assert names == ["api.example", "other.example", "api.example"]
