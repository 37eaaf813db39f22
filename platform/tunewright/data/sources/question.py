"""A statement as a database driver takes it, and how the rows it gives become JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunewright.data.sources.snapshot import row_text
from tunewright.errors import DataError

SHARD = "tunewright_shard"
"""The column that says which shard a row belongs to."""
Statement = tuple[str, Any]
"""SQL as the driver takes it, and the bound values: by position or by name, as the driver wants them."""


@dataclass(frozen=True)
class Question:
    """What is asked of the database, and how its rows become JSON.

    Attributes:
        rows: gives `columns`, and the shard's number where there are shards.
        counts: gives the number of rows, and of those that belong to a shard.
        stored: column -> `json` or `bool`, where SQLite gives text or a number for it.
        label: what messages call the database.
    """

    rows: Statement
    counts: Statement | None
    columns: tuple[str, ...]
    stored: dict[str, str]
    label: str

    def text(self, row: Sequence[Any]) -> str:
        """A row of the cursor as JSON; the shard's number is left out."""
        values = dict(zip(self.columns, row, strict=False))
        for name, kind in self.stored.items():
            values[name] = _restored(values[name], kind)
        try:
            return row_text(values)
        except DataError as error:
            raise DataError(f"{self.label}: {error}") from None


def _restored(value: Any, kind: str) -> Any:
    if kind == "bool":
        return bool(value) if value in (0, 1) else value
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value  # as it stands: the check of the rows' format will say what is wrong
