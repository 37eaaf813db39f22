"""Secrets in settings: `${NAME}` stands for a variable of the environment.

The settings keep the placeholder, wherever they are written; the value is put in where it is used,
at the last moment, and taken out of every message.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import quote, quote_plus

from tunewright.errors import DataError

PLACEHOLDER = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
# Names of headers, parameters and options that carry a secret.
TELLING = re.compile(
    r"(authorization|auth|cookie|credentials?|password|passwd|pwd|passphrase|secret|signature|token)$"
    r"|(api|access|private|secret|subscription)[-_]?key$|^(x[-_])?key$|(^|[-_])sig$",
    re.IGNORECASE,
)
SHORTEST = 4
"""A value below this is no secret, and taking it out would make messages unreadable."""


def resolve_secrets(text: str, in_url: bool = False) -> str:
    """The text with the value of each `${NAME}`.

    Args:
        in_url: whether the values are to be quoted as parts of a URL.
    Raises:
        DataError: a variable is not set, or holds a line break or another control character.
    """
    return PLACEHOLDER.sub(lambda m: quote(_value(m[1]), safe="") if in_url else _value(m[1]), text)


def masked(message: str, *texts: str) -> str:
    """The message without the values of the placeholders in `texts`: `${NAME}` stands there again."""
    names = {name for text in texts for name in PLACEHOLDER.findall(text)}
    values = {name: os.environ.get(name, "") for name in names}
    for name, value in sorted(values.items(), key=lambda item: -len(item[1])):
        if len(value) >= SHORTEST:
            for form in (value, quote(value, safe=""), quote_plus(value)):
                message = message.replace(form, f"${{{name}}}")
    return message


def refuse_literals(values: Mapping[str, str], where: str) -> None:
    """Ensure that what is named like a secret comes from the environment.

    Raises:
        DataError: a value stands in the settings itself; names it and does not show it.
    """
    for name, value in values.items():
        if TELLING.search(name) and value and not PLACEHOLDER.search(value):
            raise DataError(
                f"{where}: `{name}` is a secret written out, which would stand in the run's files; "
                f"put it into the environment and write ${{NAME}} here"
            )


def _value(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise DataError(f"${{{name}}} is not set; set {name} in the environment of the job")
    if not value.isprintable():
        raise DataError(f"${{{name}}} holds a line break or another control character; set {name} without it")
    return value
