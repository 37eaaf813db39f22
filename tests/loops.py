"""Trainings in this process: tiny models, rows from memory, real DeepSpeed engines, one or two workers."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunewright.config import TrainConfig

VOCABULARY, SEQ_LEN = 48, 24


class MemoryRows:
    """Packed rows from memory, taken as `PackedRows` are."""

    def __init__(self, count: int = 16, seed: int = 7, seq_len: int = SEQ_LEN):
        numbers = np.random.default_rng(seed)
        shape = (count, seq_len)
        self.rows = {name: np.zeros(shape, np.int64) for name in ("input_ids", "segment_ids", "loss_mask")}
        self.rows["position_ids"] = np.zeros(shape, np.int64)
        for row in range(count):
            at, number = 0, 1
            while at + 3 <= seq_len:
                length = int(min(numbers.integers(3, 12), seq_len - at))
                place = slice(at, at + length)
                # Tokens that follow from the one before them, so that there is something to learn.
                first = int(numbers.integers(0, VOCABULARY))
                self.rows["input_ids"][row, place] = (first + 5 * np.arange(length)) % VOCABULARY
                self.rows["segment_ids"][row, place] = number
                self.rows["loss_mask"][row, place] = np.arange(length) >= 1
                self.rows["position_ids"][row, place] = np.arange(length)
                at, number = at + length, number + 1
        self.taken: list[int] = []

    def __len__(self) -> int:
        return len(self.rows["input_ids"])

    def take(self, indices: Sequence[int]) -> dict[str, Any]:
        self.taken += [int(i) for i in indices]
        return {name: values[list(indices)].copy() for name, values in self.rows.items()}


def small_model(kind: str = "llama", **changes: Any) -> Any:
    """A random model of 2 layers, 32 wide, of an architecture; in fp32 and evaluation mode."""
    import transformers

    size = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if kind == "gpt2":
        size = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        size |= {"bos_token_id": None, "eos_token_id": None}
    if kind in ("qwen3", "gemma"):
        size["head_dim"] = 16  # not hidden_size / heads, as in the models of that name
    names = {
        "llama": transformers.LlamaConfig,
        "gpt2": transformers.GPT2Config,
        "qwen2": transformers.Qwen2Config,
        "qwen3": transformers.Qwen3Config,
        "mistral": transformers.MistralConfig,
        "gemma": transformers.GemmaConfig,
        "gemma3": transformers.Gemma3TextConfig,
        "phi": transformers.PhiConfig,
    }
    config = names[kind](**{**size, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        for weight in model.parameters():
            if weight.dim() == 2:
                torch.nn.init.normal_(weight, std=0.2)
    return model.eval()


def plain_forward(model: Any, windows: Any = None) -> Any:
    """The model as training asks it, without an engine around it."""
    from tunewright.models.packed import EVERY_LAYER
    from tunewright.train.bare import bare_forward

    return bare_forward(
        model, torch.device("cpu"), torch.float32, 0, EVERY_LAYER if windows is None else windows
    )


def language_loss(forward: Any, rows: dict[str, Any]) -> Any:
    """Sum of the cross entropy of the rows' supervised tokens."""
    from tunewright.train.objectives.base import Places
    from tunewright.train.objectives.language import supervised_mask

    logps_N, _ = forward.logps(rows, Places.of(supervised_mask(rows)))
    return -logps_N.sum()


@dataclass
class Training:
    """What a training is made of, for `train`."""

    config: TrainConfig
    work: Path
    model: Callable[[], Any] = small_model
    rows: Any = field(default_factory=MemoryRows)
    eval_rows: Any = field(default_factory=lambda: MemoryRows(5, seed=8))
    seed: int = 3
    stop_step: int | None = None
    start: Path | None = None
    dtype: torch.dtype = torch.float32
    beside: Sequence[Any] = ()
    labels: tuple[str, ...] = ()
    change_engine: Callable[[Any], None] | None = None
    on_step: Callable[[dict[str, float]], None] | None = None


@dataclass
class Trained:
    """What came of it: the loop's outcome, and the figures it told."""

    outcome: Any
    figures: list[dict[str, float]]
    loop: Any

    @property
    def losses(self) -> dict[int, float]:
        return {int(f["step"]): f["loss"] for f in self.figures}


def train(training: Training) -> Trained:
    """Train in this process, which `one_worker` has made a group of."""
    from tunewright.train.engine import build_engine
    from tunewright.train.loop import Job, Loop
    from tunewright.train.methods import apply_method
    from tunewright.train.objectives import make_objective
    from tunewright.train.streams import Stream

    config = partitioned(training.config)
    model = training.model().to(training.dtype)
    applied = apply_method(model, config.method, training.seed).train()
    engine = build_engine(applied, config, training.dtype, torch.device("cpu"))
    if training.change_engine is not None:
        training.change_engine(engine)
    figures: list[dict[str, float]] = []

    def told(seen: dict[str, float]) -> None:
        figures.append(dict(seen))
        if training.on_step is not None:
            training.on_step(seen)

    job = Job(
        config=config,
        seed=training.seed,
        identity="the same",
        checkpoints=training.work / "checkpoints",
        stop_step=training.stop_step,
        start=training.start,
        stop_file=training.work / "stop",
    )
    main = Stream("", make_objective(config, training.labels), training.rows, training.eval_rows)
    loop = Loop(job, engine, [main, *training.beside], told)
    return Trained(loop.run(), figures, loop)


def partitioned(config: TrainConfig) -> TrainConfig:
    """The same training, whose ZeRO-3 divides weights as small as these tests' too; else it leaves them."""
    zero = config.zero.model_copy(update={"stage3_param_persistence_threshold": 0})
    return config.model_copy(update={"zero": zero})


def worker_spec(folder: Path, config: TrainConfig, work: str = ".", data: str = "data", **more: Any) -> Any:
    """A worker's training over `folder`/base, of rows that need not be complete: nothing certifies them."""
    from tunewright.train.worker import TaskSpec, WorkerSpec

    config = partitioned(config)
    return WorkerSpec(
        config=config,
        seed=1,
        base=str(folder / "base"),
        tasks=(TaskSpec("", config, str(folder / data)),),
        work=str(folder / work),
        certify=False,
        **{"identity": "the same", **more},
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def joined(rank: int = 0, world: int = 1, port: int | None = None) -> Iterator[None]:
    """A gloo process group, and DeepSpeed in it, while the block runs; engines want LOCAL_RANK too."""
    import torch.distributed as dist

    from tunewright.train.engine import prepare_process

    store = dist.TCPStore("127.0.0.1", port or free_port(), world, is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    try:
        prepare_process()
        yield
    finally:
        dist.destroy_process_group()


def on_two_workers(program: Callable[[int, Any], Any], arguments: Any, folder: Path) -> list[Any]:
    """What `program(rank, arguments)` gives on each of two processes.

    Args:
        program: a function at the top of a test module.
    """
    port = free_port()
    where = f"{program.__code__.co_filename}:{program.__name__}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "arguments.pkl").write_bytes(pickle.dumps(arguments))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, where, str(rank), str(port), str(folder)],
            env={**environment, "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        told = [process.communicate(timeout=300)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], "\n".join(told)
    return [pickle.loads((folder / f"result-{rank}.pkl").read_bytes()) for rank in range(2)]


def ways_of_large_models() -> None:
    """From now on small rows and vocabularies are treated as large ones are: by documents, by pieces."""
    from tunewright.models import attention, token_logps

    attention.PAIRS_PER_DOCUMENT = token_logps.FEW_LOGITS = 0


def main(program: str, rank: int, port: int, folder: Path) -> None:
    import runpy

    ways_of_large_models()
    file, _, name = program.rpartition(":")
    arguments = pickle.loads((folder / "arguments.pkl").read_bytes())
    with joined(rank, 2, port):
        result = runpy.run_path(file)[name](rank, arguments)
    (folder / f"result-{rank}.pkl").write_bytes(pickle.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
