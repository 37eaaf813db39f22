"""A training's worker group on Ray Train: started, watched and stopped."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from tunewright.config.train import ElasticWorkers
from tunewright.errors import ClusterError, TrainError, TunewrightError, own_cause
from tunewright.train import heartbeat
from tunewright.train.checkpoint import DAMAGED_LIST
from tunewright.train.forecast.explain import explained_shortage
from tunewright.train.heartbeat import HangWatch, Hung
from tunewright.train.stopping import STOP_FILE, asking_on_sigterm, listen
from tunewright.train.worker import WorkerSpec, read_metrics, train_worker

log = logging.getLogger(__name__)

Progress = Callable[[dict[str, float]], None]
Tell = Callable[[str], None]
"""Takes a sentence for the user."""
KILL_TIMEOUT_S = 60.0
STARTS = 3
"""Times a worker group that does not come together is tried again; each one takes a minute."""
FP16_WARNING = (
    "train.precision=fp16: steps whose gradients leave its narrow range are left out, and counted as "
    "overflows in the figures; bf16 has no such limit and is better wherever the device computes in it"
)


def run_workers(spec: WorkerSpec, callbacks: list[Any] | None = None, tell: Tell | None = None) -> None:
    """Run the spec in a Ray Train worker group; blocks until it is done.

    SIGTERM to this process lets training finish its step and save, and then fails with a `TrainError`;
    SIGTERM to a worker lets it save, and its group is restarted from there. A worker that hangs is
    ended, and counts as one that was lost.

    Ray's own checkpoints are not used: `report` is not durable when it returns, and a damaged
    snapshot stops a run for good. Each attempt has a run name of its own, and finds what earlier
    ones saved in the spec's work folder.

    Args:
        tell: hears of workers that were ended and of checkpoints that are damaged; else the log does.
    Raises:
        TrainError: workers were lost more often than `max_failures`, or the loop refused.
        ClusterError: the cluster is smaller than the run.
    """
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import FailureConfig, RunConfig
    from ray.train.v2.api.exceptions import TrainingFailedError

    config = spec.config
    resources = config.worker_resources
    use_gpu = resources.gpus > 0
    per_worker = {"CPU": resources.cpus} | ({"GPU": resources.gpus} if use_gpu else {})
    check_cluster(config.workers, resources.cpus, resources.gpus)
    attempts = Path(spec.work) / "ray"
    elastic = isinstance(config.workers, ElasticWorkers)
    sizes = config.world_sizes
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"spec": spec},
        torch_config=_listening_torch("nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=(sizes[0], sizes[-1]) if elastic else sizes[0],  # type: ignore[arg-type]
            use_gpu=use_gpu,
            resources_per_worker=per_worker,
        ),
        run_config=RunConfig(  # type: ignore[arg-type]
            name=f"attempt-{time.time_ns()}",
            storage_path=str(attempts),
            # Ray asks for a lost node's share once more before it notices, and then starts fewer workers.
            failure_config=FailureConfig(
                max_failures=config.max_failures,
                controller_failure_limit=STARTS + (config.max_failures if elastic else 0),
            ),
            callbacks=[_stop_on_own_error(), *(callbacks or [])],
            worker_runtime_env={"env_vars": worker_env(resources.cpus)},
        ),
    )
    watcher = Watcher(spec, tell or log.warning)
    if config.precision == "fp16":
        watcher.tell(FP16_WARNING)
    try:
        with asking_on_sigterm(Path(spec.work) / STOP_FILE), repeating(watcher.look, watcher.period_s):
            trainer.fit()
    except TrainingFailedError as error:
        own = _own_error(error, watcher.ended)
        raise (own if watcher.ended else explained_shortage(own, error, spec)) from error
    finally:
        shutil.rmtree(attempts, ignore_errors=True)


def _listening_torch(backend: str) -> Any:
    """A `TorchConfig` whose workers save before they end on SIGTERM.

    Training runs in a thread, where Python lets nobody handle signals; this is called in the main one.
    """
    from ray.train.torch import TorchConfig

    class ListeningTorchConfig(TorchConfig):
        @property
        def backend_cls(self) -> Any:
            class ListeningBackend(super().backend_cls):  # type: ignore[misc]
                def on_start(self, worker_group: Any, backend_config: Any) -> None:
                    super().on_start(worker_group, backend_config)
                    worker_group.execute(listen)

            return ListeningBackend

    return ListeningTorchConfig(backend=backend)


def worker_env(cpus: float) -> dict[str, str]:
    """Environment of training workers: no oversubscribed threads, no network, no banners."""
    return {
        "OMP_NUM_THREADS": str(max(1, round(cpus))),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DS_SKIP_CUDA_CHECK": "1",
        # glibc keeps freed pages: each step takes and frees the same megabytes, and fresh pages cost more
        # than what is computed in them. Only blocks that are larger than most go back.
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    }


class Watcher:
    """Tells the user what happens to a running training, and ends a worker that hangs."""

    def __init__(self, spec: WorkerSpec, tell: Tell):
        minutes, work = spec.config.hang_minutes, Path(spec.work)
        shutil.rmtree(work / heartbeat.FOLDER, ignore_errors=True)  # of an attempt that was killed
        self.hangs = HangWatch(work / heartbeat.FOLDER, 60 * minutes) if minutes else None
        self.period_s = min(1.0, 6 * minutes) if minutes else 1.0
        self.tell = tell
        self.ended: list[Hung] = []
        self._damaged = work / "checkpoints" / DAMAGED_LIST
        self._told = len(self._damage())

    def look(self) -> None:
        damage = self._damage()
        for line in damage[self._told :]:
            self.tell(f"a checkpoint is damaged and was moved aside; the one before it is used. {line}")
        self._told = len(damage)
        hung = self.hangs.look() if self.hangs else None
        if hung is not None:
            self._end(hung)

    def _end(self, hung: Hung) -> None:
        assert self.hangs is not None
        if _end_on_its_node(hung):
            self.ended.append(hung)
            self.tell(f"{hung}. It was ended; training goes on from the newest checkpoint")
        self.hangs.forget(hung)

    def _damage(self) -> list[str]:
        return self._damaged.read_text(encoding="utf-8").splitlines() if self._damaged.exists() else []


def _end_on_its_node(hung: Hung) -> bool:
    """Kill the process, on whatever node it is; False when it is gone already."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(hung.pulse.node, soft=False)
    end = ray.remote(heartbeat.end_process).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
    try:
        return bool(ray.get(end.remote(hung.pulse.pid, hung.pulse.started), timeout=KILL_TIMEOUT_S))
    except (RayError, GetTimeoutError) as error:  # its node is gone, and it with it
        log.warning("hung worker not reached", extra={"worker": hung.pulse.rank, "reason": str(error)})
        return False


def check_cluster(workers: int | ElasticWorkers, cpus: float, gpus: float) -> None:
    """Raises `ClusterError` when the whole cluster, were it idle, could not hold the workers.

    The fewest, of elastic ones.
    """
    import ray

    name_of_workers = "train.workers"
    if isinstance(workers, ElasticWorkers):
        workers, name_of_workers = workers.min, "train.workers.min"
    have = ray.cluster_resources()
    for name, each in (("CPU", cpus), ("GPU", gpus)):
        need = workers * each
        if need > have.get(name, 0.0) + 1e-9:
            fits = int(have.get(name, 0.0) // each)
            raise ClusterError(
                f"{name_of_workers}={workers} of {each:g} {name} need {need:g} {name}, "
                f"but the cluster has {have.get(name, 0.0):g}. Set {name_of_workers} to at most {fits}, "
                f"lower train.worker_resources, or add nodes"
            )


@contextmanager
def following(path: Path, progress: Progress | None) -> Iterator[None]:
    """Call `progress` with each new line of a metrics file while the block runs."""
    if progress is None:
        yield
        return
    seen = {int(metrics["step"]): metrics for metrics in read_metrics(path)}

    def poll() -> None:
        for metrics in read_metrics(path):
            step = int(metrics["step"])
            if seen.get(step) != metrics:  # a new step, or one that was taken again
                seen[step] = metrics
                progress(metrics)

    with repeating(poll, 0.5):
        yield


@contextmanager
def repeating(act: Callable[[], None], period_s: float) -> Iterator[None]:
    """While the block runs, `act` every so often in a thread; once more at its end."""
    done = Event()

    def repeat() -> None:
        while not done.wait(period_s):
            act()
        act()

    thread = Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _stop_on_own_error() -> Any:
    """A callback that ends the run at once on an error that a retry would only repeat."""
    from ray.train import UserCallback

    class StopOnOwnError(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for error in worker_exceptions.values():
                own = own_cause(error)
                if own is not None:
                    raise own

    return StopOnOwnError()


def _own_error(error: Exception, ended: list[Hung]) -> TunewrightError:
    """The error of ours inside Ray's, or a `TrainError` with the last line of what failed.

    Args:
        ended: workers that were ended because they hung.
    """
    failures = getattr(error, "worker_failures", {}) or {}
    for cause in [*failures.values(), error, getattr(error, "controller_failure", None)]:
        own = own_cause(cause)
        if own is not None:
            return own
    if ended:
        return TrainError(
            f"training failed: {ended[-1]}. {len(ended)} of its workers hung and were ended, and "
            f"train.max_failures is used up; start it again to go on from the newest checkpoint"
        )
    lines = str(next(iter(failures.values()), error)).strip().splitlines()
    return TrainError(f"training failed: {lines[-1] if lines else type(error).__name__}")
