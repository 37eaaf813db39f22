"""`tunewright run`: checks the description here, then runs the line as a job of a Ray."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tunewright.artifacts import Store
from tunewright.config import RunConfig, default_store_root, load_run
from tunewright.console import print_json
from tunewright.errors import ConfigError
from tunewright.line import in_place
from tunewright.preflight import check_files
from tunewright.ray_jobs import submit_and_follow
from tunewright.ray_local import local_ray
from tunewright.runs import read_summary

JOB_SCRIPT = Path(__file__).parents[2] / "jobs" / "pipeline.py"
"""The job's entry in a checkout; an installed package has `-m tunewright.pipeline` only."""
LOOPBACK = ("auto", "local", "localhost", "127.0.0.1", "::1")


def run_line(config: Path, sets: Sequence[str], address: str | None, until: str | None, as_json: bool) -> int:
    """Run the line that `config` describes, to its end or to the stage `until`; returns the exit code.

    With `as_json`, progress goes to stderr and the run's summary to stdout.

    Raises:
        ConfigError: the description is wrong; nothing was started.
        StoreError, DataError, ModelError: a folder or file cannot be used; nothing was started.
        ClusterError: Ray did not start, or was lost.
    """
    run = load_run(config, sets)
    out = in_place(sys.stderr if as_json else sys.stdout)
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    submission_id = f"{run.name}-{until or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    if address and not _shares_paths(address):
        working_dir = Path.cwd()
        entry = ["python", "-m", "tunewright.pipeline", _below(working_dir, config), *_options(sets, until)]
        return submit_and_follow(address, entry, {}, submission_id, out, working_dir)
    Store(run.store_root)
    check_files(run)
    options = _options([*sets, *_absolute_store(run)], until)
    script = [str(JOB_SCRIPT)] if JOB_SCRIPT.is_file() else ["-m", "tunewright.pipeline"]
    # -P: files beside the script must not stand in for installed packages.
    entry = [sys.executable, "-P", *script, str(config.absolute()), *options]
    env = {"TUNEWRIGHT_STORE": str(default_store_root().absolute())}
    with _ray(address) as ray_address:
        code = submit_and_follow(ray_address, entry, env, submission_id, out)
    if as_json and code == 0:
        print_json(read_summary(run.store_root.absolute(), run.name))
    return code


@contextmanager
def _ray(address: str | None) -> Iterator[str]:
    """The Ray at `address`, or one of our own that ends with the job."""
    if address:
        yield address
        return
    print("starting a local Ray", file=sys.stderr, flush=True)
    try:
        with local_ray() as local:
            yield local.address
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _options(sets: Sequence[str], until: str | None) -> list[str]:
    options = [part for override in sets for part in ("--set", override)]
    return options + (["--until", until] if until else [])


def _absolute_store(run: RunConfig) -> list[str]:
    """Workers have other working directories than this process."""
    return [] if run.store is None else [f"store={run.store_root.absolute()}"]


def _shares_paths(address: str) -> bool:
    """Whether a Ray at `address` runs on this machine, and so reads the same files."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    return parts.hostname in LOOPBACK


def _below(working_dir: Path, config: Path) -> str:
    """The path of `config` on a cluster that receives `working_dir`."""
    try:
        return config.absolute().relative_to(working_dir).as_posix()
    except ValueError:
        raise ConfigError(
            f"{config} is not below {working_dir}, which is what is sent to the cluster; "
            f"run the command from a folder that holds the configuration and what it names"
        ) from None
