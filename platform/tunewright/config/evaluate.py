"""`evaluate:` the held-out tasks, and the gates a version must pass."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunewright.config.base import Config
from tunewright.config.sources import LocalSource


class TaskConfig(Config):
    """Conversations whose last assistant turn is the expected answer."""

    name: str
    source: LocalSource
    answer: Literal["json", "text"] = "text"
    """`json`: compared as JSON values, field by field; `text`: as trimmed strings."""
    max_rows: int = Field(200, ge=1)
    max_new_tokens: int = Field(128, ge=1)


class Gates(Config):
    """A version that misses one is recorded, but no alias moves to it."""

    min_exact_match: float | None = Field(None, ge=0, le=1)
    must_beat_base_by: float | None = None
    """Least difference of exact match between the tuned model and its base."""


class EvaluateConfig(Config):
    """`evaluate:`"""

    tasks: tuple[TaskConfig, ...] = ()
    gates: Gates = Gates()
    batch_size: int = Field(64, ge=1)
    """Conversations generated for at once."""
