"""dpo, orpo and kto in real trainings: exact however they are divided, resumed, learned from, and mixed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from judged import SEQ_LEN, chats, pairs, prepared, rated, train_judged
from loops import on_two_workers, small_model
from tunewright.config import ObjectiveConfig, PreferenceConfig
from tunewright.data.dataset import open_rows
from tunewright.train.bare import bare_forward
from tunewright.train.forward import Forward
from tunewright.train.objectives import Answer, Places, make_objective
from tunewright.train.objectives.base import sums_by_document
from tunewright.train.objectives.kto import desirable, mismatched

pytestmark = [
    pytest.mark.usefixtures("one_worker"),
    # DeepSpeed's:
    pytest.mark.filterwarnings("ignore:`torch.distributed:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]

ALONE_TOLERANCE = 1e-5
"""Relative, fp32: sums over rows of another length are taken in another order."""
SPLIT_TOLERANCE = 1e-6
"""Relative, fp32: sums over another number of parts are taken in another order."""
WEIGHTED = {"desirable_weight": 1.5, "undesirable_weight": 0.5}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    small_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    judged = prepared(folder / "pairs", pairs(60, 1), pairs(12, 2))
    return {
        "dpo": judged,
        "orpo": judged,
        "kto": prepared(folder / "rated", rated(90, 3), rated(20, 4)),
        "sft": prepared(folder / "chats", chats(60, 5), chats(12, 6)),
    }


def alone(model: Any, rows: dict[str, Any]) -> list[tuple[torch.Tensor, int]]:
    """Sum of log-probabilities and tokens of each document, by transformers' own forward pass of it."""
    out = []
    for row in range(len(rows["segment_ids"])):
        for number in range(1, int(rows["segment_ids"][row].max()) + 1):
            at = np.flatnonzero(rows["segment_ids"][row] == number)
            ids = torch.from_numpy(rows["input_ids"][row, at])
            learned = torch.from_numpy(rows["loss_mask"][row, at[1:]] == 1)
            logits = model(input_ids=ids[None]).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(logits[learned], ids[1:][learned], reduction="sum")
            out.append((-loss, int(learned.sum())))
    return out


def asking(model: Any) -> Forward:
    return bare_forward(model, torch.device("cpu"), torch.float32, SEQ_LEN)


def by_the_papers(
    name: str, config: PreferenceConfig, model: Any, before: Any, rows: dict[str, Any]
) -> torch.Tensor:
    """The loss of the rows, summed document by document; in the formulas' own words."""
    said = alone(model, rows)
    with torch.no_grad():
        said_before = [value for value, _ in alone(before, rows)]
    beta, loss = config.beta, torch.zeros(())
    if name == "kto":
        with torch.no_grad():
            other = mismatched(rows)
            moved = [p - q for (p, _), (q, _) in zip(alone(model, other), alone(before, other), strict=True)]
        z = max(0.0, float(sum(moved)) / len(moved))
        for (value, _), reference, good in zip(said, said_before, desirable(rows), strict=True):
            gain = beta * (value - reference - z)
            loss = loss + (
                config.desirable_weight * (1 - torch.sigmoid(gain))
                if good
                else config.undesirable_weight * (1 - torch.sigmoid(-gain))
            )
        return loss
    for at in range(0, len(said), 2):
        (chosen, n), (rejected, m) = said[at], said[at + 1]
        if name == "dpo":
            margin = (chosen - said_before[at]) - (rejected - said_before[at + 1])
            loss = loss - torch.log(torch.sigmoid(beta * margin)) - config.sft_weight * chosen / n
        else:
            p, q = torch.exp(chosen / n), torch.exp(rejected / m)
            ratio = (p / (1 - p)) / (q / (1 - q))
            loss = loss - chosen / n - beta * torch.log(torch.sigmoid(torch.log(ratio)))
    return loss


@pytest.mark.parametrize(
    ("name", "preference"),
    [("dpo", {"sft_weight": 0.3}), ("orpo", {"beta": 0.4}), ("kto", {"beta": 0.3, **WEIGHTED})],
)
def test_packed_rows_have_the_loss_and_the_gradients_of_their_answers_each_alone(
    data: dict[str, str], name: str, preference: dict[str, float]
) -> None:
    model, before = small_model(), small_model()
    with torch.no_grad():  # so that it has moved
        for weight in model.parameters():
            weight.add_(0.03 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    config = ObjectiveConfig.model_validate({"objective": name, "preference": preference})
    objective, weight = make_objective(config), model.model.layers[0].self_attn.q_proj.weight
    rows = open_rows(Path(data[name]), "train").take(range(8))
    places = Places.of(objective.places(rows))

    def asked(about: Any, rows: dict[str, Any], baseline: float = 0.0, graded: bool = False) -> Answer:
        at = Places.of(objective.places(rows))
        with torch.no_grad():
            reference = sums_by_document(asking(before).logps(rows, at)[0], rows, at)
        with torch.set_grad_enabled(graded):
            logps, _ = asking(about).logps(rows, at)
        return Answer(rows, at, logps, reference_D=reference, baseline=baseline)

    z = 0.0
    first = objective.first_pass
    if first is not None:
        z = first.baseline(first.counts(asked(model, first.rows(rows))))
        assert z > 0.01
    assert config.preference is not None and len(places) > 100
    packed = objective.loss(asked(model, rows, z, graded=True))
    expected = by_the_papers(name, config.preference, model, before, rows)
    assert float(packed.detach()) == pytest.approx(float(expected.detach()), rel=ALONE_TOLERANCE)
    (mine,), (theirs,) = (torch.autograd.grad(loss, [weight]) for loss in (packed, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


RUNS: list[dict[str, Any]] = [
    {
        "objective": "dpo",
        "preference": {"sft_weight": 0.2},
        "method": {"type": "lora", "rank": 4, "dropout": 0.2},
        "zero": {"stage": 2},
    },
    {"objective": "kto", "preference": WEIGHTED, "method": {"type": "full"}, "zero": {"stage": 3}},
]
ODDS = {"objective": "orpo", "method": {"type": "lora", "rank": 4}, "zero": {"stage": 1}}
VIRTUAL = {"objective": "kto", "method": {"type": "prompt_tuning", "tokens": 3}, "zero": {"stage": 0}}


def trained_on(rank: int, arguments: dict[str, Any]) -> Any:
    """For `on_two_workers`: figures, weights and reference of some trainings."""
    from safetensors.numpy import load_file

    out = []
    for number, values in enumerate(arguments["runs"]):
        work = Path(arguments["work"]) / str(number)
        data = arguments["data"][values["objective"]]
        outcome, _ = train_judged(Path(arguments["base"]), data, work, rank, max_steps=2, **values)
        kept = work / "reference-main.safetensors"
        out.append((outcome, load_file(kept)))
    return out


def test_two_workers_train_as_one_does(tmp_path: Path, base: Path) -> None:
    data = {
        "dpo": prepared(tmp_path / "pairs", pairs(18, 1), pairs(5, 2)),
        "kto": prepared(tmp_path / "rated", rated(30, 3), rated(9, 4)),
    }
    given = {"runs": RUNS, "base": str(base), "data": data}
    two = on_two_workers(trained_on, {**given, "work": str(tmp_path / "two")}, tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each of the two has
    try:
        one = trained_on(0, {**given, "work": tmp_path / "one"})
    finally:
        torch.set_num_threads(threads)
    for values, (alone, reference), *others in zip(RUNS, one, *two, strict=True):
        assert len(reference["train/values"]) > 25
        for other, other_reference in others:
            assert other_reference.keys() == reference.keys()
            for name, value in reference.items():
                assert np.array_equal(other_reference[name], value), (values, name)
            for name in ("loss", "grad_norm", "eval_loss", "eval_accuracy"):
                assert other.metrics[name] == pytest.approx(alone.metrics[name], rel=1e-5), (values, name)
            for name, weight in alone.weights.items():
                torch.testing.assert_close(other.weights[name], weight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("values", [RUNS[0], ODDS, VIRTUAL], ids=lambda v: v["objective"])
def test_the_micro_batch_decides_nothing(
    tmp_path: Path, base: Path, data: dict[str, str], values: dict[str, Any]
) -> None:
    whole, *parts = (
        train_judged(base, data[values["objective"]], tmp_path / str(n), micro_batch_size=n, **values)
        for n in (4, 2, 1)
    )
    assert len(whole[1]) == 4
    for outcome, figures in parts:
        for mine, other in zip(whole[1], figures, strict=True):
            assert other["loss"] == pytest.approx(mine["loss"], rel=SPLIT_TOLERANCE)
            assert other["grad_norm"] == pytest.approx(mine["grad_norm"], rel=1e-4)
        for name, weight in whole[0].weights.items():
            torch.testing.assert_close(outcome.weights[name], weight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("values", RUNS[:2], ids=lambda v: v["objective"])
def test_a_run_that_was_stopped_goes_on_bit_identically(
    tmp_path: Path, base: Path, data: dict[str, str], values: dict[str, Any]
) -> None:
    rows = data[values["objective"]]
    whole, _ = train_judged(base, rows, tmp_path / "whole", **values)
    train_judged(base, rows, tmp_path / "halves", stop_step=2, **values)
    kept = tmp_path / "halves" / "reference-main.safetensors"
    stamp = kept.stat().st_mtime_ns
    second, _ = train_judged(base, rows, tmp_path / "halves", **values)
    assert (second.began_at, second.step, kept.stat().st_mtime_ns) == (2, 4, stamp)
    assert second.metrics["loss"] == whole.metrics["loss"]
    for name, weight in whole.weights.items():
        assert torch.equal(weight, second.weights[name]), name


@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
def test_before_the_first_step_dpo_loses_log_2_and_nothing_has_a_reward(
    tmp_path: Path, base: Path, data: dict[str, str], method: str
) -> None:
    _, figures = train_judged(
        base,
        data["dpo"],
        tmp_path,
        objective="dpo",
        method={"type": method},
        max_steps=1,
        learning_rate=1e-30,
    )
    (told,) = figures
    assert told["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert told["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    for name in ("margin", "reward_chosen", "reward_rejected"):
        assert told[f"eval_{name}"] == pytest.approx(0.0, abs=1e-6)


def test_before_the_first_step_kto_loses_half_the_weights(
    tmp_path: Path, base: Path, data: dict[str, str]
) -> None:
    values: dict[str, Any] = {"objective": "kto", "method": {"type": "lora"}, "preference": WEIGHTED}
    _, figures = train_judged(base, data["kto"], tmp_path, max_steps=1, learning_rate=1e-30, **values)
    good = desirable(
        open_rows(Path(data["kto"]), "eval").take(range(len(open_rows(Path(data["kto"]), "eval"))))
    )
    expected = (1.5 * good.sum() + 0.5 * (~good).sum()) / len(good) / 2
    assert figures[0]["eval_loss"] == pytest.approx(expected, abs=1e-6)
    assert figures[0]["eval_kl"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", ["dpo", "orpo", "kto"])
def test_good_and_bad_answers_are_learned_apart(
    tmp_path: Path, base: Path, data: dict[str, str], name: str
) -> None:
    _, figures = train_judged(
        base,
        data[name],
        tmp_path,
        objective=name,
        method={"type": "full"},
        max_steps=20,
        learning_rate=1e-2,
    )
    by_step = {figure["step"]: figure for figure in figures}
    assert by_step[20]["eval_accuracy"] >= 0.9
    assert by_step[20]["eval_margin"] > 0.0
    assert by_step[20]["loss"] < 0.7 * by_step[1]["loss"]


def test_answers_are_learned_beside_judged_ones_each_with_its_own_figures(
    tmp_path: Path, base: Path, data: dict[str, str]
) -> None:
    judged = ObjectiveConfig(objective="dpo", preference=PreferenceConfig(beta=0.3))
    rated_too = ObjectiveConfig(objective="kto")
    beside = [("taste", judged, data["dpo"], 0.25), ("stars", rated_too, data["kto"], 0.25)]
    _, figures = train_judged(base, data["sft"], tmp_path, beside=beside, learning_rate=1e-30, max_steps=2)
    for told in figures:
        parts = {"main": 0.5, "taste": 0.25, "stars": 0.25}
        assert told["loss"] == pytest.approx(sum(s * told[f"loss/{n}"] for n, s in parts.items()), rel=1e-6)
        assert told["loss/taste"] == pytest.approx(math.log(2), abs=1e-6)
        assert told["loss/stars"] == pytest.approx(0.5, abs=1e-6)
    last = figures[-1]
    assert last["eval_loss"] > 1.0 and "eval_margin" not in last
    assert last["eval_loss/taste"] == pytest.approx(math.log(2), abs=1e-6)
    assert last["eval_margin/taste"] == pytest.approx(0.0, abs=1e-6)
    assert last["eval_kl/stars"] == pytest.approx(0.0, abs=1e-6)
    assert {path.name for path in tmp_path.glob("reference-*")} == {
        "reference-taste.safetensors",
        "reference-stars.safetensors",
    }
