"""The objective that a configuration names, and the kind of rows that it learns from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from tunewright.config import ObjectiveConfig
from tunewright.config.objectives import PreferenceConfig
from tunewright.train.objectives.classes import Classify, Tag
from tunewright.train.objectives.kto import Kto
from tunewright.train.objectives.language import NextToken
from tunewright.train.objectives.preference import Dpo, Orpo
from tunewright.train.objectives.reward import Reward

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


JUDGED: Mapping[str, Callable[[PreferenceConfig], Objective]] = {"dpo": Dpo, "orpo": Orpo, "kto": Kto}
"""Objectives that `preference:` has settings of."""


def rows_for(objective: str) -> str:
    """The kind of rows that the objective learns from."""
    return ROWS_OF[objective]


def make_objective(config: ObjectiveConfig, labels: tuple[str, ...] = ()) -> Objective:
    """The objective of a configuration.

    Args:
        labels: the data set's classes, in the order of their numbers.
    Raises:
        TrainError: classes are to be learned, and there are fewer than two.
    """
    if config.objective in ("sft", "pretrain"):
        return NextToken(config.label_smoothing)
    if config.objective in JUDGED:
        return JUDGED[config.objective](config.preference or PreferenceConfig())
    if config.objective == "classify":
        return Classify(labels, config.label_smoothing)
    if config.objective == "tag":
        return Tag(labels, config.label_smoothing)
    return Reward()
