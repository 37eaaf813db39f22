"""Training on real Ray Train workers with DeepSpeed: exact resume, other numbers of workers, ZeRO-3."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tiny_runs import newborn_base, small_run, write_run
from tunewright.artifacts import Artifact, Store
from tunewright.config import BaseModelConfig, FullConfig, RunConfig, load_run
from tunewright.config.train import ZeroConfig
from tunewright.data.prepare import prepare, prepare_plan
from tunewright.errors import ClusterError, ResumeMismatch, TrainError
from tunewright.models.base import model_folder, register_folder
from tunewright.train.launch import check_cluster, run_workers
from tunewright.train.stage import Training, train
from tunewright.train.worker import TaskSpec, WorkerSpec, read_metrics

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

STEPS = 6
OTHER_WORLD_TOLERANCE = 1e-5
"""Relative: sums over another number of workers are taken in another order."""


class Prepared:
    """A small run whose data set is made."""

    def __init__(self, folder: Path):
        self.store = Store(folder / "store")
        config = write_run(folder / "run.yaml", small_run(newborn_base(folder / "model"), folder / "store"))
        self.run: RunConfig = load_run(config)
        self.base: Artifact = register_folder(self.store, BaseModelConfig(model=str(folder / "model")))[0]
        plan = prepare_plan(self.run.data, self.base)
        self.data: Artifact = prepare(self.store, self.run.data, self.base, plan)

    def spec(self, work: Path, workers: int, stop: int | None = None, zero: int = 2) -> WorkerSpec:
        config = self.run.train.model_copy(
            update={"workers": workers, "max_steps": STEPS, "zero": ZeroConfig(stage=zero)}  # type: ignore[arg-type]
        )
        return WorkerSpec(
            config=config,
            seed=1,
            identity=Training(config, self.base, self.data, 1).identity,
            base=str(model_folder(self.base)),
            tasks=(TaskSpec("", config, str(self.data.path)),),
            work=str(work),
            stop_step=stop,
            export=False,
        )


@pytest.fixture(scope="module")
def prepared(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return Prepared(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def uninterrupted(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    work = tmp_path_factory.mktemp("uninterrupted")
    run_workers(prepared.spec(work, workers=2))
    return losses(work)


@pytest.fixture(scope="module")
def stopped_at_3(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("stopped")
    run_workers(prepared.spec(work, workers=2, stop=3))
    return work


def losses(work: Path) -> list[float]:
    found = [m["loss"] for m in read_metrics(work / "metrics.jsonl")]
    assert len(found) == STEPS
    return found


def test_two_workers_that_stop_and_go_on_are_bit_identical(
    prepared: Prepared, uninterrupted: list[float], stopped_at_3: Path, tmp_path: Path
) -> None:
    work = shutil.copytree(stopped_at_3, tmp_path / "work")
    run_workers(prepared.spec(work, workers=2))
    assert losses(work) == uninterrupted


def test_one_worker_goes_on_from_two(
    prepared: Prepared, uninterrupted: list[float], stopped_at_3: Path, tmp_path: Path
) -> None:
    work = shutil.copytree(stopped_at_3, tmp_path / "work")
    run_workers(prepared.spec(work, workers=1))
    assert losses(work) == pytest.approx(uninterrupted, rel=OTHER_WORLD_TOLERANCE)


def test_zero_3_takes_the_same_steps_as_zero_2(
    prepared: Prepared, uninterrupted: list[float], tmp_path: Path
) -> None:
    run_workers(prepared.spec(tmp_path, workers=2, zero=3))
    assert losses(tmp_path) == pytest.approx(uninterrupted, rel=OTHER_WORLD_TOLERANCE)


def test_a_checkpoint_of_other_hyperparameters_is_refused_at_once(
    prepared: Prepared, stopped_at_3: Path, tmp_path: Path
) -> None:
    spec = prepared.spec(shutil.copytree(stopped_at_3, tmp_path / "work"), workers=1)
    with pytest.raises(ResumeMismatch, match="other data, another base or other hyperparameters"):
        run_workers(replace(spec, identity="another"))


def test_full_fine_tuning_publishes_a_model_folder(prepared: Prepared) -> None:
    config = prepared.run.train.model_copy(update={"method": FullConfig(), "max_steps": 2, "workers": 1})
    training = Training(config, prepared.base, prepared.data, 1)
    trained = train(prepared.store, training)
    assert (trained.path / "model" / "model.safetensors").is_file()
    assert (trained.path / "tokenizer" / "tokenizer.json").is_file()
    assert trained.facts["steps"] == 2
    assert prepared.store.find(training.plan) is not None


def test_more_workers_than_the_cluster_holds_are_refused(ray_cluster: None) -> None:
    with pytest.raises(
        ClusterError, match=r"train\.workers=9 .* but the cluster has 4\. Set train\.workers to at most 4"
    ):
        check_cluster(9, 1.0, 0.0)


def test_an_objective_that_is_not_for_the_rows_is_refused(prepared: Prepared) -> None:
    config = prepared.run.train.model_copy(update={"objective": "pretrain"})
    with pytest.raises(TrainError, match="objective is pretrain, but the rows are conversations; say sft"):
        Training(config, prepared.base, prepared.data, 1)
