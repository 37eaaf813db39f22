"""Normalisation: changes of the text itself, before anything else looks at it."""

from __future__ import annotations

import re
import unicodedata

from tunewright.config.data import Normalize

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
EMPTY_LINES = re.compile(r"\n{4,}")  # three empty lines: four line feeds


def normalize(text: str, config: Normalize) -> str:
    """The text with the changes that the settings ask for; the same object if there are none.

    Doing it twice is doing it once. A CR is a line end, alone or before LF; `trim` takes it for the
    blank that Python says it is.
    """
    # isprintable, at a third of the cost of the search, clears most texts.
    if config.control == "strip" and not text.replace("\n", "").isprintable() and CONTROL.search(text):
        text = CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    # After the control characters: a mark may now stand beside its letter.
    if config.unicode == "nfc" and not text.isascii() and not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    return _trimmed(text) if config.whitespace == "trim" else text


def _trimmed(text: str) -> str:
    """No blanks at line ends or around the text; three or more empty lines become one."""
    if "\n" in text:
        trimmed = "\n".join([line.rstrip() for line in text.split("\n")])
        text = text if trimmed == text else trimmed
        if "\n\n\n\n" in text:
            text = EMPTY_LINES.sub("\n\n", text)
    return text.strip()
