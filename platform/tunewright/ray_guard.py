"""Runs a command until standard input closes, then ends every process that came from it.

The caller holds the other end of the pipe. However the caller ends, SIGKILL included, the pipe
closes, and the command, its children and their orphans end too. Knows nothing of Ray.

    python -m tunewright.ray_guard FOLDER COMMAND...

FOLDER receives the command's output (`start.log`) and is removed at the end, unless the command
ended by itself: then it is left for the caller to read.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

COMMAND_GRACE_S = 5.0
"""What the command has to end itself and its own after SIGTERM."""
ORPHAN_GRACE_S = 1.0
"""What is still there then has so long after its own SIGTERM, until SIGKILL."""
KILL_WAIT_S = 5.0
POLL_S = 0.2

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def main(argv: Sequence[str]) -> int:
    """Guard `argv[1:]`; returns the command's exit code, 0 when it was ended on request."""
    folder, command = Path(argv[0]), list(argv[1:])
    # Orphans come to this process instead of init: so they can be found, and only they are ended.
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: asked.append(received))
    # Not SIG_IGN: the command would inherit it, and no job below could be stopped with SIGINT.
    signal.signal(signal.SIGINT, lambda *_: None)
    with (folder / "start.log").open("wb") as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_guard,
        )
    while child.poll() is None and not asked and not _closed(sys.stdin.fileno(), POLL_S):
        pass
    code = child.returncode
    end_descendants(child)
    if code is None:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if code is None else code or 1


def end_descendants(child: subprocess.Popen[bytes]) -> None:
    """End `child`, then every descendant it left: politely, after a bounded wait by SIGKILL."""
    # Where there is no subreaper, an orphan is still found if it was a descendant before.
    known = _descendants()
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(COMMAND_GRACE_S)
        except subprocess.TimeoutExpired:
            child.kill()
    for number, wait_s in ((signal.SIGTERM, ORPHAN_GRACE_S), (signal.SIGKILL, KILL_WAIT_S)):
        for process in _left(known):
            _signal(process, number)
        _wait_until_gone(known, wait_s)


def _descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _left(known: set[psutil.Process]) -> set[psutil.Process]:
    """Living descendants, old and new."""
    left = set()
    for process in known | _descendants():
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                left.add(process)
        except psutil.NoSuchProcess:
            continue
    return left


def _wait_until_gone(known: set[psutil.Process], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        left = _left(known)
        _reap()
        if not left:
            return
        time.sleep(0.05)


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _closed(descriptor: int, timeout_s: float) -> bool:
    """Whether the pipe's other end is closed; waits at most `timeout_s` to learn it."""
    readable, _, _ = select.select([descriptor], [], [], timeout_s)
    return bool(readable) and os.read(descriptor, 4096) == b""


def _die_with_guard() -> None:
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    """Linux's prctl; other systems have none, and there the pipe alone decides."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
