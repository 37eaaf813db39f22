"""A checkpoint comes back bit for bit, or not at all: then the one before it does."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tunewright.errors import CheckpointCorrupt, StoreError
from tunewright.train import checkpoint
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


def test_when_all_are_damaged_there_is_none_and_all_are_kept_for_a_look(tmp_path: Path) -> None:
    for step in (5, 10):
        flip(save(tmp_path, step) / "trainable.safetensors")
    assert latest_checkpoint(tmp_path) is None
    assert len(list((tmp_path / "damaged").iterdir())) == 2


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
    assert [path.name for path in tmp_path.iterdir()] == ["step-000005"]
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 5


@pytest.mark.parametrize("function", ["write_json", "fsync", "file_sha256"])
def test_a_disk_that_refuses_any_part_of_a_checkpoint_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    save(tmp_path, 5)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, function, refuse)
        with pytest.raises(StoreError, match="checkpoint step-000010: the disk is full"):
            save(tmp_path, 10, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000005"]
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 5


def test_what_a_killed_process_was_writing_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 5)
    (tmp_path / ".writing-step-000010-1").mkdir()
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 5
