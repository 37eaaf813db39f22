"""Values that cannot work are refused where they are written, with the nearest that can."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tunewright.config import DataConfig, Gates, LoraConfig, SweepConfig, TrainConfig


@pytest.mark.parametrize(
    ("rows", "micro", "workers", "nearest"),
    [(10, 4, 1, "8 and 12"), (10, 2, 2, "8 and 12"), (3, 4, 1, "4"), (17, 4, 4, "16 and 32")],
)
def test_a_batch_that_does_not_divide_names_the_nearest_that_do(
    rows: int, micro: int, workers: int, nearest: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainConfig(max_steps=1, global_batch_size=rows, micro_batch_size=micro, workers=workers)
    told = f"global_batch_size={rows} is not a multiple of micro_batch_size*workers={micro * workers}"
    assert f"{told}; nearest valid: {nearest} [" in str(caught.value)


@given(st.integers(1, 64), st.integers(1, 8), st.integers(1, 4))
def test_a_batch_is_taken_exactly_when_it_divides(rows: int, micro: int, workers: int) -> None:
    values = {"global_batch_size": rows, "micro_batch_size": micro, "workers": workers}
    if rows % (micro * workers) == 0:
        assert TrainConfig(max_steps=1, **values).global_batch_size == rows  # type: ignore[arg-type]
    else:
        with pytest.raises(ValidationError, match="nearest valid"):
            TrainConfig(max_steps=1, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("lengths", [{}, {"max_steps": 5, "num_train_epochs": 1.0}], ids=["none", "both"])
def test_the_length_of_training_is_given_exactly_once(lengths: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="give exactly one of num_train_epochs and max_steps"):
        TrainConfig(**lengths)


@pytest.mark.parametrize("lengths", [{"max_steps": 5}, {"num_train_epochs": 0.5}], ids=str)
def test_either_length_of_training_is_enough(lengths: dict[str, Any]) -> None:
    config = TrainConfig(**lengths)
    assert (config.max_steps is None) != (config.num_train_epochs is None)


@pytest.mark.parametrize("value", [float("inf"), float("nan")], ids=str)
def test_a_number_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        TrainConfig(max_steps=1, learning_rate=value)
    with pytest.raises(ValidationError, match="finite number"):
        Gates(must_beat_base_by=value)


def test_texts_and_conversations_do_not_mix() -> None:
    text = {"type": "text", "path": "a.txt", "format": "text"}
    with pytest.raises(ValidationError, match="`text` cannot be mixed with conversations"):
        DataConfig.model_validate({"sources": [text, {"type": "builtin"}]})
    assert len(DataConfig.model_validate({"sources": [text, text]}).sources) == 2


def test_a_loss_is_not_maximised() -> None:
    with pytest.raises(ValidationError, match="metric eval_loss needs mode: min"):
        SweepConfig(space="s.yaml", metric="eval_loss")
    assert SweepConfig(space="s.yaml", metric="eval_loss", mode="min").mode == "min"


def test_alpha_is_twice_the_rank_unless_it_is_given() -> None:
    assert LoraConfig(rank=8).effective_alpha == 16.0
    assert LoraConfig(rank=8, alpha=4.0).effective_alpha == 4.0


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (DataConfig, {"sources": [{"type": "builtin"}], "split": {"eval": 1.0}}),
        (DataConfig, {"sources": [{"type": "builtin"}], "pack": {"seq_len": 4}}),
        (DataConfig, {"sources": [{"type": "builtin"}], "rules": {"max_bad_fraction": 1.5}}),
        (DataConfig, {"sources": [{"type": "builtin", "rows": 0}]}),
        (TrainConfig, {"max_steps": 1, "workers": 0}),
        (TrainConfig, {"max_steps": 1, "zero": {"stage": 4}}),
        (TrainConfig, {"max_steps": 1, "adam_beta1": 1.0}),
        (TrainConfig, {"max_steps": 1, "worker_resources": {"cpus": 0}}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else value.__name__,
)
def test_a_value_out_of_range_is_refused(section: Any, values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        section.model_validate(values)
