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
from tunewright.train.schedule import Order, learning_rate, total_steps

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
        ({"num_train_epochs": 3}, 403, 303),
        ({"num_train_epochs": 0.5}, 10, 2),
        ({"num_train_epochs": 0.01}, 400, 1),
        ({"num_train_epochs": 1.001}, 4000, 1001),
        ({"num_train_epochs": 0.07}, 400, 7),
    ],
)
def test_steps_of_a_training(length: dict[str, float], rows: int, steps: int) -> None:
    asked = config(**length)
    assert total_steps(asked, Order(asked, 0, [rows])) == steps


def test_an_epoch_of_several_tasks_is_one_of_the_main_rows() -> None:
    asked = config(num_train_epochs=2)
    order = Order(asked, 0, [30, 7], [0.25])
    assert total_steps(asked, order) == 20  # three main rows a step
    assert order.epoch(10) == 1.0


def test_fewer_rows_than_a_batch_are_refused() -> None:
    told = "has 3 packed rows, fewer than the 4 of them in a batch of train.global_batch_size=4; lower it"
    with pytest.raises(TrainError, match=told):
        Order(config(), 0, [3])
    Order(config(), 0, [3, 1], [0.25])
    with pytest.raises(TrainError, match="a side task has no packed rows"):
        Order(config(), 0, [30, 0], [0.25])


@given(st.integers(4, 60), st.integers(0, 5), st.integers(1, 4))
def test_every_row_is_seen_once_an_epoch(rows: int, seed: int, epochs: int) -> None:
    order = Order(config(), seed, [rows])
    steps = total_steps(config(num_train_epochs=epochs), order)
    seen = [int(row) for step in range(steps) for row in order.rows_of_step(step)[1]]
    assert len(seen) - epochs * rows in range(4)  # the last batch is filled up from the next epoch
    for epoch in range(epochs):
        assert sorted(seen[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


@given(st.integers(8, 40), st.floats(0.02, 0.45), st.floats(0.02, 0.45))
def test_tasks_have_their_shares_and_each_sees_its_rows_in_turn(
    rows: int, share: float, other: float
) -> None:
    order = Order(config(global_batch_size=8), 1, [rows, 5, 11], [share, other])
    drawn = [order.rows_of_step(step) for step in range(30)]
    assert all(len(tasks) == 8 for tasks, _ in drawn)
    tasks, taken = (np.concatenate(each) for each in zip(*drawn, strict=True))
    for task, wanted in ((1, share), (2, other)):
        assert abs((tasks == task).sum() - 240 * wanted) <= 0.5
        own = taken[tasks == task].tolist()
        length = [rows, 5, 11][task]
        assert all(
            sorted(own[at : at + length]) == list(range(length))
            for at in range(0, len(own) - length + 1, length)
        )


@pytest.mark.parametrize(("workers", "micro"), [(1, 1), (1, 4), (2, 2), (4, 1), (2, 4), (8, 1)])
def test_the_rows_of_a_step_are_the_same_for_any_number_of_workers(workers: int, micro: int) -> None:
    one = Order(config(global_batch_size=8, micro_batch_size=8), 1, [50])
    many = Order(config(global_batch_size=8, micro_batch_size=micro, workers=workers), 1, [50])
    for step in range(12):
        np.testing.assert_array_equal(one.rows_of_step(step), many.rows_of_step(step))


def test_epochs_seeds_and_tasks_have_orders_of_their_own() -> None:
    def orders(seed: int) -> list[list[int]]:
        order = Order(config(), seed, [40, 40], [0.5])
        drawn = [order.rows_of_step(step) for step in range(40)]
        tasks, rows = (np.concatenate(each) for each in zip(*drawn, strict=True))
        return [rows[tasks == task][at : at + 40].tolist() for task in (0, 1) for at in (0, 40)]

    every = orders(0) + orders(1)
    assert len({tuple(order) for order in every}) == 8
    assert every[:4] == orders(0)


def test_the_order_of_rows_never_changes_between_releases() -> None:
    # A checkpoint holds a step, not an order: another order would repeat and skip rows after a resume.
    assert Order(config(), 17, [10]).rows_of_step(0)[1].tolist() == [8, 9, 4, 6]
