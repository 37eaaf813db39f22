"""Data keys are wrapped by a key that stays where it is, and come back only with the same key."""

from __future__ import annotations

import base64
import hmac
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.errors import DataError, ShardCorrupt
from tunewright.security.crypto import LocalKms, is_kms_spec, open_kms

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


@given(st.binary(min_size=16, max_size=32))
def test_what_was_wrapped_comes_back_and_never_looks_the_same(data_key: bytes) -> None:
    kms = LocalKms(KEY, "${KEY}")
    first, second = kms.wrap(data_key, kms.key_id), kms.wrap(data_key, kms.key_id)
    assert first != second
    assert data_key not in base64.b64decode(first)
    assert kms.unwrap(first, kms.key_id) == kms.unwrap(second, kms.key_id) == data_key


def test_the_id_tells_keys_apart_and_is_the_same_everywhere() -> None:
    extracted = hmac.digest(bytes(32), KEY, "sha256")  # RFC 5869, by hand
    expected = hmac.digest(extracted, b"tunewright key id\x01", "sha256")[:8].hex()
    assert LocalKms(KEY, "a").key_id == LocalKms(KEY, "b").key_id == f"local-{expected}"
    assert LocalKms(OTHER, "a").key_id != LocalKms(KEY, "a").key_id


def test_another_key_is_said_to_be_another_one() -> None:
    kms, other = LocalKms(KEY, "${KEY}"), LocalKms(OTHER, "${OTHER}")
    wrapped = kms.wrap(b"d" * 32, kms.key_id)
    with pytest.raises(
        DataError, match=r"the key in \$\{OTHER\} is not the one that the data set was written"
    ):
        other.unwrap(wrapped, kms.key_id)


def test_every_changed_character_of_a_wrapped_key_is_found_out() -> None:
    kms = LocalKms(KEY, "${KEY}")
    wrapped = kms.wrap(b"d" * 32, kms.key_id)
    caught = 0
    for at in range(len(wrapped)):
        changed = wrapped[:at] + ("A" if wrapped[at] != "A" else "B") + wrapped[at + 1 :]
        with pytest.raises(ShardCorrupt, match="data key was changed"):
            kms.unwrap(changed, kms.key_id)
        caught += 1
    assert caught == len(wrapped) > 60


@pytest.mark.parametrize("wrapped", ["", "AAAA", "not base64!", "\N{BULLET}"])
def test_what_was_never_wrapped_is_found_out(wrapped: str) -> None:
    kms = LocalKms(KEY, "${KEY}")
    with pytest.raises(ShardCorrupt):
        kms.unwrap(wrapped, kms.key_id)


def test_a_wrapped_key_is_bound_to_the_id_of_its_master_key() -> None:
    kms = LocalKms(KEY, "${KEY}")
    wrapped = kms.wrap(b"d" * 32, "local-0000000000000000")
    with pytest.raises(ShardCorrupt):
        kms.unwrap(wrapped, kms.key_id)


def test_the_key_is_neither_shown_nor_sent() -> None:
    kms = LocalKms(KEY, "${KEY}")
    shown = f"{kms!r} {kms} {vars(kms)!r}"
    assert KEY.hex() not in shown
    assert repr(KEY) not in shown
    with pytest.raises(TypeError, match="does not travel"):
        pickle.dumps(kms)


PLUGIN = '''
class Service:
    """Turns keys around, for want of a service."""

    def wrap(self, data_key, key_id):
        return f"{key_id}/{data_key[::-1].hex()}"

    def unwrap(self, wrapped, key_id):
        assert wrapped.startswith(key_id + "/")
        return bytes.fromhex(wrapped.partition("/")[2])[::-1]
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package that offers the key service `turned`."""
    (tmp_path / "acme_turned.py").write_text(PLUGIN, encoding="utf-8")
    described = tmp_path / "acme_turned-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-turned\nVersion: 1.0\n", "utf-8")
    (described / "entry_points.txt").write_text("[tunewright.kms]\nturned = acme_turned:Service\n", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("plugin")
def test_an_installed_package_plugs_in_a_key_service() -> None:
    kms, key_id = open_kms("kms:turned/keys/data")
    assert key_id == "keys/data"
    assert kms.wrap(b"ab", key_id) == "keys/data/" + b"ba".hex()


@pytest.mark.usefixtures("plugin")
def test_a_service_that_nobody_offers_is_named_with_those_that_are() -> None:
    with pytest.raises(DataError, match=r"offers the key service 'vault' .tunewright\.kms.; found: turned"):
        open_kms("kms:vault/k")


@pytest.mark.parametrize(
    ("spec", "good"),
    [
        ("${KEY}", True),
        ("file:/k", True),
        ("kms:a/b/c", True),
        ("kms:a", False),
        ("kms:/b", False),
        ("ab" * 32, False),
    ],
)
def test_the_forms_of_a_key(spec: str, good: bool) -> None:
    assert is_kms_spec(spec) is good
