"""Looks at this machine and says what would stop a run, and what to do about it.

Reads versions from package metadata: nothing heavy is imported, so a broken torch cannot break it.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement
from packaging.version import Version

from tunewright.artifacts import Store
from tunewright.errors import StoreError

PYTHON_RANGE = ((3, 11), (3, 14))
MEMORY_GIB = (3.0, 6.0)
"""Fails below the first, warns below the second."""
DISK_GIB = (1.0, 5.0)
SHM_GIB = 1.0
OPEN_FILES = 1024
PORTS = {8000: "serve.port", 8265: "Ray's dashboard"}
SOCKET_PATH_LIMIT = 107
RAY_SOCKET_PATH = len(
    "/tw-1234567-abcdefgh/1/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
)
GIB = 1024**3

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """What was looked at, what was found, and what to do when it is not right."""

    name: str
    state: State
    found: str
    do: str = ""


def examine(store_root: Path) -> list[Check]:
    """All checks of this machine, for runs that keep their artifacts in `store_root`."""
    return [
        check_python(sys.version_info[:2]),
        *check_packages(requirements()),
        *check_pins(Path(__file__).parents[2] / "constraints.txt"),
        check_cores(os.cpu_count() or 1),
        check_memory(psutil.virtual_memory().available / GIB),
        *check_shared_memory(Path("/dev/shm")),  # noqa: S108 - looked at, not written
        check_open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        check_temp(Path(tempfile.gettempdir())),
        check_store(store_root),
        check_disk(store_root),
        *check_gpu(),
        check_bf16(Path("/proc/cpuinfo")),
        *(check_port(port, use) for port, use in PORTS.items()),
    ]


def check_python(version: tuple[int, int]) -> Check:
    low, high = PYTHON_RANGE
    found = ".".join(map(str, version))
    if low <= version < high:
        return Check("python", "ok", found)
    wanted = f"{low[0]}.{low[1]} to {high[0]}.{high[1] - 1}"
    return Check("python", "fail", found, f"install Python {wanted} and make the environment again")


def requirements() -> list[Requirement]:
    """What the installed Tunewright asks for, without its extras; empty when it is not installed."""
    try:
        lines = importlib.metadata.requires("tunewright") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    parsed = [Requirement(line) for line in lines]
    return [r for r in parsed if r.marker is None or r.marker.evaluate({"extra": ""})]


def check_packages(wanted: Iterable[Requirement]) -> Iterator[Check]:
    """One check for all packages that fit, one for each that does not."""
    fitting = 0
    for requirement in wanted:
        found = _installed(requirement.name)
        if found is not None and requirement.specifier.contains(found, prereleases=True):
            fitting += 1
            continue
        yield Check(
            requirement.name,
            "fail",
            found or "not installed",
            f"pip install '{requirement.name}{requirement.specifier}' -c constraints.txt",
        )
    if fitting:
        yield Check("packages", "ok", f"{fitting} within their ranges")
    else:
        yield Check("packages", "warn", "tunewright is not installed", "make .venv, or pip install -e .")


def check_pins(constraints: Path) -> Iterator[Check]:
    """Versions that differ from what the tests ran with; nothing where there is no constraints file."""
    if not constraints.is_file():
        return
    pins = [line.partition("==") for line in constraints.read_text(encoding="utf-8").split() if "==" in line]
    differ = [
        f"{name} {found} (pinned {pin})"
        for name, _, pin in pins
        if (found := _installed(name)) is not None and Version(found).public != Version(pin).public
    ]
    if differ:
        yield Check("pins", "warn", ", ".join(differ), "pip install -e '.[dev]' -c constraints.txt")
    else:
        yield Check("pins", "ok", "as in constraints.txt")


def check_cores(cores: int) -> Check:
    if cores >= 2:
        return Check("cores", "ok", str(cores))
    return Check(
        "cores", "warn", str(cores), "training with 2 workers on one core is slow; set train.workers=1"
    )


def check_memory(available_gib: float) -> Check:
    found = f"{available_gib:.1f} GiB available"
    fail, warn = MEMORY_GIB
    if available_gib < fail:
        return Check("memory", "fail", found, f"close other programs: the quickstart needs {warn:.0f} GiB")
    if available_gib < warn:
        return Check("memory", "warn", found, f"the quickstart likes {warn:.0f} GiB; close other programs")
    return Check("memory", "ok", found)


def check_shared_memory(folder: Path) -> Iterator[Check]:
    """Ray keeps objects in /dev/shm, which containers make small; nothing where there is none."""
    if not folder.is_dir():
        return
    free = shutil.disk_usage(folder).free / GIB
    if free < SHM_GIB:
        yield Check("shared memory", "warn", f"{free:.2f} GiB", "start the container with --shm-size=2g")
    else:
        yield Check("shared memory", "ok", f"{free:.1f} GiB")


def check_open_files(limit: int) -> Check:
    if limit in (resource.RLIM_INFINITY, -1) or limit >= OPEN_FILES:
        return Check("open files", "ok", str(limit))
    return Check("open files", "fail", str(limit), "ulimit -n 65536")


def check_temp(folder: Path) -> Check:
    if len(str(folder)) + RAY_SOCKET_PATH > SOCKET_PATH_LIMIT:
        return Check("temporary folder", "fail", str(folder), "too long for Ray's sockets; set TMPDIR=/tmp")
    if not os.access(folder, os.W_OK):
        return Check("temporary folder", "fail", f"{folder} cannot be written", "set TMPDIR to one that can")
    return Check("temporary folder", "ok", str(folder))


def check_store(root: Path) -> Check:
    """Whether the store can be written; makes nothing that is not there yet."""
    if not root.exists():
        parent = _nearest(root)
        if parent.is_dir() and os.access(parent, os.W_OK):
            return Check("store", "ok", f"{root} will be made")
        return Check(
            "store", "fail", f"{parent} cannot be written", "set TUNEWRIGHT_STORE to a folder that can"
        )
    try:
        Store(root)
    except StoreError as error:
        return Check("store", "fail", str(error), "set TUNEWRIGHT_STORE to a folder that can be written")
    return Check("store", "ok", f"{root} can be written")


def check_disk(root: Path) -> Check:
    free = shutil.disk_usage(_nearest(root)).free / GIB
    fail, warn = DISK_GIB
    state: State = "fail" if free < fail else "warn" if free < warn else "ok"
    do = "" if state == "ok" else f"free some space: a run likes {warn:.0f} GiB, or set TUNEWRIGHT_STORE"
    return Check("disk", state, f"{free:.1f} GiB free at {_nearest(root)}", do)


def check_gpu() -> Iterator[Check]:
    """The NVIDIA GPUs, and whether the installed torch can use them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        yield Check("gpu", "ok", "none; training and serving run on the CPU")
        return
    try:
        done = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        yield Check("gpu", "warn", f"nvidia-smi failed: {error}", "repair the NVIDIA driver to use the GPU")
        return
    yield Check("gpu", "ok", "; ".join(line.partition(" (UUID")[0] for line in done.stdout.splitlines()))
    torch = _installed("torch") or ""
    if torch.endswith("+cpu"):
        yield Check(
            "gpu torch", "warn", f"torch {torch} is built for the CPU", "install a CUDA build of torch"
        )


def check_bf16(cpuinfo: Path) -> Check:
    """Whether the CPU computes in bf16, as `precision: auto` will find."""
    if not cpuinfo.is_file():
        return Check("cpu bf16", "ok", f"unknown on {platform.machine()}; precision auto decides")
    words = set(cpuinfo.read_text(encoding="utf-8", errors="replace").split())
    found = sorted(words & {"avx512_bf16", "amx_bf16", "bf16"})
    return Check("cpu bf16", "ok", ", ".join(found) or "no; precision auto takes fp32")


def check_port(port: int, use: str) -> Check:
    try:
        with socket.create_server(("127.0.0.1", port)):
            return Check(f"port {port}", "ok", "free")
    except OSError:
        do = f"stop what listens there, or choose another ({use})"
        return Check(f"port {port}", "warn", "in use", do)


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _nearest(path: Path) -> Path:
    """The path itself, or the closest parent that exists."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
