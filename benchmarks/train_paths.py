"""What `train_step.py` measures of Tunewright, each in a fresh process; the last line is a JSON object.

python train_paths.py ray WORKLOAD.json [--workers 1] [--threads 2]   Ray Train worker, DeepSpeed engine
python train_paths.py bare WORKLOAD.json [--threads 2]                the same passes and plain AdamW
python train_paths.py imports                                         seconds of importing what they need
python train_paths.py rate [--threads 2]                              bf16 matrix products of this machine
"""

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from train_workload import SEQ_LEN

RATE = 2e-4
POLL_S = 0.02


def train_config(options: argparse.Namespace) -> Any:
    from tunewright.config import LoraConfig, TrainConfig

    return TrainConfig.model_validate(
        {
            "method": LoraConfig(rank=options.rank).model_dump(),
            "zero": {"stage": options.zero},
            "workers": options.workers,
            "worker_resources": {"cpus": options.threads},
            "learning_rate": RATE,
            "lr_scheduler_type": "constant",
            "max_steps": options.warm_up + options.steps,
            "global_batch_size": options.batch,
            "micro_batch_size": options.micro,
            "precision": "bf16",
            "logging_steps": 1,
            "save_steps": 1_000_000,
            "max_failures": 0,
            "tensorboard": False,
        }
    )


def by_ray(options: argparse.Namespace) -> dict[str, Any]:
    """Through `run_workers`, as the train stage does; steps are timed by the loop itself."""
    import ray

    from tunewright.config.objectives import ObjectiveConfig
    from tunewright.train.launch import run_workers
    from tunewright.train.worker import TaskSpec, WorkerSpec, read_metrics

    ray.init(
        num_cpus=options.workers * options.threads,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=256 << 20,
    )
    with tempfile.TemporaryDirectory(prefix="tw-train-") as work:
        spec = WorkerSpec(
            config=train_config(options),
            seed=0,
            identity="benchmark",
            base=options.workload["model"],
            tasks=(TaskSpec("", ObjectiveConfig(), options.workload["data"]),),
            work=work,
            export=False,
        )
        metrics = Path(work) / "metrics.jsonl"
        submitted, first, done = time.monotonic(), [0.0], threading.Event()

        def watch() -> None:
            while not done.wait(POLL_S):
                if metrics.exists() and read_metrics(metrics):
                    first[0] = time.monotonic() - submitted
                    return

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        run_workers(spec)
        done.set()
        watcher.join()
        lines = read_metrics(metrics)
    ray.shutdown()
    kept = lines[options.warm_up :]
    tokens = lines[-1]["tokens"] - lines[options.warm_up - 1]["tokens"]
    before = [line["tokens"] for line in lines[options.warm_up - 1 : -1]]
    seconds = sum(
        (line["tokens"] - then) / line["tokens_per_s"] for line, then in zip(kept, before, strict=True)
    )
    return {
        "tokens_per_s": round(tokens / seconds, 1),
        "first_step_s": round(first[0], 2),
        "loss": round(lines[-1]["loss"], 4),
    }


def bare(options: argparse.Namespace) -> dict[str, Any]:
    """The same passes over the same rows in this process, torch's AdamW on fp32 copies of the weights."""
    import numpy as np
    import torch

    from tunewright.data.dataset import open_rows
    from tunewright.models.load import load_model
    from tunewright.train.bare import bare_forward
    from tunewright.train.methods import apply_method
    from tunewright.train.objectives.base import Places
    from tunewright.train.objectives.language import supervised_mask

    torch.set_num_threads(options.threads)
    model = load_model(Path(options.workload["model"]), None, torch.bfloat16)
    model.config.use_cache = False
    trained = apply_method(model, train_config(options).method, 0).train()
    forward = bare_forward(trained, torch.device("cpu"), torch.bfloat16, SEQ_LEN)
    weights = [p for p in trained.parameters() if p.requires_grad]
    copies = [torch.nn.Parameter(p.detach().float()) for p in weights]
    optimizer = torch.optim.AdamW(copies, lr=RATE, weight_decay=0.0)
    rows = open_rows(Path(options.workload["data"]), "train")
    order = np.random.default_rng(0).permutation(len(rows))
    spent, tokens, loss = [], [], 0.0
    for step in range(options.warm_up + options.steps):
        begun = time.monotonic()
        ids = np.take(order, range(step * options.batch, (step + 1) * options.batch), mode="wrap")
        micros = [rows.take(few) for few in ids.reshape(-1, options.micro)]
        supervised = sum(int(supervised_mask(micro).sum()) for micro in micros)
        loss = 0.0
        for micro in micros:
            places = Places(*np.nonzero(supervised_mask(micro)))
            logps_N, _ = forward.logps(micro, places)
            loss_of_micro = -logps_N.sum() / supervised
            loss_of_micro.backward()
            loss += float(loss_of_micro.detach())
        for copy, weight in zip(copies, weights, strict=True):
            copy.grad, weight.grad = weight.grad.float(), None
        torch.nn.utils.clip_grad_norm_(copies, 1.0)
        optimizer.step()
        with torch.no_grad():
            for copy, weight in zip(copies, weights, strict=True):
                weight.copy_(copy)
        tokens.append(sum(int((micro["segment_ids"] > 0).sum()) for micro in micros))
        spent.append(time.monotonic() - begun)
    kept = slice(options.warm_up, None)
    return {"tokens_per_s": round(sum(tokens[kept]) / sum(spent[kept]), 1), "loss": round(loss, 4)}


def imports(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of importing what a training worker needs, in this fresh process."""
    begun = time.monotonic()
    import deepspeed  # noqa: F401
    import peft  # noqa: F401
    import ray.train.torch  # noqa: F401
    import torch  # noqa: F401
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM is not None
    import tunewright.train.loop
    import tunewright.train.worker  # noqa: F401

    return {"imports_s": round(time.monotonic() - begun, 2)}


def rate(options: argparse.Namespace) -> dict[str, Any]:
    """The best rate of square bf16 products, in GFLOP/s: the median of repeats for each size."""
    import torch

    torch.set_num_threads(options.threads)
    rates = {}
    for size in (1024, 2048, 4096):
        left, right = (torch.randn(size, size, dtype=torch.bfloat16) for _ in range(2))
        out = torch.empty_like(left)
        torch.mm(left, right, out=out)
        seconds = []
        for _ in range(15):
            begun = time.perf_counter()
            torch.mm(left, right, out=out)
            seconds.append(time.perf_counter() - begun)
        rates[size] = 2 * size**3 / statistics.median(seconds) / 1e9
    return {"gflops": round(max(rates.values()), 1), "by_size": {n: round(r, 1) for n, r in rates.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("ray", "bare", "imports", "rate"))
    parser.add_argument("workload", nargs="?", type=lambda path: json.loads(Path(path).read_text()))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--micro", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--zero", type=int, default=2)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    measure = {"ray": by_ray, "bare": bare, "imports": imports, "rate": rate}[options.what]
    print(json.dumps(measure(options)))


if __name__ == "__main__":
    main()
