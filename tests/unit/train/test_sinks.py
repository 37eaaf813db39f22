"""Sinks hold each step once, whatever died or went back; one that fails stops nothing and is told of."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunewright.config import RunConfig
from tunewright.config.train import MlflowConfig
from tunewright.errors import ConfigError
from tunewright.train import sinks
from tunewright.train.event_file import append_scalars, begin_file
from tunewright.train.sinks import Mlflow, Sinks, TensorBoard, check_sinks

FOLDER = "tensorboard"


def run_of(tmp_path: Path, **train: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "desk",
            "store": str(tmp_path),
            "base": {"model": "tiny"},
            "data": {"sources": [{"type": "builtin", "part": "train", "rows": 10}]},
            "train": {"max_steps": 40, **train},
        }
    )


def figures(step: int, loss: float | None = None) -> dict[str, float]:
    row = {"step": step, "total_steps": 40, "loss": 1 / step if loss is None else loss, "lr": 1e-3}
    return row | ({"eval_loss": 2 / step} if step % 20 == 0 else {})


def events(path: Path) -> Iterator[Any]:
    """The records of an event file, checked and decoded by another's code."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    content, at = path.read_bytes(), 0
    while at < len(content):
        length, checksum = struct.unpack_from("<QI", content, at)
        event = content[at + 12 : at + 12 + length]
        assert checksum == masked_crc32c(content[at : at + 8])
        assert struct.unpack_from("<I", content, at + 12 + length) == (masked_crc32c(event),)
        yield Event.FromString(event)
        at += length + 16


def shown(folder: Path, tag: str) -> list[tuple[int, float]]:
    """What TensorBoard shows of a tag: a file that begins at a step drops what was there from it on."""
    points: list[tuple[int, float]] = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in events(path):
            if event.HasField("session_log") and event.session_log.status == event.session_log.START:
                points = [point for point in points if point[0] < event.step]
            for value in event.summary.value:
                if value.tag == tag:
                    points.append((event.step, round(value.simple_value, 6)))
    return points


def told(steps: Any, **more: Any) -> list[tuple[int, float]]:
    return [(step, round(figures(step)["loss"], 6)) for step in steps]


def test_tensorboard_shows_each_figure_under_a_name_that_groups_it(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path)
    for step in (10, 20):
        sink.add({**figures(step), "eval_loss/chat": 3.0, "loss/chat": 4.0, "peak_rss_gib": 1.5})
    assert shown(tmp_path, "train/loss") == told((10, 20))
    assert shown(tmp_path, "eval/loss") == [(20, 0.1)]
    for name, value in (("eval/loss/chat", 3.0), ("train/loss/chat", 4.0), ("memory/peak_rss_gib", 1.5)):
        assert shown(tmp_path, name) == [(10, value), (20, value)]
    assert shown(tmp_path, "train/step") == shown(tmp_path, "train/total_steps") == []


def test_a_resumed_run_does_not_show_steps_twice(tmp_path: Path) -> None:
    first = TensorBoard(tmp_path)
    for step in (10, 20, 30):
        first.add(figures(step, loss=9.0))
    second = TensorBoard(tmp_path)  # another process, from the checkpoint of step 15
    for step in (20, 30, 40):
        second.add(figures(step))
    assert shown(tmp_path, "train/loss") == [(10, 9.0), *told((20, 30, 40))]


def test_a_rollback_takes_the_place_of_what_it_undid(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path)
    for step, loss in ((10, 1.0), (20, 9.0), (30, 9.5), (20, 0.9), (30, 0.8)):
        sink.add(figures(step, loss))
    assert shown(tmp_path, "train/loss") == [(10, 1.0), (20, 0.9), (30, 0.8)]


def test_at_the_end_one_file_holds_what_the_metrics_file_holds(tmp_path: Path) -> None:
    for step in (10, 30):  # 20 fell into the half second in which a driver died
        TensorBoard(tmp_path).add(figures(step, loss=7.0))
    rows = [figures(step) for step in (10, 20, 30, 40)]
    TensorBoard(tmp_path).finish(rows, {})
    assert len(list(tmp_path.iterdir())) == 1
    assert shown(tmp_path, "train/loss") == told((10, 20, 30, 40))


def test_an_event_file_begins_as_tensorboard_expects_and_takes_any_number(tmp_path: Path) -> None:
    path = begin_file(tmp_path, 3_000_000)
    append_scalars(path, 3_000_000, {"a" * 300: 1.5, "nan": float("nan"), "tiny": 1e-30})
    version, start, values = events(path)
    assert version.file_version == "brain.Event:2" and start.step == values.step == 3_000_000
    assert abs(values.wall_time - time.time()) < 60
    assert [value.tag for value in values.summary.value] == ["a" * 300, "nan", "tiny"]
    assert values.summary.value[0].simple_value == 1.5 and np.isnan(values.summary.value[1].simple_value)
    names = [begin_file(tmp_path, 0).name for _ in range(12)]
    assert names == sorted(names) and len(set(names)) == 12


def test_tensorboard_itself_reads_it_so(tmp_path: Path) -> None:
    module = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    test_a_resumed_run_does_not_show_steps_twice(tmp_path)
    seen = module.EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, round(e.value, 6)) for e in seen.Scalars("train/loss")] == shown(tmp_path, "train/loss")


class Recorder:
    """A sink that remembers, or fails, or hangs."""

    name = "Recorder"

    def __init__(self, broken_for: int = 0, hang: threading.Event | None = None):
        self.broken_for, self.hang = broken_for, hang
        self.rows: list[Any] = []
        self.asked = 0

    def add(self, row: Any) -> None:
        self.asked += 1
        if self.hang is not None:
            self.hang.wait(30)
        if self.asked <= self.broken_for:
            raise ConnectionError("connection refused\nand a long traceback")
        self.rows.append(row["step"])

    def finish(self, rows: Any, made: Any) -> None:
        self.add(rows[-1])


def sinks_with(tmp_path: Path, recorder: Recorder) -> Sinks:
    out = Sinks(run_of(tmp_path, tensorboard=False), tmp_path)
    out._guards = [sinks._Guard(recorder)]
    return out


ROWS = [figures(10), figures(20), figures(30)]


def test_a_sink_that_was_down_is_warned_of_once_and_catches_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(broken_for=1)
    fan = sinks_with(tmp_path, recorder)
    for row in ROWS:
        fan.add(row)
    assert fan.finish(ROWS, {}) == []
    assert recorder.rows == [30] and recorder.asked == 2
    assert [record.message for record in caplog.records] == ["figures not sent"]


def test_a_sink_that_stays_down_is_told_of_at_the_end(tmp_path: Path) -> None:
    fan = sinks_with(tmp_path, Recorder(broken_for=9))
    fan.add(ROWS[0])
    (said,) = fan.finish(ROWS, {})
    assert (
        said
        == "Recorder has not got all figures: connection refused. metrics.jsonl has them"
    )  # fmt: skip


def test_a_sink_that_hangs_keeps_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "PATIENCE_S", 0.2)
    hang = threading.Event()
    fan = sinks_with(tmp_path, Recorder(hang=hang))
    begun = time.monotonic()
    for row in ROWS:
        fan.add(row)
    assert time.monotonic() - begun < 0.2
    assert "did not answer for 0.2 s" in fan.finish(ROWS, {})[0]
    hang.set()


def test_a_full_disk_under_tensorboard_is_told_of_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("a file in the way", encoding="utf-8")
    fan = Sinks(run_of(tmp_path), tmp_path)
    fan.add(ROWS[0])
    (said,) = fan.finish(ROWS, {})
    assert said.startswith("TensorBoard has not got all figures: ")


def test_a_run_without_sinks_has_none(tmp_path: Path) -> None:
    fan = Sinks(run_of(tmp_path, tensorboard=False), tmp_path)
    fan.add(ROWS[0])
    assert fan.finish(ROWS, {}) == [] and list(tmp_path.iterdir()) == []


def test_mlflow_that_is_not_installed_is_refused_with_the_command_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path, mlflow={"tracking_uri": "http://127.0.0.1:1"})
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"train.mlflow needs the package mlflow; install it with `pip"):
        check_sinks(run.train)
    check_sinks(run_of(tmp_path).train)


def mlflow_run(tmp_path: Path) -> tuple[RunConfig, Any]:
    """A run that tells a database of this test's, and a client that looks into it."""
    pytest.importorskip("mlflow", reason="the extra [mlflow] is not installed")
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    config = MlflowConfig(tracking_uri=uri, experiment="tests")
    return run_of(tmp_path, mlflow=config.model_dump(), tensorboard=False), MlflowClient(tracking_uri=uri)


@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_mlflow_gets_settings_figures_and_artifacts_and_a_resumed_run_goes_on_there(tmp_path: Path) -> None:
    run, client = mlflow_run(tmp_path)
    first = Sinks(run, tmp_path)
    for step in (10, 20):
        first.add(figures(step))
    first._guards[0]._waiting.put(None)
    assert first._guards[0].trouble(60) == ""
    second = Sinks(run, tmp_path)  # after a kill, from step 15
    for step in (20, 30):
        second.add(figures(step))
    rows = [figures(step) for step in (10, 20, 30, 40)]
    assert second.finish(rows, {"train": "train/abc", "version": "desk@v1"}) == []
    assert Sinks(run, tmp_path).finish(rows, {"train": "train/abc"}) == []  # the run again: all is found
    (there,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    history = client.get_metric_history(there.info.run_id, "train/loss")
    assert sorted((m.step, round(m.value, 6)) for m in history) == told((10, 20, 30, 40))
    assert there.info.status == "FINISHED" and there.info.run_name == "desk"
    assert there.data.tags["tunewright.version"] == "desk@v1"
    assert there.data.params["train.max_steps"] == "40" and there.data.params["train.method.type"] == "lora"
    other, _ = mlflow_run(tmp_path)
    other = other.model_copy(update={"seed": 99})
    assert Sinks(other, tmp_path).finish(rows, {}) == []
    assert len(client.search_runs([there.info.experiment_id])) == 2


@pytest.mark.filterwarnings("ignore")
def test_an_mlflow_server_that_is_down_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="the extra [mlflow] is not installed")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = run_of(tmp_path, mlflow={"tracking_uri": "http://127.0.0.1:9"}, tensorboard=False)
    fan = Sinks(run, tmp_path)
    fan.add(ROWS[0])
    (said,) = fan.finish(ROWS, {})
    assert said.startswith("MLflow has not got all figures: ") and "127.0.0.1" in said
    assert Mlflow.name == "MLflow"
