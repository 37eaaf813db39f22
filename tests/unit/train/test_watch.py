"""What training's figures decide, and that it survives a checkpoint."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tunewright.config import TrainConfig
from tunewright.errors import TrainError
from tunewright.train.watch import Watch

DOG = {"factor": 2.0, "patience": 2, "window": 4, "max_rollbacks": 2}


def config(**values: Any) -> TrainConfig:
    return TrainConfig.model_validate({"max_steps": 100, "eval_steps": 10, **values})


def judged(watch: Watch, values: list[float], name: str = "eval_loss") -> list[bool]:
    return [watch.saw_evaluation(10 * n, {name: value}) for n, value in enumerate(values, start=1)]


def test_a_loss_is_high_above_a_multiple_of_the_median_and_only_several_in_a_row_count() -> None:
    watch = Watch(config(watchdog=DOG))
    assert [watch.saw_loss(loss) for loss in (1.0, 1.2, 0.8, 1.0)] == [False] * 4
    assert [watch.saw_loss(loss) for loss in (2.1, 1.9)] == [False, False]
    assert watch.quiet
    assert [watch.saw_loss(loss) for loss in (5.0, 2.5)] == [False, True]
    assert not watch.quiet
    assert watch.losses == [1.2, 0.8, 1.0, 1.9]


def test_nothing_is_high_before_there_are_losses_to_compare_with() -> None:
    watch = Watch(config(watchdog=DOG))
    assert [watch.saw_loss(loss) for loss in (1.0, 90.0, 80.0, 70.0)] == [False] * 4
    assert not any(Watch(config()).saw_loss(loss) for loss in (1.0, 1.0, 1.0, 1.0, 1e9, 1e9, 1e9))


def test_each_return_halves_the_rate_and_there_is_an_end_to_them() -> None:
    watch = Watch(config(watchdog=DOG))
    watch.went_back(0, 30)
    assert watch.rate_scale == 0.5
    watch.went_back(1, 40)
    assert watch.rate_scale == 0.25
    with pytest.raises(TrainError) as caught:
        watch.went_back(2, 50)
    assert "ran away 3 times: at step 50 it was above 2 times its median for 2 steps" in str(caught.value)
    assert "with 0.25 of the learning rate asked for; lower train.learning_rate" in str(caught.value)


def test_training_ends_after_so_many_evaluations_without_a_better_one() -> None:
    watch = Watch(config(early_stopping={"patience": 2, "min_delta": 0.1}))
    judged(watch, [3.0, 2.0, 1.95, 1.8])
    assert (watch.ended, watch.stale) == (None, 0)
    judged(watch, [1.75, 1.71])
    assert watch.ended == "eval_loss was 1.71 at step 20, no better than 1.8 for 2 evaluations"


def test_a_larger_figure_may_be_the_better_one() -> None:
    watch = Watch(config(early_stopping={"metric": "exact", "mode": "max", "patience": 1}))
    judged(watch, [0.1, 0.5, 0.6], "exact")
    assert watch.ended is None
    judged(watch, [0.6], "exact")
    assert watch.ended is not None


def test_the_best_step_is_the_first_with_the_best_figure() -> None:
    watch = Watch(config(best={}))
    assert judged(watch, [3.0, 2.0, 2.0, 2.5, 1.9]) == [True, True, False, False, True]
    assert (watch.best, watch.best_step) == (1.9, 50)


def test_a_step_in_a_spike_or_a_figure_that_is_no_number_is_never_the_best() -> None:
    watch = Watch(config(best={}, watchdog=DOG))
    assert judged(watch, [3.0, float("nan"), float("-inf")]) == [True, False, False]
    watch.losses = [1.0] * 4
    watch.saw_loss(9.0)
    assert judged(watch, [0.1]) == [False]
    assert watch.best == 3.0


@pytest.mark.parametrize("field", ["early_stopping", "best"])
def test_a_figure_that_the_evaluation_has_not_is_named_with_those_it_has(field: str) -> None:
    watch = Watch(config(**{field: {"metric": "exact_match", "mode": "max"}}))
    with pytest.raises(
        TrainError, match=f"train.{field}.metric=exact_match, and the evaluation has eval_loss"
    ):
        watch.saw_evaluation(10, {"eval_loss": 1.0})
    with pytest.raises(TrainError, match="has no figure; .* give the data an evaluation split"):
        watch.saw_evaluation(10, {})


@pytest.mark.parametrize("field", ["early_stopping", "best"])
def test_judging_needs_evaluations(field: str) -> None:
    with pytest.raises(ValidationError, match=f"{field} needs eval_steps"):
        TrainConfig.model_validate({"max_steps": 10, field: {}})


@settings(max_examples=60)
@given(st.lists(st.floats(0.1, 20), min_size=1, max_size=60), st.integers(0, 59))
def test_a_watch_that_was_written_and_read_decides_as_the_one_that_was_not(
    losses: list[float], cut: int
) -> None:
    every = config(watchdog=DOG, early_stopping={"patience": 3}, best={})

    def follow(watch: Watch, values: list[float], first: int) -> list[Any]:
        seen = []
        for step, loss in enumerate(values, start=first):
            seen.append((watch.saw_loss(loss), watch.saw_evaluation(step, {"eval_loss": loss})))
        return [*seen, watch.ended, watch.best, watch.losses]

    whole, halves = Watch(every), Watch(every)
    expected = follow(whole, losses, 1)
    before = follow(halves, losses[:cut], 1)[: min(cut, len(losses))]
    read = Watch.of(every, json.loads(json.dumps(halves.state())))
    assert before + follow(read, losses[cut:], cut + 1) == expected
