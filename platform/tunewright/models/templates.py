"""Named chat templates: the formats that model families publish, for bases that bring none or another.

A template that writes special tokens names them in its first comment, as a user's own may:
`{#- special tokens: <|im_start|> <|im_end|> -#}`. A tokenizer without them could neither read nor
end such a turn, so it is refused.
"""

from __future__ import annotations

import difflib
import re
from functools import cache
from pathlib import Path

from tunewright.errors import DataError

_FOLDER = Path(__file__).parent / "chat_templates"
_DEFAULT_SYSTEM = {
    "qwen2": "You are a helpful assistant.",
    "qwen2.5": "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
}
"""ChatML with a system message of its own."""
_NEEDS = re.compile(r"\s*\{#-?\s*special tokens:(.*?)-?#\}", re.DOTALL)

NAMES = (
    "plain",
    "chatml",
    "qwen2",
    "qwen2.5",
    "qwen3",
    "llama3",
    "zephyr",
    "gemma",
    "mistral",
    "phi3",
    "phi4",
    "deepseek",
)
"""`plain` needs nothing of a tokenizer but its end of sequence, nor do `zephyr` and `mistral`."""


@cache
def named_template(name: str) -> str:
    """The Jinja text of one of `NAMES`."""
    if name in _DEFAULT_SYSTEM:
        chatml, empty = named_template("chatml"), "set default_system = ''"
        assert empty in chatml
        return chatml.replace(empty, f"set default_system = '{_DEFAULT_SYSTEM[name]}'")
    return (_FOLDER / f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n")


def resolve_template(name_or_path: str | None) -> str | None:
    """The Jinja text that `data.chat_template` stands for: one of `NAMES`, or a file; None for None.

    Raises:
        DataError: neither, or a file that cannot be read.
    """
    if name_or_path is None:
        return None
    if name_or_path in NAMES:
        return named_template(name_or_path)
    try:
        return Path(name_or_path).expanduser().read_text(encoding="utf-8")
    except FileNotFoundError:
        close = difflib.get_close_matches(name_or_path, NAMES, 1)
        meant = (
            f"did you mean {close[0]}?" if close else f"expected a Jinja file or one of {', '.join(NAMES)}"
        )
        raise DataError(
            f"data.chat_template {name_or_path}: no such file, and no template of this name; {meant}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DataError(f"data.chat_template {name_or_path}: {reason}") from None


def needed_tokens(template: str) -> list[str]:
    """Special tokens that a template says it writes."""
    found = _NEEDS.match(template)
    return found.group(1).split() if found else []
