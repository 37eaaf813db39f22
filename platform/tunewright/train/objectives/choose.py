"""The objective that a configuration names, and the kind of rows that it learns from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tunewright.config import ObjectiveConfig
from tunewright.train.objectives.language import NextToken

if TYPE_CHECKING:
    from tunewright.train.objectives.base import Objective

ROWS_OF: Mapping[str, str] = {
    "sft": "conversation",
    "pretrain": "text",
    "classify": "classification",
    "tag": "tags",
    "dpo": "preference",
    "orpo": "preference",
    "reward": "preference",
    "kto": "kto",
}
"""Objective -> the task of the data set, as `facts["task"]` has it."""


def rows_for(objective: str) -> str:
    """The kind of rows that the objective learns from."""
    return ROWS_OF[objective]


def make_objective(config: ObjectiveConfig, labels: tuple[str, ...] = ()) -> Objective:
    """The objective of a configuration.

    Args:
        labels: the data set's classes, in the order of their numbers.
    """
    if config.objective in ("sft", "pretrain"):
        return NextToken(config.label_smoothing)
    raise NotImplementedError(config.objective)
