"""Agreement of two models: what it is of the same one, of a changed one, and in one go or batch by batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from loops import VOCABULARY, MemoryRows, small_model
from tunewright.errors import ModelError
from tunewright.models.compare import AT_ONCE, Probe, compare_models, documents_of, probes_of


def documents(count: int = 9, longest: int = 40) -> list[list[int]]:
    numbers = np.random.default_rng(4)
    return [numbers.integers(0, VOCABULARY, numbers.integers(2, longest)).tolist() for _ in range(count)]


def nudged(model: Any, by: float) -> Any:
    out = copy.deepcopy(model)
    with torch.no_grad():
        torch.manual_seed(1)
        for weight in out.parameters():
            weight += by * torch.randn_like(weight)
    return out


@torch.no_grad()
def told_one_by_one(a: Any, b: Any, rows: list[list[int]]) -> tuple[float, float, float, int]:
    """The same figures in fp64, from each document by itself."""
    kl, same, largest, tokens = 0.0, 0, 0.0, 0
    for row in rows:
        ours, theirs = (m(input_ids=torch.tensor([row])).logits[0, :-1].double() for m in (a, b))
        p, q = ours.softmax(-1), theirs.softmax(-1)
        kl += float((p * (p / q).log()).sum())
        same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        largest = max(largest, float((ours - theirs).abs().max()))
        tokens += len(ours)
    return kl / tokens, same / tokens, largest, tokens


def test_a_model_agrees_with_itself() -> None:
    model = small_model()
    found = compare_models(model, copy.deepcopy(model), probes_of(documents(), pad_id=0))
    assert (found.kl, found.top1, found.max_logit_difference) == (0.0, 1.0, 0.0)
    assert found.tokens == sum(len(row) - 1 for row in documents())


@pytest.mark.parametrize("at_once", [1, 64, 4096])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_figures_are_those_of_each_document_alone_however_they_are_batched(
    kind: str, at_once: int
) -> None:
    a = small_model(kind)
    b = nudged(a, 0.05)
    rows = documents()
    kl, same, largest, tokens = told_one_by_one(a, b, rows)
    found = compare_models(a, b, probes_of(rows, pad_id=0, tokens_at_once=at_once))
    assert found.kl == pytest.approx(kl, rel=1e-4) and found.kl > 1e-3
    assert found.top1 == same < 1
    assert found.max_logit_difference == pytest.approx(largest, rel=1e-4)
    assert found.tokens == tokens


def test_a_larger_change_is_a_larger_difference() -> None:
    model = small_model()
    found = [compare_models(model, nudged(model, by), probes_of(documents(), 0)) for by in (0.001, 0.01, 0.1)]
    assert found[0].kl < found[1].kl < found[2].kl
    assert found[0].max_logit_difference < found[2].max_logit_difference
    assert found[0].top1 >= found[2].top1


def test_one_batch_is_held_at_a_time() -> None:
    """The next probe is asked for only when both models have answered the last."""
    model = small_model()
    answered: list[int] = []
    model.register_forward_hook(lambda *_: answered.append(1))

    def probes() -> Iterator[Probe]:
        for number, probe in enumerate(probes_of(documents(), 0, tokens_at_once=40)):
            assert len(answered) == 2 * number
            yield probe

    compare_models(model, model, probes())
    assert len(answered) > 4


def test_more_positions_than_are_held_at_once_count_too() -> None:
    a = small_model(max_position_embeddings=1024)
    rows = [np.random.default_rng(1).integers(0, VOCABULARY, 2 * AT_ONCE + 7).tolist()]
    found = compare_models(a, nudged(a, 0.02), probes_of(rows, 0))
    assert found.tokens == 2 * AT_ONCE + 6
    assert found.kl == pytest.approx(told_one_by_one(a, nudged(a, 0.02), rows)[0], rel=1e-3)


def test_models_are_asked_without_dropout_and_left_as_they_were() -> None:
    a = small_model(attention_dropout=0.5).train()
    b = copy.deepcopy(a).eval()
    assert compare_models(a, b, probes_of(documents(), 0)).kl == 0.0
    assert a.training and not b.training


def test_what_cannot_be_compared_is_refused() -> None:
    model = small_model()
    with pytest.raises(ModelError, match="48 and 40 tokens in their vocabularies"):
        compare_models(model, small_model(vocab_size=40), probes_of([[1, 2, 3]], 0))
    for nothing in ([], [[5]]):
        with pytest.raises(ModelError, match="no token to compare"):
            compare_models(model, model, probes_of(nothing, 0))
    broken = copy.deepcopy(model)
    broken.get_output_embeddings().weight.data[3, 3] = float("nan")
    with pytest.raises(ModelError, match="logits are not finite"):
        compare_models(model, broken, probes_of([[1, 2, 3]], 0))


def test_documents_of_packed_rows_are_the_segments_in_order() -> None:
    rows = {
        "input_ids": np.array([[5, 6, 7, 8, 9, 0], [1, 2, 3, 0, 0, 0]]),
        "segment_ids": np.array([[1, 1, 2, 3, 3, 0], [1, 1, 1, 0, 0, 0]]),
    }
    assert documents_of(rows) == [[5, 6], [8, 9], [1, 2, 3]]
    assert documents_of(rows, most_tokens=3) == [[5, 6], [8, 9]]
    memory = MemoryRows(3)
    tokens = sum(map(len, documents_of(memory.take([0, 1, 2]))))
    assert tokens == int((memory.rows["segment_ids"] > 0).sum())
