"""The loss of packed rows is the loss of their documents, each by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from doubles import tiny_llama
from loops import language_loss, plain_forward
from tunewright.data.pack import pack_best_fit
from tunewright.data.rows import Document
from tunewright.data.shards import PackedRows, write_shard
from tunewright.train.objectives import Places
from tunewright.train.objectives.language import supervised_mask

VOCABULARY, SEQ_LEN = 64, 48
LOSS_TOLERANCE = 1e-5
"""Relative, fp32: sums over rows of another length are taken in another order."""


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama(VOCABULARY, context=SEQ_LEN)


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    numbers = np.random.default_rng(5)
    out = []
    for length in [*numbers.integers(2, 24, 20), SEQ_LEN, 1]:
        mask = numbers.integers(0, 2, length).astype(np.int8)
        out.append(Document(numbers.integers(0, VOCABULARY, length).astype(np.int32), mask))
    return out


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, documents: list[Document]) -> PackedRows:
    folder = tmp_path_factory.mktemp("packed")
    packed = pack_best_fit([len(d.ids) for d in documents], SEQ_LEN)
    assert len(packed) < len(documents) / 2
    write_shard(folder / "shard-000.parquet", documents, packed, SEQ_LEN)
    return PackedRows(folder)


@torch.no_grad()
def loss_alone(model: Any, document: Document) -> tuple[float, int]:
    """A document's loss by transformers' own masks and a loop, and its number of supervised tokens."""
    ids = torch.from_numpy(document.ids.astype(np.int64))[None]
    scores = model(input_ids=ids).logits[0].double().log_softmax(-1)
    at = [i for i in range(1, len(document.ids)) if document.loss_mask[i]]
    return -sum(float(scores[i - 1, ids[0, i]]) for i in at), len(at)


@torch.no_grad()
def loss_packed(model: Any, taken: dict[str, Any]) -> tuple[float, int]:
    return float(language_loss(plain_forward(model), taken)), int(supervised_mask(taken).sum())


def test_packed_rows_lose_what_their_documents_lose(
    model: Any, rows: PackedRows, documents: list[Document]
) -> None:
    alone = [loss_alone(model, document) for document in documents]
    total, count = loss_packed(model, rows.take(range(len(rows))))
    assert count == sum(n for _, n in alone) > 100
    assert total == pytest.approx(sum(loss for loss, _ in alone), rel=LOSS_TOLERANCE)


def test_a_leak_between_documents_is_caught_by_that_comparison(
    model: Any, rows: PackedRows, documents: list[Document]
) -> None:
    alone = sum(loss_alone(model, document)[0] for document in documents)
    taken = rows.take(range(len(rows)))
    learned = supervised_mask(taken)
    taken["segment_ids"][taken["segment_ids"] > 0] = 1  # every token sees all before it
    taken["loss_mask"][:, 1:] = learned[:, :-1]
    leaked, _ = loss_packed(model, taken)
    assert abs(leaked - alone) > 100 * LOSS_TOLERANCE * alone


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_loss_does_not_depend_on_the_micro_batch(model: Any, rows: PackedRows, size: int) -> None:
    whole, count = loss_packed(model, rows.take(range(len(rows))))
    parts = [
        loss_packed(model, rows.take(range(i, min(i + size, len(rows))))) for i in range(0, len(rows), size)
    ]
    assert sum(n for _, n in parts) == count
    assert sum(loss for loss, _ in parts) == pytest.approx(whole, rel=LOSS_TOLERANCE)


def test_gradients_of_packed_rows_are_those_of_their_documents(
    model: Any, rows: PackedRows, documents: list[Document]
) -> None:
    weight = model.model.layers[0].self_attn.q_proj.weight
    loss = language_loss(plain_forward(model), rows.take(range(len(rows))))
    (packed,) = torch.autograd.grad(loss, [weight])
    alone = torch.zeros_like(packed)
    for document in documents:
        ids = torch.from_numpy(document.ids.astype(np.int64))
        learned = torch.from_numpy(document.loss_mask[1:] == 1)
        if learned.any():
            logits = model(input_ids=ids[None]).logits[0, :-1][learned]
            loss = torch.nn.functional.cross_entropy(logits, ids[1:][learned], reduction="sum")
            alone += torch.autograd.grad(loss, [weight])[0]
    torch.testing.assert_close(packed, alone, rtol=1e-3, atol=1e-3 * float(alone.abs().max()))


def test_the_first_token_of_a_document_is_predicted_by_nothing() -> None:
    taken = {
        "segment_ids": np.array([[1, 1, 2, 2, 0, 0]]),
        "loss_mask": np.array([[1, 1, 1, 1, 1, 1]]),
    }
    # Position s predicts token s+1: within document 1, within document 2, and never across or into padding.
    assert supervised_mask(taken).tolist() == [[True, False, True, False, False, False]]


def test_a_batch_with_nothing_to_learn_has_a_loss_of_zero_with_gradients(model: Any) -> None:
    names = ("input_ids", "segment_ids", "position_ids", "loss_mask")
    loss = language_loss(plain_forward(model), {name: np.zeros((1, 6), int) for name in names})
    assert float(loss.detach()) == 0.0
    loss.backward()
    assert float(model.lm_head.weight.grad.abs().max()) == 0.0
    model.zero_grad()


def test_padding_never_makes_a_number_that_is_not_finite(model: Any, rows: PackedRows) -> None:
    taken = rows.take(range(len(rows)))
    assert (taken["segment_ids"] == 0).any()
    with torch.no_grad():
        everywhere = Places.of(taken["segment_ids"][:, :-1] > -1)
        assert torch.isfinite(plain_forward(model).logps(taken, everywhere)[0]).all()
