"""The whole line, readable in one sitting: rows -> data -> sweep -> train -> evaluate -> register -> deploy.

Every stage is found if it was made before, so the same command goes on where a killed run stopped.
"""

from __future__ import annotations

import argparse
import getpass
import logging
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tunewright.artifacts import Artifact, Store, write_json
from tunewright.base_stage import base_stage
from tunewright.closing import finish
from tunewright.config import RunConfig, load_run
from tunewright.errors import ConfigError, EvaluateError, GateRefused, TunewrightError
from tunewright.evaluation_stage import evaluation_stage, read_scores
from tunewright.line import Line, quiet_libraries
from tunewright.preflight import check_cluster_size, check_files, check_model
from tunewright.training_stages import prepare_trainings, train_earlier, train_stage

if TYPE_CHECKING:
    from tunewright.train.stage import Training

STAGES = ("base", "data", "sweep", "train", "evaluate", "register", "deploy")
ASKED = 8
"""Held-out prompts that the endpoint is asked, to compare its answers with the evaluated ones."""


def main(argv: Sequence[str] | None = None) -> int:
    """`pipeline.py CONFIG [--set a.b=c]... [--until STAGE]`; returns the exit code 0, 1 or 2."""
    parser = argparse.ArgumentParser(prog="pipeline.py", description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="A.B=C")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1])
    options = parser.parse_args(argv)
    try:
        run = load_run(options.config, options.sets)
        folder = Store(run.store_root).root / "runs" / run.name
        folder.mkdir(parents=True, exist_ok=True)
    except TunewrightError as error:
        return _told_error(error, sys.stderr)
    with quiet_libraries(folder / "driver.log") as (out, err):
        try:
            run_line(run, options.until, out)
        except TunewrightError as error:
            return _told_error(error, err)
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here", file=err, flush=True)
            return 130
        except Exception:  # the edge of the process: whatever it is, the person must see it
            print(f"unexpected error; what came before it is in {folder / 'driver.log'}", file=err)
            traceback.print_exc(file=err)
            return 1
        finally:
            _leave()
    return 0


def _told_error(error: TunewrightError, err: TextIO) -> int:
    """Print the message alone; the exit code is 2 for a wrong description and 1 for anything else."""
    print(f"error: {error}", file=err, flush=True)
    return 2 if isinstance(error, ConfigError) else 1


def run_line(run: RunConfig, until: str = STAGES[-1], out: TextIO | None = None) -> dict[str, Any]:
    """Run the line up to and with the stage `until`; returns the summary that it wrote.

    Raises:
        TunewrightError: with a message for the person who started the run.
    """
    store = Store(run.store_root)
    check_files(run)
    check_model(run)
    line = Line(run, store, out or sys.stdout)
    with store.lock(f"run-{run.name}", f"run {run.name}"):
        folder = store.root / "runs" / run.name
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", run.model_dump(mode="json"))
        line.say(f"run {run.name}, store {store.root}")
        _connect()
        check_cluster_size(run)
        if run.serve is not None and until == "deploy":
            from tunewright.serve.app import require_port

            require_port(run.serve)
        made: dict[str, Any] = {}
        try:
            _stages(line, until, made)
        except GateRefused:
            finish(line, folder, made)  # the figures that were not good enough are worth a report
            raise
        return finish(line, folder, made)


def _stages(line: Line, until: str, made: dict[str, Any]) -> None:
    """The stages in order; each takes what those before it made, and adds its own to `made`."""
    wanted = STAGES[: STAGES.index(until) + 1]
    made["base"] = base_stage(line)
    if "data" not in wanted:
        return
    trainings = prepare_trainings(line, made["base"])
    made["data"] = trainings[-1].data
    sweeps = "sweep" in wanted and line.run.sweep is not None
    if not sweeps and "train" not in wanted:
        return
    training = train_earlier(line, trainings)
    if sweeps:
        made["sweep"] = _sweep(line, training)
    if "train" in wanted:
        made["train"] = _train(line, training, made.get("sweep"))
    if "evaluate" in wanted:
        made["evaluate"] = evaluation_stage(line, made["base"], made["data"], made["train"])
    if "register" in wanted:
        made["version"] = _register(line, made["train"], made["evaluate"])
        made["alias"] = _promote(line, made["version"])
    if "deploy" in wanted and line.run.serve is not None:
        made |= _deploy(line, made["evaluate"])


def _connect() -> None:
    """Join the Ray that this job runs on, or start one in this process.

    Workers are told the address: Train asks the cluster's state whether a stopped trial's driver is
    dead before it frees the trial's workers, and would not know which Ray to ask where several run.
    """
    import ray

    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nothing here acts on a notice
    ray.init(
        address=address,
        log_to_driver=False,
        logging_level=logging.ERROR,
        include_dashboard=None if address else True,
        runtime_env={"env_vars": {"RAY_ADDRESS": address}} if address else None,
    )


def _leave() -> None:
    """Leave Ray while what it says still goes to the log; an endpoint lives on without this process."""
    if "ray" in sys.modules:
        import ray

        ray.shutdown()


def _sweep(line: Line, training: Training) -> Artifact:
    from tunewright.tune.campaign import sweep, sweep_plan

    run = line.run
    assert run.sweep is not None
    metric = run.sweep.metric
    plan = sweep_plan(run, training)

    def progress(trial: int, params: dict[str, Any], result: dict[str, Any]) -> None:
        if metric in result:
            values = ", ".join(f"{key.rsplit('.', 1)[-1]} {value:g}" for key, value in params.items())
            line.say(
                f"           trial {trial}  step {int(result['training_step'])}  "
                f"{metric} {result[metric]:.3f}  ({values})"
            )

    def told(swept: Artifact) -> str:
        facts = swept.facts
        values = ", ".join(f"{k.rsplit('.', 1)[-1]} {v:g}" for k, v in facts["params"].items())
        states = ", ".join(f"{count} {state}" for state, count in facts["states"].items() if count)
        return f"trial {facts['winner']} wins with {metric} {facts[metric]:.3f} ({values}); {states}"

    return line.make("sweep", plan, lambda: sweep(line.store, run, training, plan, progress), told)


def _train(line: Line, training: Training, swept: Artifact | None) -> Artifact:
    from tunewright.tune.campaign import winner_config

    if swept is not None:
        training = replace(training, config=winner_config(line.run, swept), start=swept)
    return train_stage(line, "train", training)


def _register(line: Line, trained: Artifact, evaluation: Artifact) -> Any:
    """The immutable version of the trained model with its evaluation."""
    from tunewright.registry import Registry

    begun, run = time.monotonic(), line.run
    registry = Registry(line.store)
    known = {v.number for v in registry.versions(run.name)} if run.name in registry.models() else set()
    version = registry.register(run.name, trained, evaluation, run.name)
    state = "found" if version.number in known else "made"
    line.record("register", time.monotonic() - begun, state, version.train, version.name)
    return version


def _promote(line: Line, version: Any) -> str:
    """Move the run's alias to the version; returns the alias.

    Raises:
        GateRefused: a figure is on the wrong side of its gate; the alias stays where it is.
    """
    from tunewright.registry import Registry

    registry, run = Registry(line.store), line.run
    alias = run.serve.alias if run.serve else "prod"
    if registry.aliases(run.name).get(alias) != version.number:
        registry.promote(run.name, alias, version.number, getpass.getuser(), f"run {run.name}")
        line.say(f"{'':<10}       alias {alias} moves to {version.name}")
    return alias


def _deploy(line: Line, evaluation: Artifact) -> dict[str, Any]:
    """Deploy the alias and ask the endpoint what the evaluation asked.

    Raises:
        EvaluateError: a served answer differs from the evaluated one.
    """
    from tunewright.serve.app import deploy

    begun, run = time.monotonic(), line.run
    assert run.serve is not None
    line.say("deploy     ...")
    endpoint = deploy(run.serve, line.store.root, f"{run.name}@{run.serve.alias}")
    tuned = line.store.load(evaluation.manifest.parents["tuned_scores"])
    check = _ask_endpoint(line, endpoint.url, read_scores(tuned))
    told = f"{endpoint.url} answers as {endpoint.version}"
    if check is not None:
        told += f"; {check['equal']} of {check['asked']} served answers equal the evaluated ones"
    line.record("deploy", time.monotonic() - begun, "made", endpoint.version, told)
    return {"endpoint": endpoint.url, "served": check}


def _ask_endpoint(line: Line, url: str, scores: dict[str, Any]) -> dict[str, int] | None:
    """Ask the endpoint the first held-out prompts with the official client, plain and streaming."""
    from tunewright.data.conversations import read_conversations
    from tunewright.evaluate.generate import EndpointGenerator
    from tunewright.evaluate.tasks import task_from_messages
    from tunewright.serve.keys import endpoint_key

    run = line.run
    if not run.evaluate.tasks or run.serve is None:
        return None
    config = run.evaluate.tasks[0].model_copy(update={"max_rows": ASKED})
    rows = line.store.root / "runs" / run.name
    task = task_from_messages(config, read_conversations(config.source, rows))
    ask = EndpointGenerator(url, endpoint_key(line.store.root), run.serve.alias)
    wanted = scores[config.name]["answers"][: len(task.prompts)]
    answers = ask(task.prompts, min(task.max_new_tokens, run.serve.max_new_tokens))
    streamed = ask.stream(task.prompts[0], min(task.max_new_tokens, run.serve.max_new_tokens))
    equal = sum(a == b for a, b in zip(answers, wanted, strict=True))
    if equal < len(wanted) or streamed != wanted[0]:
        different = next((i for i, (a, b) in enumerate(zip(answers, wanted, strict=True)) if a != b), 0)
        raise EvaluateError(
            f"the endpoint does not answer as the evaluated model does: {equal} of {len(wanted)} answers "
            f"are equal; prompt {different}: served {answers[different]!r}, evaluated {wanted[different]!r}, "
            f"streamed {streamed!r}"
        )
    return {"asked": len(wanted), "equal": equal}


if __name__ == "__main__":
    sys.exit(main())
