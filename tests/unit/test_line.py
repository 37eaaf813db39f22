"""What a person sees of a training while it runs: one line in a terminal, lines in a log."""

from __future__ import annotations

import io
import os
import pty
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tunewright.artifacts import Store
from tunewright.config import RunConfig
from tunewright.errors import ConfigError
from tunewright.line import Line, in_place, training_figures
from tunewright.train import sinks

FIGURES = {
    "step": 40, "total_steps": 300, "epoch": 0.4, "loss": 1.0612, "loss/chat": 2.0, "lr": 8.03e-4,
    "grad_norm": 0.7, "tokens": 9000, "tokens_per_s": 7644.2, "eta_s": 26.2, "attempt": 1,
    "rss_gib": 1.0, "peak_rss_gib": 1.23,
}  # fmt: skip


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({}, "step 40/300  loss 1.061  lr 8.03e-04  7,644 tokens/s  1.2 GiB  26 s left"),
        ({"eta_s": 431}, "step 40/300  loss 1.061  lr 8.03e-04  7,644 tokens/s  1.2 GiB  7 min left"),
        ({"eta_s": 7510}, "step 40/300  loss 1.061  lr 8.03e-04  7,644 tokens/s  1.2 GiB  2 h 5 min left"),
        ({"eval_loss": 0.9, "exact_match": 0.5, "rollbacks": 2, "peak_cuda_gib": 70.25},
         "step 40/300  loss 1.061  eval loss 0.900  exact match 0.500  lr 8.03e-04  7,644 tokens/s  70.2 GiB"
         "  rollbacks 2  26 s left"),
    ],
)  # fmt: skip
def test_a_line_of_training_has_what_a_person_asks(more: dict[str, float], told: str) -> None:
    assert training_figures(FIGURES | more) == told


def line_to(out: Any, store: Store, **train: Any) -> Line:
    run = {
        "name": "desk",
        "store": str(store.root),
        "base": {"model": "tiny"},
        "data": {"sources": [{"type": "builtin", "part": "train", "rows": 10}]},
        "train": {"max_steps": 300, **train},
    }
    return Line(RunConfig.model_validate(run), store, out)


def test_evaluations_and_resumes_are_told_at_once_and_other_steps_now_and_then(tmp_store: Store) -> None:
    out = io.StringIO()
    line = line_to(out, tmp_store)
    for step in range(1, 31):
        more = {"eval_loss": 0.5} if step in (10, 20) else {}
        line.training_line(FIGURES | {"step": step, "attempt": 1 + (step > 24)} | more)
    told = [text.partition("]")[2].split("  loss")[0].strip() for text in out.getvalue().splitlines()]
    goes_on = "goes on from its newest checkpoint, try 2"
    assert told == ["step 1/300", "step 10/300", "step 20/300", goes_on]
    assert line.sinks.finish([FIGURES], {}) == []


def test_the_figures_of_the_run_go_to_its_sinks_and_those_of_the_base_do_not(tmp_store: Store) -> None:
    line = line_to(io.StringIO(), tmp_store)
    folder = tmp_store.root / "runs" / "desk" / "tensorboard"
    line.training_line(FIGURES, "pretrain  ")
    line.sinks.finish([], {})
    assert not folder.exists()
    other = line_to(io.StringIO(), tmp_store)
    other.training_line(FIGURES)
    assert other.sinks.finish([], {}) == []
    assert len(list(folder.iterdir())) == 1


def test_a_sink_that_is_not_installed_stops_the_run_before_anything_is_made(
    tmp_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="train.mlflow needs the package mlflow"):
        line_to(io.StringIO(), tmp_store, mlflow={"tracking_uri": "http://127.0.0.1:1"})


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, int]]:
    """A terminal to write to, and a descriptor to read what was written."""
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    with os.fdopen(theirs, "w", encoding="utf-8") as out:
        yield out, ours
    os.close(ours)


def read(reader: int) -> str:
    """All that was written to the terminal since the last time."""
    pieces = []
    with suppress(BlockingIOError):
        while True:
            pieces.append(os.read(reader, 65_536).decode())
    return "".join(pieces)


LOG = [
    "[ 0:01.0] train      ...",
    "[ 0:02.0]            step 10/60  loss 1.0",
    "[ 0:04.0]            step 20/60  loss 0.9" + "9" * 200,
    "[ 0:06.0]            step 30/60  loss 0.8",
    "[ 0:07.0]            trial 0  step 4  eval_loss 0.8",
    "[ 0:08.0]            trial 1  step 4  eval_loss 0.7",
    "[ 0:09.0] train      made  60 steps",
]


def shown(written: str) -> list[str]:
    """The lines that a terminal holds after this; it knows `up` and `empty the line`."""
    lines = [""]
    for piece in written.replace("\r\n", "\n").split("\n"):
        while piece.startswith("\x1b[1A\r\x1b[2K"):
            lines.pop()
            lines[-1], piece = "", piece.removeprefix("\x1b[1A\r\x1b[2K")
        lines[-1] += piece
        lines.append("")
    return [line for line in lines if line]


def test_a_terminal_has_one_line_of_progress_and_a_log_has_all(terminal: tuple[Any, int]) -> None:
    out, reader = terminal
    live = in_place(out)
    held: list[str] = []
    for text in LOG:
        print(text, file=live, flush=True)
        held = shown("".join(line + "\n" for line in held) + read(reader))
        assert held[-1] == text[:79]
    assert held == [LOG[0], *LOG[4:]]
    log = io.StringIO()
    assert in_place(log) is log


def test_a_long_line_of_progress_is_cut_so_that_it_can_be_taken_away(terminal: tuple[Any, int]) -> None:
    out, reader = terminal
    print(LOG[2], file=in_place(out), flush=True)
    assert len(read(reader).strip()) == 79


def test_a_dumb_terminal_gets_lines(terminal: tuple[Any, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert in_place(terminal[0]) is terminal[0]


def test_a_line_that_comes_in_pieces_is_one_line(terminal: tuple[Any, int], tmp_path: Path) -> None:
    out, reader = terminal
    live = in_place(out)
    for piece in ("[ 0:02.0]            st", "ep 10/60\n[ 0:0", "3.0] train      made\n"):
        live.write(piece)
    live.flush()
    assert shown(read(reader)) == ["[ 0:03.0] train      made"]
