"""What training aims at, and data sets that are learned beside the main one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tunewright.config.base import Config
from tunewright.config.data import DataConfig

ObjectiveName = Literal["sft", "pretrain", "classify", "tag", "dpo", "orpo", "kto", "reward"]
LANGUAGE_OBJECTIVES = ("sft", "pretrain", "dpo", "orpo", "kto")
"""Objectives of a language model; the others train a head of their own on the transformer."""

FIGURES: dict[str, tuple[str, ...]] = {
    "sft": (),
    "pretrain": (),
    "classify": ("accuracy", "macro_f1", "calibration_error"),
    "tag": ("accuracy", "precision", "recall", "f1", "macro_f1"),
    "dpo": ("accuracy", "margin", "reward_chosen", "reward_rejected"),
    "orpo": ("accuracy", "margin", "logp_chosen", "logp_rejected"),
    "kto": ("accuracy", "margin", "kl", "reward_desirable", "reward_undesirable"),
    "reward": ("accuracy", "margin"),
}
"""Objective -> its figures besides the loss; `eval_` stands before them among the run's."""


class PreferenceConfig(Config):
    """`preference:` of dpo, orpo and kto."""

    beta: float = Field(0.1, gt=0)
    """dpo and kto: how strongly the model is held to what it was before; orpo: weight of the odds ratio."""
    sft_weight: float = Field(0.0, ge=0)
    """dpo: weight of the chosen answer's own loss beside the preference."""
    desirable_weight: float = Field(1.0, gt=0)
    """kto: weight of the desirable answers."""
    undesirable_weight: float = Field(1.0, gt=0)
    """kto: weight of the undesirable answers."""


class ObjectiveConfig(Config):
    """What rows teach."""

    objective: ObjectiveName = "sft"
    """`sft`: the answers of conversations; `pretrain`: all of a text; `classify`: the label of a text;
    `tag`: a label for each word; `dpo`, `orpo`: the better one of two answers; `kto`: good and bad
    answers by themselves; `reward`: a score that is higher for the better one of two answers."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target that is spread over the whole vocabulary, or over all classes; the
    evaluation has none."""
    preference: PreferenceConfig | None = None
    """Settings of dpo, orpo and kto; their defaults when left out."""

    @model_validator(mode="after")
    def _settings_belong_to_the_objective(self) -> ObjectiveConfig:
        if self.preference is not None and self.objective not in ("dpo", "orpo", "kto"):
            raise ValueError(f"preference is for dpo, orpo and kto, and objective is {self.objective}")
        if self.label_smoothing and self.objective not in ("sft", "pretrain", "classify", "tag"):
            raise ValueError(f"label_smoothing: {self.objective} has no target that could be smoothed")
        return self


class SideTask(ObjectiveConfig):
    """An entry of `tasks:` more rows, learned in the same run as the main ones.

    Other rows of the same kind against forgetting (replay), or another objective of the same head.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")
    """Names the task's figures: `loss/NAME`, `eval_loss/NAME`."""
    share: float = Field(gt=0, lt=1)
    """Of the rows of the global batches; the main rows are the rest."""
    data: DataConfig | None = None
    """The task's rows; or say `stage`."""
    stage: str | None = None
    """Learn the rows of an earlier stage again, by its name."""

    @model_validator(mode="after")
    def _has_rows(self) -> SideTask:
        if (self.data is None) == (self.stage is None):
            raise ValueError("give exactly one of data and stage")
        return self


def check_tasks(main: ObjectiveConfig, tasks: tuple[SideTask, ...]) -> None:
    """Raises `ValueError` unless the tasks can be trained in one run."""
    names = [task.name for task in tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"tasks: two are named {twice[0]}")
    total = sum(task.share for task in tasks)
    if total >= 1:
        raise ValueError(f"tasks: their shares are {total:g} together, and leave no main rows")
    for task in tasks:
        if (task.objective in LANGUAGE_OBJECTIVES) != (main.objective in LANGUAGE_OBJECTIVES) or (
            task.objective not in LANGUAGE_OBJECTIVES and task.objective != main.objective
        ):
            raise ValueError(
                f"tasks: {task.name} is {task.objective}, and the main objective is {main.objective}; "
                f"one run trains one head: {', '.join(LANGUAGE_OBJECTIVES)} go together, the others alone"
            )
