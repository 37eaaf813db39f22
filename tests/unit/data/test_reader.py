"""Rows come back by index as they were written, and a damaged shard is found out before it is learned."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunewright.data import shards
from tunewright.data.pack import pack_best_fit
from tunewright.data.rows import Document
from tunewright.data.shards import PackedRows, shard_schema, write_shard
from tunewright.errors import ShardCorrupt

SEQ_LEN = 16


def documents(count: int, seed: int) -> list[Document]:
    numbers = np.random.default_rng(seed)
    lengths = numbers.integers(1, SEQ_LEN + 1, count)
    return [
        Document(numbers.integers(1, 1000, n).astype(np.int32), numbers.integers(0, 2, n).astype(np.int8))
        for n in lengths
    ]


def written(folder: Path, name: str, count: int = 40, seed: int = 0) -> list[list[Document]]:
    """A shard of `count` documents; returns the documents of each of its rows."""
    docs = documents(count, seed)
    packed = pack_best_fit([len(d.ids) for d in docs], SEQ_LEN)
    write_shard(folder / name, docs, packed, SEQ_LEN)
    return [[docs[i] for i in row] for row in packed]


def same(taken: dict[str, np.ndarray], docs: list[Document]) -> None:
    """Assert that a row that was taken by itself holds these documents."""
    used = sum(len(d.ids) for d in docs)
    assert taken["input_ids"].shape == (1, SEQ_LEN)
    assert taken["input_ids"][0, :used].tolist() == [i for d in docs for i in d.ids]
    assert taken["loss_mask"][0, :used].tolist() == [m for d in docs for m in d.loss_mask]
    numbers = [n for n, d in enumerate(docs, start=1) for _ in d.ids]
    assert taken["segment_ids"][0].tolist() == numbers + [0] * (SEQ_LEN - used)
    assert taken["position_ids"][0, :used].tolist() == [i for d in docs for i in range(len(d.ids))]
    assert not taken["loss_mask"][0, used:].any()


def test_every_row_of_every_shard_is_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "TOKENS_PER_GROUP", 3 * SEQ_LEN)
    expected = [row for n in range(3) for row in written(tmp_path, f"shard-{n:03d}.parquet", seed=n)]
    rows = PackedRows(tmp_path, groups_kept=2)
    assert len(rows) == len(expected) > 40
    for index in np.random.default_rng(0).permutation(len(expected)):
        same(rows.take([int(index)]), expected[index])


def test_many_files_are_read_with_few_of_them_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [row for n in range(30) for row in written(tmp_path, f"shard-{n:03d}.parquet", 4, n)]
    monkeypatch.setattr(shards, "OPEN_COST", 3 * (shards.FILE_COST + 1))
    process = psutil.Process()
    before = process.num_fds()
    rows = PackedRows(tmp_path, groups_kept=2)
    order = np.random.default_rng(0).permutation(len(expected))
    for index in order:
        same(rows.take([int(index)]), expected[index])
        assert len(rows._open) <= 3
        assert process.num_fds() <= before + 3
    assert len(order) > 60


def test_rows_are_taken_in_the_order_asked_for_and_as_often(tmp_path: Path) -> None:
    written(tmp_path, "shard-000.parquet")
    rows = PackedRows(tmp_path)
    one, two = rows.take([1]), rows.take([2])
    both = rows.take([2, 1, 2])
    assert both["input_ids"].dtype == np.int64
    np.testing.assert_array_equal(
        both["input_ids"], np.concatenate([two["input_ids"], one["input_ids"], two["input_ids"]])
    )


def test_what_is_taken_is_the_callers_own(tmp_path: Path) -> None:
    written(tmp_path, "shard-000.parquet")
    rows = PackedRows(tmp_path)
    first = rows.take([0])
    expected = {name: values.copy() for name, values in first.items()}
    for values in first.values():
        values[:] = -7
    for name, values in rows.take([0]).items():
        np.testing.assert_array_equal(values, expected[name])


def test_no_more_row_groups_are_held_than_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "TOKENS_PER_GROUP", SEQ_LEN)
    written(tmp_path, "shard-000.parquet")
    rows = PackedRows(tmp_path, groups_kept=2)
    for index in range(len(rows)):
        rows.take([index])
    assert len(rows._cache) == 2
    assert len(rows) > 10


def test_one_row_is_got_without_decoding_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [Document(np.full(1024, n, np.int32), np.ones(1024, np.int8)) for n in range(200)]
    write_shard(tmp_path / "a.parquet", documents, [[n] for n in range(200)], 1024)
    read: list[int] = []
    whole = shards.read_group_of

    def counting(*args: object) -> pa.Table:
        read.append(whole(*args).num_rows)
        return whole(*args)

    monkeypatch.setattr(shards, "read_group_of", counting)
    assert PackedRows(tmp_path).take([150])["input_ids"][0, 0] == 150
    assert read == [16]


MAPPED_MIB = 24
FLAT_MIB = 8
"""What the process may grow by while it reads all rows of a set three times as large."""


def test_memory_stays_flat_over_a_set_much_larger_than_the_cache(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    ids = numbers.integers(0, 2**31, (MAPPED_MIB * 256, 1024), np.int32)  # does not compress
    mask = np.ones(1024, np.int8)
    for shard in range(2):
        documents = [Document(row, mask) for row in ids[shard::2]]
        write_shard(tmp_path / f"{shard}.parquet", documents, [[n] for n in range(len(documents))], 1024)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > MAPPED_MIB * 2**20
    rows = PackedRows(tmp_path, groups_kept=2)
    order = numbers.permutation(len(rows) // 16) * 16  # a row of each group
    for index in order[:32]:
        rows.take([int(index)])
    process = psutil.Process()
    before, held = process.memory_info().rss, pa.total_allocated_bytes()
    grown = 0
    for index in order:
        rows.take([int(index)])
        grown = max(grown, process.memory_info().rss - before)
    assert len(order) == MAPPED_MIB * 16
    assert grown < FLAT_MIB * 2**20
    assert pa.total_allocated_bytes() <= held + 2**20


@pytest.mark.parametrize("index", [-1, 1000])
def test_a_row_that_does_not_exist_is_an_error_and_not_another_row(tmp_path: Path, index: int) -> None:
    written(tmp_path, "a.parquet")
    with pytest.raises(IndexError, match=f"row {index} of "):
        PackedRows(tmp_path).take([index])


def test_an_empty_folder_has_no_rows(tmp_path: Path) -> None:
    assert len(PackedRows(tmp_path)) == 0


def test_a_shard_without_rows_is_passed_over(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.parquet", [], [], SEQ_LEN)
    expected = written(tmp_path, "b.parquet")
    write_shard(tmp_path / "c.parquet", [], [], SEQ_LEN)
    rows = PackedRows(tmp_path)
    assert len(rows) == len(expected)
    same(rows.take([0]), expected[0])
    assert rows.take([])["input_ids"].shape == (0, SEQ_LEN)


@pytest.mark.parametrize("size", [0, 4, 100], ids=["empty", "magic alone", "cut"])
def test_a_shard_that_was_cut_short_is_named(tmp_path: Path, size: int) -> None:
    written(tmp_path, "shard-007.parquet")
    os.truncate(tmp_path / "shard-007.parquet", size)
    with pytest.raises(ShardCorrupt, match=r"shard-007\.parquet: not a Parquet file"):
        PackedRows(tmp_path)


def test_a_table_of_something_else_is_not_a_shard(tmp_path: Path) -> None:
    pq.write_table(pa.table({"input_ids": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ShardCorrupt, match=r"columns are \['input_ids'\], expected"):
        PackedRows(tmp_path)


def test_columns_of_other_types_are_not_a_shard(tmp_path: Path) -> None:
    pq.write_table(pa.table({name: [[1]] for name in shards.COLUMNS}), tmp_path / "a.parquet")
    with pytest.raises(ShardCorrupt, match=r"a\.parquet: not a shard's types: input_ids list<"):
        PackedRows(tmp_path)


@pytest.mark.parametrize(("seq_len", "labelled"), [(8, False), (SEQ_LEN, True)], ids=["length", "classes"])
def test_shards_of_two_data_sets_do_not_mix(tmp_path: Path, seq_len: int, labelled: bool) -> None:
    written(tmp_path, "a.parquet")
    labels = np.zeros(1, np.int32) if labelled else None
    write_shard(
        tmp_path / "b.parquet", [Document(np.ones(1, np.int32), np.ones(1, np.int8), labels)], [[0]], seq_len
    )
    with pytest.raises(ShardCorrupt, match=rf"b\.parquet: has .* of {seq_len} tokens, unlike a\.parquet"):
        PackedRows(tmp_path)


def write_uneven(path: Path, sizes: list[int]) -> None:
    schema = shard_schema(4)
    with pq.ParquetWriter(path, schema) as writer:
        for size in sizes:
            columns = [pa.array([[size] * 4] * size, field.type) for field in schema]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


@pytest.mark.parametrize("sizes", [[4, 4, 1, 1], [0, 4, 4], [2, 6]], ids=str)
def test_row_groups_that_cannot_be_counted_are_found_out(tmp_path: Path, sizes: list[int]) -> None:
    write_uneven(tmp_path / "a.parquet", sizes)
    with pytest.raises(ShardCorrupt, match=rf"a\.parquet: \d+ rows in {len(sizes)} row groups"):
        PackedRows(tmp_path)


def test_a_row_group_of_another_size_is_found_out_before_its_rows_are_mistaken(tmp_path: Path) -> None:
    write_uneven(tmp_path / "a.parquet", [4, 2, 4])
    rows = PackedRows(tmp_path)
    assert rows.take([3])["input_ids"].tolist() == [[4] * 4]
    with pytest.raises(ShardCorrupt, match="row group 1 has 2 rows, expected 4"):
        rows.take([6])


def test_every_flipped_bit_in_the_pages_is_found_out(tmp_path: Path) -> None:
    written(tmp_path, "shard-000.parquet", count=400)
    path = tmp_path / "shard-000.parquet"
    whole = path.read_bytes()
    expected = take_all(tmp_path)
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    caught = 0
    for at in range(4, len(whole) - footer, max(1, (len(whole) - footer) // 60)):
        damaged = bytearray(whole)
        damaged[at] ^= 4
        path.write_bytes(damaged)
        try:
            taken = take_all(tmp_path)
        except ShardCorrupt as error:
            assert "shard-000.parquet" in str(error)
            caught += 1
        else:  # a bit that the reader does not look at, such as one of a page's statistics
            for name, values in expected.items():
                np.testing.assert_array_equal(taken[name], values)
    assert caught >= 50


def take_all(folder: Path) -> dict[str, np.ndarray]:
    rows = PackedRows(folder)
    return rows.take(range(len(rows)))
