"""The private Ray of `tunewright run`: quick, closed to others, and gone without a trace.

Each test starts its Ray from a process of its own, as the command line does: Ray reads its token once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

FOLLOW = """
import sys, time
from tunewright.ray_jobs import submit_and_follow
from tunewright.ray_local import local_ray

with local_ray(2) as local:
    print("folder", local.folder, flush=True)
    code = submit_and_follow(local.address, [sys.executable, sys.argv[1]], {"COLOUR": "green"}, "job")
print("code", code, flush=True)
sys.exit(code)
"""
TRUSTED = """
import json, os, stat, sys, urllib.error, urllib.request
from tunewright.ray_jobs import submit_and_follow
from tunewright.ray_local import local_ray

def status(request):
    try:
        return urllib.request.urlopen(request, timeout=5).status
    except urllib.error.HTTPError as error:
        return error.code

with local_ray(2) as local:
    url = local.address + "/api/jobs/"
    answers = [status(url), status(urllib.request.Request(url, headers={"Authorization": "Bearer wrong"}))]
    answers.append(status(urllib.request.Request(url, headers={"Authorization": "Bearer " + local.token})))
    print(json.dumps({
        "answers": answers, "address": local.address, "repr": local.token in repr(local),
        "mode": stat.S_IMODE(os.stat(local.folder.parent).st_mode),
    }))
"""
BROKEN = """
from tunewright import ray_local
ray_local.OBJECT_STORE_BYTES, ray_local.START_TRIES = 1, 1
try:
    with ray_local.local_ray(1):
        raise SystemExit("started")
except ray_local.ClusterError as error:
    print(error)
"""
# Prints, computes with Ray, and ends with 3.
JOB = """
import os, time
print('first', os.environ['COLOUR'], flush=True)
import ray
ray.init(logging_level='error', log_to_driver=False)
print('task', ray.get(ray.remote(lambda: 41 + 1).remote()), flush=True)
raise SystemExit(3)
"""
# Says who it is, and that it was asked to stop.
PATIENT = """
import os, signal, sys, time
def stop(*_):
    print('checkpoint written', flush=True)
    sys.exit()
signal.signal(signal.SIGTERM, stop)
print('pid', os.getpid(), flush=True)
time.sleep(100)
"""


def start(script: str, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def read_until(process: subprocess.Popen[str], word: str) -> str:
    """The rest of the first line that begins with `word`."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(word):
            return line.removeprefix(word).strip()
    raise AssertionError(f"ended without {word}: {process.stderr.read() if process.stderr else ''}")


def living(folder: str, *pids: int) -> list[str]:
    """What still runs of a local Ray: processes that name its folder, and those given."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = " ".join(process.info["cmdline"] or [])
        ours = folder in command or process.pid in pids
        if ours and process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
            found.append(f"{process.pid} {command}")
    return found


def wait_until_gone(folder: str, *pids: int) -> list[str]:
    deadline = time.monotonic() + 20
    while (left := living(folder, *pids)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


@pytest.fixture
def job(tmp_path: Path) -> str:
    """A script that computes with Ray."""
    return script(tmp_path, JOB)


@pytest.fixture
def patient(tmp_path: Path) -> str:
    """A script that waits to be stopped."""
    return script(tmp_path, PATIENT)


def script(folder: Path, text: str) -> str:
    path = folder / "job.py"
    path.write_text(text)
    return str(path)


def test_a_jobs_lines_and_exit_code_come_through(job: str) -> None:
    process = start(FOLLOW, job)
    folder = read_until(process, "folder")
    out, err = process.communicate(timeout=90)
    assert out.splitlines() == ["first green", "task 42", "code 3"]
    assert process.returncode == 3
    assert "Traceback" not in err
    assert living(folder) == []
    assert not Path(folder).exists()


def test_only_who_has_the_token_may_submit() -> None:
    process = start(TRUSTED)
    out, err = process.communicate(timeout=90)
    assert out, err
    seen = json.loads(out)
    assert seen["answers"] == [401, 403, 200]
    assert seen["address"].startswith("http://127.0.0.1:")
    assert seen["mode"] == 0o700
    assert not seen["repr"]


def test_ctrl_c_lets_the_job_write_its_checkpoint_and_leaves_nothing(patient: str) -> None:
    process = start(FOLLOW, patient)
    folder = read_until(process, "folder")
    driver = int(read_until(process, "pid"))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=90)
    assert out.splitlines() == ["checkpoint written", "code 130"]
    assert process.returncode == 130
    assert "stopping the job" in err
    assert living(folder, driver) == []
    assert not Path(folder).exists()


@pytest.mark.chaos
def test_nothing_is_left_when_the_command_is_killed(patient: str) -> None:
    process = start(FOLLOW, patient)
    folder = read_until(process, "folder")
    driver = int(read_until(process, "pid"))
    assert len(living(folder, driver)) > 3
    process.kill()
    process.communicate(timeout=10)
    assert wait_until_gone(folder, driver) == []
    assert not Path(folder).exists()


def test_a_ray_that_does_not_start_says_why() -> None:
    process = start(BROKEN)
    out, err = process.communicate(timeout=90)
    assert out.startswith("the local Ray did not start in 1 tries:"), err
    assert "memory" in out
