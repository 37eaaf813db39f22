"""Checks that cost nothing, made before anything starts: files, base, search space, cluster size."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.config import FileSource, RunConfig, TrainConfig
from tunewright.config.objectives import FIGURES
from tunewright.config.stages import check_trainings, data_sections, trainings_of
from tunewright.errors import ConfigError, TrainError

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def check_files(run: RunConfig) -> None:
    """Raises the first problem with what the run names: sources, base model, search space, tasks.

    Raises:
        DataError: a source is missing, empty or not what it claims.
        ModelError: the base folder is missing or cannot be used.
        ConfigError: the search space is not valid.
    """
    from tunewright.data.sources import source_files

    sources = [source for section in data_sections(run.trainings) for source in section.sources]
    for source in (*sources, *(task.source for task in run.evaluate.tasks)):
        if isinstance(source, FileSource):
            source_files(source)
    if run.base.model != "tiny":
        from tunewright.models.base import check_base

        check_base(run.base)
    gates = [name for name, needed in run.evaluate.gates if needed is not None]
    if gates and not run.evaluate.tasks:
        raise ConfigError(
            f"evaluate.gates.{gates[0]} needs something to measure: name a task under evaluate.tasks"
        )
    if run.sweep is not None:
        check_sweep(run)


def check_model(run: RunConfig) -> None:
    """Raises the first problem that the run's trainings would have with its base; no weight is read.

    It takes the seconds in which transformers is imported. A hub id is looked at when it is fetched.

    Raises:
        ModelError: weights or tokenizer that are not the model's, or an architecture that cannot be trained.
        TrainError: a method that has no place in the architecture.
    """
    from tunewright.models.base import check_fits, is_hub_id, locate
    from tunewright.models.skeleton import read_config
    from tunewright.models.tiny import TinyShape, tiny_config

    if run.base.model == "tiny":
        shape = TinyShape()
        check_methods(run, tiny_config(shape, shape.vocab_limit), "tiny")
    elif Path(run.base.model).expanduser().is_dir() or not is_hub_id(run.base.model):
        folder = locate(run.base)
        check_fits(folder)
        check_methods(run, read_config(folder), str(folder))


def check_methods(run: RunConfig, config: PretrainedConfig, base: str) -> None:
    """Raises `ModelError` or `TrainError` unless each method has its place in the model, and rows fit it."""
    from tunewright.train.methods.fitting import fit_training

    config.new_token_ids = list(range(len(run.base.new_tokens)))
    asked = [(t.at, t.train, t.data.pack.seq_len) for t in run.trainings]
    asked += [("", trial, run.data.pack.seq_len) for trial in _trials(run)]
    tried = set()
    for at, train, seq_len in asked:
        if (train.objective, train.method, seq_len) in tried:
            continue
        tried.add((train.objective, train.method, seq_len))
        try:
            fit_training(config, base, train, seq_len)
        except TrainError as error:
            raise TrainError(f"{at}{error}") from None


def _trials(run: RunConfig) -> list[TrainConfig]:
    """What the trials of the run's sweep train with."""
    from tunewright.tune.space import draw_trials, load_space, with_params

    if run.sweep is None:
        return []
    drawn = draw_trials(load_space(run.sweep.space), run.sweep.trials, run.seed)
    return [with_params(run.train, params | {"train.workers": run.sweep.workers}) for params in drawn]


def check_sweep(run: RunConfig) -> None:
    """Every trial's configuration must be one that training takes."""
    from tunewright.tune.space import draw_trials, load_space, with_params

    assert run.sweep is not None
    space = load_space(run.sweep.space)
    points = prod(len(d.grid) for d in space.values() if d.grid is not None)
    if points > run.sweep.trials:
        raise ConfigError(
            f"{run.sweep.space}: the grids have {points} points, more than sweep.trials={run.sweep.trials}; "
            f"raise trials to {points}, or say `choice` instead of `grid`"
        )
    for params in draw_trials(space, run.sweep.trials, run.seed):
        config = with_params(run.train, params | {"train.workers": run.sweep.workers})
        try:
            check_trainings(trainings_of(run.stages, run.data, config, run.tasks))
        except ValueError as error:
            raise ConfigError(f"{run.sweep.space}: {error}, with {params}") from None
    valid = ["exact_match", *(f"eval_{name}" for name in ("loss", *FIGURES[run.train.objective]))]
    if run.sweep.metric not in valid:
        raise ConfigError(f"sweep.metric={run.sweep.metric} is not known; valid: {', '.join(valid)}")
    if run.sweep.metric == "exact_match" and not run.evaluate.tasks:
        raise ConfigError(
            "sweep.metric=exact_match needs a task: name one under evaluate.tasks, "
            "or set sweep.metric: eval_loss with mode: min"
        )


def check_cluster_size(run: RunConfig) -> None:
    """Raises `ClusterError` when the connected cluster, idle, could not hold the run's workers."""
    from tunewright.train.launch import check_cluster

    for training in run.trainings:
        resources = training.train.worker_resources
        check_cluster(training.train.workers, resources.cpus, resources.gpus)
    if run.sweep is not None:
        check_cluster(run.sweep.workers, resources.cpus, resources.gpus)
