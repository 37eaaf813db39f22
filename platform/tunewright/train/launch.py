"""A training's worker group on Ray Train: started, watched and stopped."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from tunewright.errors import ClusterError, TrainError, TunewrightError, own_cause
from tunewright.train.stopping import STOP_FILE, asking_on_sigterm, listen
from tunewright.train.worker import WorkerSpec, read_metrics, train_worker

Progress = Callable[[dict[str, float]], None]


def run_workers(spec: WorkerSpec, callbacks: list[Any] | None = None) -> None:
    """Run the spec in a Ray Train worker group; blocks until it is done.

    SIGTERM to this process lets training finish its step and save, and then fails with a `TrainError`;
    SIGTERM to a worker lets it save, and its group is restarted from there.

    Ray's own checkpoints are not used: `report` is not durable when it returns, and a damaged
    snapshot stops a run for good. Each attempt has a run name of its own, and finds what earlier
    ones saved in the spec's work folder.
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
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"spec": spec},
        torch_config=_listening_torch("nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.workers, use_gpu=use_gpu, resources_per_worker=per_worker
        ),
        run_config=RunConfig(  # type: ignore[arg-type]
            name=f"attempt-{time.time_ns()}",
            storage_path=str(attempts),
            failure_config=FailureConfig(max_failures=config.max_failures, controller_failure_limit=3),
            callbacks=[_stop_on_own_error(), *(callbacks or [])],
            worker_runtime_env={"env_vars": worker_env(resources.cpus)},
        ),
    )
    try:
        with asking_on_sigterm(Path(spec.work) / STOP_FILE):
            trainer.fit()
    except TrainingFailedError as error:
        raise _own_error(error) from error
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
        # glibc keeps freed pages: each step takes and frees the same few megabytes.
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    }


def check_cluster(workers: int, cpus: float, gpus: float) -> None:
    """Raises `ClusterError` when the whole cluster, were it idle, could not hold the workers."""
    import ray

    have = ray.cluster_resources()
    for name, each in (("CPU", cpus), ("GPU", gpus)):
        need = workers * each
        if need > have.get(name, 0.0) + 1e-9:
            fits = int(have.get(name, 0.0) // each)
            raise ClusterError(
                f"train.workers={workers} of {each:g} {name} need {need:g} {name}, "
                f"but the cluster has {have.get(name, 0.0):g}. Set train.workers to at most {fits}, "
                f"lower train.worker_resources, or add nodes"
            )


@contextmanager
def following(path: Path, progress: Progress | None) -> Iterator[None]:
    """Call `progress` with each new line of a metrics file while the block runs."""
    if progress is None:
        yield
        return
    done = Event()
    seen = {int(m["step"]) for m in read_metrics(path)}

    def poll() -> None:
        for metrics in read_metrics(path):
            if int(metrics["step"]) not in seen:
                seen.add(int(metrics["step"]))
                progress(metrics)

    def follow() -> None:
        while not done.wait(0.5):
            poll()
        poll()

    thread = Thread(target=follow, daemon=True)
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


def _own_error(error: Exception) -> TunewrightError:
    """The error of ours inside Ray's, or a `TrainError` with the last line of what failed."""
    failures = getattr(error, "worker_failures", {}) or {}
    for cause in [*failures.values(), error, getattr(error, "controller_failure", None)]:
        own = own_cause(cause)
        if own is not None:
            return own
    lines = str(next(iter(failures.values()), error)).strip().splitlines()
    return TrainError(f"training failed: {lines[-1] if lines else type(error).__name__}")
