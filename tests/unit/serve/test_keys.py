"""The endpoint's key: made once, readable by its owner alone, known to the server by its hash."""

from __future__ import annotations

import stat
import subprocess
import sys

import pytest

from tunewright.errors import ServeError, StoreError
from tunewright.serve.keys import endpoint_key, key_hash, key_is_known


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("TUNEWRIGHT_API_KEY", raising=False)


def test_the_key_is_made_once_and_kept_for_its_owner_alone(tmp_path):
    key = endpoint_key(tmp_path)
    assert key.startswith("tw-")
    assert len(key) >= 3 + 43  # 256 bits in base64
    assert endpoint_key(tmp_path) == key
    path = tmp_path / "keys" / "endpoint.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["endpoint.key"]


def test_two_stores_have_different_keys(tmp_path):
    assert endpoint_key(tmp_path / "a") != endpoint_key(tmp_path / "b")


def test_processes_that_ask_at_once_get_the_same_key(tmp_path):
    script = (
        "import sys, pathlib\n"
        "from tunewright.serve.keys import endpoint_key\n"
        "sys.stdin.readline()\n"
        "print(endpoint_key(pathlib.Path(sys.argv[1])))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    keys = {process.communicate("go\n", timeout=60)[0] for process in started}
    assert len(keys) == 1
    assert keys.pop().startswith("tw-")


def test_the_environment_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEWRIGHT_API_KEY", "a-key-from-the-environment")
    assert endpoint_key(tmp_path) == "a-key-from-the-environment"
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize(
    "key", ["", "short", "with a space in the middle", "n\u00f6n-ascii-characters", "line\nbreak-in-the-key"]
)
def test_a_key_that_is_no_secret_is_refused_without_showing_it(tmp_path, monkeypatch, key):
    monkeypatch.setenv("TUNEWRIGHT_API_KEY", key)
    with pytest.raises(ServeError, match="TUNEWRIGHT_API_KEY holds no usable key") as caught:
        endpoint_key(tmp_path)
    assert not key or key not in str(caught.value)


def test_a_store_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "keys").write_text("a file", encoding="utf-8")
    with pytest.raises(StoreError, match="a file stands where a folder is needed"):
        endpoint_key(tmp_path)


def test_a_key_is_known_by_any_of_the_hashes_and_not_by_itself():
    hashes = [key_hash("tw-first-key-00000"), key_hash("tw-second-key-0000")]
    assert key_is_known("tw-second-key-0000", hashes)
    assert not key_is_known("tw-third-key-00000", hashes)
    assert not key_is_known(hashes[0], hashes)
    assert not key_is_known("", [])
