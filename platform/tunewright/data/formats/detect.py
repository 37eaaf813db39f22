"""Which format rows are in, told from their columns and from what stands there, with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunewright.data.formats.conversations import TURN_COLUMNS
from tunewright.data.formats.texts import TAG_COLUMNS
from tunewright.errors import DataError

MOST = 0.9
"""A column counts when so many of the rows have it: a few bad rows are for quarantine, not for guessing."""
JSON_START = ("[", "{")
CLASSES = ("category", "class", "intent", "sentiment", "target")
"""What a class is called in sets that do not call it `label`."""


@dataclass(frozen=True)
class Seen:
    """What the first rows hold.

    Attributes:
        rows: how many were looked at.
        kinds: column -> what stands there: text, number, bool, bits, words, list, turns, from-turns,
            turn, other, mixed or empty.
    """

    rows: int
    kinds: dict[str, str]

    def has(self, *columns: str) -> bool:
        return all(column in self.kinds for column in columns)

    def turns(self) -> str | None:
        """The column with messages, if one has them."""
        return next((name for name in TURN_COLUMNS if self.kinds.get(name) in ("turns", "from-turns")), None)

    def tags(self) -> str | None:
        return next((name for name in TAG_COLUMNS if self.kinds.get(name) in ("words", "list")), None)

    def asks(self) -> tuple[str, ...]:
        """The columns that make a question with its answer: one column of messages, or two of text."""
        turns = self.turns()
        if turns:
            return (turns,)
        pairs = (("prompt", "completion"), ("instruction", "output"))
        return next((pair for pair in pairs if self.has(*pair)), ())


def detect_format(records: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> tuple[str, str]:
    """The format of the rows, and the reason, from the first rows of a source.

    Raises:
        DataError: no format fits, or two fit equally; names what was found, and what to state.
    """
    seen = look(records, columns)
    for rule in RULES:
        found = rule(seen)
        if found:
            form, needed, why = found
            return form, _reason(seen, needed, why)
    names = ", ".join(f"{name} ({kind})" for name, kind in sorted(seen.kinds.items()))
    raise DataError(
        f"the rows' format is not known: columns are {names or 'none in common'}; "
        f"state `format`, and name the columns, such as columns: {{prompt: question, completion: answer}}"
    )


def look(records: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> Seen:
    """The columns that nearly all rows have, under the names the user gave them, and what they hold."""
    taken = set(columns.values()) - set(columns)
    kinds: dict[str, Counter[str]] = {}
    for record in records:
        row = {name: value for name, value in record.items() if name not in taken}
        row |= {name: record[column] for name, column in columns.items() if column in record}
        for name, value in row.items():
            if value is not None:
                kinds.setdefault(name, Counter())[_kind(value)] += 1
    least = MOST * len(records)
    common = [name for name, counts in kinds.items() if counts.total() >= least]
    return Seen(len(records), {name: _most_common(kinds[name]) for name in common})


def _most_common(counts: Counter[str]) -> str:
    """What more than half of the values are that are not empty; the others are for quarantine."""
    del counts["empty"]
    if not counts:
        return "empty"
    if set(counts) == {"number", "bits"}:
        return "number"
    kind, n = counts.most_common(1)[0]
    return kind if 2 * n > counts.total() else "mixed"


def _kind(value: Any) -> str:
    if value in ("", [], {}):
        return "empty"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "bits" if value in (0, 1) else "number"
    if isinstance(value, str):
        if value.strip().lower() in ("true", "false"):
            return "bool"
        return _json_kind(value) if value.startswith(JSON_START) else "text"
    if isinstance(value, dict):
        return "turn" if "role" in value or "from" in value else "other"
    if not isinstance(value, list | tuple):
        return "other"
    if value and all(isinstance(item, str) for item in value):
        return "words"
    if value and all(isinstance(item, dict) for item in value):
        return "turns" if "role" in value[0] else "from-turns" if "from" in value[0] else "list"
    return "list"


def _json_kind(text: str) -> str:
    """What a text holds that may be a list written as JSON, as databases and CSV keep them."""
    from tunewright.data.formats.fields import parse_json

    try:
        kind = _kind(parse_json(text, "a column"))
    except DataError:
        return "text"
    return kind if kind in ("turns", "from-turns", "words") else "text"


Found = tuple[str, tuple[str, ...], str]
"""Format, the columns it needs, and more words for the reason."""


def _preference(seen: Seen) -> Found | None:
    if not seen.has("chosen", "rejected"):
        return None
    question = next((name for name in ("prompt", "instruction", *TURN_COLUMNS) if seen.has(name)), None)
    if question:
        return "preference", (question, "chosen", "rejected"), ""
    if seen.kinds["chosen"] in ("turns", "from-turns"):
        return "preference", ("chosen", "rejected"), "the question is what both conversations begin with"
    raise DataError(
        "the rows have chosen and rejected but no question: name its column, such as "
        "columns: {prompt: question}"
    )


def _kto(seen: Seen) -> Found | None:
    asked = seen.asks()
    if asked and seen.has("kto_tag"):
        return "kto", (*asked, "kto_tag"), ""
    if asked and seen.kinds.get("label") == "bool":
        return "kto", (*asked, "label"), "label is true or false"
    if asked and seen.kinds.get("label") == "bits":
        plain = {"prompt": "prompt_completion", "instruction": "alpaca"}.get(asked[0], "messages")
        raise DataError(
            f"two formats fit the rows: {' and '.join(asked)} with a `label` of 0 and 1 may be rated "
            f"answers (format: kto) or answers to be learned all (format: {plain}); "
            f"state `format`"
        )
    return None


def _tags(seen: Seen) -> Found | None:
    tags = seen.tags()
    if tags and seen.kinds.get("tokens") == "words":
        return "tags", ("tokens", tags), "each holds a list"
    return None


def _messages(seen: Seen) -> Found | None:
    name = seen.turns()
    if name is None:
        return None
    if seen.kinds[name] == "turns":
        return "messages", (name,), "its items have role and content"
    return "sharegpt", (name,), "its items have from and value"


def _asked(seen: Seen) -> Found | None:
    prompt, alpaca = seen.has("prompt", "completion"), seen.has("instruction", "output")
    if prompt and alpaca:
        raise DataError(
            "two formats fit the rows: prompt and completion (format: prompt_completion), and "
            "instruction and output (format: alpaca); state `format`"
        )
    if prompt:
        return "prompt_completion", ("prompt", "completion"), ""
    return ("alpaca", ("instruction", "output"), "") if alpaca else None


def _text(seen: Seen) -> Found | None:
    if seen.kinds.get("text") not in ("text", "words", "bool", "number", "bits"):
        return None
    classes = next((name for name in CLASSES if seen.has(name)), None)
    if classes and not seen.has("label"):
        raise DataError(
            f"two formats fit the rows: text alone (format: text), and text with a class "
            f"(columns: {{label: {classes}}}); state one of them"
        )
    if not seen.has("label"):
        return "text", ("text",), ""
    if seen.kinds["label"] in ("text", "number", "bits", "bool", "mixed"):
        return "classification", ("text", "label"), ""
    raise DataError(
        f"the rows have text and a label that is {seen.kinds['label']}: state `format: text` to learn the "
        f"text alone, or name the class, such as columns: {{label: category}}"
    )


RULES: tuple[Callable[[Seen], Found | None], ...] = (_preference, _kto, _tags, _messages, _asked, _text)
"""In this order: a row with a second answer, a label or tags would also pass for a simpler one."""


def _reason(seen: Seen, needed: Sequence[str], why: str) -> str:
    used = {*needed, "system", "tools", "functions", "input", "history"}
    unused = sorted(set(seen.kinds) - used)
    said = f"the first {seen.rows} rows have {' and '.join(needed)}"
    said += f"; {why}" if why else ""
    if unused:
        said += f"; not used: {', '.join(unused[:6])}{', ...' if len(unused) > 6 else ''}"
    return said
