"""From folder to folder for each architecture: loaded, trained under ZeRO-3, written and opened again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loops import MemoryRows, small_model, worker_spec
from tunewright.config import TrainConfig
from tunewright.data import dataset
from tunewright.models.load import load_model
from tunewright.models.skeleton import skeleton
from tunewright.train.methods.fitting import fit_method
from tunewright.train.worker import run_spec

pytestmark = [
    pytest.mark.usefixtures("one_worker"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # DeepSpeed's:
    pytest.mark.filterwarnings("ignore:`torch.distributed:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]

IDS = torch.arange(12)[None]
SPECIFICS: dict[str, dict[str, Any]] = {
    "qwen3": {
        "tie_word_embeddings": True
    },  # as its small ones; a head_dim of its own, norms of queries and keys
    "gemma": {},  # tied, a head_dim of its own, embeddings scaled
    "phi": {"partial_rotary_factor": 0.5},  # biases everywhere, rotary positions for half of each head
    "gpt2": {},  # tied, learned positions, weights inputs first
}


@pytest.mark.parametrize(
    ("kind", "method"), [*((kind, "lora") for kind in SPECIFICS), ("gemma", "full"), ("phi", "full")]
)
def test_a_folder_is_trained_under_zero_3_and_what_is_written_opens_as_it_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, kind: str
) -> None:
    sizes = {"train": 4, "eval": 1}
    monkeypatch.setattr(dataset, "open_rows", lambda folder, split: MemoryRows(sizes[split]))
    small_model(kind, **SPECIFICS[kind]).save_pretrained(tmp_path / "base")
    shape = {"max_steps": 1, "global_batch_size": 2, "micro_batch_size": 2, "precision": "fp32"}
    config = TrainConfig.model_validate({**shape, "method": {"type": method}, "zero": {"stage": 3}})
    spec = worker_spec(tmp_path, config)
    outcome = run_spec(spec, 0, lambda _: None)
    trained = sum(weight.numel() for weight in outcome.weights.values())
    assert trained == fit_method(skeleton(tmp_path / "base"), config.method).trainable
    out = tmp_path / "out" / config.method.result
    reopened: Any = (
        load_model(out, None, torch.float32)
        if method == "full"
        else load_model(tmp_path / "base", out, torch.float32)
    )
    for name, weight in outcome.weights.items():
        assert torch.equal(reopened.get_parameter(name), weight)
    with torch.no_grad():
        before = load_model(tmp_path / "base", None, torch.float32)(input_ids=IDS).logits
        after = reopened(input_ids=IDS).logits
    assert torch.isfinite(after).all() and not torch.equal(after, before)
    assert reopened.config.tie_word_embeddings == (kind != "phi")
