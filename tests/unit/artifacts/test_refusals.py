"""A store that is full, read-only, somewhere else or in use says so in one sentence and loses nothing."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tunewright.artifacts import Plan, Store
from tunewright.errors import StoreError, StoreLocked

PLAN = Plan("data", {}, {"rows": 3}, "code")
FULL = "the disk is full"
KEPT = "free some space and run the same command again: finished stages are kept"


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@contextmanager
def holder(store: Store, name: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock `name` until it is killed."""
    code = (
        "import sys, time; from tunewright.artifacts import Store;"
        "lock = Store(sys.argv[1]).lock(sys.argv[2], 'run monday, stage data'); lock.__enter__();"
        "print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(store.root), name], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


def test_a_lock_names_its_holder_and_goes_away_when_the_holder_is_killed(tmp_store: Store) -> None:
    with holder(tmp_store, "data-1") as process:
        with pytest.raises(StoreLocked) as caught, tmp_store.lock("data-1", "run tuesday"):
            pytest.fail("two runs hold the same lock")
        told = str(caught.value)
        assert str(tmp_store.root) in told
        assert f"run monday, stage data (process {process.pid} on " in told
        assert "since 20" in told
        assert "Wait for it, stop it, or give this run its own store" in told
        with tmp_store.lock("data-2", "run tuesday"):  # another artifact is nobody's business
            pass
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        with tmp_store.lock("data-1", "run tuesday"):
            content = (tmp_store.root / "work" / ".data-1.lock").read_text(encoding="utf-8")
    assert content.startswith(f"run tuesday (process {os.getpid()} on ")


def test_a_lock_is_free_again_after_its_block(tmp_store: Store) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), tmp_store.lock("data-1", "run"):
            raise ZeroDivisionError
    with tmp_store.lock("data-1", "run"), pytest.raises(StoreLocked), tmp_store.lock("data-1", "run"):
        pytest.fail("held twice")


def test_a_full_disk_is_told_when_the_store_is_opened(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from tunewright.artifacts import Store; from tunewright.errors import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: Store(sys.argv[1])\n"
        "except StoreError as error: print(error)"
    )
    told = python(code, str(tmp_path / "store")).stdout
    assert told.startswith(f"store {tmp_path / 'store'}: {FULL}")
    assert KEPT in told


def test_a_disk_that_fills_while_publishing_leaves_the_work_and_nothing_half_done(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from tunewright.artifacts import *; from tunewright.errors import *\n"
        "store, plan = Store(sys.argv[1]), Plan('data', {}, {'rows': 3}, 'code')\n"
        "(store.work_dir(plan) / 'rows').write_text('abc')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: store.publish(plan, store.work_dir(plan), {'words': 'x' * 200_000})\n"
        "except StoreError as error: print(error)"
    )
    told = python(code, str(tmp_path)).stdout
    assert told.startswith(f"publishing data/{PLAN.id}: {FULL}")
    store = Store(tmp_path)
    assert store.find(PLAN) is None
    assert [p.name for p in store.work_dir(PLAN).iterdir()] == ["rows"]
    store.publish(PLAN, store.work_dir(PLAN), {})
    assert store.find(PLAN) is not None


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, FULL),
        (errno.EDQUOT, FULL),
        (errno.EROFS, "it cannot be written"),
        (errno.EACCES, "choose another folder with `store:` or TUNEWRIGHT_STORE"),
        (errno.EIO, "Input/output error"),
    ],
    ids=errno.errorcode.get,
)
def test_each_refusal_of_the_disk_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", refuse)
        with pytest.raises(StoreError) as caught:
            Store(tmp_path)
    told = str(caught.value)
    assert told.startswith(f"store {tmp_path}: ")
    assert words in told
    assert f"({tmp_path}/.probe-" in told


def test_a_disk_that_became_read_only_refuses_the_quarantine_in_a_sentence(
    tmp_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_store.work_dir(PLAN)
    (folder / "rows").write_text("abc", encoding="utf-8")
    tmp_store.publish(PLAN, folder, {}).path.joinpath("rows").write_text("abd", encoding="utf-8")

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(StoreError, match="moving damaged .* aside: it cannot be written"):
        tmp_store.find(PLAN)


def test_a_file_where_the_store_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("not a folder", encoding="utf-8")
    with pytest.raises(StoreError, match=r"a file stands where a folder is needed \(.*store"):
        Store(tmp_path / "store")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that nobody can write")
def test_a_folder_that_cannot_be_made_is_told() -> None:
    with pytest.raises(StoreError, match="store /proc/self/tunewright: "):
        Store("/proc/self/tunewright")


def test_a_url_is_not_a_folder() -> None:
    with pytest.raises(StoreError, match="give a local folder, or one that all nodes mount"):
        Store("s3://bucket/store")


def test_the_probe_of_a_new_store_leaves_nothing_behind(tmp_path: Path) -> None:
    Store(tmp_path / "s")
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["artifacts", "registry", "runs", "work"]
