"""Both passes in this process: what they write does not depend on how the work was divided."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_runs import newborn_base
from tunewright.artifacts import file_sha256
from tunewright.config import DataConfig, FileSource
from tunewright.data import convert
from tunewright.data.collect import Collect, write_bucket
from tunewright.data.convert import SourceView, Step, convert_chunk
from tunewright.data.figures import Figures
from tunewright.data.mixing import Choice
from tunewright.data.shards import PackedRows
from tunewright.data.sources import chunks, source_chunks
from tunewright.data.support_desk import training_lines


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return newborn_base(tmp_path_factory.mktemp("base") / "model")


def shards(
    rows: Path, base: Path, out: Path, buckets: int = 3, form: str = "messages", evaluation: float = 0.05
) -> tuple[dict[str, str], Figures, int]:
    """SHA-256 of every shard, the figures of both passes, and how many spill files there were."""
    source = FileSource(type="jsonl", path=str(rows), format=form)  # type: ignore[arg-type]
    asked = {"sources": [source.model_dump()], "pack": {"seq_len": 192}, "split": {"eval": evaluation}}
    config = DataConfig.model_validate(asked)
    for name in ("spill", "train", "eval", "examples", "quarantine"):
        (out / name).mkdir(parents=True)
    view = SourceView(form, {}, None, None)
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


WORDS = st.lists(
    st.sampled_from(["red", "green", "blue", "one", "two", "three", "ask", "tell"]), min_size=1, max_size=4
)
ROWS = st.lists(st.tuples(WORDS, WORDS), min_size=2, max_size=24)


def sides(rows: list[tuple[list[str], list[str]]], base: Path, folder: Path) -> dict[str, set[bytes]]:
    """What each side of the split holds, as token ids."""
    folder.mkdir()
    lines = [json.dumps({"prompt": " ".join(q), "completion": " ".join(a)}) for q, a in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    shards(folder / "rows.jsonl", base, folder / "out", 2, "prompt_completion", 0.4)
    out: dict[str, set[bytes]] = {}
    for side in ("train", "eval"):
        packed = PackedRows(folder / "out" / side)
        out[side] = set()
        for index in range(len(packed)):
            row = {name: values[0] for name, values in packed.take([index]).items()}
            for number in range(1, int(row["segment_ids"].max()) + 1):
                out[side].add(row["input_ids"][row["segment_ids"] == number].tobytes())
    return out


@settings(max_examples=15, deadline=None)
@given(rows=ROWS, more=ROWS, data=st.data())
def test_a_split_is_stable_and_no_content_is_on_both_sides(
    base: Path, rows: list[tuple[list[str], list[str]]], more: list[Any], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = sides(rows, base, folder / "first")
        reordered = sides(data.draw(st.permutations(rows)), base, folder / "reordered")
        grown = sides([*more, *rows], base, folder / "grown")
    assert first == reordered
    assert first["train"].isdisjoint(first["eval"])
    assert all(first[side] <= grown[side] for side in first)
    assert len(first["train"] | first["eval"]) == len({(tuple(q), tuple(a)) for q, a in rows})


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
