"""What tells two sources apart, and the rows that Tunewright generates itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from file_sources import file_source
from tunewright.config import BuiltinSource
from tunewright.data.sources import source_identity, write_builtin
from tunewright.data.support_desk import heldout_lines, pretraining_documents, training_lines


def test_the_identity_of_a_source_is_its_content_and_settings_and_not_its_place(tmp_path: Path) -> None:
    folders = [tmp_path / "x", tmp_path / "y" / "z"]
    for folder in folders:
        (folder / "sub").mkdir(parents=True)
        for name in ("a.jsonl", "sub/b.jsonl"):
            (folder / name).write_text('{"a": 1}\n', encoding="utf-8")
    one, other = (source_identity(file_source(folder, "jsonl")) for folder in folders)
    assert one == other
    sha = hashlib.sha256(b'{"a": 1}\n').hexdigest()
    assert one["files"] == [["a.jsonl", sha], ["sub/b.jsonl", sha]]
    assert "path" not in one
    assert source_identity(file_source(folders[0], "jsonl", max_rows=5)) != one
    (folders[0] / "sub" / "b.jsonl").write_text('{"a": 2}\n', encoding="utf-8")
    assert source_identity(file_source(folders[0], "jsonl")) != one


def test_a_file_and_the_folder_that_holds_it_alone_are_one_identity(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{}\n", encoding="utf-8")
    identities = [source_identity(file_source(p, "jsonl")) for p in (path, tmp_path, tmp_path / "*.jsonl")]
    assert identities[0] == identities[1] == identities[2]


def test_large_files_are_hashed_in_threads_in_their_order(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"{number}.jsonl").write_bytes(b'{"n": %d}\n' % number * 200_000)
    files = source_identity(file_source(tmp_path, "jsonl"))["files"]
    wanted = [hashlib.sha256((tmp_path / f"{n}.jsonl").read_bytes()).hexdigest() for n in range(6)]
    assert files == [[f"{n}.jsonl", sha] for n, sha in enumerate(wanted)]


@pytest.mark.parametrize("part", ["train", "heldout", "pretrain"])
def test_a_builtin_source_is_a_file_of_its_generators_rows(tmp_path: Path, part: str) -> None:
    given = BuiltinSource.model_validate({"type": "builtin", "part": part, "rows": 30, "seed": 4})
    written = write_builtin(given, tmp_path)
    lines = Path(written.path).read_text(encoding="utf-8").splitlines()
    if part == "pretrain":
        assert written.format == "text"
        assert [json.loads(line)["text"] for line in lines] == list(pretraining_documents(30, 4))
    else:
        assert written.format == "messages"
        assert lines == list(training_lines(30, 4) if part == "train" else heldout_lines(30, 4))


def test_two_builtin_sources_of_one_run_never_share_a_file(tmp_path: Path) -> None:
    settings = [{}, {"seed": 1}, {"rows": 9}, {"part": "heldout"}, {"dirty_fraction": 0.3}]
    given = [BuiltinSource.model_validate({"type": "builtin", "rows": 8, **more}) for more in settings]
    assert len({write_builtin(one, tmp_path).path for one in given}) == len(settings)
    assert len({json.dumps(source_identity(one)) for one in given}) == len(settings)
