"""Search spaces: a YAML file of dotted `train.` keys, and the trials drawn from it.

    train.learning_rate: {log_uniform: [3.0e-4, 1.0e-2]}
    train.method.rank: {grid: [8, 16]}

Trials are drawn before the sweep starts, from a seed, so that trial 2 is the same trial after a
restart.
"""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from tunewright.config import TrainConfig, load_yaml_file
from tunewright.config.base import Config
from tunewright.errors import ConfigError

Params = dict[str, Any]


class Dimension(Config):
    """Where the values of one key come from: exactly one of the four."""

    grid: tuple[Any, ...] | None = Field(None, min_length=1)
    """Every value, in combination with those of the other grids."""
    choice: tuple[Any, ...] | None = Field(None, min_length=1)
    """One of the values, at random."""
    uniform: tuple[float, float] | None = None
    """A number between the two."""
    log_uniform: tuple[float, float] | None = None
    """A number between the two, evenly spread over its magnitude."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Dimension:
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of grid, choice, uniform, log_uniform; found {given or 'none'}"
            )
        low, high = self.uniform or self.log_uniform or (1.0, 2.0)
        if not low < high or (self.log_uniform and low <= 0):
            raise ValueError(f"[{low}, {high}] is not a range from a lower to a higher number")
        return self

    def draw(self, random_numbers: random.Random) -> Any:
        if self.choice is not None:
            return random_numbers.choice(self.choice)
        if self.uniform is not None:
            return random_numbers.uniform(*self.uniform)
        assert self.log_uniform is not None
        low, high = map(math.log, self.log_uniform)
        return float(f"{math.exp(random_numbers.uniform(low, high)):.3g}")


Space = dict[str, Dimension]


def load_space(path: str | Path) -> Space:
    """The search space of a YAML file.

    Raises:
        ConfigError: not there, empty, not a `train.` key, or not a dimension; names file and line.
    """
    path = Path(path)
    data, lines = load_yaml_file(path)
    space: Space = {}
    for key, value in data.items():
        where = f"{path}:{lines[(key,)]}: `{key}`"
        if not str(key).startswith("train."):
            raise ConfigError(f"{where}: a search space holds `train.` keys, such as train.learning_rate")
        try:
            space[key] = Dimension.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join(map(str, first["loc"]))
            message = first["msg"].removeprefix("Value error, ")
            raise ConfigError(f"{where}{'.' + at if at else ''}: {message}") from None
    return space


def draw_trials(space: Space, trials: int, seed: int) -> list[Params]:
    """The parameters of each trial: grids in full first, the rest drawn at random.

    A grid of more points than trials is an error of the caller's; of fewer, its points are repeated
    with other random values.
    """
    numbers = random.Random(seed)
    grids = {key: d.grid for key, d in space.items() if d.grid is not None}
    points = [dict(zip(grids, values, strict=True)) for values in itertools.product(*grids.values())]
    drawn = []
    for index in range(trials):
        params = dict(points[index % len(points)])
        params |= {key: d.draw(numbers) for key, d in space.items() if d.grid is None}
        drawn.append({key: params[key] for key in space})
    return drawn


def with_params(config: TrainConfig, params: Params) -> TrainConfig:
    """The training configuration with a trial's values in place.

    Raises:
        ConfigError: a key that training does not have, or a value it does not take.
    """
    data = config.model_dump()
    for key, value in params.items():
        *path, last = key.removeprefix("train.").split(".")
        target: Any = data
        for part in path:
            target = target.get(part) if isinstance(target, dict) else None
        if not isinstance(target, dict) or last not in target:
            raise ConfigError(f"search space: training has no key `{key}`")
        target[last] = value
    try:
        return TrainConfig.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, ("train", *first["loc"])))
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"search space: {at}: {message} with {params}") from None
