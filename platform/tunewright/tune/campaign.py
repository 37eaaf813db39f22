"""The sweep stage: data + base + a search space -> the best trial's hyperparameters and checkpoint.

Each trial is a training that stops at `sweep.max_steps` of the full schedule, in a folder of its
own. Its figures and checkpoints there are the sweep's memory: after a kill, finished trials replay
their figures to the scheduler and start no worker, and the others go on from their checkpoints.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunewright.artifacts import Artifact, Plan, Store, clear_dir, code_hash, read_json, write_json
from tunewright.config import RunConfig, SweepConfig, TaskConfig, TrainConfig
from tunewright.errors import ClusterError, DataError, TrainError
from tunewright.models.base import model_folder
from tunewright.train.checkpoint import latest_checkpoint
from tunewright.train.launch import check_cluster, run_workers
from tunewright.train.schedule import Order, total_steps
from tunewright.train.stage import STAGE_CODE, Training
from tunewright.train.worker import TaskSpec, WorkerSpec, read_metrics
from tunewright.tune.objective import TaskObjective
from tunewright.tune.space import Params, draw_trials, load_space, with_params

Progress = Callable[[int, Params, dict[str, Any]], None]
"""Called with (trial, its parameters, its newest figures)."""

DRIVER_MEMORY_BYTES = 64 << 20
"""What a trial's driver reserves: it is nearly idle, and a CPU share would keep a worker out."""


@dataclass(frozen=True)
class Campaign:
    """A sweep, ready to run: what its trials share, and what each one tries."""

    sweep: SweepConfig
    trials: list[Params]
    configs: list[TrainConfig]
    identities: list[str]
    stop_step: int
    grace_steps: int
    seed: int
    base: str
    tasks: tuple[TaskSpec, ...]
    work: str
    objective: TaskObjective | None
    previous: str | None
    stacked: bool

    def folder(self, trial: int) -> Path:
        return Path(self.work) / "trials" / f"trial-{trial:03d}"


def sweep_plan(run: RunConfig, training: Training) -> Plan:
    """The identity of a sweep: the space's content, not its file name, decides.

    Raises:
        ConfigError: the space is not valid, or holds keys or values that training does not take.
    """
    assert run.sweep is not None
    trials = _trials(run)
    settings = run.sweep.model_dump(mode="json", exclude={"space", "max_concurrent_trials", "workers"})
    train = dict(training.deciding({"workers", "worker_resources"}))
    task = _task(run)
    config = {
        "sweep": settings,
        "trials": trials,
        "train": train,
        "task": task.model_dump(mode="json", exclude={"source"}) if task else None,
    }
    code = code_hash(*STAGE_CODE, "tune", "evaluate", "models/decode")
    return Plan("sweep", dict(training.plan.parents), config, code)


def sweep(
    store: Store, run: RunConfig, training: Training, plan: Plan, progress: Progress | None = None
) -> Artifact:
    """Run the sweep as planned, keeping what an earlier, killed try finished.

    Raises:
        ClusterError: the cluster cannot hold even one trial.
        TrainError: no trial reached its first report.
    """
    started = time.monotonic()
    campaign = _campaign(store, run, training, plan)
    check_cluster(campaign.configs[0].workers, *_each(campaign))
    problems = _run_tune(campaign, progress)
    results = [_result(campaign, trial) for trial in range(len(campaign.trials))]
    winner = _winner(campaign, results, problems)
    out = clear_dir(Path(campaign.work) / "out")
    checkpoint = latest_checkpoint(campaign.folder(winner["trial"]) / "checkpoints")
    assert checkpoint is not None, "a trial with figures has a checkpoint"
    shutil.copytree(checkpoint.path, out / "winner")
    shutil.copy(campaign.folder(winner["trial"]) / "metrics.jsonl", out / "winner.jsonl")
    write_json(out / "trials.json", results)
    facts = {
        "winner": winner["trial"],
        "params": winner["params"],
        "step": checkpoint.step,
        campaign.sweep.metric: winner["last"][campaign.sweep.metric],
        "states": {s: sum(r["state"] == s for r in results) for s in ("finished", "stopped", "failed")},
    }
    artifact = store.publish(plan, out, facts, time.monotonic() - started)
    shutil.rmtree(campaign.work)
    return artifact


def winner_config(run: RunConfig, swept: Artifact) -> TrainConfig:
    """The run's training configuration with the best trial's hyperparameters."""
    return with_params(run.train, swept.facts["params"])


def _trials(run: RunConfig) -> list[Params]:
    assert run.sweep is not None
    return draw_trials(load_space(run.sweep.space), run.sweep.trials, run.seed)


def _task(run: RunConfig) -> TaskConfig | None:
    assert run.sweep is not None
    return None if run.sweep.metric.startswith("eval_") else run.evaluate.tasks[0]


def _campaign(store: Store, run: RunConfig, training: Training, plan: Plan) -> Campaign:
    assert run.sweep is not None
    data = training.data
    if not data.facts["eval_rows"]:
        raise DataError("the sweep needs evaluation rows: raise data.split.eval, or give more data")
    rows = [task.data.facts["train_rows"] for task in training.beside]
    lengths = [data.facts["train_rows"], *rows]
    order = Order(run.train, run.seed, lengths, [task.share for task in training.beside])
    total = total_steps(run.train, order)
    stop = min(total, run.sweep.max_steps or total)
    trials = _trials(run)
    grace = min(stop, run.sweep.grace_steps or max(1, stop // 3))
    placement = {"train.workers": run.sweep.workers, "train.eval_steps": grace}
    configs = [with_params(run.train, params | placement) for params in trials]
    task = _task(run)
    objective = None
    if task is not None:
        objective = TaskObjective(str(data.path), task, run.sweep.eval_rows, run.evaluate.batch_size)
    return Campaign(
        sweep=run.sweep,
        trials=trials,
        configs=configs,
        identities=[replace(training, config=config).identity for config in configs],
        stop_step=stop,
        grace_steps=grace,
        seed=run.seed,
        base=str(model_folder(training.base)),
        tasks=training.tasks,
        work=str(store.work_dir(plan)),
        objective=objective,
        previous=str(training.previous.path / "adapter") if training.previous else None,
        stacked=training.stacked,
    )


def _each(campaign: Campaign) -> tuple[float, float]:
    resources = campaign.configs[0].worker_resources
    return resources.cpus, resources.gpus


def concurrent_trials(campaign: Campaign) -> int:
    """How many trials the cluster holds at once; more would wait for workers that cannot come."""
    import ray

    have, workers = ray.cluster_resources(), campaign.sweep.workers
    cpus, gpus = _each(campaign)
    fits = int((have.get("CPU", 0.0) + 1e-9) // (workers * cpus))
    if gpus:
        fits = min(fits, int((have.get("GPU", 0.0) + 1e-9) // (workers * gpus)))
    if fits < 1:
        raise ClusterError(f"the cluster cannot hold one trial of {workers} workers")
    return min(fits, campaign.sweep.max_concurrent_trials or fits)


def _run_tune(campaign: Campaign, progress: Progress | None) -> list[str]:
    """Run all trials; returns the last line of each failed trial's error."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "16")
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

    sweep = campaign.sweep
    scheduler: TrialScheduler
    if sweep.scheduler == "asha":
        scheduler = ASHAScheduler(
            time_attr="training_step",
            max_t=campaign.stop_step + 1,  # a trial that gets to its end ends by itself
            grace_period=campaign.grace_steps,
            reduction_factor=sweep.reduction_factor,
        )
    else:
        scheduler = FIFOScheduler()
    storage = Path(campaign.work) / f"tune-{time.time_ns()}"
    driver = tune.with_parameters(run_trial, campaign=campaign)
    tuner = tune.Tuner(
        tune.with_resources(driver, {"cpu": 0, "memory": DRIVER_MEMORY_BYTES}),
        param_space={"trial": tune.grid_search(list(range(len(campaign.trials))))},
        tune_config=tune.TuneConfig(
            metric=sweep.metric,
            mode=sweep.mode,
            scheduler=scheduler,
            max_concurrent_trials=concurrent_trials(campaign),
        ),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=str(storage),
            verbose=0,
            callbacks=[_recorder(campaign, progress)],
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    )
    try:
        results = tuner.fit()
        return [str(error).strip().splitlines()[-1] for error in results.errors]
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def run_trial(config: dict[str, Any], campaign: Campaign) -> None:
    """One trial's driver: replay what is known, then train on from there."""
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    trial = int(config["trial"])
    folder = campaign.folder(trial)
    folder.mkdir(parents=True, exist_ok=True)
    done = (folder / "done.json").exists()
    checkpoint = latest_checkpoint(folder / "checkpoints")
    known_to = campaign.stop_step if done else checkpoint.step if checkpoint else 0
    for metrics in read_metrics(folder / "metrics.jsonl"):
        if metrics["step"] <= known_to and campaign.sweep.metric in metrics:
            tune.report({**metrics, "training_step": metrics["step"]})
    if done:
        return
    spec = WorkerSpec(
        config=campaign.configs[trial],
        seed=campaign.seed,
        identity=campaign.identities[trial],
        base=campaign.base,
        tasks=(replace(campaign.tasks[0], config=campaign.configs[trial]), *campaign.tasks[1:]),
        previous=campaign.previous,
        stacked=campaign.stacked,
        work=str(folder),
        stop_step=campaign.stop_step,
        export=False,
        make_scorer=campaign.objective,
    )
    run_workers(spec, [TuneReportCallback()])


def _recorder(campaign: Campaign, progress: Progress | None) -> Any:
    """A Tune callback that marks trials as done, and passes their figures on."""
    from ray.tune import Callback

    class Recorder(Callback):
        def __init__(self, told: Progress | None):
            self.told = told

        def __getstate__(self) -> dict[str, Any]:
            return {"told": None}  # Tune saves its callbacks; a console cannot be saved

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: Any, **_: Any
        ) -> None:
            index = int(trial.config["trial"])
            if self.told is not None:
                self.told(index, campaign.trials[index], dict(result))

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            index = int(trial.config["trial"])
            folder = campaign.folder(index)
            step = int((trial.last_result or {}).get("training_step", 0))
            state = "finished" if step >= campaign.stop_step else "stopped"
            if not (folder / "done.json").exists():
                write_json(folder / "done.json", {"state": state, "step": step})

    return Recorder(progress)


def _result(campaign: Campaign, trial: int) -> dict[str, Any]:
    """A trial as the report shows it."""
    folder = campaign.folder(trial)
    metric = campaign.sweep.metric
    done = read_json(folder / "done.json") if (folder / "done.json").exists() else None
    limit = done["step"] if done else 0
    history = [m for m in read_metrics(folder / "metrics.jsonl") if metric in m and m["step"] <= limit]
    pick = max if campaign.sweep.mode == "max" else min
    return {
        "trial": trial,
        "params": campaign.trials[trial],
        "state": done["state"] if done and history else "failed",
        "steps": int(limit),
        "history": [{k: m[k] for k in ("step", metric, "eval_loss") if k in m} for m in history],
        "best": pick((m[metric] for m in history), default=None),
        "last": history[-1] if history else {},
    }


def _winner(campaign: Campaign, results: list[dict[str, Any]], problems: list[str]) -> dict[str, Any]:
    """The trial whose last figures are best: they are those of the checkpoint that is kept.

    Ties go to the lower evaluation loss, then to the earlier trial.
    """
    scored = [r for r in results if r["last"]]
    if not scored:
        reason = problems[0] if problems else "none was started"
        raise TrainError(f"no trial of the sweep reached its first report: {reason}")
    sign = -1.0 if campaign.sweep.mode == "max" else 1.0

    def rank(result: dict[str, Any]) -> tuple[float, float, int]:
        last = result["last"]
        return sign * last[campaign.sweep.metric], last.get("eval_loss", 0.0), result["trial"]

    return min(scored, key=rank)
