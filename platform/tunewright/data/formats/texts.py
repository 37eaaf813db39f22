"""Rows that hold a text with a class, or words with tags -> content of an `Example`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunewright.data.formats.fields import label_text, list_field, text_field
from tunewright.errors import DataError

TAG_COLUMNS = ("tags", "ner_tags")


def classification(row: Mapping[str, Any]) -> dict[str, Any]:
    """{"text", "label"}; a class that is a number is named by it."""
    return {"text": text_field(row, "text"), "label": label_text(row.get("label"), "label")}


def tagged(row: Mapping[str, Any]) -> dict[str, Any]:
    """{"tokens", "tags"} of equal length; see `check_bio` for which sequences of tags are refused."""
    column = next((name for name in TAG_COLUMNS if row.get(name) is not None), TAG_COLUMNS[0])
    tokens = list_field(row.get("tokens"), "`tokens`")
    tags = list_field(row.get(column), f"`{column}`")
    if not tokens:
        raise DataError("`tokens` is an empty list")
    if len(tokens) != len(tags):
        raise DataError(f"{len(tokens)} tokens have {len(tags)} tags")
    for index, token in enumerate(tokens):
        if not isinstance(token, str):
            raise DataError(f"token {index} is {type(token).__name__}, not text")
        if not token.strip():
            raise DataError(f"token {index} is empty")
    if len({type(tag) for tag in tags}) > 1:
        raise DataError("the tags are of several types; texts or whole numbers are expected")
    names = [label_text(tag, f"{column}[{index}]") for index, tag in enumerate(tags)]
    check_bio(names)
    return {"tokens": tokens, "tags": names}


def check_bio(tags: Sequence[str]) -> None:
    """Ensure that each `I-x` goes on with an `x` that began with `B-x`.

    ["B-place", "I-place", "O"] is fine; ["O", "I-place"] and ["B-person", "I-place"] are refused, not
    repaired: whether a name begins there (IOB1) or a tag is wrong cannot be told from the row.
    Tags of other kinds, such as parts of speech or numbers, are free.

    Raises:
        DataError: names the position.
    """
    before = "O"
    for index, tag in enumerate(tags):
        if tag.startswith("I-") and before not in (tag, f"B-{tag[2:]}"):
            raise DataError(
                f"tag {index} is {tag} after {before if index else 'nothing'}; "
                f"in BIO it must follow B-{tag[2:]} or I-{tag[2:]}"
            )
        before = tag
