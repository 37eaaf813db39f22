"""Trials are drawn from a space before the sweep starts, the same ones after every restart."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.config import FullConfig, LoraConfig, TrainConfig
from tunewright.errors import ConfigError
from tunewright.tune.space import Dimension, Space, draw_trials, load_space, with_params

CONFIG = TrainConfig(max_steps=10, global_batch_size=8, micro_batch_size=2)


def space(**dimensions: dict[str, Any]) -> Space:
    return {f"train.{key}": Dimension.model_validate(value) for key, value in dimensions.items()}


def refusal(tmp_path: Path, text: str) -> str:
    path = tmp_path / "space.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_space(path)
    return str(caught.value).replace(str(path), "space.yaml")


def test_a_space_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(
        "# rates\ntrain.learning_rate: {log_uniform: [1e-4, 1e-2]}\n"
        "train.method.rank: {grid: [4, 16]}\ntrain.warmup_steps: {choice: [0, 5]}\n"
        "train.weight_decay:\n  uniform: [0, 0.1]\n",
        encoding="utf-8",
    )
    found = load_space(path)
    assert [(key, value.model_dump(exclude_none=True)) for key, value in found.items()] == [
        ("train.learning_rate", {"log_uniform": (1e-4, 1e-2)}),
        ("train.method.rank", {"grid": (4, 16)}),
        ("train.warmup_steps", {"choice": (0, 5)}),
        ("train.weight_decay", {"uniform": (0.0, 0.1)}),
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "\n\nlearning_rate: {grid: [1]}",
            "space.yaml:3: `learning_rate`: a search space holds `train.` keys",
        ),
        ("train.a: {}", "space.yaml:1: `train.a`: give exactly one of grid, choice, uniform, log_uniform"),
        ("train.a: {grid: [1], choice: [2]}", "space.yaml:1: `train.a`: give exactly one of"),
        ("train.a: {grid: []}", "space.yaml:1: `train.a`.grid: Tuple should have at least 1 item"),
        ("train.a: {gird: [1]}", "space.yaml:1: `train.a`.gird: Extra inputs are not permitted"),
        ("train.a: 5", "space.yaml:1: `train.a`: Input should be a valid dictionary"),
        ("train.a: {uniform: [1]}", "space.yaml:1: `train.a`.uniform"),
        ("train.a: {uniform: [a, b]}", "space.yaml:1: `train.a`.uniform.0: Input should be a valid number"),
        (
            "train.a: {uniform: [0, .inf]}",
            "space.yaml:1: `train.a`.uniform.1: Input should be a finite number",
        ),
        ("train.a: {uniform: [2, 1]}", "space.yaml:1: `train.a`: [2.0, 1.0] is not a range from a lower to"),
        ("train.a: {log_uniform: [0, 1]}", "space.yaml:1: `train.a`: [0.0, 1.0] is not a range"),
        (
            "train.b: {grid: [1]}\ntrain.b: {grid: [2]}",
            "space.yaml:2: not valid YAML: the key `train.b` is given",
        ),
        ("1: {grid: [1]}", "space.yaml:1: not valid YAML: the key `1` is not text"),
        ("", "space.yaml: expected `key: value` lines, found an empty file"),
        ("- 1", "space.yaml: expected `key: value` lines, found a list"),
    ],
)
def test_what_is_no_space_is_refused_with_file_and_line(tmp_path: Path, text: str, told: str) -> None:
    assert refusal(tmp_path, text).startswith(told)


def test_a_missing_space_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.yaml: no such file"):
        load_space(tmp_path / "no.yaml")


def test_grids_are_tried_in_full_and_then_again() -> None:
    drawn = draw_trials(space(a={"grid": [1, 2]}, b={"grid": ["x", "y"]}), 6, seed=0)
    pairs = [(params["train.a"], params["train.b"]) for params in drawn]
    assert pairs == [(1, "x"), (1, "y"), (2, "x"), (2, "y"), (1, "x"), (1, "y")]


def test_a_repeated_point_of_a_grid_gets_other_random_values() -> None:
    drawn = draw_trials(space(a={"grid": [1]}, b={"uniform": [0, 1]}), 5, seed=0)
    assert len({params["train.b"] for params in drawn}) == 5


@given(st.floats(1e-6, 1.0), st.floats(1.5, 1000.0), st.integers(0, 9))
def test_draws_lie_within_their_range(low: float, factor: float, seed: int) -> None:
    dimensions = space(
        a={"uniform": [low, low * factor]},
        b={"log_uniform": [low, low * factor]},
        c={"choice": [1, "x", None]},
    )
    for params in draw_trials(dimensions, 20, seed):
        assert low <= params["train.a"] <= low * factor
        assert low * 0.994 <= params["train.b"] <= low * factor * 1.006  # three digits
        assert params["train.c"] in (1, "x", None)


def test_a_log_range_is_even_over_magnitudes() -> None:
    drawn = draw_trials(space(a={"log_uniform": [1e-4, 1]}), 2000, seed=1)
    decades = Counter(f"{params['train.a']:.2e}".rpartition("e")[2] for params in drawn)
    assert [decades[d] / 2000 for d in ("-04", "-03", "-02", "-01")] == pytest.approx([0.25] * 4, abs=0.04)


def test_a_choice_takes_each_of_its_values() -> None:
    drawn = draw_trials(space(a={"choice": [1, 2, 3]}), 60, seed=1)
    assert {params["train.a"] for params in drawn} == {1, 2, 3}


def test_trials_are_the_same_after_a_restart_and_more_of_them_begin_alike() -> None:
    dimensions = space(b={"choice": [1, 2, 3]}, a={"grid": [1, 2]}, c={"uniform": [0, 1]})
    drawn = draw_trials(dimensions, 8, seed=3)
    assert draw_trials(dimensions, 8, seed=3) == drawn
    assert draw_trials(dimensions, 4, seed=3) == drawn[:4]
    assert draw_trials(dimensions, 8, seed=4) != drawn
    assert [list(params) for params in drawn] == [list(dimensions)] * 8


def test_a_trials_values_reach_every_level_and_nothing_else_changes() -> None:
    changed = with_params(
        CONFIG, {"train.learning_rate": "1e-3", "train.method.rank": 8, "train.zero.stage": 1}
    )
    assert changed.learning_rate == 1e-3
    assert changed.method == LoraConfig(rank=8)
    assert changed.zero.stage == 1
    assert with_params(changed, {"train.learning_rate": CONFIG.learning_rate, "train.zero.stage": 2,
                                 "train.method.rank": 16}) == CONFIG  # fmt: skip


@pytest.mark.parametrize(
    "key",
    ["train.lerning_rate", "train.method.rnak", "train.nothing.rank", "train.learning_rate.x", "train."],
)
def test_a_key_that_training_does_not_have_is_named(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_params(CONFIG, {key: 1})
    assert str(caught.value) == f"search space: training has no key `{key}`"


def test_a_rank_needs_an_adapter() -> None:
    with pytest.raises(ConfigError, match="training has no key `train.method.rank`"):
        with_params(CONFIG.model_copy(update={"method": FullConfig()}), {"train.method.rank": 4})


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"train.learning_rate": -1}, "search space: train.learning_rate: Input should be greater than 0"),
        ({"train.method.rank": 0}, "rank: Input should be greater than or equal to 1"),
        ({"train.global_batch_size": 9}, "search space: train: global_batch_size=9 is not a multiple of"),
    ],
)
def test_a_value_that_training_does_not_take_is_told_with_the_trial(
    params: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        with_params(CONFIG, params)
    assert told in str(caught.value)
    assert str(caught.value).endswith(f"with {params}")
