"""A private Ray on this machine, ended with everything it started. Imports Ray inside functions."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tunewright.errors import ClusterError

LOGICAL_CPUS = 2
"""Least that a local Ray offers: two training workers, a driver and an endpoint's replicas fit."""
OBJECT_STORE_BYTES = 1_000_000_000
READY_TIMEOUT_S = 60.0
START_TRIES = 3
STOP_WAIT_S = 20.0


@dataclass(frozen=True)
class LocalRay:
    """A running private Ray.

    Attributes:
        address: of the dashboard, where jobs are submitted.
        gcs_address: for `ray.init`.
        folder: Ray's logs and sockets; gone when the Ray ends.
        token: without it nobody may submit anything.
    """

    address: str
    gcs_address: str
    folder: Path
    token: str = field(repr=False)


@contextmanager
def local_ray(num_cpus: int | None = None) -> Iterator[LocalRay]:
    """Start a private head node; end it, with everything it started, on the way out.

    It ends too when this process is killed: see `ray_guard`. Sets RAY_AUTH_MODE and RAY_AUTH_TOKEN of
    this process, because Ray reads them once, and takes RAY_ADDRESS away.

    Args:
        num_cpus: what it offers; the machine's cores, at least LOGICAL_CPUS, when left out.
    Raises:
        ClusterError: Ray did not start; with the last lines of what it said.
    """
    token = secrets.token_hex(32)
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token, RAY_USAGE_STATS_ENABLED="0")
    forget_addresses()
    _remove_stale_folders()
    cpus = max(LOGICAL_CPUS, os.cpu_count() or 1) if num_cpus is None else num_cpus
    # Not pytest's or the user's deep folders: paths of unix sockets end at about 100 characters.
    with tempfile.TemporaryDirectory(prefix=f"tw-{os.getpid()}-", ignore_cleanup_errors=True) as name:
        for attempt in range(1, START_TRIES + 1):
            # A port that was free can be taken a moment later: then others are tried.
            local = _plan(Path(name) / str(attempt), token)
            guard = _start_guard(local, cpus)
            try:
                # Two seconds of imports that submitting needs anyway, while Ray starts.
                import ray.job_submission  # noqa: F401

                problem = _wait_until_ready(local, guard)
                if problem is None:
                    yield local
                    return
            finally:
                _stop_guard(guard)
    raise ClusterError(f"the local Ray did not start in {START_TRIES} tries: {problem}")


def forget_addresses() -> None:
    """Take RAY_ADDRESS away from this process: Ray prefers it to any address it is given."""
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nothing listens on now, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for open_socket in sockets:
        open_socket.close()
    return ports


def _plan(folder: Path, token: str) -> LocalRay:
    folder.mkdir(mode=0o700)
    gcs, dashboard = free_ports(2)
    return LocalRay(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}", folder, token)


def _start_guard(local: LocalRay, num_cpus: int) -> subprocess.Popen[bytes]:
    """`ray start` under a guard of its own session; closing the guard's input ends both."""
    (client_port,) = free_ports(1)
    ray_start = [
        *(sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        f"--port={_port(local.gcs_address)}",
        "--include-dashboard=true",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={_port(local.address)}",
        f"--ray-client-server-port={client_port}",
        "--dashboard-agent-listen-port=0",  # its default is one fixed port of the machine
        f"--num-cpus={num_cpus}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--temp-dir={local.folder}",
        "--disable-usage-stats",
        "--no-monitor",  # the cluster autoscaler: one machine has nothing to add
    ]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "tunewright.ray_guard", str(local.folder), *ray_start],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def _stop_guard(guard: subprocess.Popen[bytes]) -> None:
    assert guard.stdin is not None
    guard.stdin.close()
    try:
        guard.wait(STOP_WAIT_S)
    except subprocess.TimeoutExpired:
        # Ray's own processes die with the guard: see its PR_SET_PDEATHSIG.
        guard.kill()
        guard.wait()


def _wait_until_ready(local: LocalRay, guard: subprocess.Popen[bytes]) -> str | None:
    """None when jobs can be submitted, else what is wrong."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline and guard.poll() is None:
        if _has_node(local):
            return None
        time.sleep(0.1)
    log = local.folder / "start.log"
    said = log.read_text(errors="replace").split("\n") if log.exists() else []
    return " | ".join(line.strip() for line in said if line.strip())[-600:] or "it said nothing"


def _has_node(local: LocalRay) -> bool:
    """Whether the node has joined; the dashboard answers seconds before it."""
    request = urllib.request.Request(f"{local.address}/nodes?view=summary")  # noqa: S310 - http, loopback
    request.add_header("Authorization", f"Bearer {local.token}")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
            nodes = json.load(answer)["data"]["summary"]
    except OSError:
        return False
    return any(node["raylet"].get("state") == "ALIVE" for node in nodes)


def _port(address: str) -> str:
    return address.rpartition(":")[2]


def _remove_stale_folders() -> None:
    """Remove what is left of runs whose process and guard were both killed."""
    for folder in Path(tempfile.gettempdir()).glob("tw-*-*"):
        pid = folder.name.split("-")[1]
        if pid.isdigit() and not _alive(int(pid)) and folder.stat().st_uid == os.getuid():
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
