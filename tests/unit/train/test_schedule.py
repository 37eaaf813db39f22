"""Learning rates and rows are pure functions of the step."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tunewright.config import TrainConfig
from tunewright.errors import TrainError
from tunewright.train.schedule import learning_rate, rows_of_step, steps_per_epoch, total_steps

PEAK = 1e-3


def config(**values: Any) -> TrainConfig:
    length = {} if "num_train_epochs" in values else {"max_steps": 100}
    batch = {"global_batch_size": 4, "micro_batch_size": 1}
    return TrainConfig(**{"learning_rate": PEAK, **length, **batch, **values})


def rates(**values: Any) -> list[float]:
    return [learning_rate(config(**values), step, 100) for step in range(100)]


def test_a_warm_up_rises_in_equal_steps_to_the_full_rate() -> None:
    rising = rates(warmup_steps=10)[:11]
    assert rising[0] == pytest.approx(PEAK / 10)
    assert rising[9] == rising[10] == pytest.approx(PEAK)
    assert np.diff(rising[:10]) == pytest.approx(PEAK / 10)


def test_a_constant_rate_stays() -> None:
    assert set(rates(lr_scheduler_type="constant")) == {PEAK}


def test_a_linear_rate_falls_in_equal_steps_towards_zero() -> None:
    falling = rates(lr_scheduler_type="linear", warmup_steps=20)[20:]
    assert falling[0] == PEAK
    assert np.diff(falling) == pytest.approx(-PEAK / 80)
    assert learning_rate(config(lr_scheduler_type="linear"), 100, 100) == 0.0


def test_a_cosine_rate_is_half_way_down_in_the_middle() -> None:
    falling = rates(lr_scheduler_type="cosine")
    assert falling[0] == PEAK
    assert falling[50] == pytest.approx(PEAK / 2)
    assert all(a > b > 0 for a, b in pairwise(falling))
    assert falling[25] - falling[75] == pytest.approx(PEAK * 2**-0.5)


def test_a_warm_up_as_long_as_training_divides_by_nothing() -> None:
    assert learning_rate(config(warmup_steps=100), 99, 100) == pytest.approx(PEAK)
    assert learning_rate(config(warmup_steps=100), 100, 100) == pytest.approx(PEAK)


def test_wsd_stays_at_the_full_rate_and_falls_in_a_line_at_the_end() -> None:
    rate = rates(lr_scheduler_type="wsd", warmup_steps=10, decay_fraction=0.2)
    assert set(rate[9:81]) == {PEAK}
    assert np.diff(rate[80:]) == pytest.approx(-PEAK / 20)
    assert rates(lr_scheduler_type="wsd")[90:92] == [PEAK, pytest.approx(PEAK * 0.9)]
    assert rates(lr_scheduler_type="wsd", warmup_steps=50, decay_fraction=1.0)[50] == PEAK


def test_a_warm_up_may_be_a_share_of_all_steps() -> None:
    assert rates(warmup_fraction=0.095) == rates(warmup_steps=10)
    assert rates(warmup_fraction=0.0) == rates(warmup_steps=0)
    assert rates(warmup_fraction=0.07) == rates(warmup_steps=7)


@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd"])
def test_the_rate_ends_at_its_lowest_share(kind: Any) -> None:
    falling = config(lr_scheduler_type=kind, min_lr_ratio=0.25)
    assert learning_rate(falling, 100, 100) == pytest.approx(PEAK / 4)
    assert learning_rate(falling, 0, 100) == PEAK
    assert learning_rate(falling, 95, 100) > PEAK / 4


@given(
    st.sampled_from(["constant", "linear", "cosine", "wsd"]),
    st.integers(1, 80),
    st.integers(0, 90),
    st.sampled_from([0.0, 0.1, 1.0]),
)
def test_every_rate_is_positive_never_above_the_peak_and_never_rises_after_the_warm_up(
    kind: Any, steps: int, warm: int, lowest: float
) -> None:
    chosen = config(
        lr_scheduler_type=kind,
        warmup_steps=warm,
        min_lr_ratio=0.0 if kind == "constant" else lowest,
        max_steps=steps,
    )
    rate = [learning_rate(chosen, step, steps) for step in range(steps)]
    assert all(0 < each <= PEAK * (1 + 1e-12) for each in rate)
    assert all(a < b for a, b in pairwise(rate[:warm]))
    assert all(a >= b * (1 - 1e-12) for a, b in pairwise(rate[warm:]))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"warmup_steps": 1, "warmup_fraction": 0.1}, "give one of warmup_steps and warmup_fraction"),
        ({"lr_scheduler_type": "constant", "min_lr_ratio": 0.1}, "a constant rate does not fall"),
        ({"decay_fraction": 0.1}, "decay_fraction is for wsd, and lr_scheduler_type is cosine"),
    ],
    ids=["warm-up", "constant", "decay"],
)
def test_settings_that_have_no_effect_are_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        config(**values)


@pytest.mark.parametrize(
    ("length", "rows", "steps"),
    [
        ({"max_steps": 7}, 400, 7),
        ({"num_train_epochs": 1}, 400, 100),
        ({"num_train_epochs": 3}, 403, 300),
        ({"num_train_epochs": 0.5}, 10, 1),
        ({"num_train_epochs": 0.01}, 400, 1),
        ({"num_train_epochs": 1.001}, 4000, 1001),
    ],
)
def test_steps_of_a_training(length: dict[str, float], rows: int, steps: int) -> None:
    assert total_steps(config(**length), rows) == steps


@pytest.mark.parametrize("length", [{"max_steps": 7}, {"num_train_epochs": 3}], ids=str)
def test_fewer_rows_than_a_batch_are_refused(length: dict[str, float]) -> None:
    with pytest.raises(TrainError, match="has 3 packed rows, fewer than train.global_batch_size=4; lower it"):
        total_steps(config(**length), 3)


@given(st.integers(4, 60), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_sees_each_row_once_but_for_an_incomplete_batch(rows: int, seed: int, epoch: int) -> None:
    per_epoch = steps_per_epoch(config(), rows)
    steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
    seen = [int(row) for step in steps for row in rows_of_step(config(), seed, step, rows)]
    assert len(seen) == len(set(seen)) == rows // 4 * 4
    assert set(seen) <= set(range(rows))


@pytest.mark.parametrize(("workers", "micro"), [(1, 1), (1, 4), (2, 2), (4, 1), (2, 4), (8, 1)])
def test_the_rows_of_a_step_are_the_same_for_any_number_of_workers(workers: int, micro: int) -> None:
    one = config(global_batch_size=8, micro_batch_size=8)
    many = config(global_batch_size=8, micro_batch_size=micro, workers=workers)
    for step in range(12):
        np.testing.assert_array_equal(rows_of_step(one, 1, step, 50), rows_of_step(many, 1, step, 50))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    first = [rows_of_step(config(), 0, step, 40).tolist() for step in range(10)]
    second = [rows_of_step(config(), 0, step, 40).tolist() for step in range(10, 20)]
    other = [rows_of_step(config(), 1, step, 40).tolist() for step in range(10)]
    assert first != second != other != first
    assert first == [rows_of_step(config(), 0, step, 40).tolist() for step in range(10)]


def test_the_order_of_rows_never_changes_between_releases() -> None:
    # A checkpoint holds a step, not an order: another order would repeat and skip rows after a resume.
    assert rows_of_step(config(), 17, 0, 10).tolist() == [8, 9, 4, 6]
