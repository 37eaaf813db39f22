"""The things that the data stage hands from one part to the next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Task = Literal["conversation", "text", "preference", "kto", "classification", "tags"]
KTO_LABELS = ("undesirable", "desirable")
"""The classes of task kto, by number."""
NO_LABEL = -100
"""In `Document.labels`: nothing is to be learned at this position, as torch's losses have it."""


@dataclass(frozen=True)
class Piece:
    """A part of a file, or all of it where end is -1; its first row stands on line `first_line`.

    `start` and `end` count bytes of JSON lines, row groups of Parquet and record batches of Arrow.
    """

    path: str
    start: int = 0
    end: int = -1
    first_line: int = 1


@dataclass(frozen=True)
class Chunk:
    """What one task reads: a few pieces of the files of one source, in order."""

    source: int
    number: int
    """Of all chunks of the run, from 0."""
    type: str
    pieces: tuple[Piece, ...]
    max_rows: int | None = None
    size: int = 0
    """Bytes on disk."""
    root: str = ""
    """What is left out of the names of its files: the folder that all files of the source share."""


@dataclass(frozen=True)
class RawRow:
    """A row as it was found; `record` is None where it could not be parsed, and `problem` says why."""

    file: str
    line: int
    text: str
    record: dict[str, Any] | None
    problem: str = ""


@dataclass(frozen=True)
class Example:
    """A row in the canonical form of its task.

    conversation    {"messages": [...], "tools": [...]}; ends with the assistant
    text            {"text": "..."}
    preference      {"messages": [... up to the question], "tools"?, "chosen": [...], "rejected": [...]}
    kto             {"messages": [...], "tools"?, "label": true | false}
    classification  {"text": "...", "label": "..."}
    tags            {"tokens": [...], "tags": ["O", "B-person", ...]}

    Messages are OpenAI's: role, content, and where there are any tool_calls, tool_call_id, name,
    reasoning_content, weight (0: no loss on this one).
    """

    task: Task
    content: dict[str, Any]


@dataclass(frozen=True)
class Document:
    """Token ids that are packed together, S of them.

    Attributes:
        loss_mask: 1 where the token is to be learned.
        labels: class at each position, NO_LABEL where there is none; None if the task has no classes.
        segments: lengths of the parts that must not see one another, such as (chosen, rejected);
            one part when left out.
    """

    ids: npt.NDArray[np.int32]
    loss_mask: npt.NDArray[np.int8]
    labels: npt.NDArray[np.int32] | None = None
    segments: tuple[int, ...] = ()


@dataclass(frozen=True)
class Encoded:
    """One example as documents, and what had to be done to it: truncated, split, expanded."""

    documents: list[Document]
    notes: tuple[str, ...] = field(default=())
