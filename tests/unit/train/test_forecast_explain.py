"""A training that runs out of memory says for what, and what would fit; another error stays what it is."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loops import MemoryRows, Training, train
from ray_trainings import training_spec
from tunewright.config import TrainConfig
from tunewright.errors import DataError, TrainError
from tunewright.train import launch
from tunewright.train.forecast import compute
from tunewright.train.forecast.explain import estimate_of, shortage
from tunewright.train.forecast.memory import size
from tunewright.train.worker import WorkerSpec

pytestmark = [
    # DeepSpeed's, of its use of torch; and transformers' own.
    pytest.mark.filterwarnings("ignore:`torch.distributed:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
LITTLE = 100_000
ON_CPU = (
    "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
)
ON_GPU = "CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has a total capacity of 1.00 MiB of which"
BY_RAY = (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2) was "
    "23.63GB used / 23.54GB limit (1.00)\nRay killed 1 worker(s)\nRefer to the documentation"
)
BY_THE_KERNEL = (
    "The actor died unexpectedly before finishing this task. Worker exit type: SYSTEM_ERROR. Some common "
    "causes include: (1) the process was killed by the OOM killer due to high memory usage, (2) ray stop"
)


@pytest.fixture
def spec(tmp_path: Path) -> WorkerSpec:
    return training_spec(tmp_path, max_steps=3)


def error_of_a_step(work: Path, planted: Exception) -> BaseException:
    """What a training in this process raises when its engine does, at the second step."""

    def change(engine: Any) -> None:
        backward, calls = engine.backward, []

        def failing(loss: Any) -> None:
            calls.append(1)
            if len(calls) > 2:
                raise planted
            backward(loss)

        engine.backward = failing

    shape = {"max_steps": 3, "global_batch_size": 4, "micro_batch_size": 2}
    config = TrainConfig.model_validate({**shape, "method": {"type": "lora", "rank": 2}})
    with pytest.raises(type(planted)) as caught:
        train(Training(config, work, rows=MemoryRows(8), change_engine=change))
    return caught.value


def told_of(spec: WorkerSpec, failure: Exception, monkeypatch: pytest.MonkeyPatch) -> TrainError:
    """What the user is told when a worker of `run_workers` fails so; Ray itself is not there."""
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import WorkerGroupError

    def fit(self: Any) -> None:
        raise WorkerGroupError("worker 0", {0: failure})

    monkeypatch.setattr(TorchTrainer, "__init__", lambda self, *args, **options: None)
    monkeypatch.setattr(TorchTrainer, "fit", fit)
    monkeypatch.setattr(launch, "check_cluster", lambda *args: None)
    with pytest.raises(TrainError) as caught:
        launch.run_workers(spec)
    return caught.value


def as_ray_tells(error: BaseException) -> Exception:
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    return UserExceptionWithTraceback(error, "".join(traceback.format_exception(error)))


def as_ray_tells_death(error: Exception) -> Exception:
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    return WorkerHealthCheckFailedError("a worker health check failed", error)


PLANTED: dict[str, Callable[[], Exception]] = {
    "python": lambda: MemoryError(),
    "processor": lambda: RuntimeError(ON_CPU),
    "gpu": lambda: torch.OutOfMemoryError(ON_GPU),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_step_without_memory_is_explained(
    one_worker: None, spec: WorkerSpec, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute, "memory_left", lambda: LITTLE)
    raised = error_of_a_step(tmp_path / "training", PLANTED[kind]())
    told = str(told_of(spec, as_ray_tells(raised), monkeypatch))
    needed = estimate_of(spec).memory()
    assert needed.total > LITTLE and needed.activations > 0
    assert told.startswith("training ran out of memory: ")
    assert f"forecast for each of 1 workers: {size(needed.total)} (weights of the model " in told
    for said in ("gradients ", "optimizer, fp32 weights ", "activations ", "output layer "):
        assert said in told
    there = "the GPU has 1 MiB" if kind == "gpu" else f"this machine has {size(LITTLE)} for each worker"
    assert there in told
    assert told.splitlines()[-1].strip().startswith(("what would fit: train.", "no single setting would fit"))


def test_settings_that_would_fit_are_at_most_three(spec: WorkerSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "memory_left", lambda: 2**40)
    told = str(told_of(spec, as_ray_tells(MemoryError()), monkeypatch))
    assert "it should fit, so something else may hold the rest" in told
    settings = told.splitlines()[-1].split("what would fit: ")[1].split("; or ")
    assert settings[0].startswith("train.micro_batch_size: 1 (")
    assert len(settings) <= 3


def test_what_ray_kills_for_memory_is_explained_with_what_the_node_has(
    spec: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.exceptions import OutOfMemoryError

    told = str(told_of(spec, as_ray_tells_death(OutOfMemoryError(BY_RAY)), monkeypatch))
    assert told.startswith("training ran out of memory: 1 worker(s) were killed")
    assert "the node has 23.5 GiB: 23.5 GiB for each worker, if all are on it; it should fit" in told
    assert "forecast for each of 1 workers: " in told


def test_a_killed_worker_is_explained_only_where_memory_is_too_little(
    spec: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    died = as_ray_tells_death(RuntimeError(BY_THE_KERNEL))
    monkeypatch.setattr(compute, "memory_left", lambda: LITTLE)
    assert "as the kernel does for memory" in str(told_of(spec, died, monkeypatch))
    monkeypatch.setattr(compute, "memory_left", lambda: 2**40)
    assert str(told_of(spec, died, monkeypatch)).startswith("training failed: ")


def test_other_errors_are_not_explained(
    one_worker: None, spec: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute, "memory_left", lambda: LITTLE)
    raised = error_of_a_step(tmp_path / "training", RuntimeError("expected scalar type Float"))
    assert shortage(raised) is None
    told = str(told_of(spec, as_ray_tells(raised), monkeypatch))
    assert told == "training failed: RuntimeError: expected scalar type Float"


def test_an_error_of_ours_is_told_as_it_is(spec: WorkerSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = TrainError("rows of 64 tokens do not fit")
    ours.__cause__ = MemoryError()
    told = told_of(spec, as_ray_tells(ours), monkeypatch)
    assert told is ours


def test_a_forecast_that_fails_leaves_the_error_alone(
    spec: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunewright.train.forecast import explain

    def broken(_spec: WorkerSpec) -> Any:
        raise DataError("the rows are gone")

    monkeypatch.setattr(explain, "estimate_of", broken)
    told = str(told_of(spec, as_ray_tells(MemoryError("no more")), monkeypatch))
    assert told == "training failed: MemoryError: no more"
