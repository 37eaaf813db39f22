"""Where the figures of a training go beside metrics.jsonl: TensorBoard's event files, and MLflow.

Lives in the driver, which sees each figure once. A sink that fails is told of and never stops a
training; metrics.jsonl is the truth, from which each sink gets at the end what it had missed.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol

from tunewright.artifacts import digest, read_json, write_json
from tunewright.config import RunConfig, TrainConfig
from tunewright.errors import ConfigError
from tunewright.train.event_file import PATTERN, append_scalars, begin_file

log = logging.getLogger(__name__)

Figures = Mapping[str, Any]
NOT_FIGURES = ("step", "total_steps", "training_step", "attempt")
PATIENCE_S = 60.0
"""How long the end of a run waits for a sink that does not answer."""
LONGEST_PARAM = 500
"""Characters of a parameter's value that every MLflow server takes."""
PARAMS_AT_ONCE = 100
"""As many as MLflow's interface takes in one request."""
NAMES = {
    "loss": "train/loss",
    "lr": "train/learning_rate",
    "grad_norm": "train/gradient_norm",
    "tokens_per_s": "speed/tokens_per_s",
    "eta_s": "speed/eta_s",
    "eval_loss": "eval/loss",
    "rss_gib": "memory/rss_gib",
    "peak_rss_gib": "memory/peak_rss_gib",
    "cuda_gib": "memory/cuda_gib",
    "peak_cuda_gib": "memory/peak_cuda_gib",
}
"""Our names -> those that TensorBoard shows grouped; `loss/TASK` and the like keep theirs under `train/`."""


def check_sinks(config: TrainConfig) -> None:
    """Raises `ConfigError` when a sink is asked for whose package is not installed."""
    if config.mlflow is not None and importlib.util.find_spec("mlflow") is None:
        raise ConfigError(
            "train.mlflow needs the package mlflow; install it with `pip install 'tunewright[mlflow]'`, "
            "or leave train.mlflow out"
        )


class Sink(Protocol):
    """One more place for figures; its methods may raise anything, and are called by one thread."""

    name: str

    def add(self, figures: Figures) -> None:
        """Take the figures of a step; a step that was told before is taken again."""

    def finish(self, rows: Sequence[Figures], made: Mapping[str, str]) -> None:
        """Make up for what is missing of a finished training.

        Args:
            rows: all its figures.
            made: what came of it: artifacts' names, and the version's.
        """


class Sinks:
    """All sinks that a run asks for; nothing is opened before the first figure.

    Args:
        folder: the run's.
    """

    def __init__(self, run: RunConfig, folder: Path):
        sinks: list[Sink] = []
        if run.train.tensorboard:
            sinks.append(TensorBoard(folder / "tensorboard"))
        if run.train.mlflow is not None:
            sinks.append(Mlflow(run, folder / "mlflow.json"))
        self._guards = [_Guard(sink) for sink in sinks]

    def add(self, figures: Figures) -> None:
        """Pass on the figures of a step; returns at once."""
        for guard in self._guards:
            guard.add(figures)

    def finish(self, rows: Sequence[Figures], made: Mapping[str, str]) -> list[str]:
        """Let every sink finish; returns a sentence for each one that could not."""
        for guard in self._guards:
            guard.end(rows, made)
        return [told for guard in self._guards if (told := guard.trouble(PATIENCE_S))]


class _Guard:
    """A sink in a thread of its own: slow or broken, it keeps nobody waiting."""

    def __init__(self, sink: Sink):
        self.sink = sink
        self._waiting: SimpleQueue[Any] = SimpleQueue()
        self._thread: Thread | None = None
        self._problem = ""

    def add(self, figures: Figures) -> None:
        self._tell(lambda: self.sink.add(figures), skip_if_broken=True)

    def end(self, rows: Sequence[Figures], made: Mapping[str, str]) -> None:
        self._tell(lambda: self.sink.finish(rows, made), skip_if_broken=False)
        self._waiting.put(None)

    def trouble(self, patience_s: float) -> str:
        """What is missing there, once it has come to its end; empty if nothing is."""
        if self._thread is not None:
            self._thread.join(patience_s)
            if self._thread.is_alive():
                self._problem = f"did not answer for {patience_s:g} s"
        if not self._problem:
            return ""
        return f"{self.sink.name} has not got all figures: {self._problem}. metrics.jsonl has them"

    def _tell(self, act: Any, skip_if_broken: bool) -> None:
        if self._thread is None:
            self._thread = Thread(target=self._work, name=self.sink.name, daemon=True)
            self._thread.start()
        self._waiting.put((act, skip_if_broken))

    def _work(self) -> None:
        while (asked := self._waiting.get()) is not None:
            act, skip_if_broken = asked
            if self._problem and skip_if_broken:
                continue  # `finish` makes up for it
            try:
                act()
                self._problem = ""
            except Exception as error:  # whatever it is, training goes on
                if not self._problem:
                    log.warning("figures not sent", extra={"sink": self.sink.name}, exc_info=True)
                lines = str(error).strip().splitlines()
                self._problem = lines[0][:200] if lines else type(error).__name__


class TensorBoard:
    """Event files in a folder.

    A step that is taken again, after a resume or a rollback, takes the place of what was told of it and
    of all that came behind: TensorBoard drops those when it reads the new file's beginning. At the end
    one file with each step once is left.
    """

    name = "TensorBoard"

    def __init__(self, folder: Path):
        self.folder = folder
        self._file: Path | None = None
        self._step = -1

    def add(self, figures: Figures) -> None:
        self._write([figures])

    def finish(self, rows: Sequence[Figures], made: Mapping[str, str]) -> None:
        if not rows:
            return
        before = list(self.folder.glob(PATTERN))
        self._begin(0)
        self._write(rows)
        for path in before:
            path.unlink(missing_ok=True)

    def _write(self, rows: Sequence[Figures]) -> None:
        for figures in rows:
            step = int(figures["step"])
            if self._file is None or step <= self._step:
                self._begin(step)
            assert self._file is not None
            values = {NAMES.get(name, _grouped(name)): v for name, v in _figures_of(figures).items()}
            append_scalars(self._file, step, values)
            self._step = step

    def _begin(self, step: int) -> None:
        self._file, self._step = begin_file(self.folder, step), step - 1


class Mlflow:
    """A run on an MLflow server; a training that goes on goes on there too.

    MLflow can take nothing back: steps that were told are not told again, and so after a rollback the
    figures of the first try stay until the steps behind them.

    Args:
        state: a file that remembers which run it is, and the last step told.
    """

    name = "MLflow"

    def __init__(self, run: RunConfig, state: Path):
        assert run.train.mlflow is not None
        self.run, self.state, self.config = run, state, run.train.mlflow
        self._client: Any = None
        self._id = ""
        self._step = 0
        self._finished = False

    def add(self, figures: Figures) -> None:
        self._open()
        self._send([figures])

    def finish(self, rows: Sequence[Figures], made: Mapping[str, str]) -> None:
        self._open()
        if self._finished:
            return
        self._send(rows)
        for name, value in made.items():
            self._client.set_tag(self._id, f"tunewright.{name}", value)
        self._client.set_terminated(self._id)
        self._remember(finished=True)

    def _send(self, rows: Sequence[Figures]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for figures in (row for row in rows if row["step"] > self._step):
            step = int(figures["step"])
            values = _figures_of(figures).items()
            metrics = [Metric(NAMES.get(n, _grouped(n)), value, now, step) for n, value in values]
            self._client.log_batch(self._id, metrics=metrics)
            self._step = step
        self._remember(finished=False)

    def _open(self) -> None:
        if self._client is not None:
            return
        # A server that is down would be asked again for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=self.config.tracking_uri)
        settings = _settings(self.run)
        of = digest({"settings": settings, **self.config.model_dump()})
        known = read_json(self.state) if self.state.is_file() else {}
        if known.get("of") == of:
            self._id, self._step, self._finished = known["run_id"], known["step"], known["finished"]
        else:
            found = client.get_experiment_by_name(self.config.experiment)
            place = found.experiment_id if found else client.create_experiment(self.config.experiment)
            self._id = client.create_run(place, run_name=self.run.name).info.run_id
            self._log_settings(client, settings)
        self._client, self._of = client, of
        self._remember(self._finished)

    def _log_settings(self, client: Any, settings: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        params = [Param(name, value) for name, value in settings.items()]
        for at in range(0, len(params), PARAMS_AT_ONCE):
            client.log_batch(self._id, params=params[at : at + PARAMS_AT_ONCE])

    def _remember(self, finished: bool) -> None:
        self._finished = finished
        state = {"of": self._of, "run_id": self._id, "step": self._step, "finished": finished}
        write_json(self.state, state)


def _figures_of(figures: Figures) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in figures.items()
        if name not in NOT_FIGURES and isinstance(value, int | float)
    }


def _grouped(name: str) -> str:
    """`eval_loss/chat` -> `eval/loss/chat`; everything else under `train/`."""
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"


def _settings(run: RunConfig) -> dict[str, str]:
    """What the training was asked for, one entry a leaf."""
    train = run.train.model_dump(mode="json", exclude={"mlflow"})
    return dict(_leaves({"seed": run.seed, "base": run.base.model_dump(), "train": train}, ""))


def _leaves(value: Any, name: str) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in _leaves(inner, f"{name}.{key}".lstrip("."))]
    return [(name, str(value)[:LONGEST_PARAM])]
