"""Submits a Ray job and follows it to its end: its lines as they come, and its exit code.

`ray job submit` ends with 0 for a stopped job and may lose the log's end with its connection; this
does neither. Imports Ray inside functions.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tunewright.errors import ClusterError
from tunewright.ray_local import forget_addresses

if TYPE_CHECKING:
    from ray.job_submission import JobStatus, JobSubmissionClient

JOB_STOP_WAIT_S = 180
"""Time a stopped job has to finish its step and write its checkpoint before Ray kills it."""
LOST_AFTER_S = 60.0
"""A cluster that does not answer for so long is given up."""
STATUS_PERIOD_S = 0.4
TAIL_PERIOD_S = 1.0
INTERRUPTED = 130
DEFAULT_TOKEN = Path("~/.ray/auth_token").expanduser()
RAY_NOISE = ("Running entrypoint for job ", "Runtime env is setting up.")


def submit_and_follow(
    address: str,
    entrypoint: Sequence[str],
    env: Mapping[str, str],
    submission_id: str,
    out: TextIO | None = None,
    working_dir: Path | None = None,
) -> int:
    """Run `entrypoint` as a Ray job, print its lines as they come, return its exit code.

    Args:
        address: of the cluster's dashboard, or anything else that `ray job submit --address` takes.
        entrypoint: the driver's command.
        env: environment variables of the driver and of all its workers; no secrets, Ray shows them.
        submission_id: names the job.
        out: where the driver's lines go; stdout when left out.
        working_dir: a folder to send to the cluster; its machines share the paths when left out.

    A job that succeeded is 0, one that failed its driver's exit code or 1, a stopped one 130.
    Ctrl-C stops the job, with SIGTERM first so that a training finishes its step and saves, and
    returns 130; so does `ray job stop`. (On SIGINT Ray Train would end its workers at once.)

    Raises:
        ClusterError: the cluster cannot be reached, refuses the job, or is lost.
    """
    client = _client(address)
    stop = {"RAY_JOB_STOP_SIGNAL": "SIGTERM", "RAY_JOB_STOP_WAIT_TIME_S": str(JOB_STOP_WAIT_S)}
    runtime_env: dict[str, Any] = {"env_vars": {**env, **stop}}
    if working_dir is not None:
        runtime_env["working_dir"] = str(working_dir)
    # Ray gives it to a shell, which SIGTERM would end before the driver, whose end nobody would notice then.
    command = f"exec {shlex.join(entrypoint)}"
    try:
        client.submit_job(entrypoint=command, submission_id=submission_id, runtime_env=runtime_env)
    except (RuntimeError, OSError) as error:
        raise ClusterError(f"the Ray at {address} refused the job {submission_id}: {error}") from None
    printer = _Printer(out or sys.stdout)
    try:
        status = asyncio.run(_follow(client, submission_id, printer))
    except KeyboardInterrupt:
        _stop(client, submission_id, printer)
        return INTERRUPTED
    return _exit_code(client, submission_id, status)


class _Printer:
    """Prints a log once, although it is received again from its start after a lost connection."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._printed, self._received = out, 0, 0

    def rewind(self) -> None:
        self._received = 0

    def write(self, text: str) -> None:
        new = text[max(0, self._printed - self._received) :]
        self._received += len(text)
        self._printed = max(self._printed, self._received)
        for line in new.splitlines(keepends=True):
            if not any(noise in line for noise in RAY_NOISE):
                self._out.write(line)
        self._out.flush()


async def _follow(client: JobSubmissionClient, submission_id: str, printer: _Printer) -> JobStatus:
    """Print the job's log until the job is over; returns how it ended."""
    tail = asyncio.create_task(_tail(client, submission_id, printer))
    try:
        status = await _wait_for_end(client, submission_id)
    finally:
        tail.cancel()
        await asyncio.wait([tail])
    # The tail sleeps between lines: what it had not seen yet comes from the whole log.
    printer.rewind()
    printer.write(await asyncio.to_thread(client.get_job_logs, submission_id))
    return status


async def _wait_for_end(client: JobSubmissionClient, submission_id: str) -> JobStatus:
    heard = time.monotonic()
    while True:
        try:
            status = await asyncio.to_thread(client.get_job_status, submission_id)
            heard = time.monotonic()
            if status.is_terminal():
                return status
        except (RuntimeError, OSError) as error:
            if time.monotonic() - heard > LOST_AFTER_S:
                raise ClusterError(
                    f"the Ray cluster has not answered for {LOST_AFTER_S:.0f} s while job {submission_id} "
                    f"was running ({error}). Run the same command again: finished stages are kept"
                ) from None
        await asyncio.sleep(STATUS_PERIOD_S)


async def _tail(client: JobSubmissionClient, submission_id: str, printer: _Printer) -> None:
    import aiohttp

    while True:
        printer.rewind()
        try:
            async for text in client.tail_job_logs(submission_id):
                printer.write(text)
        except (RuntimeError, OSError, aiohttp.ClientError):
            # `_wait_for_end` decides when a silent cluster is a lost one.
            pass
        await asyncio.sleep(TAIL_PERIOD_S)


def _stop(client: JobSubmissionClient, submission_id: str, printer: _Printer) -> None:
    print("stopping the job, so that it can resume; Ctrl-C again leaves at once", file=sys.stderr, flush=True)
    try:
        client.stop_job(submission_id)
        asyncio.run(_follow(client, submission_id, printer))
    except KeyboardInterrupt:
        return
    except (RuntimeError, OSError) as error:
        raise ClusterError(f"job {submission_id} may still be running, stopping it failed: {error}") from None


def _exit_code(client: JobSubmissionClient, submission_id: str, status: JobStatus) -> int:
    from ray.job_submission import JobStatus

    if status == JobStatus.SUCCEEDED:
        return 0
    if status == JobStatus.STOPPED:
        return INTERRUPTED
    info = client.get_job_info(submission_id)
    if info.driver_exit_code is None:
        # The driver did not run, or not to its end: its log does not say why.
        print(f"job {submission_id} failed: {info.message}", file=sys.stderr, flush=True)
    return info.driver_exit_code or 1


def _client(address: str) -> JobSubmissionClient:
    forget_addresses()
    if any(map(os.environ.get, ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))) or DEFAULT_TOKEN.exists():
        # Ray sends the token it has only when told to.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"no Ray answers at {address}: {error} Give the address of its dashboard, such as "
            f"http://127.0.0.1:8265, or leave --address out to start a local Ray"
        ) from None
