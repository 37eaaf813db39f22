"""Chunks of any size give the same rows with the same line numbers."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from file_sources import WRITERS, file_source, gzipped, read_rows, write_arrow, write_stream
from tunewright.data.rows import Chunk
from tunewright.data.sources import chunks as chunking
from tunewright.data.sources import read_chunk, source_chunks, streams
from tunewright.errors import DataError

LINES = st.sampled_from(["", " ", '{"a": 1}', '{"a": "\u00e9\u00e9\u00e9"}', "broken", "x" * 40])


def numbers(given: list[Chunk]) -> list[int]:
    return [row.record["n"] for chunk in given for row in read_chunk(chunk) if row.record]


def write_numbers(path: Path, count: int, first: int = 0) -> None:
    path.write_text("".join(f'{{"n": {first + n}}}\n' for n in range(count)), encoding="utf-8")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(LINES, max_size=30),
    st.integers(1, 60),
    st.integers(1, 50),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_chunks_of_any_size_give_the_same_rows_with_the_same_line_numbers(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], size: int, block: int, end: str, ended: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "chunks.jsonl"
    path.write_bytes((end.join(["{}", *lines]) + end * ended).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking, "CHUNK_BYTES", size)
        patch.setattr(streams, "BLOCK_BYTES", block)
        given = source_chunks(0, file_source(path, "jsonl"))
        rows = [row for chunk in given for row in read_chunk(chunk)]
    pieces = [piece for chunk in given for piece in chunk.pieces]
    assert pieces[0].start == 0
    assert all(a.end == b.start for a, b in pairwise(pieces))
    assert pieces[-1].end in (-1, path.stat().st_size)
    assert sum(chunk.size for chunk in given) == path.stat().st_size
    wanted = [(n, line.strip()) for n, line in enumerate(["{}", *lines], start=1) if line.strip()]
    assert [(row.line, row.text) for row in rows] == wanted


def test_a_large_file_is_read_in_several_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_numbers(tmp_path / "a.jsonl", 100)
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 200)
    given = source_chunks(3, file_source(tmp_path / "a.jsonl", "jsonl"), first_number=7)
    assert len(given) > 3
    assert [chunk.number for chunk in given] == list(range(7, 7 + len(given)))
    assert {(chunk.source, chunk.type, chunk.max_rows) for chunk in given} == {(3, "jsonl", None)}
    assert numbers(given) == list(range(100))


def test_small_files_go_together_and_large_ones_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = [3, 3, 200, 3, 80, 3, 3]
    for index, count in enumerate(counts):
        write_numbers(tmp_path / f"{index}.jsonl", count, sum(counts[:index]))
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 1000)
    given = source_chunks(0, file_source(tmp_path, "jsonl"))
    files = [[Path(piece.path).stem for piece in chunk.pieces] for chunk in given]
    assert files == [["0", "1"], ["2"], ["2"], ["2", "3"], ["4", "5", "6"]]
    assert all(chunk.size <= 1000 + len('{"n": 100}\n') for chunk in given)
    assert numbers(given) == list(range(sum(counts)))
    monkeypatch.setattr(chunking, "CHUNK_FILES", 1)
    assert max(len(chunk.pieces) for chunk in source_chunks(0, file_source(tmp_path, "jsonl"))) == 1


def test_a_compressed_file_is_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_numbers(tmp_path / "a.jsonl", 1000)
    path = tmp_path / "b.jsonl"
    path.write_bytes(gzipped((tmp_path / "a.jsonl").read_bytes()))
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 100)
    (chunk,) = source_chunks(0, file_source(path, "jsonl"))
    assert numbers([chunk]) == list(range(1000))


def test_a_large_parquet_file_is_divided_between_its_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": range(1000)}), path, row_group_size=90)
    whole = read_rows(path, "parquet")
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 2000)
    given = source_chunks(0, file_source(path, "parquet"))
    assert 2 < len(given) < 12
    assert [row for chunk in given for row in read_chunk(chunk)] == whole
    assert [row.line for row in whole] == list(range(1, 1001))
    assert numbers(given) == list(range(1000))


@pytest.mark.parametrize("stream", [False, True])
def test_a_large_arrow_file_is_divided_between_its_record_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    path = tmp_path / "a.arrow"
    batches = [pa.record_batch({"n": range(start, start + 90)}) for start in range(0, 900, 90)]
    write_arrow(path, pa.Table.from_batches(batches), stream)
    whole = read_rows(path, "arrow")
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 2000)
    given = source_chunks(0, file_source(path, "arrow"))
    assert len(given) == 5
    assert [row for chunk in given for row in read_chunk(chunk)] == whole
    assert numbers(given) == list(range(900))


def test_large_record_batches_are_not_turned_into_rows_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunewright.data.sources import tabular

    sizes = []
    rows = tabular.Columns.rows

    def measured(self: tabular.Columns, batch: pa.RecordBatch) -> object:
        sizes.append(batch.num_rows)
        return rows(self, batch)

    monkeypatch.setattr(tabular.Columns, "rows", measured)
    write_stream(tmp_path / "a.arrow")
    write_arrow(tmp_path / "b.arrow", pa.table({"n": range(5000)}))
    assert len(read_rows(tmp_path, "arrow")) == 5002
    assert sizes == [2, 1024, 1024, 1024, 1024, 904]


@pytest.mark.parametrize("kind", WRITERS)
def test_max_rows_are_the_first_of_the_source_and_not_of_each_file(tmp_path: Path, kind: str) -> None:
    for name in "cab":
        WRITERS[kind](tmp_path / f"{name}.{kind}")
    for wanted in (1, 2, 3, 5, 6, 9):
        (chunk,) = source_chunks(0, file_source(tmp_path, kind, max_rows=wanted))
        rows = list(read_chunk(chunk))
        assert [row.file[0] for row in rows] == list("aabbcc"[:wanted])


def test_files_after_the_last_row_wanted_are_not_read(tmp_path: Path) -> None:
    write_numbers(tmp_path / "a.jsonl", 5)
    more = b"".join(b'{"n": %d, "text": "%s"}\n' % (n, b"x" * 100) for n in range(20_000))
    (tmp_path / "b.jsonl").write_bytes(gzipped(more)[:-4])
    (chunk,) = source_chunks(0, file_source(tmp_path, "jsonl", max_rows=5))
    assert numbers([chunk]) == [0, 1, 2, 3, 4]
    (chunk,) = source_chunks(0, file_source(tmp_path, "jsonl", max_rows=30_000))
    with pytest.raises(DataError, match=r"b\.jsonl: the gzip file is cut off"):
        numbers([chunk])


def test_a_chunk_travels_as_json(tmp_path: Path) -> None:
    from tunewright.data.convert import chunk_from_json, chunk_to_json

    write_numbers(tmp_path / "a.jsonl", 3)
    (chunk,) = source_chunks(0, file_source(tmp_path, "jsonl"))
    assert chunk_from_json(chunk_to_json(chunk)) == chunk
    assert json.loads(chunk_to_json(chunk))["pieces"][0]["path"] == str(tmp_path / "a.jsonl")
