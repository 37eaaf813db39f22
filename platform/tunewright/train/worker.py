"""What runs in each Ray Train worker: set up the process, load, train, write the result."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.artifacts import explained, write_json
from tunewright.config import ObjectiveConfig, TrainConfig
from tunewright.errors import TrainError
from tunewright.train import heartbeat
from tunewright.train.certificate import read_certificate, told
from tunewright.train.evaluating import Scorer
from tunewright.train.heartbeat import Heartbeat, moved
from tunewright.train.loop import Job, Loop, Metrics, Outcome
from tunewright.train.memory import memory_figures
from tunewright.train.stopping import STOP_FILE
from tunewright.train.streams import Stream

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from tunewright.train.certificate.certifier import Certifier

ScorerFactory = Callable[[], Scorer]


@dataclass(frozen=True)
class TaskSpec:
    """The rows of a task, and what they teach.

    Attributes:
        name: of a side task; "" is the main one.
        data: folder of the data artifact.
        share: of the rows of the global batches, for a side task.
    """

    name: str
    config: ObjectiveConfig
    data: str
    share: float = 1.0


@dataclass(frozen=True)
class WorkerSpec:
    """Everything a worker needs; paths must be visible from all nodes.

    Attributes:
        base: Hugging Face folder of the base model.
        tasks: what is learned, the main task first.
        work: folder of this training: checkpoints, metrics, result.
        export: whether to write the trained model; sweep trials do not.
        make_scorer: builds the task's scorer in the worker, or None.
        previous: folder of an earlier adapter to go on with.
        stacked: that one stays as it is, and a new one is trained on top of it.
        certify: whether the result gets a certificate; rows that no tokenizer made cannot have one.
    """

    config: TrainConfig
    seed: int
    identity: str
    base: str
    tasks: tuple[TaskSpec, ...]
    work: str
    stop_step: int | None = None
    start: str | None = None
    export: bool = True
    make_scorer: ScorerFactory | None = None
    previous: str | None = None
    stacked: bool = False
    certify: bool = True


def train_worker(loop_config: dict[str, Any]) -> None:
    """Entry point of a Ray Train worker; `loop_config["spec"]` is a `WorkerSpec`.

    A worker group that is restarted comes here again and goes on from the newest checkpoint; a
    training that is already finished only writes its result again.
    """
    import ray
    import ray.train

    spec: WorkerSpec = loop_config["spec"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    node = ray.get_runtime_context().get_node_id()
    with Heartbeat(Path(spec.work) / heartbeat.FOLDER, rank, world, node):
        outcome = run_spec(spec, rank, ray.train.report)
    if rank == 0:
        final = {
            **outcome.metrics,
            "steps": outcome.step,
            "tokens": outcome.tokens,
            "resumed_at_step": outcome.began_at,
            "tokens_per_s": outcome.tokens_per_s,
            "weights_step": outcome.weights_step,
            "workers": world,
            **({"ended": outcome.ended} if outcome.ended else {}),
            **_certified(Path(spec.work) / "out"),
        }
        write_json(Path(spec.work) / "outcome.json", final)


def _certified(out: Path) -> dict[str, str]:
    """What the certificate says in one line, if there is one."""
    entries = read_certificate(out)
    return {"certificate": told(entries)} if entries else {}


def run_spec(spec: WorkerSpec, rank: int, report: Callable[[Metrics], None]) -> Outcome:
    """Train as the spec says, in a process that has a torch.distributed group already.

    Raises:
        TrainError: training was asked to stop; it has saved and goes on when it is started again.
        WorkerEnds: this process was, so that its group is restarted from what it saved.
    """
    import torch

    from tunewright.train.checkpoint import disk_errors
    from tunewright.train.engine import build_engine, prepare_process
    from tunewright.train.methods import (
        apply_method,
        context_left,
        export,
        export_sum,
        go_on_with,
        restore_precision,
    )
    from tunewright.train.reference import untrained, with_references

    _quiet()
    prepare_process()
    config = spec.config
    device = (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
    if device.type == "cpu":
        torch.set_num_threads(max(1, round(config.worker_resources.cpus)))
    dtype = compute_dtype(config.precision, device.type)
    streams = [open_stream(task) for task in spec.tasks]
    model = load_for(streams, Path(spec.base), dtype, spec.seed)
    model.config.use_cache = False
    trained = apply_method(model, config.method, spec.seed)
    earlier = Path(spec.previous) if spec.previous else None
    kept = go_on_with(trained, config.method, earlier, spec.stacked)
    context_left(trained, streams[0].rows.take([0])["input_ids"].shape[1])
    if config.gradient_checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    trained.train()
    trained.register_forward_pre_hook(lambda *_: moved())
    before = untrained(trained, config.method, spec.previous is not None)
    size, work = config.micro_batch_size, Path(spec.work)
    streams = with_references(streams, before, device, dtype, work, spec.identity, size)
    certifier = certifier_of(spec, streams, device, dtype) if spec.export and spec.certify else None
    if certifier is not None:
        certifier.before_engine(trained)
    engine = build_engine(trained, config, dtype, device)
    restore_precision(engine, kept)
    writer = MetricsWriter(work / "metrics.jsonl") if rank == 0 else None
    attempt = next_attempt(work / "metrics.jsonl")

    def on_step(metrics: Metrics) -> None:
        if writer is not None:
            writer.append({**metrics, **memory_figures(), "attempt": attempt})
        if "eval_loss" in metrics:  # after an evaluation; every worker reports, it is a barrier
            report({**metrics, "training_step": metrics["step"]})

    job = Job(
        config=config,
        seed=spec.seed,
        identity=spec.identity,
        checkpoints=work / "checkpoints",
        stop_step=spec.stop_step,
        start=Path(spec.start) if spec.start else None,
        stop_file=work / STOP_FILE,
    )
    scorer = spec.make_scorer() if spec.make_scorer else None
    loop = Loop(job, engine, streams, on_step, scorer)
    if certifier is not None:
        certifier.before_training(loop)
    outcome = loop.run()
    _check_finished(outcome)
    moved("ending")
    if certifier is not None:
        certifier.after_training(engine, outcome.weights)
    if spec.export:
        kind = config.method.result
        # A whole folder needs the weights that were not trained, too; an adapter must not gather its base.
        gathered = engine.whole_model() if config.method.type == "freeze" else nullcontext()
        with gathered, explained(f"writing the {kind}"), disk_errors(work / "out" / kind):
            if rank == 0 and earlier is not None and spec.stacked:
                export_sum(trained, outcome.weights, config.method, earlier, work / "out" / kind)
            elif rank == 0:
                export(trained, outcome.weights, config.method, work / "out" / kind)
    if certifier is not None:
        certifier.finish()
    return outcome


def certifier_of(
    spec: WorkerSpec, streams: Sequence[Stream], device: torch.device, dtype: torch.dtype
) -> Certifier:
    """What measures the certificate of the spec's training."""
    from tunewright.train.certificate.certifier import Certifier
    from tunewright.train.certificate.sample import Subject
    from tunewright.train.objectives import rows_for

    pairs = zip(streams, spec.tasks, strict=True)
    subjects = [Subject(stream, rows_for(task.config.objective), Path(task.data)) for stream, task in pairs]
    out = Path(spec.work) / "out"
    return Certifier(spec.config, spec.seed, subjects, Path(spec.base), out, device, dtype)


def open_stream(task: TaskSpec) -> Stream:
    """The rows of a task and their objective.

    Raises:
        ShardCorrupt: a shard is damaged.
        DataError: the set is encrypted and the key is missing or another.
    """
    from tunewright.data.dataset import labels_of, open_rows
    from tunewright.train.objectives import make_objective

    folder = Path(task.data)
    objective = make_objective(task.config, labels_of(folder))
    return Stream(task.name, objective, open_rows(folder, "train"), open_rows(folder, "eval"), task.share)


def load_for(streams: Sequence[Stream], base: Path, dtype: torch.dtype, seed: int) -> PreTrainedModel:
    """The base with the output layer or head that the objectives ask.

    Raises:
        TrainError: the tasks have different classes.
        ModelError: the base cannot be loaded, or its architecture has no such head.
    """
    from tunewright.models.heads import load_headed
    from tunewright.models.load import load_model

    main = streams[0].objective
    if main.head == "lm":
        return load_model(base, None, dtype)
    for stream in streams[1:]:
        if stream.objective.labels != main.labels:
            different = sorted(set(stream.objective.labels) ^ set(main.labels))
            raise TrainError(
                f"the task {stream.name} and the main rows have different classes, such as {different[0]}; "
                f"one head learns the same classes from all"
            )
    return load_headed(base, main.head, main.labels, dtype, seed)


class WorkerEnds(Exception):
    """This process was told to end. Not an error of ours: the worker group is to be restarted."""


def _check_finished(outcome: Outcome) -> None:
    if outcome.stopped == "asked":
        raise TrainError(
            f"training was asked to stop after step {outcome.step} of {outcome.total_steps}, and has saved; "
            f"start it again to go on"
        )
    if outcome.stopped == "signalled":
        raise WorkerEnds(f"a worker was told to end after step {outcome.step}; its work is saved")


def compute_dtype(precision: str, device: str) -> torch.dtype:
    """What is asked for; with `auto` bf16 where the hardware computes in it, else fp32."""
    import torch

    if precision == "auto":
        precision = "bf16" if has_bf16(device) else "fp32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]


def has_bf16(device: str) -> bool:
    """Whether the device multiplies matrices in bf16 by itself, rather than by emulation."""
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


class MetricsWriter:
    """Appends figures as JSON lines.

    After a resume, lines of steps that are taken again are dropped, and one that was cut off too.
    """

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def append(self, metrics: Metrics) -> None:
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        lines = text.splitlines()
        follows = text.endswith("\n") and _step_of(lines[-1]) < metrics["step"]
        line = json.dumps({k: round(v, 8) if isinstance(v, float) else v for k, v in metrics.items()})
        if follows or not text:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        else:
            kept = [old for old in lines if 0 < _step_of(old) < metrics["step"]]
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text("\n".join([*kept, line]) + "\n", encoding="utf-8")
            temporary.replace(self.path)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The figures of a metrics file; a line that a dying process left unfinished is ignored."""
    if not path.exists():
        return []
    out = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            out.append(json.loads(line))
        except ValueError:
            continue
    return out


def next_attempt(path: Path) -> int:
    """The number of this try at a training, whose figures are in the file; the first is 1."""
    return 1 + max((int(row.get("attempt", 0)) for row in read_metrics(path)), default=0)


def _step_of(line: str) -> float:
    """The step of a line; 0, which no step is, for one that was cut off."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 0.0


def _quiet() -> None:
    """Keep libraries' progress bars and banners out of the workers' logs."""
    import logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
