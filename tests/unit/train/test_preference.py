"""dpo and orpo: the numbers of their papers from given log-probabilities, and rows that are no pairs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from tunewright.config import ObjectiveConfig
from tunewright.errors import DataError
from tunewright.train.objectives import Answer, Objective, Places, make_objective
from tunewright.train.objectives.preference import log_odds

TOKENS = [
    [-0.5, -1.25, -2.0],
    [-0.25, -0.75],
    [-3.0, -0.125, -1.5, -0.5],
    [-2.5, -1.0],
    [-0.001, -0.002],
    [-4.0, -2.0, -6.0],
]
"""Log-probabilities of the tokens of six answers, chosen and rejected ones in turn."""
BEFORE = [-3.5, -1.25, -5.5, -2.0, -0.5, -11.0]
TRL_DPO = {
    0.1: {"loss": 0.6477802558639497, "margin": 0.09573333333333334, "chosen": 0.020733333333333336},
    0.5: {"loss": 0.5145833702409924, "margin": 0.47866666666666663, "chosen": 0.10366666666666667},
}
"""By `_compute_loss` of the `DPOTrainer` of TRL 1.16.0, with a model that gives `TOKENS` and `BEFORE`."""
TRL_ORPO = {0.1: 0.06710242480039597, 0.5: 0.3355121314525604}
"""By `odds_ratio_loss` of TRL's `ORPOTrainer`, of the means of `TOKENS`; the chosen ones' own loss apart."""
TRL_LOG_ODDS = 3.2470157146453857
TOLERANCE = 1e-6
"""Relative: fp32 here, fp64 there."""


def answered(tokens: list[list[float]], before: list[float] | None = None) -> Answer:
    """What a model says that gives these log-probabilities, of one row; each answer behind two tokens."""
    lengths = [2 + len(each) for each in tokens]
    segments = np.repeat(np.arange(1, len(tokens) + 1), lengths)[None]
    mask = np.concatenate([np.repeat([0, 1], [2, len(each)]) for each in tokens])[None]
    rows = {"segment_ids": segments, "loss_mask": mask, "input_ids": np.zeros_like(mask)}
    places = Places.of(objective("orpo").places(rows))
    values = torch.tensor([value for each in tokens for value in each], requires_grad=True)
    return Answer(rows, places, values, reference_D=None if before is None else torch.tensor(before))


def objective(name: str, **preference: float) -> Objective:
    return make_objective(ObjectiveConfig.model_validate({"objective": name, "preference": preference}))


@torch.no_grad()
def figures_of(objective: Objective, answer: Answer) -> dict[str, float]:
    return objective.summary(objective.counts(answer))


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_dpo_has_the_loss_and_the_figures_of_trl(beta: float) -> None:
    dpo, answer, trl = objective("dpo", beta=beta), answered(TOKENS, BEFORE), TRL_DPO[beta]
    assert dpo.units(answer.rows) == 3
    assert float(dpo.loss(answer).detach()) / 3 == pytest.approx(trl["loss"], rel=TOLERANCE)
    figures = figures_of(dpo, answer)
    assert figures == pytest.approx(
        {
            "accuracy": 2 / 3,
            "margin": trl["margin"],
            "reward_chosen": trl["chosen"],
            "reward_rejected": trl["chosen"] - trl["margin"],
        },
        rel=1e-5,
    )


def test_dpo_adds_the_chosen_answers_own_loss_if_it_is_asked_to() -> None:
    answer = answered(TOKENS, BEFORE)
    own = -sum(np.mean(each) for each in TOKENS[0::2]) / 3
    loss = float(objective("dpo", sft_weight=0.25).loss(answer).detach()) / 3
    assert loss == pytest.approx(TRL_DPO[0.1]["loss"] + 0.25 * own, rel=TOLERANCE)


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_orpo_has_the_odds_ratio_of_trl_beside_the_chosen_answers_own_loss(beta: float) -> None:
    orpo, answer = objective("orpo", beta=beta), answered(TOKENS)
    own = -sum(np.mean(each) for each in TOKENS[0::2]) / 3
    assert float(orpo.loss(answer).detach()) / 3 == pytest.approx(own + TRL_ORPO[beta], rel=TOLERANCE)
    figures = figures_of(orpo, answer)
    assert figures == pytest.approx(
        {
            "accuracy": 2 / 3,
            "margin": TRL_LOG_ODDS,
            "logp_chosen": -own,
            "logp_rejected": sum(np.mean(each) for each in TOKENS[1::2]) / 3,
        },
        rel=TOLERANCE,
    )


def test_odds_are_exact_for_answers_that_are_almost_certain_and_almost_impossible() -> None:
    # log(p / (1 - p)) of p = exp(m), in fp64 by m - log(-expm1(m)).
    means = [-1e-5, -1e-3, -0.5, -2.0, -20.0, -500.0]
    exact = [m - math.log(-math.expm1(m)) for m in means]
    assert log_odds(torch.tensor(means)).tolist() == pytest.approx(exact, rel=1e-6)
    certain = torch.tensor([0.0, -1e-30], requires_grad=True)
    odds = log_odds(certain)
    odds.sum().backward()
    assert torch.isfinite(odds).all() and certain.grad is not None and torch.isfinite(certain.grad).all()


@pytest.mark.parametrize("name", ["dpo", "orpo"])
def test_the_loss_falls_as_the_chosen_answer_becomes_likelier_and_the_rejected_one_less(name: str) -> None:
    answer = answered(TOKENS, BEFORE)
    objective(name).loss(answer).backward()
    assert answer.logps_N is not None and answer.logps_N.grad is not None
    signs = [g for each, sign in zip(TOKENS, [-1, 1] * 3, strict=True) for g in [sign] * len(each)]
    assert torch.sign(answer.logps_N.grad).tolist() == signs


def test_rows_that_are_no_pairs_are_refused() -> None:
    odd = answered(TOKENS[:3]).rows
    with pytest.raises(DataError, match="a row has 3 segments, which cannot be pairs"):
        objective("dpo").units(odd)
    silent = answered(TOKENS[:2]).rows
    silent["loss_mask"][silent["segment_ids"] == 2] = 0
    with pytest.raises(DataError, match="1 of 2 answers have no token that carries loss"):
        objective("orpo").units(silent)


def test_rows_without_documents_lose_nothing_and_count_nothing() -> None:
    empty: dict[str, Any] = {
        name: np.zeros((2, 6), np.int64) for name in ("segment_ids", "loss_mask", "input_ids")
    }
    nothing = torch.zeros(0, requires_grad=True)
    answer = Answer(empty, Places.of(objective("dpo").places(empty)), nothing, reference_D=torch.zeros(0))
    for name in ("dpo", "orpo"):
        assert objective(name).units(empty) == 0
        loss = objective(name).loss(answer)
        assert float(loss.detach()) == 0.0 and loss.requires_grad
        assert figures_of(objective(name), answer)["accuracy"] == 0.0
