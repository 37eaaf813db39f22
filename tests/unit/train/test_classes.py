"""What the objectives with a head count: losses by hand, figures as scikit-learn and seqeval give them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from headed import INTENTS, OBJECTIVES, TAGS, Pairs
from tunewright.config import TrainConfig
from tunewright.data.rows import NO_LABEL
from tunewright.errors import TrainError
from tunewright.train.objectives import Answer, Places, make_objective
from tunewright.train.objectives.classes import Classify, Tag
from tunewright.train.objectives.reward import Reward
from tunewright.train.objectives.spans import are_spans, spans

ENTITIES = ("B-a", "B-b", "I-a", "I-b", "O")


def rows_of(documents: Sequence[Sequence[int]], spare: int = 2) -> dict[str, Any]:
    """One row: each document's labels at its places, and padding behind."""
    labels = np.concatenate([np.array(d) for d in documents])
    numbers = np.concatenate([np.full(len(d), n) for n, d in enumerate(documents, start=1)])
    return {
        "input_ids": np.zeros((1, len(labels) + spare), np.int64),
        "segment_ids": np.pad(numbers, (0, spare))[None],
        "labels": np.pad(labels, (0, spare), constant_values=0)[None],  # of padding: must not count
    }


def answer(objective: Any, rows: dict[str, Any], scores_NC: Any) -> Answer:
    return Answer(rows, Places.of(objective.places(rows)), scores_NC=torch.as_tensor(scores_NC))


def sure_of(said: Sequence[int], classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(said), classes).double() * 5


def added(objective: Any, *answers: Answer) -> dict[str, float]:
    """The figures of several micro batches together."""
    every = [objective.counts(one) for one in answers]
    assert len({tuple(counts) for counts in every}) == 1
    figures: dict[str, float] = objective.summary({k: sum(c[k] for c in every) for k in every[0]})
    return figures


def test_the_loss_of_classes_is_the_cross_entropy_of_labelled_places() -> None:
    objective = Classify(INTENTS, smoothing=0.3)
    rows = rows_of([[NO_LABEL, 2], [0]])
    scores = torch.tensor([[0.1, -0.4, 0.9], [1.5, 0.0, -2.0]], dtype=torch.float64)
    logs = [[s - math.log(sum(math.exp(t) for t in row)) for s in row] for row in scores.tolist()]
    plain = -logs[0][2] - logs[1][0]
    assert objective.units(rows) == 2
    one = answer(objective, rows, scores)
    assert float(objective.loss(one, training=False)) == pytest.approx(plain, rel=1e-12)
    smoothed = 0.7 * plain - 0.3 * sum(sum(row) / 3 for row in logs)
    assert float(objective.loss(one)) == pytest.approx(smoothed, rel=1e-12)


def test_accuracy_and_macro_f1_are_those_of_scikit_learn() -> None:
    # The lines below are of scikit-learn 1.9.1: f1_score(true, said, average="macro"), accuracy_score.
    true = [3,3,1,2,3,3,3,3,2,3,2,3,0,0,1,0,0,2,0,0,2,3,0,3,2,2,3,1,2,2,2,3,0,0,1,3,1,2,2,3]  # fmt: skip
    said = [1,2,1,1,3,0,3,2,2,0,3,4,1,0,3,3,0,2,2,0,2,4,0,4,2,2,3,3,2,2,2,3,0,1,0,4,0,2,3,2]  # fmt: skip
    objective = Classify([f"class {n}" for n in range(6)])
    parts = []
    for half in (slice(0, 13), slice(13, 40)):
        rows = rows_of([[label] for label in true[half]])
        parts.append(answer(objective, rows, sure_of(said[half], 6)))
    figures = added(objective, *parts)
    assert figures["macro_f1"] == pytest.approx(0.36467632850241544, rel=1e-12)
    assert figures["accuracy"] == 0.475


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    objective = Classify(["no", "yes"])
    shares = [0.95, 0.95, 0.95, 0.65, 0.65]  # of class yes; right but for the first and the last
    scores = [[math.log(1 - p), math.log(p)] for p in shares]
    rows = rows_of([[0], [1], [1], [1], [0]])
    figures = added(objective, answer(objective, rows, scores))
    assert figures["calibration_error"] == pytest.approx(
        (abs(3 * 0.95 - 2) + abs(2 * 0.65 - 1)) / 5, rel=1e-6
    )
    certain = answer(objective, rows_of([[1], [1]]), [[0.0, 1e4], [0.0, 1e4]])
    assert added(objective, certain)["calibration_error"] == 0.0


def test_entities_are_counted_as_seqeval_counts_them() -> None:
    # By seqeval 1.2.2: precision_score, recall_score and f1_score of these tags.
    true = ["B-a O I-a B-a B-b I-a I-a", "O", "B-a B-a B-a B-b O", "B-a O B-a B-b I-b I-a O B-b I-b",
            "B-a I-a O I-b"]  # fmt: skip
    said = ["B-a O I-a B-b B-b I-a O", "O", "B-a B-a B-a B-b O", "I-b O B-a B-b I-b O O B-a I-b",
            "B-a I-b O I-b"]  # fmt: skip
    objective = Tag(ENTITIES)
    parts = []
    for documents in (slice(0, 2), slice(2, 5)):
        numbers = [
            [[ENTITIES.index(tag) for tag in words.split()] for words in each[documents]]
            for each in (true, said)
        ]
        rows = rows_of(numbers[0])
        parts.append(answer(objective, rows, sure_of([n for words in numbers[1] for n in words], 5)))
    figures = added(objective, *parts)
    assert figures == {
        "accuracy": pytest.approx(20 / 26),
        "precision": pytest.approx(0.5882352941176471, rel=1e-12),
        "recall": pytest.approx(0.625, rel=1e-12),
        "f1": pytest.approx(0.6060606060606061, rel=1e-12),
    }


def test_an_entity_does_not_go_on_in_the_next_document() -> None:
    objective = Tag(ENTITIES)
    rows = rows_of([[0], [2]])  # B-a | I-a: two entities, and one if they were one text
    assert objective.counts(answer(objective, rows, sure_of([0, 2], 5)))["entities_true"] == 2


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O I-city I-city B-city I-name", {("city", 1, 3), ("city", 3, 4), ("name", 4, 5)}),
        ("B-a B-a I-a", {("a", 0, 1), ("a", 1, 3)}),
        ("B-a-b I-a-b I-a", {("a-b", 0, 2), ("a", 2, 3)}),
        ("O O", set()),
        ("", set()),
    ],
)
def test_spans_begin_and_end_where_seqeval_has_them(tags: str, found: set[Any]) -> None:
    assert spans(tags.split()) == found


@pytest.mark.parametrize(
    ("labels", "are"),
    [
        (TAGS, True),
        (("B-a", "I-a"), True),
        (("NOUN", "O", "VERB"), False),
        (("O",), False),
        (("B-", "O"), False),
    ],
)
def test_tags_of_parts_of_speech_are_no_entities(labels: tuple[str, ...], are: bool) -> None:
    assert are_spans(labels) == are
    if len(labels) > 1:
        objective = Tag(labels)
        figures = added(objective, answer(objective, rows_of([[0, 1]]), sure_of([0, 0], len(labels))))
        assert set(figures) == (
            {"accuracy", "precision", "recall", "f1"} if are else {"accuracy", "macro_f1"}
        )


def test_a_reward_is_the_better_the_further_chosen_is_above_rejected() -> None:
    objective = Reward()
    rows = Pairs(3).take(range(3))
    places = Places.of(objective.places(rows))
    pairs = objective.units(rows)
    assert len(places) == 2 * pairs >= 4
    ends = rows["segment_ids"][places.rows, places.columns]
    assert list(ends % 2) == [1, 0] * pairs
    scores = torch.linspace(-1.0, 2.0, 2 * pairs, dtype=torch.float64)[:, None]
    scores[1] = -3.0
    margins = [float(scores[2 * n, 0] - scores[2 * n + 1, 0]) for n in range(pairs)]
    one = Answer(rows, places, scores_NC=scores)
    wanted = sum(math.log1p(math.exp(-margin)) for margin in margins)
    assert float(objective.loss(one)) == pytest.approx(wanted, rel=1e-12)
    figures = added(objective, one)
    assert figures == {
        "accuracy": sum(m > 0 for m in margins) / pairs,
        "margin": pytest.approx(sum(margins) / pairs),
    }


def test_a_pair_without_its_rejected_answer_is_refused() -> None:
    rows = Pairs(1).take([0])
    segments = rows["segment_ids"]
    segments[segments == segments.max()] = 0
    with pytest.raises(TrainError, match="a packed row has [13] answers; each chosen one needs its rejected"):
        Reward().units(rows)


@pytest.mark.parametrize(
    ("labels", "told"), [(("spam",), "the rows have one class, spam; there must be two"), ((), "no class")]
)
def test_one_class_is_nothing_to_learn(labels: tuple[str, ...], told: str) -> None:
    config = TrainConfig(objective="classify", max_steps=1)
    with pytest.raises(TrainError, match=told):
        make_objective(config, labels)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_rows_of_padding_alone_cost_nothing_and_count_nothing(objective: str) -> None:
    rows_class, _, labels = OBJECTIVES[objective]
    made: Any = make_objective(TrainConfig.model_validate({"objective": objective, "max_steps": 1}), labels)
    rows = rows_class(2).take([0, 1])
    assert made.units(rows) > 0
    rows["segment_ids"][:] = 0
    scores = torch.zeros((0, len(labels)), requires_grad=True)
    one = answer(made, rows, scores)
    loss = made.loss(one)
    loss.backward()
    assert (made.units(rows), float(loss.detach()), scores.grad is not None) == (0, 0.0, True)
    assert set(made.summary(made.counts(one)).values()) == {0.0}
