"""`tunewright plan`: what the trainings of a run need before anything is paid for.

Nothing is written and Ray is not started. Memory comes from a model without weights and a packed row of
the real length; time from the operations that training needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.artifacts import Store
from tunewright.config import BuiltinSource, FileSource, RunConfig, TrainConfig
from tunewright.errors import ConfigError, DataError
from tunewright.preview import encoded_rows, preview_renderer, settings_of_base

if TYPE_CHECKING:
    from tunewright.config.stages import Described
    from tunewright.models.chat import ChatRenderer
    from tunewright.train.forecast.compute import Device
    from tunewright.train.forecast.workload import Workload

ROWS = 1000
"""Of each source that are encoded, when the data is not prepared yet."""


@dataclass(frozen=True)
class Ask:
    """What the person says besides the run's file.

    Attributes:
        device: a kind of GPU; the one this machine has, or its processor, when left out.
        price: of one device for an hour.
        rows: of each source that are encoded for a look.
    """

    device: str | None = None
    price: float | None = None
    rows: int = ROWS


def plan_run(run: RunConfig, root: Path, ask: Ask) -> list[dict[str, Any]]:
    """What `--json` prints: one entry a training, in order.

    Raises:
        ConfigError: an unknown device.
        DataError: a source's rows are not here yet, or none of those looked at can be used.
        ModelError: a base of the hub that no run has fetched yet.
    """
    renderer = preview_renderer(run, root)
    settings = settings_of_base(run, root, renderer)
    return [_training(run, root, described, ask, renderer, settings) for described in run.trainings]


def _training(
    run: RunConfig, root: Path, described: Described, ask: Ask, renderer: ChatRenderer, settings: Any
) -> dict[str, Any]:
    from tunewright.train.forecast.advice import ALTERNATIVES, ROOM, recommended, would_fit
    from tunewright.train.forecast.compute import work_of
    from tunewright.train.forecast.estimate import Estimate
    from tunewright.train.schedule import Order, total_steps

    config = described.train
    workers = config.world_sizes[-1]
    device = _device(config, ask)
    sixteen = _sixteen_bit(config, device)
    workload = _workload(run, root, described, ask, renderer)
    estimate = Estimate(settings, config, workload, 2 if sixteen else 4, workers, device.gpu)
    beside = [task.share for task in described.tasks]
    lengths = [max(workload.rows, config.global_batch_size), *(1 for _ in beside)]
    order = Order(config, run.seed, lengths, beside)
    steps = total_steps(config, order)
    tokens = steps * config.global_batch_size * workload.tokens / workload.rows
    flop = work_of(estimate.model).step(
        tokens, tokens * workload.asked, workload.seen, config.gradient_checkpointing
    )
    seconds = flop / (workers * device.flops * device.utilisation)
    memory, room = estimate.memory(), ROOM * device.memory
    fits = memory.total <= room
    parameters = estimate.parameters
    return {
        "training": described.name,
        "device": {"name": device.name, "memory": device.memory, "utilisation": device.utilisation},
        "workers": workers,
        "precision": "16 bit" if sixteen else "fp32",
        "parameters": {"total": parameters.total, "trained": parameters.trainable},
        "rows": {
            "packed": workload.rows,
            "tokens": round(workload.tokens),
            "learned": round(workload.asked, 4),
            "measured_on": workload.measured,
            "histogram": [list(bar) for bar in workload.histogram],
        },
        "batch": {
            "rows": config.global_batch_size,
            "micro": config.micro_batch_size,
            "accumulation": math.ceil(config.global_batch_size / (config.micro_batch_size * workers)),
        },
        "steps": steps,
        "tokens": round(tokens),
        "seconds": round(seconds, 1),
        "cost": None if ask.price is None else round(seconds / 3600 * workers * ask.price, 2),
        "memory": {"stage": config.zero.stage, "total": memory.total, **memory.parts},
        "memory_by_stage": {str(stage): each.total for stage, each in estimate.by_stage.items()},
        "fits": fits,
        "recommended": recommended(estimate, room),
        "would_fit": [] if fits else list(islice(would_fit(estimate, room), ALTERNATIVES)),
    }


def _device(config: TrainConfig, ask: Ask) -> Device:
    from tunewright.train.forecast.compute import device_named, this_device, this_processor

    if ask.device is not None:
        return device_named(ask.device)
    if config.worker_resources.gpus:
        found = this_device()
        if found is None:
            raise ConfigError("train.worker_resources.gpus: say which GPU it will be: --device h100")
        return found
    return this_processor(config.worker_resources.cpus, config.world_sizes[-1])


def _sixteen_bit(config: TrainConfig, device: Device) -> bool:
    if config.precision != "auto":
        return config.precision != "fp32"
    from tunewright.train.worker import has_bf16

    return device.gpu or has_bf16("cpu")


def _workload(run: RunConfig, root: Path, described: Described, ask: Ask, renderer: ChatRenderer) -> Workload:
    """Of the prepared rows where there are any, else of the first rows of each source."""
    from tunewright.train.forecast.workload import of_documents, of_shards

    prepared = _prepared(run, root, described)
    if prepared is not None:
        from tunewright.data.dataset import open_rows

        return of_shards(open_rows(prepared, "train"))
    lengths: list[int] = []
    asked: list[int] = []
    documents = read = taken = 0
    for source in encoded_rows(run, root, described.data, ask.rows, renderer):
        for document in source.documents:
            lengths.append(len(document.ids))
            asked.append(int(document.loss_mask.sum()))
        documents += round(len(source.documents) * source.rows / max(1, source.looked_at))
        read, taken = read + source.rows, taken + source.looked_at
    if not lengths:
        raise DataError(f"none of the {taken:,} rows that were looked at can be used; see data preview")
    told = f"{taken:,} of {read:,} source rows; duplicates are not known yet"
    kept = documents * (1 - described.data.split.eval)
    return of_documents(lengths, asked, described.data.pack.seq_len, kept, told)


def _prepared(run: RunConfig, root: Path, described: Described) -> Path | None:
    """The data set that the run would find; one of a database, an API or the hub is not looked for."""
    from tunewright.data.prepare import prepare_plan

    data = described.data
    if not root.is_dir() or not all(isinstance(s, FileSource | BuiltinSource) for s in data.sources):
        return None
    store = Store(root)
    bases = [base for base in store.list("base") if base.facts.get("model") == run.base.model]
    found = (store.find(prepare_plan(data, base)) for base in reversed(bases))
    return next((artifact.path for artifact in found if artifact is not None), None)
