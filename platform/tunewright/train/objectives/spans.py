"""Entities in a sequence of tags: B-KIND begins one, I-KIND goes on, O is outside."""

from __future__ import annotations

from collections.abc import Sequence


def are_spans(labels: Sequence[str]) -> bool:
    """Whether the tags mark entities: nothing but O, B-... and I-..., and some of the latter."""
    inside = [label for label in labels if label != "O"]
    return bool(inside) and all(label[:2] in ("B-", "I-") and label[2:] for label in inside)


def spans(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(kind, first word, last word + 1) of each entity.

    An I- that goes on with nothing, or with another kind, begins an entity:
    O I-city I-city B-city I-name  ->  (city, 1, 3), (city, 3, 4), (name, 4, 5)

    Source: seqeval 1.2.2, `get_entities`, whose scores count so by default.
    """
    found = set()
    kind, begin = "", 0
    for at, tag in enumerate([*tags, "O"]):
        prefix, _, own = tag.partition("-")
        if kind and (prefix != "I" or own != kind):
            found.add((kind, begin, at))
            kind = ""
        if own and not kind:
            kind, begin = own, at
    return found
