"""The guard ends everything that its command started, however the guard is told or left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

# A command with a child in a session of its own that ignores SIGTERM, as a job's driver may.
FAMILY = """
import subprocess, sys, time
child = "import signal as s, time; s.signal(s.SIGTERM, s.SIG_IGN); print('up', flush=True); time.sleep(100)"
process = subprocess.Popen([sys.executable, "-c", child], start_new_session=True, stdout=subprocess.PIPE)
process.stdout.readline()
open(sys.argv[1], "w").write(str(process.pid))
time.sleep(100)
"""
PARENT = """
import subprocess, sys
guard = subprocess.Popen([sys.executable, "-m", "tunewright.ray_guard", *sys.argv[1:]], stdin=subprocess.PIPE,
                         start_new_session=True)
print(guard.pid, flush=True)
guard.wait()
"""


def guard_command(folder: Path, *command: str) -> list[str]:
    return [sys.executable, "-m", "tunewright.ray_guard", str(folder), sys.executable, *command]


def wait_for(path: Path) -> int:
    """The process id that the family writes when it is complete."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if path.exists() and path.read_text():
            return int(path.read_text())
        time.sleep(0.05)
    raise AssertionError("the guarded command did not start")


def gone_within(pid: int, seconds: float) -> bool:
    """Whether the process ends; one that nobody has waited for yet has ended too."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "guarded"
    made.mkdir()
    return made


@pytest.mark.parametrize("how", ["pipe closed", "SIGTERM"])
def test_a_stubborn_grandchild_ends_with_the_guard(folder: Path, tmp_path: Path, how: str) -> None:
    guard = subprocess.Popen(
        guard_command(folder, "-c", FAMILY, str(tmp_path / "pid")), stdin=subprocess.PIPE
    )
    assert guard.stdin is not None
    grandchild = wait_for(tmp_path / "pid")
    if how == "SIGTERM":
        guard.terminate()
    else:
        guard.stdin.close()
    assert guard.wait(20) == 0
    assert gone_within(grandchild, 1)
    assert not folder.exists()
    guard.stdin.close()


@pytest.mark.chaos
def test_everything_ends_when_the_parent_is_killed(folder: Path, tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(folder), sys.executable, "-c", FAMILY, str(tmp_path / "pid")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    guard = int(parent.stdout.readline())
    grandchild = wait_for(tmp_path / "pid")
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone_within(guard, 20)
    assert gone_within(grandchild, 1)
    assert not folder.exists()


@pytest.mark.chaos
@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_the_command_ends_when_the_guard_is_killed(folder: Path) -> None:
    guard = subprocess.Popen(
        guard_command(folder, "-c", "import time; time.sleep(100)"), stdin=subprocess.PIPE
    )
    assert guard.stdin is not None
    deadline = time.monotonic() + 20
    while not (children := psutil.Process(guard.pid).children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    (command,) = children
    time.sleep(0.3)  # until the child has asked for the signal
    os.kill(guard.pid, signal.SIGKILL)
    guard.wait()
    guard.stdin.close()
    assert gone_within(command.pid, 10)


def test_a_command_that_fails_leaves_its_words_and_its_code(folder: Path) -> None:
    command = guard_command(folder, "-c", "print('no such thing'); raise SystemExit(7)")
    guard = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert guard.wait(20) == 7
    assert guard.stdin is not None
    guard.stdin.close()
    assert (folder / "start.log").read_text().strip() == "no such thing"
