"""Why a training ran out of memory: what it was forecast to need, what there is, and what would fit.

Knows what the errors of torch, of Ray and of the system say; never stands between an error and its reader.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.errors import TrainError, TunewrightError
from tunewright.train.forecast.memory import PARTS, size

if TYPE_CHECKING:
    from tunewright.train.forecast.estimate import Estimate
    from tunewright.train.worker import WorkerSpec

log = logging.getLogger(__name__)

LESS = 0.8
"""Of the forecast that another setting may need at most: what was forecast did not fit."""
UNITS = {"MiB": 2**20, "GiB": 2**30, "GB": 2**30}
"""Ray writes GB for 2^30 bytes."""
SAYS_SO = re.compile(r"out of memory|can't allocate memory|not enough memory|running low on memory", re.I)
OF_THE_GPU = re.compile(r"total capacity of ([\d.]+) (MiB|GiB)")
OF_THE_NODE = re.compile(r"used / ([\d.]+)(GB)")
"""How torch and Ray tell what there is."""
KILLED = "killed by the OOM killer"
"""What Ray gives as one of several causes when a process ended without a word."""


@dataclass(frozen=True)
class Shortage:
    """Memory that was not there.

    Attributes:
        said: by whom it was found, in their words.
        certain: whether they say so; a process that was killed only might have been for its memory.
        of_gpu, of_node: bytes that there are, where they say it.
    """

    said: str
    certain: bool = True
    of_gpu: int | None = None
    of_node: int | None = None


def explained_shortage(own: TunewrightError, error: BaseException, spec: WorkerSpec) -> TunewrightError:
    """The error that the user sees; if memory ran out, one that says for what, and what would fit.

    Args:
        own: what they would see otherwise, made of `error`.
    """
    if any(each is own for each in _inside(error)):  # raised on purpose: it has a meaning of its own
        return own
    try:
        short = shortage(error)
        told = None if short is None else _explanation(short, spec)
    except Exception:  # whatever a forecast may fail of, the training's own error is what matters
        log.debug("memory not explained", exc_info=True)
        return own
    return own if told is None else TrainError(told)


def shortage(error: BaseException) -> Shortage | None:
    """What the error, or one inside it, says of memory; None if nothing."""
    for each in _inside(error):
        text = str(each)
        line = next((line for line in text.splitlines() if SAYS_SO.search(line)), "")
        if isinstance(each, MemoryError) or type(each).__name__ == "OutOfMemoryError" or _allocates(each):
            said = line or text.split("\n")[0] or "MemoryError"
            return Shortage(said, True, _bytes(OF_THE_GPU, text), _bytes(OF_THE_NODE, text))
        if KILLED in text:
            return Shortage("a worker's process was killed, as the kernel does for memory", False)
    return None


def _inside(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that Ray and Python put inside it, the innermost first."""
    names = ("_base_exc", "health_check_failure", "cause", "controller_failure", "__cause__")
    inner = [getattr(error, name, None) for name in names]
    for each in [*getattr(error, "worker_failures", {}).values(), *inner]:
        if isinstance(each, BaseException) and each is not error:
            yield from _inside(each)
    yield error


def _allocates(error: BaseException) -> bool:
    """Whether torch's allocator for processors, or an older one for GPUs, raised it."""
    return type(error) is RuntimeError and bool(SAYS_SO.search(str(error)))


def _bytes(told: re.Pattern[str], text: str) -> int | None:
    found = told.search(text)
    return int(float(found[1]) * UNITS[found[2]]) if found else None


def _explanation(short: Shortage, spec: WorkerSpec) -> str | None:
    from tunewright.train.forecast.advice import ALTERNATIVES, ROOM, would_fit

    estimate = estimate_of(spec)
    needed = estimate.memory()
    has, device = _device(short, estimate)
    fits = has is None or needed.total <= ROOM * has
    if fits and not short.certain:
        return None
    parts = ", ".join(f"{PARTS[name]} {size(value)}" for name, value in needed.parts.items() if value)
    lines = [f"training ran out of memory: {short.said.rstrip('.')}"]
    lines.append(f"forecast for each of {estimate.workers} workers: {size(needed.total)} ({parts})")
    if has is not None:
        besides = "; it should fit, so something else may hold the rest" if fits else ""
        lines.append(device + besides)
    room = min(LESS * needed.total, ROOM * has if has is not None else needed.total)
    settings = list(islice(would_fit(estimate, room), ALTERNATIVES))
    lines.append(
        f"what would fit: {'; or '.join(settings)}"
        if settings
        else "no single setting would fit: change several, or take a larger device"
    )
    return "\n  ".join(lines)


def estimate_of(spec: WorkerSpec) -> Estimate:
    """What the workers of a training need, of the rows and the base that they were given."""
    from tunewright.data.dataset import open_rows
    from tunewright.models.skeleton import read_config
    from tunewright.train.forecast.estimate import Estimate
    from tunewright.train.forecast.workload import of_shards
    from tunewright.train.worker import has_bf16

    config = spec.config
    gpu = config.worker_resources.gpus > 0
    fp32 = config.precision == "fp32" or (config.precision == "auto" and not (gpu or has_bf16("cpu")))
    row = of_shards(open_rows(Path(spec.tasks[0].data), "train"))
    return Estimate(read_config(Path(spec.base)), config, row, 4 if fp32 else 2, config.world_sizes[0], gpu)


def _device(short: Shortage, estimate: Estimate) -> tuple[int | None, str]:
    """What there is for a worker, if anything says it; and the sentence for that."""
    if short.of_gpu is not None or estimate.gpu:
        has = short.of_gpu
        return has, "" if has is None else f"the GPU has {size(has)}"
    if short.of_node is not None:
        each = short.of_node // estimate.workers
        return each, f"the node has {size(short.of_node)}: {size(each)} for each worker, if all are on it"
    from tunewright.train.forecast.compute import memory_left

    each = memory_left() // estimate.workers
    return each, f"this machine has {size(each)} for each worker"
