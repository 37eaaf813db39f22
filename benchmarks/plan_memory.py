"""Is the memory that `tunewright plan` forecasts what a training takes?

    python benchmarks/plan_memory.py

Each case trains a few steps in a process of its own, in the worker's environment, by the real engine,
forward pass and optimizer; its peak resident memory above what the process held with everything
imported is compared with the forecast, which is made without weights. Prints a table; the last line is
one JSON object.
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from result import conclude

GOAL = 0.15
MIB = 2**20
LLAMA = {"kind": "llama", "hidden_size": 512, "intermediate_size": 1376, "vocab_size": 32000}
QWEN = {"kind": "qwen2", "hidden_size": 384, "intermediate_size": 1536, "vocab_size": 16000}
GPT2 = {"kind": "gpt2", "n_embd": 512, "n_layer": 8, "n_head": 8, "vocab_size": 16000}
CASES: list[dict[str, Any]] = [
    {"model": LLAMA, "method": "lora", "stage": 2, "precision": "bf16", "rows": 4},
    {"model": LLAMA, "method": "full", "stage": 2, "precision": "bf16", "rows": 4},
    {"model": LLAMA, "method": "full", "stage": 0, "precision": "fp32", "rows": 2},
    {"model": LLAMA, "method": "lora", "stage": 3, "precision": "bf16", "rows": 4},
    {"model": QWEN, "method": "full", "stage": 1, "precision": "bf16", "rows": 4},
    {"model": QWEN, "method": "full", "stage": 3, "precision": "fp32", "rows": 2},
    {"model": QWEN, "method": "dora", "stage": 2, "precision": "fp32", "rows": 2},
    {"model": GPT2, "method": "freeze", "stage": 2, "precision": "bf16", "rows": 4},
    {"model": LLAMA, "method": "full", "stage": 2, "precision": "bf16", "rows": 8, "checkpointing": True},
]
SEQ_LEN, DOCUMENT, STEPS = 1024, 160, 3


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", type=int, help="train this case in this process, and print its peak")
    parser.add_argument("--only", type=int, help="compare this case alone")
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(measured(CASES[options.case])))
        return 0
    numbers = range(len(CASES)) if options.only is None else [options.only]
    metrics: dict[str, Any] = {}
    worst = 0.0
    print(f"{'case':44} {'forecast':>10} {'measured':>10} {'off by':>8}")
    for number in numbers:
        case = CASES[number]
        wanted = forecast(case)
        peak = in_own_process(number)
        off = wanted["total"] / peak - 1
        worst = max(worst, abs(off))
        name = " ".join(
            [case["model"]["kind"], case["method"], f"ZeRO-{case['stage']}", case["precision"]]
            + (["checkpointing"] if case.get("checkpointing") else [])
        )
        print(f"{name:44} {wanted['total'] / MIB:6,.0f} MiB {peak / MIB:6,.0f} MiB {off:+8.1%}", flush=True)
        metrics[name] = {"forecast": wanted, "measured": peak, "off": off}
    return conclude("plan_memory", metrics, {"worst": worst}, {"worst": GOAL}, worst <= GOAL)


def config_of(case: dict[str, Any]) -> Any:
    from tunewright.config import TrainConfig

    method = {"type": case["method"]} | ({"last_blocks": 4} if case["method"] == "freeze" else {})
    return TrainConfig.model_validate(
        {
            "max_steps": STEPS,
            "global_batch_size": 2 * case["rows"],
            "micro_batch_size": case["rows"],
            "method": method,
            "zero": {"stage": case["stage"], "stage3_param_persistence_threshold": 0},
            "precision": case["precision"],
            "gradient_checkpointing": case.get("checkpointing", False),
        }
    )


def settings_of(case: dict[str, Any]) -> Any:
    import transformers

    own = dict(case["model"])
    kind = own.pop("kind")
    if kind == "gpt2":
        return transformers.GPT2Config(**own, n_positions=SEQ_LEN)
    shape = {"num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4}
    made = transformers.LlamaConfig if kind == "llama" else transformers.Qwen2Config
    return made(**own, **shape, max_position_embeddings=SEQ_LEN, tie_word_embeddings=kind == "llama")


def a_row() -> tuple[Any, Any]:
    """Segments and loss mask: documents of the usual length, the second half of each to be learned."""
    import numpy as np

    at = np.arange(SEQ_LEN)
    return at // DOCUMENT + 1, (at % DOCUMENT >= DOCUMENT // 2).astype(np.int64)


def forecast(case: dict[str, Any]) -> dict[str, int]:
    import numpy as np

    from tunewright.train.forecast.estimate import Estimate
    from tunewright.train.forecast.workload import Workload

    segments, mask = a_row()
    row = Workload(1, SEQ_LEN, 0.5, DOCUMENT / 2, np.array(segments), np.array(mask), (), "made up")
    estimate = Estimate(settings_of(case), config_of(case), row, 2 if case["precision"] == "bf16" else 4, 1)
    memory = estimate.memory()
    return {"total": memory.total, **memory.parts}


def in_own_process(number: int) -> int:
    from tunewright.train.launch import worker_env

    command = [sys.executable, "-W", "ignore", __file__, "--case", str(number)]
    env = os.environ | worker_env(1) | {"LOCAL_RANK": "0", "DS_ACCELERATOR": "cpu"}
    told = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    if told.returncode:
        sys.exit(told.stderr[-3000:])
    return int(json.loads(told.stdout.splitlines()[-1])["peak"])


def measured(case: dict[str, Any]) -> dict[str, int]:
    """Train, and say how much memory that took at its worst."""
    import torch

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from loops import joined

    torch.set_num_threads(1)
    with joined():
        small = {"model": {**case["model"], "vocab_size": 64}, "rows": 1}
        small["model"] |= {"n_inner" if case["model"]["kind"] == "gpt2" else "intermediate_size": 64}
        train({**case, **small})  # imports, and what libraries keep
        gc.collect()
        # What the small training freed would stay with the process, and the large one begin with it.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        before = held("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        train(case)
        return {"peak": held("VmHWM") - before}


def train(case: dict[str, Any]) -> None:
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    from tunewright.models.packed import windows_of
    from tunewright.train.engine import build_engine
    from tunewright.train.forward import Forward
    from tunewright.train.methods import apply_method
    from tunewright.train.objectives.base import Places

    config, dtype = config_of(case), torch.bfloat16 if case["precision"] == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_config(settings_of(case), dtype=dtype, attn_implementation="sdpa")
    applied: Any = apply_method(model, config.method, 1).train()
    if config.gradient_checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    engine = build_engine(applied, config, dtype, torch.device("cpu"))
    forward = Forward(engine, windows_of(model.config, SEQ_LEN))
    segments, mask = a_row()
    size = case["rows"]
    numbers = np.random.default_rng(1)
    rows = {
        "input_ids": numbers.integers(0, model.config.vocab_size, (size, SEQ_LEN)),
        "segment_ids": np.tile(segments, (size, 1)),
        "position_ids": np.tile(np.arange(SEQ_LEN) % DOCUMENT, (size, 1)),
        "loss_mask": np.tile(mask, (size, 1)),
    }
    asked = np.roll(rows["loss_mask"], -1, axis=1) * (np.arange(SEQ_LEN) < SEQ_LEN - 1) > 0
    for _ in range(STEPS):
        engine.set_learning_rate(1e-5)
        for _ in range(2):
            logps, _ = forward.logps(rows, Places.of(asked))
            engine.backward(-logps.sum() * 1e-3)


def held(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


if __name__ == "__main__":
    sys.exit(main())
