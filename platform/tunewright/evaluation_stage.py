"""The evaluate stage: base and tuned model on the same held-out rows, each scored in a Ray task."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunewright.artifacts import Artifact, Plan, Store, clear_dir, code_hash, read_json, write_json
from tunewright.config import RunConfig, TaskConfig
from tunewright.line import Line

RESULT = "result.json"


def evaluation_stage(line: Line, base: Artifact, data: Artifact, trained: Artifact) -> Artifact:
    """An artifact whose facts say how both did, which rows changed, and which gates were passed."""
    from tunewright.evaluate.compare import apply_gates, compare

    run, store = line.run, line.store
    base_scores, tuned_scores = _both_scores(line, base, data, trained)
    gates = run.evaluate.gates
    plan = Plan(
        "evaluation",
        {"base_scores": base_scores.ref, "tuned_scores": tuned_scores.ref, "train": trained.ref},
        gates.model_dump(mode="json"),
        code_hash("evaluate"),
    )

    def build() -> Artifact:
        work = clear_dir(store.work_dir(plan))
        before, after = read_scores(base_scores), read_scores(tuned_scores)
        compared = compare(before, after)
        write_json(work / "compare.json", compared)
        facts = {
            "gates": apply_gates(gates, before, after),
            "base": {name: _figures(result) for name, result in before.items()},
            "tuned": {name: _figures(result) for name, result in after.items()},
            "compare": compared,
        }
        return store.publish(plan, work, facts)

    return line.make("evaluate", plan, build, _told)


def read_scores(scores: Artifact) -> dict[str, Any]:
    """A model's results by task, answers included."""
    results: dict[str, Any] = read_json(scores.path / RESULT)
    return results


def _both_scores(line: Line, base: Artifact, data: Artifact, trained: Artifact) -> tuple[Artifact, Artifact]:
    """Scores of the base and of the tuned model; what is missing is computed at the same time."""
    run, store = line.run, line.store
    plans = [_scores_plan(run, model, data) for model in (base, trained)]
    found = [store.find(plan) for plan in plans]
    missing = [i for i, artifact in enumerate(found) if artifact is None]
    if not run.evaluate.tasks:
        for index in missing:
            work = clear_dir(store.work_dir(plans[index]))
            write_json(work / RESULT, {})
            found[index] = store.publish(plans[index], work, {"tasks": {}})
    elif missing:
        begun = time.monotonic()
        line.say("scores     ...")
        with store.lock(f"{plans[-1].kind}-{plans[-1].id}", f"run {run.name}, stage evaluate"):
            for index, artifact in zip(
                missing, _score(store, run, missing, plans, base, data, trained), strict=True
            ):
                found[index] = artifact
        names = " and ".join("base" if i == 0 else "tuned" for i in missing)
        refs = ", ".join(a.ref for a in found if a is not None)
        line.record("scores", time.monotonic() - begun, "made", refs, f"{names} answered the held-out rows")
    assert found[0] is not None and found[1] is not None
    return found[0], found[1]


def _score(
    store: Store,
    run: RunConfig,
    missing: list[int],
    plans: list[Plan],
    base: Artifact,
    data: Artifact,
    trained: Artifact,
) -> list[Artifact]:
    import ray

    resources = run.train.worker_resources
    task = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=2)(_score_model)
    running = []
    for index in missing:
        work = clear_dir(store.work_dir(plans[index]))
        # After earlier stages, an adapter is on another base than the one it is compared with.
        whole = base if index == 0 else store.load(trained.manifest.parents["base"])
        tuned = str(trained.path) if index == 1 else None
        running.append(
            task.remote(run.model_dump_json(), _folder(whole), tuned, str(data.path / "tokenizer"), str(work))
        )
    artifacts = []
    for index, facts in zip(missing, ray.get(running), strict=True):
        work = store.work_dir(plans[index])
        shutil.rmtree(work / "rows", ignore_errors=True)
        artifacts.append(store.publish(plans[index], work, facts))
    return artifacts


def _score_model(run_json: str, base: str, tuned: str | None, tokenizer: str, work: str) -> dict[str, Any]:
    """Runs in a Ray task: load, answer, count; returns facts and writes the whole result."""
    import torch

    from tunewright.data.conversations import read_conversations
    from tunewright.evaluate.suite import evaluate_model
    from tunewright.evaluate.tasks import task_from_messages
    from tunewright.models.load import load_model, load_renderer

    run = RunConfig.model_validate_json(run_json)
    begun = time.monotonic()
    cuda = torch.cuda.is_available()
    if not cuda:
        torch.set_num_threads(max(1, round(run.train.worker_resources.cpus)))
    rows = Path(work) / "rows"
    rows.mkdir(exist_ok=True)
    tasks = [task_from_messages(t, read_conversations(t.source, rows)) for t in run.evaluate.tasks]
    dtype = torch.bfloat16 if run.serve and run.serve.precision == "bf16" else torch.float32
    model = load_model(*model_folders(Path(base), Path(tuned) if tuned else None), dtype)
    if cuda:
        model.to("cuda")  # type: ignore[arg-type]
    results = evaluate_model(model, load_renderer(Path(tokenizer)), tasks, run.evaluate.batch_size)
    write_json(Path(work) / RESULT, results)
    facts: dict[str, Any] = {name: _figures(result) for name, result in results.items()}
    return {"tasks": facts, "seconds": round(time.monotonic() - begun, 2)}


def model_folders(base: Path, trained: Path | None) -> tuple[Path, Path | None]:
    """(folder of the weights, folder of the adapter or None) of a base or of a trained artifact."""
    if trained is None:
        return base, None
    if (trained / "adapter").is_dir():
        return base, trained / "adapter"
    return trained / "model", None


def _scores_plan(run: RunConfig, model: Artifact, data: Artifact) -> Plan:
    from tunewright.data.sources import source_identity

    def identity(task: TaskConfig) -> dict[str, Any]:
        return {**task.model_dump(mode="json"), "source": source_identity(task.source)}

    settings = {
        "tasks": [identity(task) for task in run.evaluate.tasks],
        "precision": run.serve.precision if run.serve else "fp32",
        "tokenizer": data.manifest.files["tokenizer/tokenizer.json"]["sha256"],
    }
    code = code_hash(
        "evaluate", "models", "data/conversations", "data/records", "data/sources", "data/support_desk"
    )
    return Plan("scores", {"model": model.ref}, settings, code)


def _folder(base: Artifact) -> str:
    from tunewright.models.base import model_folder

    return str(model_folder(base))


def _figures(result: Mapping[str, Any]) -> dict[str, Any]:
    return {k: result[k] for k in ("n", "exact", "exact_match", "interval", "fields", "valid_json", "loss")}


def _told(evaluation: Artifact) -> str:
    parts = []
    for name, after in evaluation.facts["tuned"].items():
        before = evaluation.facts["base"][name]
        parts.append(
            f"{name}: exact match {before['exact_match']:.3f} base, {after['exact_match']:.3f} tuned"
        )
    return "; ".join(parts) or "no task"
