"""kto: the numbers of TRL from given log-probabilities, mismatched answers, and rows without labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tunewright.config import ObjectiveConfig
from tunewright.data.rows import NO_LABEL
from tunewright.errors import DataError
from tunewright.train.objectives import Answer, Objective, Places, make_objective
from tunewright.train.objectives.kto import mismatched

MOVED = [-0.25, 0.25, 0.375, -1.5, 0.497, -1.0]
"""How much more likely than before each of six answers is, in logarithms."""
GOOD = [1, 0, 1, 0, 0, 1]
Z = 0.945333333333333
TRL = {
    (0.1, 1.0, 1.0, 0.0): 0.500516205445297,
    (0.1, 1.0, 1.0, Z): 0.5005282517624318,
    (0.1, 1.5, 0.75, 0.0): 0.5656190241410713,
    (0.1, 1.5, 0.75, Z): 0.5744690405052783,
    (0.5, 1.0, 1.0, 0.0): 0.503461415363938,
    (0.5, 1.0, 1.0, Z): 0.5045321912814228,
    (0.5, 1.5, 0.75, 0.0): 0.578462380596828,
    (0.5, 1.5, 0.75, Z): 0.6210973234868161,
}
"""By `_compute_loss` of the `KTOTrainer` of TRL 1.16.0: beta, both weights and z -> loss."""
TRL_REWARDS = {"reward_desirable": -0.029166666666666664, "reward_undesirable": -0.02510000000000001}
"""Of the same, with beta 0.1."""


def objective(**preference: float) -> Objective:
    return make_objective(ObjectiveConfig.model_validate({"objective": "kto", "preference": preference}))


def rows_of(*documents: tuple[list[int], list[int]], labels: list[int] | None = None) -> dict[str, Any]:
    """One row of questions with their answers, and two tokens of padding."""
    ids = [token for question, answer in documents for token in [*question, *answer]]
    lengths = [len(question) + len(answer) for question, answer in documents]
    mask = np.concatenate([np.repeat([0, 1], [len(q), len(a)]) for q, a in documents])
    out = {
        "input_ids": np.array([[*ids, 0, 0]]),
        "segment_ids": np.array([[*np.repeat(np.arange(1, len(documents) + 1), lengths), 0, 0]]),
        "loss_mask": np.array([[*mask, 0, 0]]),
    }
    if labels is not None:
        out["labels"] = np.full_like(out["input_ids"], NO_LABEL)
        out["labels"][0, np.cumsum(lengths) - 1] = labels
    return out


def answered() -> Answer:
    rows = rows_of(*[([1, 2], [3]) for _ in MOVED], labels=GOOD)
    places = Places.of(objective().places(rows))
    values = torch.tensor(MOVED, dtype=torch.float64)
    return Answer(rows, places, (values - 2.0).float(), reference_D=torch.full((6,), -2.0))


@pytest.mark.parametrize("case", TRL, ids=str)
def test_kto_has_the_loss_of_trl(case: tuple[float, float, float, float]) -> None:
    beta, desirable, undesirable, z = case
    kto = objective(beta=beta, desirable_weight=desirable, undesirable_weight=undesirable)
    answer = replace(answered(), baseline=z)
    assert kto.units(answer.rows) == 6
    assert float(kto.loss(answer)) / 6 == pytest.approx(TRL[case], rel=1e-6)


def test_kto_has_the_rewards_of_trl() -> None:
    answer = replace(answered(), baseline=0.3)
    figures = objective().summary(objective().counts(answer))
    margin = TRL_REWARDS["reward_desirable"] - TRL_REWARDS["reward_undesirable"]
    # On their side of z = 0.3: the third (0.375, good), the second (0.25, bad) and the fourth (-1.5, bad).
    expected = {**TRL_REWARDS, "margin": margin, "kl": 0.3, "accuracy": 3 / 6}
    assert figures == pytest.approx(expected, rel=1e-5)


def test_figures_of_answers_that_there_are_none_of_are_left_out() -> None:
    counts = {**objective().counts(answered()), "desirable": 0.0}
    assert not {"reward_desirable", "margin"} & objective().summary(counts).keys()


def test_z_is_a_mean_over_documents_and_never_below_zero() -> None:
    kto = objective()
    assert kto.first_pass.baseline({"moved": 6.0, "documents": 4.0}) == 1.5
    assert kto.first_pass.baseline({"moved": -6.0, "documents": 4.0}) == 0.0
    assert kto.first_pass.baseline({"moved": 0.0, "documents": 0.0}) == 0.0
    counts = kto.first_pass.counts(answered())
    assert tuple(counts) == kto.first_pass.names
    assert counts == pytest.approx({"moved": sum(MOVED), "documents": 6})


def test_each_question_is_given_the_next_ones_answer() -> None:
    other = mismatched(rows_of(([10], [20, 21]), ([11, 12], [30]), ([13], [40, 41, 42])))
    assert other["input_ids"][0].tolist() == [10, 30, 11, 12, 40, 41, 42, 13, 20, 21, 0, 0]
    assert other["segment_ids"][0].tolist() == [1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 0, 0]
    assert other["position_ids"][0].tolist() == [0, 1, 0, 1, 2, 3, 4, 0, 1, 2, 0, 0]
    assert other["loss_mask"][0].tolist() == [0, 1, 0, 0, 1, 1, 1, 0, 1, 1, 0, 0]


def test_an_answer_is_all_from_its_first_token_that_is_to_be_learned() -> None:
    rows = rows_of(([10], [20, 21, 22]), ([11], [30]))
    rows["loss_mask"][0, 2] = 0  # within the first answer
    other = mismatched(rows)
    assert other["input_ids"][0].tolist() == [10, 30, 11, 20, 21, 22, 0, 0]
    assert other["loss_mask"][0].tolist() == [0, 1, 0, 1, 0, 1, 0, 0]


def test_a_row_of_one_document_and_an_empty_one_have_no_other_answers() -> None:
    for rows in (rows_of(([10], [20, 21])), {name: np.zeros((1, 4), int) for name in rows_of(([1], [2]))}):
        assert all(not values.any() for values in mismatched(rows).values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "the rows have no labels; kto needs rows"),
        ({2: NO_LABEL}, "2 documents have 1 labels, where each has one"),
        ({1: 1, 5: NO_LABEL}, "2 documents have 2 labels, where each has one"),
        ({5: 2}, "a label is 2, where 0 is undesirable and 1 desirable"),
    ],
    ids=["none at all", "one missing", "two at one", "of another kind"],
)
def test_rows_that_are_not_labelled_are_refused(change: dict[int, int], message: str) -> None:
    documents = ([10, 11], [20]), ([12, 13], [30])
    rows = rows_of(*documents, labels=[1, 0] if change else None)
    for at, label in change.items():
        rows["labels"][0, at] = label
    with pytest.raises(DataError, match=message):
        objective().units(rows)


def test_a_document_without_an_answer_is_refused() -> None:
    rows = rows_of(([10, 11], [20]), ([12, 13], [30]), labels=[1, 0])
    rows["loss_mask"][0, 5] = 0
    with pytest.raises(DataError, match="1 of 2 documents have no token that carries loss"):
        objective().units(rows)
