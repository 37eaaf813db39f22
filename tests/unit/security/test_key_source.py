"""A key comes from the environment or a file, in two spellings, and shows in no message."""

from __future__ import annotations

import base64
import os
import traceback
from pathlib import Path

import pytest

from tunewright.errors import DataError
from tunewright.security.key_source import load_key

KEY = bytes(range(100, 132))
SPELLINGS = {
    "hex": KEY.hex(),
    "upper-case hex": KEY.hex().upper(),
    "base64": base64.b64encode(KEY).decode(),
    "with a newline": KEY.hex() + "\n",
}


def key_file(folder: Path, text: str, mode: int = 0o600) -> str:
    path = folder / "data.key"
    path.write_text(text, encoding="ascii")
    path.chmod(mode)
    return f"file:{path}"


@pytest.mark.parametrize("text", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_the_key_is_read_from_a_variable_and_from_a_file(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_KEY", text)
    assert load_key("${DATA_KEY}") == load_key(key_file(tmp_path, text)) == KEY


@pytest.mark.parametrize("value", [None, ""], ids=["missing", "empty"])
def test_a_variable_that_is_not_set_is_named(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATA_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("DATA_KEY", value)
    with pytest.raises(DataError, match="the variable DATA_KEY is not set on .*; every machine"):
        load_key("${DATA_KEY}")


@pytest.mark.parametrize(
    "text",
    [
        KEY.hex()[:-2],
        KEY.hex() + "00",
        "z" * 64,
        base64.b64encode(KEY[:16]).decode(),
        "pass word",
        "\N{BULLET}",
    ],
    ids=["31 bytes", "33 bytes", "no digits", "16 bytes", "words", "not ASCII"],
)
def test_what_is_no_key_is_refused_without_being_shown(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_KEY", text)
    with pytest.raises(DataError, match="openssl rand -hex 32") as caught:
        load_key("${DATA_KEY}")
    assert "${DATA_KEY}" in str(caught.value)
    assert text not in str(caught.value)
    frames = [frame for frame, _ in traceback.walk_tb(caught.value.__traceback__)]
    ours = [f for f in frames if f.f_code.co_filename.endswith("/key_source.py")]
    assert ours
    assert not [f for f in ours if text in repr(f.f_locals)]  # as error trackers would show them


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o620, 0o602, 0o777], ids=oct)
def test_a_key_file_that_others_may_open_is_refused_as_ssh_does(mode: int, tmp_path: Path) -> None:
    spec = key_file(tmp_path, KEY.hex(), mode)
    with pytest.raises(DataError, match=f"open to other users .mode {mode:o}.*chmod 600 ") as caught:
        load_key(spec)
    assert KEY.hex() not in str(caught.value)


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o440, 0o640], ids=oct)
def test_a_key_file_of_its_owner_and_group_is_read(mode: int, tmp_path: Path) -> None:
    assert load_key(key_file(tmp_path, KEY.hex(), mode)) == KEY


def test_a_key_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.key cannot be read on .*No such file"):
        load_key(f"file:{tmp_path}/none.key")
    with pytest.raises(DataError, match="cannot be read on .*Is a directory"):
        load_key(f"file:{tmp_path}")
    with pytest.raises(DataError, match=r"file:data\.key must be an absolute path"):
        load_key("file:data.key")


def test_a_pipe_is_no_key_file_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(DataError, match="pipe is not a file"):
        load_key(f"file:{tmp_path}/pipe")


@pytest.mark.parametrize("spec", [KEY.hex(), "$DATA_KEY", "${DATA KEY}", "file:", ""])
def test_a_key_in_place_of_where_it_is_is_not_repeated(spec: str) -> None:
    with pytest.raises(DataError, match="say where it is, as") as caught:
        load_key(spec)
    assert not spec or spec not in str(caught.value).replace("file:PATH", "")
