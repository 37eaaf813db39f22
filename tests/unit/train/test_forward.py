"""The one place where the model is called: each way of asking gives what a plain forward pass gives."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loops import MemoryRows, on_two_workers, partitioned, plain_forward, small_model
from tunewright.config import LoraConfig, PromptTuningConfig, TrainConfig
from tunewright.models.output_layer import how_to_ask
from tunewright.models.packed import packed_masks
from tunewright.train.methods import apply_method
from tunewright.train.objectives.base import Places
from tunewright.train.objectives.language import supervised_mask

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.distributed:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]

TOLERANCE = 1e-5
HEAD = LoraConfig(rank=4, modules_to_save=("lm_head",))


def rows_and_places() -> tuple[dict[str, Any], Places]:
    rows = MemoryRows(2).take([0, 1])
    return rows, Places(*np.nonzero(supervised_mask(rows)))


def wanted_of(model: Any, rows: dict[str, Any], places: Places) -> tuple[torch.Tensor, torch.Tensor]:
    """By masks, and with every logit: log-probabilities and their mean over the vocabulary."""
    ids, positions = (torch.from_numpy(rows[name]) for name in ("input_ids", "position_ids"))
    masks = packed_masks(torch.from_numpy(rows["segment_ids"]), torch.float32)
    logits = model(input_ids=ids, position_ids=positions, attention_mask=masks, use_cache=False).logits
    every = logits[places.rows, places.columns].log_softmax(-1)
    targets = torch.from_numpy(rows["input_ids"][places.rows, places.columns + 1])
    return every.gather(1, targets[:, None])[:, 0], every.mean(-1)


def trainings() -> list[tuple[str, Any]]:
    untied = {"tie_word_embeddings": False}
    return [
        ("hidden", lambda: apply_method(small_model(), LoraConfig(rank=4), 0)),
        ("hidden", lambda: small_model().requires_grad_(True)),
        ("hidden", lambda: apply_method(small_model("phi"), LoraConfig(rank=4), 0)),
        ("places", lambda: apply_method(small_model(**untied), HEAD, 0)),
        ("places", lambda: small_model("gemma3", final_logit_softcapping=2.0).requires_grad_(True)),
        ("columns", lambda: apply_method(small_model(), PromptTuningConfig(tokens=2), 0)),
    ]


@pytest.mark.parametrize(("way", "make"), trainings())
def test_every_way_of_asking_gives_the_same(way: str, make: Any) -> None:
    model = make().eval()
    assert how_to_ask(model).way == way
    assert bool(how_to_ask(model).reason) == (way != "hidden")
    rows, places = rows_and_places()
    wanted = wanted_of(model, rows, places)
    weights = [p for p in model.parameters() if p.requires_grad]
    expected = torch.autograd.grad((2 * wanted[0] + wanted[1]).sum(), weights)
    found = plain_forward(model).logps(rows, places, uniform=True)
    assert found[1] is not None
    got = torch.autograd.grad((2 * found[0] + found[1]).sum(), weights)
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=TOLERANCE * 10)
    assert "forward" not in model.get_output_embeddings().__dict__


@pytest.mark.parametrize(("way", "make"), trainings())
def test_a_pass_without_places_has_gradients_of_zero(way: str, make: Any) -> None:
    model = make()
    rows, _ = rows_and_places()
    logps, _ = plain_forward(model).logps(rows, Places(np.zeros(0, np.int64), np.zeros(0, np.int64)))
    assert logps.shape == (0,)
    logps.sum().backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
    assert gradients and not any(gradient.any() for gradient in gradients)


def logps_under_zero_3(rank: int, _: Any) -> tuple[list[float], dict[str, float], str]:
    from tunewright.train.engine import build_engine
    from tunewright.train.forward import Forward

    shape = {"max_steps": 1, "global_batch_size": 4, "micro_batch_size": 2, "workers": 2}
    config = TrainConfig.model_validate(
        {**shape, "zero": {"stage": 3}, "method": {"type": "lora", "rank": 4}}
    )
    model = apply_method(small_model(), config.method, 0).train()
    engine = build_engine(model, partitioned(config), torch.float32, torch.device("cpu"))
    rows, places = rows_and_places()
    logps, _ = Forward(engine).logps(rows, places)
    way = how_to_ask(engine.deepspeed.module).way
    engine.deepspeed.backward(-logps.sum())
    from deepspeed.utils import safe_get_full_grad

    norms = {name: float(safe_get_full_grad(p).norm()) for name, p in engine.named}
    return logps.detach().tolist(), norms, way


def test_weights_scattered_by_zero_3_give_the_same(tmp_path: Path) -> None:
    found = on_two_workers(logps_under_zero_3, None, tmp_path)
    model = apply_method(small_model(), LoraConfig(rank=4), 0).train()
    rows, places = rows_and_places()
    logps, _ = plain_forward(model).logps(rows, places)
    (-logps.sum()).backward()
    norms = {n: float(p.grad.norm()) for n, p in model.named_parameters() if p.grad is not None}
    for values, gradients, way in found:
        assert way == "places"
        assert values == pytest.approx(logps.tolist(), rel=TOLERANCE)
        assert gradients == pytest.approx(norms, rel=1e-4, abs=1e-6)


def test_one_worker_with_an_engine_gives_the_same(one_worker: None) -> None:
    from tunewright.train.engine import build_engine
    from tunewright.train.forward import Forward

    shape = {"max_steps": 1, "global_batch_size": 2, "micro_batch_size": 2}
    config = TrainConfig.model_validate({**shape, "method": {"type": "lora", "rank": 4}})
    rows, places = rows_and_places()
    wanted, _ = wanted_of(apply_method(small_model(), config.method, 0), rows, places)
    trained = apply_method(small_model(), config.method, 0)
    engine = build_engine(trained, config, torch.float32, torch.device("cpu"))
    found, _ = Forward(engine).logps(rows, places)
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE, atol=TOLERANCE)
    engine.backward(-found.sum())
    assert 0 < engine.gradient_norm < float("inf")
