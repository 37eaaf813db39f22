"""Small complete runs for tests: a newborn base of two layers and a YAML over generated tickets."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tunewright.data.support_desk import pretraining_documents
from tunewright.models.tiny import TinyShape, write_newborn

ROOT = Path(__file__).parents[1]
SHAPE = TinyShape(
    vocab_limit=600, hidden_size=64, num_layers=2, num_heads=4, intermediate_size=128, context=256
)


def newborn_base(folder: Path) -> Path:
    """A model folder that loads like any other; untrained."""
    write_newborn(folder, pretraining_documents(200, 1), SHAPE, seed=3)
    return folder


def small_run(base: Path, store: Path, **changes: Any) -> dict[str, Any]:
    """A run of seconds: 300 tickets, 2 sweep trials of 4 steps, 8 steps of training on 2 workers."""
    run: dict[str, Any] = {
        "name": "small",
        "store": str(store),
        "base": {"model": str(base)},
        "data": {
            "sources": [{"type": "builtin", "part": "train", "rows": 300, "seed": 5}],
            "rules": {"max_bad_fraction": 0.1},
            "split": {"eval": 0.1},
            "pack": {"seq_len": 192},
        },
        "train": {
            "method": {"type": "lora", "rank": 4},
            "workers": 2,
            "worker_resources": {"cpus": 1},
            "learning_rate": 2.0e-3,
            "max_steps": 8,
            "global_batch_size": 4,
            "micro_batch_size": 2,
            "precision": "fp32",
            "save_steps": 1,
            "logging_steps": 1,
        },
        "sweep": {
            "space": str(_space(store.parent / "space.yaml")),
            "trials": 2,
            "scheduler": "fifo",
            "metric": "eval_loss",
            "mode": "min",
            "max_steps": 4,
            "grace_steps": 2,
            "max_concurrent_trials": 1,
        },
        "evaluate": {
            "tasks": [
                {
                    "name": "tickets",
                    "source": {"type": "builtin", "part": "heldout", "rows": 8, "seed": 9},
                    "answer": "json",
                    "max_new_tokens": 8,
                }
            ]
        },
    }
    for key, value in changes.items():
        section, _, field = key.partition("__")
        if field:
            run[section] = {**run[section], field: value}
        elif value is None:
            run.pop(section)
        else:
            run[section] = value
    return run


def _space(path: Path) -> Path:
    path.write_text("train.learning_rate: {grid: [1.0e-3, 4.0e-3]}\n", encoding="utf-8")
    return path


def write_run(path: Path, run: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    return path


def environment(**more: str) -> dict[str, str]:
    """For subprocesses: this source tree, and no Ray of somebody else's."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TUNEWRIGHT_"))}
    return {**env, "PYTHONPATH": str(ROOT / "platform"), "RAY_USAGE_STATS_ENABLED": "0", **more}


def start_line(config: Path, *options: str, **env: str) -> subprocess.Popen[str]:
    """The pipeline as a process of its own, with a Ray of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tunewright.pipeline", str(config), *options],
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def told_under_hash_seeds(code: str, *seeds: str) -> set[str]:
    """What `code` prints in processes of other hash seeds; one string when it does not depend on them."""
    return {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in seeds
    }
