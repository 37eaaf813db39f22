"""Attention document by document: what the masks of packed rows give, on all architectures it is used for."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loops import MemoryRows, small_model
from tunewright.config import LoraConfig, PromptTuningConfig
from tunewright.models import blocks
from tunewright.models.attention import NAME, Documents, attend_by_documents, no_mask, why_masks
from tunewright.models.packed import packed_masks, windows_of
from tunewright.train.methods import apply_method

CPU = torch.device("cpu")
TOLERANCE = 1e-5
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("gpt2", {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}),
    ("qwen2", {}),
    ("qwen3", {}),
    ("mistral", {}),
    ("gemma", {}),
    ("gemma3", {}),
    ("phi", {}),
    ("mistral", {"sliding_window": 4}),
    ("gemma3", {"sliding_window": 4}),
    ("qwen2", {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1}),
]


def rows_of(count: int = 3) -> dict[str, Any]:
    return MemoryRows(count).take(range(count))


def by_masks(model: Any, rows: dict[str, Any]) -> torch.Tensor:
    segments = torch.from_numpy(rows["segment_ids"])
    windows = windows_of(model.config, segments.shape[1])
    masks = packed_masks(segments, torch.float32, windows)
    return _logits(model, rows, attention_mask=masks)


def by_documents(model: Any, rows: dict[str, Any]) -> torch.Tensor:
    assert attend_by_documents(model, CPU, torch.float32)
    documents = Documents.of(rows["segment_ids"])
    return _logits(model, rows, documents=documents, attention_mask=no_mask(torch.zeros(1)))


def _logits(model: Any, rows: dict[str, Any], **told: Any) -> torch.Tensor:
    ids, positions = (torch.from_numpy(rows[name]) for name in ("input_ids", "position_ids"))
    logits: torch.Tensor = model(input_ids=ids, position_ids=positions, use_cache=False, **told).logits
    return logits[torch.from_numpy(rows["segment_ids"] > 0)]


def gradients(model: Any, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    logits.log_softmax(-1)[:, 7].sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_alike(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys() and len(wanted) > 10
    for name, gradient in wanted.items():
        scale = float(gradient.abs().max()) + 1e-6
        assert float((found[name] - gradient).abs().max()) < TOLERANCE * scale + 1e-6, name


@pytest.mark.parametrize(("kind", "changes"), KINDS, ids=lambda value: str(value))
def test_documents_give_what_masks_give(kind: str, changes: dict[str, Any]) -> None:
    model, rows = small_model(kind, **changes).train(), rows_of()
    wanted = by_masks(model, rows)
    wanted_gradients = gradients(model, wanted)
    found = by_documents(model, rows)
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE, atol=TOLERANCE)
    assert_alike(gradients(model, found), wanted_gradients)


def test_gradient_checkpointing_gives_the_same() -> None:
    model, rows = small_model().train(), rows_of()
    wanted = gradients(model, by_documents(model, rows))
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_alike(gradients(model, by_documents(model, rows)), wanted)


def test_blocks_and_windows_of_long_spans_give_what_a_mask_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 7)
    monkeypatch.setattr(blocks, "KEPT", 10)
    spans = ((0, 0, 23), (0, 23, 5), (1, 2, 26))
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 30, 8, requires_grad=True) for heads in (6, 2, 2))
    at = torch.arange(30)
    for window in (None, 9, 3):
        near = at[:, None] >= at[None, :]
        if window:
            near &= at[:, None] - at[None, :] < window
        mask = torch.zeros(2, 1, 30, 30, dtype=torch.bool)
        for row, first, tokens in spans:
            inside = (at >= first) & (at < first + tokens)
            mask[row, 0] |= inside[:, None] & inside[None, :] & near
        wanted = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True
        )
        wanted = torch.nan_to_num(wanted).transpose(1, 2)
        found = blocks.block_attention(query, key, value, spans, 0.3, window)
        torch.testing.assert_close(found, wanted, rtol=TOLERANCE, atol=TOLERANCE)
        up = torch.randn_like(found)
        expected = torch.autograd.grad(wanted, (query, key, value), up)
        got = torch.autograd.grad(found, (query, key, value), up)
        torch.testing.assert_close(got, tuple(map(torch.nan_to_num, expected)), rtol=1e-4, atol=TOLERANCE)


def test_no_token_sees_another_document() -> None:
    model, rows = small_model(), rows_of(1)
    before = by_documents(model, rows)
    last = rows["segment_ids"].max()
    assert last > 1
    changed = copy.deepcopy(rows)
    others = changed["segment_ids"] == 1
    changed["input_ids"][others] = (changed["input_ids"][others] + 1) % 48
    after = by_documents(model, changed)
    same = torch.from_numpy(rows["segment_ids"][rows["segment_ids"] > 0] != 1)
    assert torch.equal(before[same], after[same])
    assert not torch.equal(before[~same], after[~same])


def test_padding_changes_nothing_and_gathers_nothing() -> None:
    query, key, value = (torch.randn(1, 2, 10, 4) for _ in range(3))
    documents = Documents.of(np.array([[1, 1, 1, 2, 2, 0, 0, 0, 0, 0]]))
    assert documents.spans == ((0, 0, 3), (0, 3, 2))
    assert documents.bounds.tolist() == [0, 3, 5, 10]
    found = blocks.block_attention(query, key, value, documents.spans, 1.0)
    assert not found[:, 5:].any() and found[:, :5].any()


def test_generation_attends_as_ever(tmp_path: Path) -> None:
    model, other = small_model(), small_model()
    by_documents(model, rows_of())
    ids = torch.tensor([[1, 2, 3, 4], [0, 0, 5, 6]])
    attended = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    told = {"attention_mask": attended, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **told), other.generate(ids, **told))
    model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"


def test_dropout_of_attention_stays_within_documents() -> None:
    rows = rows_of(1)
    model = small_model("gpt2", attn_pdrop=0.5, resid_pdrop=0.0, embd_pdrop=0.0)
    torch.testing.assert_close(by_documents(model, rows), by_masks(model, rows), rtol=1e-5, atol=1e-5)
    model.train()
    changed = copy.deepcopy(rows)
    others = changed["segment_ids"] == 1
    changed["input_ids"][others] = (changed["input_ids"][others] + 1) % 48
    torch.manual_seed(1)
    before = by_documents(model, rows)
    torch.manual_seed(1)
    after = by_documents(model, changed)
    same = torch.from_numpy(rows["segment_ids"][rows["segment_ids"] > 0] != 1)
    assert torch.equal(before[same], after[same])


def test_what_cannot_be_told_its_documents_says_why() -> None:
    model = small_model()
    assert why_masks(model, CPU, torch.float32) is None
    assert "in 16 bits" in (why_masks(model, torch.device("cuda"), torch.float32) or "")
    model.config.model_type = "bloom"
    assert "bloom models" in (why_masks(model, CPU, torch.float32) or "")
    tuned = apply_method(small_model(), PromptTuningConfig(tokens=2), 0)
    assert "virtual tokens" in (why_masks(tuned, CPU, torch.float32) or "")
    assert why_masks(apply_method(small_model(), LoraConfig(), 0), CPU, torch.float32) is None


def test_many_small_documents_are_left_to_masks_on_a_cpu() -> None:
    few = Documents.of(np.repeat(np.arange(1, 5), 256)[None])
    many = Documents.of(np.repeat(np.arange(1, 129), 2)[None])
    cpu = torch.device("cpu")
    assert few.worth_it(cpu) and not many.worth_it(cpu)
    assert many.worth_it(torch.device("cuda"))
