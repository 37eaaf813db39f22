"""Both passes in this process: what they write does not depend on how the work was divided."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny_runs import newborn_base
from tunewright.artifacts import file_sha256
from tunewright.config import DataConfig, FileSource
from tunewright.data import convert
from tunewright.data.collect import Collect, write_bucket
from tunewright.data.convert import SourceView, Step, convert_chunk
from tunewright.data.figures import Figures
from tunewright.data.mixing import Choice
from tunewright.data.sources import chunks, source_chunks
from tunewright.data.support_desk import training_lines


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return newborn_base(tmp_path_factory.mktemp("base") / "model")


def shards(rows: Path, base: Path, out: Path, buckets: int = 3) -> tuple[dict[str, str], Figures, int]:
    """SHA-256 of every shard, the figures of both passes, and how many spill files there were."""
    source = FileSource(type="jsonl", path=str(rows), format="messages")
    config = DataConfig.model_validate({"sources": [source.model_dump()], "pack": {"seq_len": 192}})
    for name in ("spill", "train", "eval", "examples", "quarantine"):
        (out / name).mkdir(parents=True)
    view = SourceView("messages", {}, None, None)
    step = Step(config, "conversation", (view,), str(base), buckets, str(out))
    figures, parts = Figures(), []
    results = [convert_chunk(chunk, step) for chunk in source_chunks(0, source)]
    for result in results:
        figures.merge(Figures(result["figures"]))
        parts += [(result["chunk"], number) for number in range(result["parts"])]
    work = Collect(step, tuple(parts), Choice(), {}, (), ((),) * len(results))
    for bucket in range(buckets):
        figures.merge(Figures(write_bucket(bucket, work)["figures"]))
    found = {
        path.relative_to(out).as_posix(): file_sha256(path) for path in sorted(out.glob("[te]*/shard-*"))
    }
    return found, figures, len(parts)


def test_shards_are_the_same_whatever_the_chunks_and_their_parts(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(training_lines(1200, 4, 0.1)), encoding="utf-8")
    whole, figures, spills = shards(rows, base, tmp_path / "whole")
    assert (len(whole), spills) == (6, 1)
    monkeypatch.setattr(convert, "PART_BYTES", 100_000)
    in_parts, figures_of_parts, spills = shards(rows, base, tmp_path / "parts")
    assert spills > 1
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 50_000)
    in_chunks, figures_of_chunks, spills = shards(rows, base, tmp_path / "chunks")
    assert spills > 4
    assert in_parts == in_chunks == whole
    assert figures_of_parts.as_dict() == figures_of_chunks.as_dict() == figures.as_dict()


def test_a_task_that_is_run_again_writes_the_same_files(base: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(training_lines(200, 4, 0.1)), encoding="utf-8")
    first, _, _ = shards(rows, base, tmp_path / "out")
    source = FileSource(type="jsonl", path=str(rows), format="messages")
    (chunk,) = source_chunks(0, source)
    config = DataConfig.model_validate({"sources": [source.model_dump()], "pack": {"seq_len": 192}})
    view = SourceView("messages", {}, None, None)
    step = Step(config, "conversation", (view,), str(base), 3, str(tmp_path / "out"))
    before = {path: file_sha256(path) for path in (tmp_path / "out").rglob("*.parquet")}
    convert_chunk(chunk, step)
    assert {path: file_sha256(path) for path in (tmp_path / "out").rglob("*.parquet")} == before
    assert len(first) == 6
