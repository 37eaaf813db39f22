"""Tables are written whole or not at all, and read back as they were."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tunewright.data.tables import open_parquet, read_group, read_table, write_groups, write_table
from tunewright.errors import ShardCorrupt, StoreError

TABLE = pa.table(
    {"key": ["b", "a", None], "n": [1, 2, 3], "x": pa.array([b"1", b"", None], pa.large_binary())}
)


def test_a_table_comes_back_as_it_was(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", TABLE)
    assert read_table(tmp_path / "a.parquet").equals(TABLE)
    assert read_table(tmp_path / "a.parquet", ("n",)).equals(TABLE.select(["n"]))
    assert read_table(tmp_path / "a.parquet").schema.equals(TABLE.schema)


def test_a_table_without_rows_keeps_its_columns(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", TABLE.slice(0, 0))
    write_groups(tmp_path / "b.parquet", [], TABLE.schema)
    for name in ("a.parquet", "b.parquet"):
        assert read_table(tmp_path / name).equals(TABLE.slice(0, 0))


def test_rows_are_divided_into_groups_as_asked(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", TABLE, row_group_rows=2)
    assert open_parquet(tmp_path / "a.parquet").num_row_groups == 2
    assert read_group(tmp_path / "a.parquet", 1).equals(TABLE.slice(2))


def test_each_given_table_is_a_group_also_an_empty_one(tmp_path: Path) -> None:
    parts = [TABLE.slice(0, 0), TABLE, TABLE.slice(0, 0), TABLE.slice(1)]
    write_groups(tmp_path / "a.parquet", iter(parts), TABLE.schema)
    for number, part in enumerate(parts):
        assert read_group(tmp_path / "a.parquet", number).equals(part)
        assert read_group(tmp_path / "a.parquet", number, ["x"]).equals(part.select(["x"]))


def test_the_same_rows_give_the_same_bytes_whatever_holds_them(tmp_path: Path) -> None:
    pieces = pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(1)])
    write_table(tmp_path / "a.parquet", TABLE)
    write_table(tmp_path / "b.parquet", pieces)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    def failing() -> Iterator[pa.Table]:
        yield TABLE
        raise RuntimeError("half way")

    write_table(tmp_path / "a.parquet", TABLE)
    with pytest.raises(RuntimeError, match="half way"):
        write_groups(tmp_path / "a.parquet", failing(), TABLE.schema)
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]
    assert read_table(tmp_path / "a.parquet").equals(TABLE)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    table = pa.table({"noise": np.random.default_rng(0).integers(0, 2**62, 1 << 16)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, limits[1]))
    try:
        with pytest.raises(StoreError, match=r"writing .*a\.parquet: the disk is full"):
            write_table(tmp_path / "a.parquet", table)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty file"), (b"PAR1", "Parquet"), (b"{}" * 50, "magic bytes")],
    ids=["empty", "magic alone", "JSON"],
)
def test_what_is_not_parquet_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(ShardCorrupt, match=rf"a\.parquet: not a Parquet file: .*{reason}"):
        open_parquet(tmp_path / "a.parquet")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShardCorrupt, match=r"No such file.*none\.parquet"):
        read_table(tmp_path / "none.parquet")


def test_a_damaged_page_is_found_out(tmp_path: Path) -> None:
    table = pa.table({"noise": np.random.default_rng(0).integers(0, 2**62, 4096)})
    write_table(tmp_path / "a.parquet", table)
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(ShardCorrupt, match=r"a\.parquet: row group 0: .*checksum"):
        read_group(tmp_path / "a.parquet", 0)
    with pytest.raises(ShardCorrupt, match=r"a\.parquet: .*checksum"):
        read_table(tmp_path / "a.parquet")
