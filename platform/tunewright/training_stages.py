"""The trainings of a run: the rows of all, those before the main one, and what each leaves to the next."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.artifacts import Artifact, Plan, Store, clear_dir, code_hash
from tunewright.closing import write_data_report
from tunewright.config import DataConfig, EarlierStage
from tunewright.config.stages import MAIN, Described
from tunewright.errors import ModelError, TrainError
from tunewright.export import merge_trained
from tunewright.line import Line

if TYPE_CHECKING:
    from tunewright.train.stage import TaskData, Training

MERGE_CODE = (
    "training_stages",
    "export",
    "models/merge",
    "models/prove",
    "models/compare",
    "models/load",
    "models/quantize",
)


def prepare_trainings(line: Line, base: Artifact) -> list[Training]:
    """All trainings of the run with their rows, in order, the main one last; each begins at `base` yet.

    All rows are prepared before anything is trained, so that what is wrong with them is seen first.
    They are made with the base's tokenizer, which no stage changes.

    Raises:
        DataError: rows cannot be used.
        TrainError: rows are not for their objective, or tasks of one training have other labels.
    """
    from tunewright.train.stage import Training

    trainings: dict[str, Training] = {}
    for described in line.run.trainings:
        folder = _folder(line, described.name)
        name = "data" if described.name == MAIN else f"data {described.name}"
        data = data_stage(line, name, base, described.data, folder)
        beside = _tasks(line, base, described, folder, trainings)
        training = Training(described.train, base, data, line.run.seed, beside)
        _check_labels(f"{described.at}tasks", data, [task.data for task in beside])
        trainings[described.name] = training
    made = list(trainings.values())
    for stage, before, after in zip(line.run.stages, made, made[1:], strict=False):
        if stage.then != "merge":
            _check_labels(f"what follows the stage {stage.name}", before.data, [after.data])
    return made


def _tasks(
    line: Line, base: Artifact, described: Described, folder: Path, before: dict[str, Training]
) -> tuple[TaskData, ...]:
    from tunewright.train.stage import TaskData

    made = []
    for task in described.tasks:
        if task.data is None:
            data = before[str(task.stage)].data
        else:
            name = f"data {described.name}/{task.name}"
            data = data_stage(line, name, base, task.data, folder / "tasks" / task.name)
        made.append(TaskData(task.name, task, data, task.share))
    return tuple(made)


def _check_labels(where: str, data: Artifact, others: Sequence[Artifact]) -> None:
    """Raises `TrainError` unless all have the same labels: a head has an output for each."""
    from tunewright.data.dataset import labels_of

    labels = labels_of(data.path)
    for other in others:
        found = labels_of(other.path)
        if found != labels:
            differing = sorted(set(labels) ^ set(found)) or list(found)
            raise TrainError(
                f"{where}: its rows have {len(found)} labels and those it is learned with {len(labels)}; "
                f"one head has the same labels for all, and these differ: {', '.join(differing[:5])}"
            )


def data_stage(line: Line, name: str, base: Artifact, config: DataConfig, folder: Path) -> Artifact:
    """The data set of a section, and its report in `folder`.

    Raises:
        DataError: rows cannot be used.
    """
    from tunewright.data.prepare import gather, prepare, prepare_plan

    inputs = gather(line.store, config)
    plan = prepare_plan(config, base, inputs)

    def told(data: Artifact) -> str:
        facts = data.facts
        read, rejected, duplicates = (
            sum(source[key] for source in facts["funnel"]) for key in ("read", "rejected", "duplicates")
        )
        return (
            f"{read:,} rows read, {rejected:,} rejected, {duplicates:,} duplicates, "
            f"{facts['train_rows']:,} packed rows to train on, {facts['packing_efficiency']:.0%} full"
        )

    data = line.make(
        name, plan, lambda: prepare(line.store, config, base, plan, inputs, tell=line.live), told
    )
    write_data_report(folder, data)
    return data


def train_earlier(line: Line, trainings: Sequence[Training]) -> Training:
    """Train the stages before the main one; returns the main training, beginning where they ended.

    Raises:
        TrainError: one of them failed, or what it came to cannot be gone on with.
    """
    current = trainings[0]
    for stage, following in zip(line.run.stages, trainings[1:], strict=True):
        trained = train_stage(line, f"train {stage.name}", current)
        folder = _folder(line, stage.name)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(trained.path / "metrics.jsonl", folder / "metrics.jsonl")
        if stage.then == "merge":
            current = replace(following, base=_merged(line, stage, current, trained))
        else:
            stacked = stage.then == "stack"
            current = replace(following, base=current.base, previous=trained, stacked=stacked)
    return current


def train_stage(line: Line, name: str, training: Training) -> Artifact:
    """The trained model of a training."""
    from tunewright.train.stage import train

    stage = name.removeprefix("train").strip()

    def progress(metrics: dict[str, float]) -> None:
        line.training_line(metrics, f"{stage}  " if stage else "")

    def told(trained: Artifact) -> str:
        facts = trained.facts
        loss = f"loss {facts['loss']:.3f}, eval loss {facts.get('eval_loss', float('nan')):.3f}"
        certificate = f"; certificate: {facts['certificate']}" if "certificate" in facts else ""
        return f"{facts['steps']} steps, {facts['tokens']:,} tokens, {loss}{certificate}"

    return line.make(name, training.plan, lambda: train(line.store, training, progress, line.say), told)


def _folder(line: Line, name: str) -> Path:
    """The part of the run's folder that a training has."""
    run = line.store.root / "runs" / line.run.name
    return run if name == MAIN else run / "stages" / name


def _merged(line: Line, stage: EarlierStage, training: Training, trained: Artifact) -> Artifact:
    """The trained model of a stage as a base: adapter and base in one model, proved to be both."""
    from tunewright.models.base import describe

    plan = Plan("base", {"trained": trained.ref}, {"then": stage.then}, code_hash(*MERGE_CODE))

    def build() -> Artifact:
        work = clear_dir(line.store.work_dir(plan))
        try:
            proof = _merge_in_a_task(line.store, training, trained, work / "model")
        except ModelError as error:
            raise TrainError(
                f"stage {stage.name}, then: merge: {error}. Say then: keep or then: stack instead"
            ) from None
        facts = {"model": f"{training.base.facts['model']} + {stage.name}", **describe(work / "model")}
        return line.store.publish(plan, work, {**facts, "equivalence": proof})

    def told(base: Artifact) -> str:
        found = base.facts["equivalence"]["merged"]
        kind = "adapter and base in one model" if (trained.path / "adapter").is_dir() else "the whole model"
        return f"{kind}; it agrees with what was trained: KL {found['kl']:.1g}, top 1 {found['top1']:.1%}"

    return line.make(f"merge {stage.name}", plan, build, told)


def _merge_in_a_task(store: Store, training: Training, trained: Artifact, folder: Path) -> dict[str, Any]:
    """Merge where there is memory for it: beside the workers, and not in this process."""
    import ray

    resources = training.config.worker_resources
    task = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=2)(_merge)
    # An error of ours travels as a value: Ray would wrap it in one of its own.
    found = ray.get(task.remote(str(store.root), trained.ref, str(folder)))
    if isinstance(found, ModelError):
        raise found
    proof: dict[str, Any] = found
    return proof


def _merge(root: str, trained_ref: str, folder: str) -> dict[str, Any] | ModelError:
    """Runs in a Ray task. A model trained whole stays in the fp32 it was trained in."""
    store = Store(Path(root))
    trained = store.load(trained_ref)
    base = store.load(trained.manifest.parents["base"])
    clear_dir(Path(folder))
    precision: Any = None if (trained.path / "adapter").is_dir() else "fp32"
    try:
        return merge_trained(store, trained, base, Path(folder), precision)
    except ModelError as error:
        return error
