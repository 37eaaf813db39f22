"""A checkpoint comes back bit for bit, or not at all: then the one before it does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tunewright.errors import CheckpointCorrupt
from tunewright.train.checkpoint import latest_checkpoint, open_checkpoint, save_checkpoint


def save(folder: Path, step: int, keep: int = 5) -> Path:
    tensors = {"w/a": torch.full((40, 3), float(step)), "m/a": torch.arange(5) / 7}
    return save_checkpoint(folder, tensors, {"step": step, "identity": "x", "tokens": 10 * step}, keep)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    path = save(tmp_path, 40)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.path == path == tmp_path / "step-000040"
    assert (found.step, found.state["tokens"]) == (40, 400)
    assert torch.equal(found.tensors()["w/a"], torch.full((40, 3), 40.0))
    assert torch.equal(found.tensors()["m/a"], torch.arange(5) / 7)


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "not-there") is None


def test_the_newest_counts_and_only_the_last_few_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 100, 1000):
        save(tmp_path, step, keep=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000100", "step-001000"]
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 1000


def test_one_more_is_spared_besides_the_last_few(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        tensors = {"w/a": torch.zeros(1)}
        save_checkpoint(tmp_path, tensors, {"step": step, "identity": "x"}, 2, spare=5 if step < 20 else 15)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000010", "step-000015", "step-000020"]


def test_a_step_that_is_taken_again_replaces_its_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 5)
    save_checkpoint(tmp_path, {"w/a": torch.zeros(1)}, {"step": 5, "identity": "y"}, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000005"]
    assert open_checkpoint(tmp_path / "step-000005").state["identity"] == "y"


@pytest.mark.parametrize("name", ["trainable.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize(
    "damage",
    [lambda p: os.truncate(p, p.stat().st_size // 2), lambda p: os.truncate(p, 0), flip, Path.unlink],
    ids=["cut", "empty", "bit", "gone"],
)
def test_a_damaged_checkpoint_is_moved_aside_and_the_one_before_it_is_used(
    tmp_path: Path, name: str, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 5)
    newest = save(tmp_path, 10)
    damage(newest / name)
    with pytest.raises(CheckpointCorrupt, match="step-000010"):
        open_checkpoint(newest)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 5
    assert [path.name for path in (tmp_path / "damaged").iterdir()] == ["step-000010-0"]
    assert "step-000010" in (tmp_path / "damaged.txt").read_text(encoding="utf-8")
    assert [record.message for record in caplog.records] == ["checkpoint damaged, using the one before"]
    save(tmp_path, 10)  # the step taken again
    again = latest_checkpoint(tmp_path)
    assert again is not None
    assert again.step == 10


def test_when_all_are_damaged_training_does_not_begin_anew_in_silence(tmp_path: Path) -> None:
    for step in (5, 10):
        flip(save(tmp_path, step) / "trainable.safetensors")
    for _ in range(2):  # it is no better the second time
        with pytest.raises(
            CheckpointCorrupt,
            match="no checkpoint of this training is undamaged: step-000005-1, step-000010-0",
        ):
            latest_checkpoint(tmp_path)
    assert len(list((tmp_path / "damaged").iterdir())) == 2
    save(tmp_path, 15)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 15


def test_the_newest_is_the_one_of_the_largest_number(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000):
        save(tmp_path, step, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1000000"]


@pytest.mark.parametrize("manifest", ["[]", "null", "3", "{}"])
def test_a_manifest_of_another_shape_is_damage(tmp_path: Path, manifest: str) -> None:
    path = save(tmp_path, 5)
    (path / "manifest.json").write_text(manifest, encoding="utf-8")
    with pytest.raises(CheckpointCorrupt):
        open_checkpoint(path)


def test_a_disk_that_fills_while_saving_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    code = (
        "import resource, sys, torch; from pathlib import Path\n"
        "from tunewright.train.checkpoint import save_checkpoint; from tunewright.errors import StoreError\n"
        "folder = Path(sys.argv[1])\n"
        "save_checkpoint(folder, {'w/a': torch.zeros(10)}, {'step': 5}, keep=1)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try: save_checkpoint(folder, {'w/a': torch.zeros(100_000)}, {'step': 10}, keep=1)\n"
        "except StoreError as error: print(error)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout
    assert told.startswith("checkpoint step-000010: the disk is full (")
    assert "run the same command again" in told
    assert told.strip().endswith("training goes on from step-000005")
    assert [path.name for path in tmp_path.iterdir()] == ["step-000005"]
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 5


HARM = """
import errno, os, resource, signal, sys, torch
from pathlib import Path
from tunewright.train.checkpoint import latest_checkpoint, save_checkpoint
from tunewright.errors import StoreError

folder, how, steps, keep = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")

def save(at, step, value):
    tensors = {"w/a": torch.full((3,), value)}
    save_checkpoint(at, tensors, {"step": step, "identity": "x", "value": value}, keep)

def harm(at, number):
    "Save while the operation of that number on a file kills this process, or fails for want of space."
    left = number
    def happens(what):
        nonlocal left
        left -= 1
        if left == 0:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, "No space left on device", what)
    def audit(event, arguments):
        if event in EVENTS and str(at) in str(arguments[0]):
            happens(event)
    real = os.fsync
    os.fsync = lambda descriptor: (happens("fsync"), real(descriptor))[1]
    sys.addaudithook(audit)
    try:
        save(at, int(steps.split(",")[-1]), 2.0)
    except StoreError as error:
        left = -1  # what follows is not harmed
        print(error, file=(at.parent / f"told-{number}").open("w"))
        os._exit(3)
    os._exit(0 if left > 0 else 4)

for number in range(1, 100):
    at = folder / f"{number:03d}"
    for step in steps.split(",")[:-1]:
        save(at, int(step), 1.0)
    child = os.fork() or harm(at, number)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(number, ended, flush=True)
    if ended == 0:
        break
"""


def harmed(folder: Path, how: str, steps: str, keep: int) -> list[Path]:
    """Folders of checkpoints, saved anew while something happened at each operation on a file in turn."""
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HARM, str(folder), how, steps, str(keep)],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert len(told) > 12, told  # twelve at least: three files, a manifest, folders, names
    assert told[-1].endswith(" 0"), "the last one came to its end unharmed"
    wanted = {"kill": "-9", "refuse": "3"}[how]
    # Removing what is no longer needed may fail without a word: the next save does it.
    assert sum(line.split()[1] == wanted for line in told) >= len(told) - 4, told
    return [folder / f"{number:03d}" for number in range(1, len(told) + 1)]


@pytest.mark.parametrize("how", ["kill", "refuse"])
@pytest.mark.parametrize(
    ("steps", "keep"), [("5,10,15", 2), ("5,5", 1)], ids=["one is pruned", "the same step again"]
)
def test_a_process_killed_or_refused_anywhere_in_a_save_leaves_the_old_state_or_the_new(
    tmp_path: Path, how: str, steps: str, keep: int
) -> None:
    folders = harmed(tmp_path, how, steps, keep)
    values = []
    old, new = (int(step) for step in steps.split(",")[-2:])
    for at in folders:
        found = latest_checkpoint(at)
        assert found is not None, at
        values.append(found.state["value"])
        assert float(found.tensors()["w/a"][0]) == found.state["value"]
        assert found.step == (old if found.state["value"] == 1.0 else new)
        for path in at.glob("step-*"):
            open_checkpoint(path)  # a half-deleted one is not to be seen
        save(at, 20, keep=1)
        assert [path.name for path in at.iterdir()] == ["step-000020"], "nothing is left lying about"
    assert {1.0, 2.0} == set(values), "harmed before the new state was there, and after it"
    assert values == sorted(values)
    for told in tmp_path.glob("told-*"):
        assert "the disk is full" in told.read_text(encoding="utf-8")
        assert "training goes on from step-" in told.read_text(encoding="utf-8")


def test_what_a_killed_process_was_writing_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 5)
    (tmp_path / ".writing-step-000010-1").mkdir()
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 5
