"""Entry 1: what carries loss, and that the end of every answer does.

B rows, S tokens per row.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunewright.train.certificate.entry import Entry
from tunewright.train.certificate.sample import Subject, segments_of, spread
from tunewright.train.objectives.base import Mask

SAMPLED_ROWS = 256
EVERY_DOCUMENT = ("preference", "kto", "classification")
"""Rows in which each document has something to be learned; a conversation that was split may not."""


@dataclass
class Found:
    """What is learned in a task's sampled rows.

    Attributes:
        tokens: padding aside; `learned` of them are targets, or places that have a label.
        empty: documents in which nothing is learned.
        answers: stretches of learned tokens; `open` of them end with no end-of-turn token.
    """

    rows: int = 0
    tokens: int = 0
    learned: int = 0
    documents: int = 0
    empty: int = 0
    answers: int = 0
    open: int = 0

    def figures(self) -> dict[str, Any]:
        return {
            "rows_sampled": self.rows,
            "supervised_share": self.learned / max(1, self.tokens),
            "supervised": self.learned,
            "answers": self.answers,
            "answers_without_end": self.open,
            "documents": self.documents,
            "documents_without_any": self.empty,
        }


def learned_entry(subjects: Sequence[Subject], stop_ids: Collection[int]) -> Entry:
    """Whether each task's rows teach something, and how answers end.

    Args:
        stop_ids: the tokens that end a turn, as serving has them.
    """
    measured: dict[str, Any] = {}
    sentences, wrong = [], []
    for subject in subjects:
        found = look(subject, stop_ids)
        suffix = f"/{subject.stream.name}" if subject.stream.name else ""
        measured |= {f"{name}{suffix}": value for name, value in found.figures().items()}
        problem = _problem(subject, found)
        if problem:
            wrong.append(subject.told + problem)
        sentences.append(subject.told + _sentence(subject, found))
    return Entry(1, not wrong, "; ".join(wrong or sentences), measured)


def look(subject: Subject, stop_ids: Collection[int]) -> Found:
    """What is learned in some of the task's training rows."""
    found = Found()
    for index in spread(len(subject.stream.rows), SAMPLED_ROWS):
        rows = subject.stream.rows.take([index])
        mask_S = _targets(subject, subject.stream.objective.places(rows))[0]
        ids_S, segments_S = rows["input_ids"][0], rows["segment_ids"][0]
        found.rows += 1
        found.tokens += int((segments_S > 0).sum())
        found.learned += int(mask_S.sum())
        for at in segments_of(segments_S):
            found.documents += 1
            found.empty += not mask_S[at].any()
            if subject.stream.objective.head != "lm":
                continue
            for end in _ends(mask_S[at]):
                if subject.rows_of == "text" and at.stop - at.start == len(ids_S):
                    continue  # a piece of a longer text may fill a row, and ends where the row does
                found.answers += 1
                found.open += int(ids_S[at][end]) not in stop_ids
    return found


def _targets(subject: Subject, places_BS: Mask) -> Mask:
    """(B, S) the tokens that are learned: those behind the places of a language model."""
    if subject.stream.objective.head != "lm":
        return places_BS
    out = np.zeros_like(places_BS)
    out[:, 1:] = places_BS[:, :-1]
    return out


def _ends(mask_S: Mask) -> list[int]:
    """The last place of each stretch of ones."""
    after = np.append(mask_S[1:], False)
    return [int(at) for at in np.flatnonzero(mask_S & ~after)]


def _problem(subject: Subject, found: Found) -> str:
    if not found.learned:
        return (
            f"no token of {found.rows} sampled rows carries loss, so nothing would be learned; look at "
            f"data.loss and the messages' weights"
        )
    if found.open:
        kind = "texts" if subject.rows_of == "text" else "answers"
        return (
            f"{found.open:,} of {found.answers:,} sampled {kind} end without an end token that carries loss: "
            f"the model would not learn to stop; prepare the data again, with the template it is served with"
        )
    if found.empty and subject.rows_of in EVERY_DOCUMENT:
        return f"nothing is learned in {found.empty:,} of {found.documents:,} sampled documents"
    return ""


def _sentence(subject: Subject, found: Found) -> str:
    if subject.stream.objective.head != "lm":
        return f"{found.learned:,} places in {found.documents:,} sampled documents are learned from"
    share = f"{found.learned / found.tokens:.1%} of the tokens carry loss"
    if not found.answers:
        return f"{share}; in no sampled row does a text end"
    kind = "texts" if subject.rows_of == "text" else "answers"
    return f"{share}, the end token of all {found.answers:,} sampled {kind} among them"
