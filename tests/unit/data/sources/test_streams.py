"""Compressed files: any whole one is read, and a cut or damaged one or a bomb gives no run its rows."""

from __future__ import annotations

import gzip
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from file_sources import PACKERS, WRITERS, file_source, gzipped, read_rows, records, zstandard
from tunewright.data.sources import source_files, streams, tabular
from tunewright.errors import DataError

LINES = b"".join(b'{"n": %d, "text": "%s"}\n' % (n, os.urandom(40).hex().encode()) for n in range(3000))


@pytest.mark.parametrize("name", PACKERS)
def test_a_file_of_several_compressed_parts_is_read_to_its_end(tmp_path: Path, name: str) -> None:
    pack = PACKERS[name]
    path = tmp_path / f"a.jsonl.{name}"
    path.write_bytes(pack(LINES[:1000]) + pack(LINES[1000:]))
    rows = read_rows(path, "jsonl")
    assert [row.record and row.record["n"] for row in rows] == list(range(3000))
    assert [row.line for row in rows] == list(range(1, 3001))


@pytest.mark.parametrize("left", [0.5, 0.9, -1])
@pytest.mark.parametrize("name", PACKERS)
def test_the_rows_before_a_cut_are_never_used_in_silence(tmp_path: Path, name: str, left: float) -> None:
    packed = PACKERS[name](LINES)
    size = int(left * len(packed)) if left > 0 else len(packed) - 1
    path = tmp_path / f"a.jsonl.{name}"
    path.write_bytes(packed[:size])
    kind = {"gz": "gzip", "zst": "zstd"}[name]
    with pytest.raises(DataError, match=rf"a\.jsonl\.{name}: the {kind} file is cut off at byte {size:,}: "):
        read_rows(path, "jsonl")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzipped(LINES)[:-8] + b"12345678", "the gzip file is damaged, before byte .*CRC check failed"),
        (gzipped(LINES) + b"something else", "the gzip file is damaged, .*Not a gzipped file"),
        (zstandard(LINES) + b"something else", "the zstd file is damaged, .*Unknown frame descriptor"),
    ],
    ids=["checksum", "more after gzip", "more after zstd"],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.jsonl\.gz: {words}"):
        read_rows(path, "jsonl")


def bomb(name: str, mib: int) -> bytes:
    """Blanks and line ends, so that no row is ever whole."""
    block = b" " * ((1 << 20) - 1) + b"\n"
    if name == "gz":
        return b"".join(gzip.compress(block * 8, 9, mtime=0) for _ in range(mib // 8))
    return zstandard(block * mib)


@pytest.mark.parametrize("name", PACKERS)
def test_a_bomb_is_refused_long_before_it_is_unpacked(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"a.jsonl.{name}"
    path.write_bytes(bomb(name, 136))
    tracemalloc.start()
    try:
        with pytest.raises(
            DataError, match=r"bytes of (gzip|zstd) unpack to \d\d MiB and more; at most 200 times"
        ):
            read_rows(path, "jsonl")
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def test_a_file_that_shrinks_well_is_no_bomb(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzipped(b'{"a": "the same"}\n' * 100_000))
    assert 1_800_000 / path.stat().st_size > streams.BOMB_RATIO
    assert len(read_rows(path, "jsonl")) == 100_000


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_what_unpacks_to_more_than_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / f"a.{kind}.gz"
    WRITERS[kind](path)
    path.write_bytes(gzipped(path.read_bytes()))
    assert len(read_rows(path, kind)) == 2
    for limit in ("UNPACKED_BYTES", "SPOOLED_BYTES"):
        monkeypatch.setattr(streams, limit, 20)
    with pytest.raises(DataError, match=r"bytes of gzip unpack to "):
        read_rows(path, kind)


def test_a_parquet_file_that_is_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": ["x" * 1000] * 2000})
    pq.write_table(table, path, use_dictionary=False, compression="zstd")
    assert len(read_rows(path, "parquet")) == 2000
    monkeypatch.setattr(tabular, "BOMB_FREE_BYTES", 1 << 20)
    with pytest.raises(DataError, match=r"a\.parquet: [\d,]+ bytes unpack to 1 MiB; at most 200 times"):
        read_rows(path, "parquet")


def test_a_file_that_grows_shorter_while_it_is_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES)
    with pytest.raises(
        DataError, match=r"a\.jsonl: became shorter while it was read: \d+ bytes, and there were"
    ):
        list(streams.blocks(str(path), 0, len(LINES) + 1))


def test_only_what_is_asked_of_a_bomb_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzipped(b'{"a": 1}\n') + bomb("gz", 80))
    assert source_files(file_source(path, "jsonl")) == [str(path)]
    assert records(read_rows(path, "jsonl", max_rows=1)) == [{"a": 1}]
