"""The metrics file holds each step once, in order, whenever a process died or began again."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.train.launch import following
from tunewright.train.worker import MetricsWriter, compute_dtype, has_bf16, read_metrics


def steps(path: Path) -> list[float]:
    return [metrics["step"] for metrics in read_metrics(path)]


def write(path: Path, *numbers: int) -> None:
    writer = MetricsWriter(path)
    for number in numbers:
        writer.append({"step": number, "loss": 1 / number})


def test_figures_are_appended_and_rounded(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "metrics.jsonl"
    write(path, 1, 2, 3)
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": 0.33333333},
    ]


def test_steps_that_are_taken_again_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 10, 20, 30, 40)
    write(path, 30)
    assert steps(path) == [10, 20, 30]
    write(path, 30, 40, 50)
    assert steps(path) == [10, 20, 30, 40, 50]


@pytest.mark.parametrize("cut", ['{"step": 30, "lo', '{"step": 30, "loss": 0.1}', "{", "null"])
def test_a_line_that_was_cut_off_costs_no_other(tmp_path: Path, cut: str) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 10, 20)
    with path.open("a", encoding="utf-8") as file:
        file.write(cut)
    write(path, 30, 40)
    assert steps(path) == [10, 20, 30, 40]


def test_a_cut_line_does_not_hide_steps_that_are_taken_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 10, 20, 30)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 40, "lo')
    write(path, 20)
    assert steps(path) == [10, 20]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 40)), min_size=1, max_size=5))
def test_whatever_dies_and_resumes_each_step_is_there_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, tries: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.mktemp("tries") / "metrics.jsonl"
    for first, torn in tries:
        write(path, *range(first, 11))
        content = path.read_bytes()
        path.write_bytes(content[: len(content) - torn])
    write(path, 5)
    seen = steps(path)
    assert seen == sorted(set(seen))
    assert seen[-1] == 5


def test_a_file_that_is_not_there_has_no_figures(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_new_figures_are_followed_once_each_and_old_ones_not(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 1, 2)
    told: list[float] = []
    with following(path, lambda metrics: told.append(metrics["step"])):
        write(path, 3)
        deadline = time.monotonic() + 10
        while told != [3] and time.monotonic() < deadline:
            time.sleep(0.02)
        write(path, 4, 5)
    assert told == [3, 4, 5]


def test_precision_is_what_was_asked_for_or_what_the_hardware_computes_in() -> None:
    import torch

    assert compute_dtype("bf16", "cpu") is torch.bfloat16
    assert compute_dtype("fp32", "cpu") is torch.float32
    assert compute_dtype("auto", "cpu") is (torch.bfloat16 if has_bf16("cpu") else torch.float32)
