"""Does an engine hold, beside a row's passes, what the forecast says? Resident memory, for each parameter.

    python benchmarks/forecast_terms.py [--stages 0 1 2 3] [--workers 1 2]

Trains all weights of a model of many equal blocks on rows so short that nothing else counts, and reads the
resident memory at the end of a step's last backward pass and while the optimizer steps. Prints a line a
case; the last line is one JSON object. What malloc keeps beside the tensors is in what is read, and not
in what is forecast; `tests/unit/train/test_forecast_terms.py` compares the tensors themselves.
"""

import argparse
import gc
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from result import conclude

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from loops import joined, on_two_workers

BLOCKS, STEPS, ACCUMULATED = 11, 3, 2


def main() -> int:
    parser = argparse.ArgumentParser(description="What DeepSpeed holds for each trained parameter.")
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], choices=[1, 2])
    options = parser.parse_args()
    metrics: dict[str, Any] = {}
    for workers in options.workers:
        for stage in options.stages:
            for precision in ("bf16", "fp32"):
                with tempfile.TemporaryDirectory() as folder:
                    case = (stage, precision)
                    # A process of its own each time: what one case left behind would hide the next.
                    every = [in_child(case)] if workers == 1 else on_two_workers(held, case, Path(folder))
                found, wanted = every[0], forecast(case, workers, every[0])
                name = f"ZeRO-{stage} {precision} {workers} workers"
                metrics[name] = {"measured": found, "forecast": wanted}
                told = ", ".join(f"{phase} {found[phase]:.1f} ({wanted[phase]:.1f})" for phase in wanted)
                print(f"{name:26} bytes a parameter (forecast): {told}", flush=True)
    return conclude("forecast_terms", metrics, {}, {}, True)


def forecast(case: tuple[int, str], workers: int, found: dict[str, float]) -> dict[str, float]:
    """Bytes a parameter at the same phases."""
    from tunewright.train.forecast.memory import Setting, Sizes, Traced, in_exchange, in_step, memory

    stage, precision = case
    each, count = 2 if precision == "bf16" else 4, int(found["count"])
    setting = Setting(stage, each, workers)
    sizes = Sizes(each * count, count, count, int(found["largest"]))
    always = memory(setting, sizes, Traced(0, 0))
    held = always.weights + always.optimizer
    return {
        name: (held + moment.gradients + moment.buffers) / count
        for name, moment in (("backward", in_exchange(setting, sizes)), ("step", in_step(setting, sizes)))
    }


def in_child(case: Any) -> dict[str, float]:
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=alone, args=(case, queue))
    child.start()
    found: dict[str, float] = queue.get(timeout=600)
    child.join()
    return found


def alone(case: Any, queue: Any) -> None:
    os.environ["LOCAL_RANK"] = "0"
    with joined():
        queue.put(held(0, case))


def held(rank: int, case: tuple[int, str]) -> dict[str, float]:
    """Resident bytes for each parameter: after a step, and the most in its backward pass and its step."""
    import peft  # noqa: F401 - imported later, it would count
    import torch
    import torch.distributed as dist
    import transformers
    from transformers.models.llama import modeling_llama  # noqa: F401

    from tunewright.config import TrainConfig
    from tunewright.train.engine import build_engine
    from tunewright.train.methods import apply_method

    stage, precision = case
    torch.set_num_threads(1)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    torch.ones(256, 256, dtype=dtype) @ torch.ones(256, 256, dtype=dtype)
    gc.collect()
    before = resident("VmRSS")
    settings = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=BLOCKS,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    model = transformers.AutoModelForCausalLM.from_config(settings, dtype=dtype)
    config = TrainConfig.model_validate(
        {
            "max_steps": STEPS,
            "global_batch_size": 2 * ACCUMULATED * dist.get_world_size(),
            "micro_batch_size": 2,
            "method": {"type": "full"},
            "zero": {"stage": stage},
        }
    )
    trained: Any = apply_method(model, config.method, 1).train()
    numbers = [weight.numel() for weight in trained.parameters()]
    count = sum(numbers)
    engine = build_engine(trained, config, dtype, torch.device("cpu")).deepspeed
    ids = torch.zeros(2, 8, dtype=torch.int64)
    out: dict[str, float] = {"count": count, "largest": max(numbers)}
    for _ in range(STEPS):
        for number in range(ACCUMULATED):
            engine.backward(engine(input_ids=ids, use_cache=False).logits.float().sum() * 1e-3)
            if number == ACCUMULATED - 1:
                out["backward"] = (resident("VmHWM") - before) / count
                forget_peak()
            engine.step()
        out["step"] = (resident("VmHWM") - before) / count
        out["after"] = (resident("VmRSS") - before) / count
        forget_peak()
    return out


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    sys.exit(main())
