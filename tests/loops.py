"""Trainings in this process: tiny models, rows from memory, real DeepSpeed engines, one or two workers."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import sys
import time
import warnings
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


WORKERS = multiprocessing.get_context("forkserver")
"""Makes processes from one that has imported what takes long, and done nothing with it."""
WORKERS.set_forkserver_preload(["deepspeed", "peft", "transformers", "tunewright.train.worker", "loops"])
WORKERS_S = 300


def on_two_workers(program: Callable[[int, Any], Any], arguments: Any, folder: Path) -> list[Any]:
    """What `program(rank, arguments)` gives on each of two fresh processes.

    Args:
        program: a function at the top of a test module.
    """
    where = (program.__code__.co_filename, program.__name__)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "arguments.pkl").write_bytes(pickle.dumps(arguments))
    port = free_port()
    running = [WORKERS.Process(target=work_as, args=(rank, where, port, folder)) for rank in range(2)]
    end = time.monotonic() + WORKERS_S
    for process in running:
        process.start()
    try:
        while any(process.is_alive() for process in running) and time.monotonic() < end:
            if any(process.exitcode for process in running):
                break  # the other would wait for it
            time.sleep(0.05)
    finally:
        for process in running:
            process.kill()
            process.join()
    said = "\n".join((folder / f"said-{rank}.txt").read_text(errors="replace") for rank in range(2))
    assert [process.exitcode for process in running] == [0, 0], said
    return [pickle.loads((folder / f"result-{rank}.pkl").read_bytes()) for rank in range(2)]


def work_as(rank: int, where: tuple[str, str], port: int, folder: Path) -> None:
    """One of the two, in its own process."""
    import runpy
    import traceback

    said = os.open(folder / f"said-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.environ["LOCAL_RANK"] = str(rank)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    ways_of_large_models()
    file, name = where
    arguments = pickle.loads((folder / "arguments.pkl").read_bytes())
    try:
        with joined(rank, 2, port):
            result = runpy.run_path(file)[name](rank, arguments)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # without waiting for the other
    (folder / f"result-{rank}.pkl").write_bytes(pickle.dumps(result))


def ways_of_large_models() -> None:
    """From now on small rows and vocabularies are treated as large ones are: by documents, by pieces."""
    from tunewright.models import attention, token_logps

    attention.PAIRS_PER_DOCUMENT = token_logps.FEW_LOGITS = 0
