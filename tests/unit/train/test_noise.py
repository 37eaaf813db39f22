"""Noise belongs to a row of the data: no worker, micro batch or second forward pass changes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from loops import MemoryRows, small_model
from tunewright.train.noise import RowDropout, RowNoise, add_neftune, mixed, own_dropout

ROWS = [4, 9, 2, 7]


def segments(count: int) -> Any:
    return MemoryRows(16).rows["segment_ids"][:count]


def dropped(noise: RowNoise, rows: list[int], step: int = 1, place: int = 3, p: float = 0.5) -> torch.Tensor:
    noise.begin(step, rows, segments(len(rows)))
    layer = RowDropout(p, noise, place).train()
    out: torch.Tensor = layer(torch.ones(len(rows), 6, 40))
    return out


def test_a_row_loses_the_same_channels_in_whatever_micro_batch() -> None:
    noise = RowNoise(5)
    together = dropped(noise, ROWS)
    alone = torch.cat([dropped(noise, [row]) for row in ROWS])
    halves = torch.cat([dropped(noise, ROWS[:2]), dropped(noise, ROWS[2:])])
    assert torch.equal(together, alone)
    assert torch.equal(together, halves)


def test_rows_steps_places_and_seeds_have_masks_of_their_own() -> None:
    masks = [
        dropped(RowNoise(5), [4]),
        dropped(RowNoise(5), [5]),
        dropped(RowNoise(5), [4], step=2),
        dropped(RowNoise(5), [4], place=4),
        dropped(RowNoise(6), [4]),
    ]
    assert all(not torch.equal(a, b) for i, a in enumerate(masks) for b in masks[:i])


@pytest.mark.parametrize("p", [0.1, 0.7])
def test_a_share_of_the_channels_is_dropped_and_the_others_make_up_for_it(p: float) -> None:
    out = dropped(RowNoise(1), list(range(16)), p=p)
    assert out.unique().tolist() == [0.0, pytest.approx(1 / (1 - p))]
    assert float((out == 0).float().mean()) == pytest.approx(p, abs=0.03)
    assert float(out.mean()) == pytest.approx(1, abs=0.06)


def test_nothing_is_dropped_in_an_evaluation() -> None:
    noise = RowNoise(5)
    given = torch.ones(3, 2)
    assert RowDropout(0.5, noise, 1).eval()(given) is given


def test_rows_that_are_not_those_of_the_micro_batch_are_noticed() -> None:
    noise = RowNoise(5)
    noise.begin(1, [1, 2], segments(2))
    with pytest.raises(AssertionError, match="are not those of the micro batch"):
        RowDropout(0.5, noise, 1).train()(torch.ones(3, 2))


def test_activations_that_are_computed_a_second_time_are_the_same() -> None:
    from torch.utils.checkpoint import checkpoint

    noise = RowNoise(5)
    noise.begin(1, ROWS, segments(4))
    layer = RowDropout(0.5, noise, 2).train()
    weight = torch.ones(8, requires_grad=True)
    kept = []

    def block(given: torch.Tensor) -> torch.Tensor:
        kept.append(layer(given * weight))
        return kept[-1].square().sum()

    checkpoint(block, torch.ones(4, 8), use_reentrant=False).backward()
    assert len(kept) == 2
    assert torch.equal(kept[0], kept[1])


def test_every_dropout_of_a_model_is_replaced_and_none_that_drops_nothing() -> None:
    noise = RowNoise(5)
    model = small_model("gpt2", resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.0)
    assert own_dropout(model, noise) == 5
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.p > 0]
    assert all(type(layer) is RowDropout for layer in layers)
    assert len({layer.place for layer in layers if isinstance(layer, RowDropout)}) == 5
    assert own_dropout(small_model(), noise) == 0


def test_neftune_disturbs_each_document_by_its_own_length_and_padding_not_at_all() -> None:
    noise = RowNoise(5)
    model = small_model()
    add_neftune(model, 5.0, noise)
    rows = MemoryRows(2, seq_len=24)
    rows.rows["segment_ids"][1, 20:] = 0
    noise.begin(3, [0, 1], rows.rows["segment_ids"])
    ids = torch.from_numpy(rows.rows["input_ids"])
    embed = model.get_input_embeddings()
    plain = embed.eval()(ids).detach()
    moved = (embed.train()(ids).detach() - plain).abs()
    for row, number in [(0, 1), (0, 2), (1, 1)]:
        place = rows.rows["segment_ids"][row] == number
        limit = 5.0 / np.sqrt(place.sum() * 32)
        assert 0.9 * limit < float(moved[row, place].max()) <= limit * (1 + 1e-6)
    assert float(moved[1, 20:].max()) == 0.0
    noise.begin(3, [1], rows.rows["segment_ids"][1:])
    assert torch.equal((embed(ids[1:]) - plain[1:]).abs(), moved[1:])


def test_seeds_do_not_collide() -> None:
    seeds = {mixed(seed, step, row) for seed in range(3) for step in range(50) for row in range(50)}
    assert len(seeds) == 7500
    assert all(0 <= seed < 2**63 for seed in seeds)
