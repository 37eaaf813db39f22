"""Asking a training to finish its step, save and stop: by a file, or by a signal to its process.

A file reaches workers on all nodes, whose training thread no signal reaches. Knows nothing of Ray.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STOP_FILE = "stop"
_signalled = threading.Event()


def listen() -> None:
    """From now on the first SIGTERM asks this process's training to save and end; for the main thread.

    A second one does what it did before.
    """
    _signalled.clear()
    _once(_signalled.set)


def signalled() -> bool:
    """Whether SIGTERM has come since `listen`."""
    return _signalled.is_set()


@contextmanager
def asking_on_sigterm(file: Path) -> Iterator[None]:
    """While the block runs, the first SIGTERM makes `file`; a second one does what it did before.

    Outside the main thread, where Python lets nobody handle signals, nothing changes.
    """
    file.unlink(missing_ok=True)
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask() -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()

    before = _once(ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        file.unlink(missing_ok=True)


def _once(act: Callable[[], None]) -> Any:
    """Let the next SIGTERM do this, and those behind it what they do now, which is returned."""
    before = signal.getsignal(signal.SIGTERM)

    def handle(*_: Any) -> None:
        signal.signal(signal.SIGTERM, before)
        act()

    signal.signal(signal.SIGTERM, handle)
    return before
