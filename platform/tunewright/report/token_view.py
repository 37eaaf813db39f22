"""Tokens in the terminal: what carries loss in green, or in ⟦ ⟧ where there are no colours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunewright.report.data_words import of, percent, visible
from tunewright.report.text import count

if TYPE_CHECKING:
    from rich.text import Text

LOSS = ("white on #0b7265", "white on #15594f")
"""In turn, so that where a token ends can be seen; readable on light and dark terminals."""
OTHER = ("bright_black", "dim")
LABEL, PROBLEM, HEAD = "bold magenta", "bold red", "bold"
OPEN, CLOSE, BETWEEN = "⟦", "⟧", "·"


def source_view(source: Mapping[str, Any], plain: bool) -> Iterator[Text]:
    """A source of `tunewright.preview.preview` as blocks of text.

    Args:
        plain: without colours: ⟦loss⟧, and `·` between tokens.
    """
    from rich.text import Text

    head = f"source {source['number']}  {visible(source['source'])}"
    if source["problem"] is not None:
        yield Text(head, HEAD)
        yield Text(f"  {visible(source['problem'])}", PROBLEM)
        return
    told = f"  {source['type']}, format {source['format']}: {visible(source['because'])}"
    yield Text(head, HEAD) + Text(told, "not bold")
    if not source["rows"]:
        yield Text("  no rows", PROBLEM)
    for row in source["rows"]:
        yield from _row(row, plain)


def legend(plain: bool) -> Text:
    """One line that says what the marks mean."""
    from rich.text import Text

    if plain:
        return Text(f"{OPEN}carries loss{CLOSE}  does not  {BETWEEN} end of a token  ⏎ end of a line")
    return Text.assemble(
        (" carries ", LOSS[0]),
        ("loss ", LOSS[1]),
        "  ",
        ("does ", OTHER[0]),
        ("not", OTHER[1]),
        "  each shade is a token  ⏎ end of a line",
    )


def _row(row: Mapping[str, Any], plain: bool) -> Iterator[Text]:
    from rich.text import Text

    place = f"{visible(row['file'])}:{row['line']}"
    if row["problem"] is not None:
        yield Text()
        yield Text.assemble((place, HEAD), "  ", (f"rejected: {visible(row['problem'])}", PROBLEM))
        if row["text"]:
            yield Text(visible(row["text"]), OTHER[1])
        return
    for number, document in enumerate(row["documents"], start=1):
        yield Text()
        title = place
        if len(row["documents"]) > 1:
            title += f", document {number} of {len(row['documents'])}"
        if row["notes"]:
            title += f" ({', '.join(row['notes'])})"
        yield Text(title, HEAD)
        for part in document["parts"]:
            if part["name"]:
                yield Text(f"{part['name']}:", LABEL)
            yield _plain_tokens(part["tokens"]) if plain else _coloured_tokens(part["tokens"])
        yield _summary(document)


def _summary(document: Mapping[str, Any]) -> Text:
    """`42 tokens, 17 carry loss (40.5 %), ends with <|end|>: yes`."""
    from rich.text import Text

    share = percent(of(document["supervised"], document["tokens"]))
    said = Text(f"{count(document['tokens'])} tokens, {count(document['supervised'])} carry loss ({share})")
    answers, ended = document["answers"], document["ended"]
    if not answers:
        return said
    end = visible(document["end_token"] or "an end token")
    said.append(f", ends with {end}: " if answers == 1 else f", answers that end with {end}: ")
    told = ("yes" if ended else "NO") if answers == 1 else f"{ended} of {answers}"
    return said.append(told, None if ended == answers else PROBLEM)


def _coloured_tokens(tokens: Sequence[Mapping[str, Any]]) -> Text:
    from rich.text import Text

    text = Text()
    for number, token in enumerate(tokens):
        text.append(_shown(token["text"]), (LOSS if token["loss"] else OTHER)[number % 2])
        if "label" in token:
            text.append(f"/{visible(token['label'])}", LABEL)
    return text


def _plain_tokens(tokens: Sequence[Mapping[str, Any]]) -> Text:
    from rich.text import Text

    text = Text()
    for number, token in enumerate(tokens):
        before = number > 0 and tokens[number - 1]["loss"]
        if token["loss"] != before:
            text.append(OPEN if token["loss"] else CLOSE)
        elif number:
            text.append(BETWEEN)
        text.append(_shown(token["text"]))
        if "label" in token:
            text.append(f"/{visible(token['label'])}")
    if tokens and tokens[-1]["loss"]:
        text.append(CLOSE)
    return text


def _shown(text: str) -> str:
    """A token's text with ends of lines to be seen."""
    return visible(text).replace("\n", "⏎\n")
