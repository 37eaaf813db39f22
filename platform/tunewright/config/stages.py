"""`stages:` the trainings before the main one, and what can follow on what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from pydantic import Field

from tunewright.config.base import Config
from tunewright.config.data import DataConfig
from tunewright.config.methods import LoraConfig, LowRank, Method, RsloraConfig
from tunewright.config.objectives import LANGUAGE_OBJECTIVES, SideTask, check_tasks
from tunewright.config.train import TrainConfig

MAIN = "main"
"""The name of the training that `data:` and `train:` describe; no stage and no task may have it."""
PAIRED = ("dpo", "orpo", "reward")
"""Objectives that learn from the same rows, pairs of answers; each of the others has its own kind."""
CHATS = ("sft", "dpo", "orpo", "kto", "reward")
"""Objectives whose rows are written by the chat template."""


class EarlierStage(Config):
    """An entry of `stages:` a training before the main one.

    They are trained in order, the first one from `base`, each other one and the main training from what
    the one before it came to.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")
    """Names it on the console, in the run's folder, and for tasks that learn its rows again."""
    data: DataConfig
    train: TrainConfig
    tasks: tuple[SideTask, ...] = ()
    """More rows, learned beside this stage's."""
    then: Literal["merge", "keep", "stack"] = "merge"
    """What the next training starts from. `merge`: the trained model, its adapter merged into its base.
    `keep`: the same adapter is trained further; the method must be the same. `stack`: this adapter stays
    as it is and a new one is trained on top; lora and rslora. What is published is one adapter, the sum
    of both."""


@dataclass(frozen=True)
class Described:
    """One of a run's trainings as its file describes it.

    Attributes:
        at: what its keys begin with, such as `stages.0.`; nothing for the main training's.
        then: what the next training starts from; the main training has none.
    """

    name: str
    at: str
    data: DataConfig
    train: TrainConfig
    tasks: tuple[SideTask, ...]
    then: Literal["merge", "keep", "stack"] | None = None


def trainings_of(
    stages: Sequence[EarlierStage], data: DataConfig, train: TrainConfig, tasks: tuple[SideTask, ...]
) -> list[Described]:
    """All trainings of a run, in order; the main one is the last."""
    before = [
        Described(stage.name, f"stages.{number}.", stage.data, stage.train, stage.tasks, stage.then)
        for number, stage in enumerate(stages)
    ]
    return [*before, Described(MAIN, "", data, train, tasks)]


def check_trainings(trainings: Sequence[Described]) -> None:
    """Raises `ValueError`, naming the field, unless each can be trained, and follow on the one before it."""
    names = [training.name for training in trainings]
    for number, name in enumerate(names):
        if name in names[number + 1 :]:
            other = "the training behind the stages" if name == MAIN else "another stage"
            raise ValueError(f"stages.{number}.name={name}: {other} has this name; choose another")
    for number, training in enumerate(trainings):
        _check_tasks(training, trainings[:number])
    for number, (before, after) in enumerate(pairwise(trainings)):
        _check_follows(before, after)
        if before.then == "keep" and number and trainings[number - 1].then == "stack":
            raise ValueError(
                f"{before.at}then=keep: its adapter is published as one with that of the stage "
                f"{trainings[number - 1].name}; say then: merge or then: stack"
            )


def _check_tasks(training: Described, before: Sequence[Described]) -> None:
    try:
        check_tasks(training.train, training.tasks)
    except ValueError as error:
        raise ValueError(f"{training.at}{error}") from None
    earlier = {stage.name: stage for stage in before}
    for number, task in enumerate(training.tasks):
        at = f"{training.at}tasks.{number}"
        if task.name == MAIN:
            raise ValueError(f"{at}.name={MAIN}: the rows beside it have this name; choose another")
        if task.stage is not None:
            if task.stage not in earlier:
                known = (
                    f"stages before it: {', '.join(earlier)}" if earlier else "there is no stage before it"
                )
                raise ValueError(f"{at}.stage={task.stage} names no earlier stage; {known}")
            _check_same_rows(at, task, earlier[task.stage])
        rows = task.data or earlier[str(task.stage)].data
        if rows.pack.seq_len != training.data.pack.seq_len:
            raise ValueError(
                f"{at}: its rows have {rows.pack.seq_len} tokens and those beside them "
                f"{training.data.pack.seq_len}; a batch has rows of one length, so say the same "
                f"data.pack.seq_len for both"
            )
        if task.objective in CHATS and rows.chat_template != training.data.chat_template:
            raise ValueError(
                f"{at}: its conversations are written with {_template(rows)}, and those of {training.at}data "
                f"with {_template(training.data)}; a model has one template, so say the same for both"
            )


def _template(data: DataConfig) -> str:
    return data.chat_template or "the tokenizer's own template"


def _check_same_rows(at: str, task: SideTask, stage: Described) -> None:
    learned = stage.train.objective
    if task.objective == learned or {task.objective, learned} <= set(PAIRED):
        return
    raise ValueError(
        f"{at}.objective={task.objective}: the rows of the stage {stage.name} are for {learned}; "
        f"say objective: {learned}, or give the task data of its own"
    )


def _check_follows(before: Described, after: Described) -> None:
    """What `before.then` says must be possible with both methods and objectives."""
    at, method, following = f"{before.at}then={before.then}", before.train.method, after.train.method
    if before.train.objective not in LANGUAGE_OBJECTIVES:
        _check_follows_head(at, before, after)
    if before.then == "merge":
        if method.type in ("prompt_tuning", "prefix_tuning"):
            raise ValueError(
                f"{at}: {method.type} changes no weight that could be merged; say then: keep, "
                f"or choose another method"
            )
        return
    if (before.train.objective in LANGUAGE_OBJECTIVES) != (after.train.objective in LANGUAGE_OBJECTIVES):
        raise ValueError(
            f"{at}: {after.at}train.objective={after.train.objective} trains a head of its own, which an "
            f"adapter of a language model does not have; say then: merge"
        )
    if before.then == "keep":
        _check_same_method(at, method, following, after.at)
        return
    for where, one in ((before.at, method), (after.at, following)):
        if not isinstance(one, LoraConfig | RsloraConfig):
            raise ValueError(
                f"{at}: adapters that are added up are lora or rslora, and {where}train.method.type is "
                f"{one.type}; say then: merge, or choose one of them"
            )
        if one.modules_to_save:
            raise ValueError(
                f"{at}: {where}train.method.modules_to_save={list(one.modules_to_save)} are trained whole, "
                f"and two of them cannot be added up; leave them out, or say then: merge"
            )


def _check_follows_head(at: str, before: Described, after: Described) -> None:
    """A classifier or reward model goes on as what it is, by its adapter."""
    objective = before.train.objective
    if after.train.objective != objective:
        raise ValueError(
            f"{at}: {before.at}train.objective={objective} trains a head of its own, and "
            f"{after.at}train.objective={after.train.objective} cannot go on with it; put {objective} last"
        )
    if before.then != "keep":
        raise ValueError(f"{at}: a model of the objective {objective} goes on by its adapter; say then: keep")


def _check_same_method(at: str, before: Method, after: Method, where: str) -> None:
    if before.result != "adapter":
        raise ValueError(f"{at}: {before.type} trains a whole model and no adapter; say then: merge")
    here, there = _shape(before), _shape(after)
    different = [
        f"{key} is {_told(here.get(key))} and then {_told(there.get(key))}"
        for key in dict.fromkeys([*here, *there])
        if here.get(key) != there.get(key)
    ]
    if before.type != after.type:
        different = different[:1]  # the other settings are of two kinds
    if different:
        raise ValueError(
            f"{at}: {where}train.method must be the same to train its adapter further: "
            f"{'; '.join(different)}. Only dropout may differ; or say then: merge"
        )


def _shape(method: Method) -> dict[str, Any]:
    """What decides the weights of an adapter and how they count."""
    shape = {"type": method.type, **method.model_dump(mode="json", exclude={"dropout"})}
    for key in ("target_modules", "modules_to_save", "feedforward_modules"):
        if key in shape:
            shape[key] = sorted(shape[key])
    return shape | ({"alpha": method.effective_alpha} if isinstance(method, LowRank) else {})


def _told(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else f"{value}"


def data_sections(trainings: Sequence[Described]) -> list[DataConfig]:
    """Each set of rows that is described, in the order they are prepared in."""
    out = []
    for training in trainings:
        out += [training.data, *(task.data for task in training.tasks if task.data is not None)]
    return out
