"""Presidio: names and places are found with an installed model, and its absence is said."""

from __future__ import annotations

import socket
from importlib.util import find_spec
from pathlib import Path

import pytest

from tunewright.config.data import Privacy
from tunewright.data.privacy import Redactor, presidio
from tunewright.data.privacy.presidio import CHARS_AT_ONCE, Presidio
from tunewright.errors import DataError

installed = pytest.mark.skipif(
    find_spec("presidio_analyzer") is None, reason="needs Presidio: pip install 'tunewright[pii]'"
)


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A spaCy pipeline that knows two names, saved in a folder."""
    import spacy

    nlp = spacy.blank("en")
    patterns = {"Ana Lopez": "PERSON", "Madrid": "GPE", "Acme": "ORG"}
    nlp.add_pipe("entity_ruler").add_patterns([{"label": v, "pattern": k} for k, v in patterns.items()])
    nlp.to_disk(tmp_path / "model")
    return str(tmp_path / "model")


def test_without_presidio_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presidio, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'tunewright\[pii\]'"):
        Redactor(Privacy(presidio=True, presidio_model="not looked for"))


def test_presidio_is_not_needed_where_nothing_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presidio, "find_spec", lambda name: None)
    assert Redactor(Privacy(presidio=True, action="keep")).row().text("Ana") == "Ana"


@installed
def test_names_and_places_are_replaced_beside_what_patterns_find(model: str) -> None:
    row = Redactor(Privacy(presidio=True, presidio_model=model)).row()
    text = "Ana Lopez of Acme moved to Madrid; ana@example.com. Ana Lopez!"
    assert row.text(text) == "[person] of Acme moved to [place]; [email]. [person]!"
    assert row.counts == {"person": 2, "place": 1, "email": 1}
    assert row.text("[person] of Acme moved to [place]") == "[person] of Acme moved to [place]"


@installed
def test_a_text_longer_than_spacy_takes_is_read_in_parts(model: str) -> None:
    text = "so it is " * (CHARS_AT_ONCE // 9 * 3) + "Ana Lopez"
    found = Presidio(model)(text)
    assert [(f.kind, text[f.start : f.end]) for f in found] == [("person", "Ana Lopez")]


@installed
def test_a_model_that_is_missing_is_named_and_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("asked the network"))
    with pytest.raises(DataError, match="presidio_model='en_core_web_none'.*spacy download"):
        Redactor(Privacy(presidio=True, presidio_model="en_core_web_none"))
