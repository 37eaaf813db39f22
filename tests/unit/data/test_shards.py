"""Rows come back by index as they were written, and a damaged shard is found out before it is learned."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunewright.data import shards
from tunewright.data.pack import pack_best_fit
from tunewright.data.shards import Document, PackedRows, positions, write_shard
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


def test_every_row_of_every_shard_is_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "ROWS_PER_GROUP", 3)
    expected = [row for n in range(3) for row in written(tmp_path, f"shard-{n:03d}.parquet", seed=n)]
    rows = PackedRows(tmp_path, groups_kept=2)
    assert len(rows) == len(expected) > 40
    for index in np.random.default_rng(0).permutation(len(expected)):
        taken, docs = rows.take([int(index)]), expected[index]
        used = sum(len(d.ids) for d in docs)
        assert taken["input_ids"].shape == (1, SEQ_LEN)
        assert taken["input_ids"][0, :used].tolist() == [i for d in docs for i in d.ids]
        assert taken["loss_mask"][0, :used].tolist() == [m for d in docs for m in d.loss_mask]
        numbers = [n for n, d in enumerate(docs, start=1) for _ in d.ids]
        assert taken["segment_ids"][0].tolist() == numbers + [0] * (SEQ_LEN - used)
        assert taken["position_ids"][0, :used].tolist() == [i for d in docs for i in range(len(d.ids))]
        assert not taken["loss_mask"][0, used:].any()


def test_rows_are_taken_in_the_order_asked_for_and_as_often(tmp_path: Path) -> None:
    written(tmp_path, "shard-000.parquet")
    rows = PackedRows(tmp_path)
    one, two = rows.take([1]), rows.take([2])
    both = rows.take([2, 1, 2])
    assert both["input_ids"].dtype == np.int64
    np.testing.assert_array_equal(
        both["input_ids"], np.concatenate([two["input_ids"], one["input_ids"], two["input_ids"]])
    )


def test_no_more_row_groups_are_held_than_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "ROWS_PER_GROUP", 1)
    written(tmp_path, "shard-000.parquet")
    rows = PackedRows(tmp_path, groups_kept=2)
    for index in range(len(rows)):
        rows.take([index])
    assert len(rows._cache) == 2


def test_positions_begin_anew_with_each_document() -> None:
    assert positions(np.array([[1, 1, 1, 2, 2, 0]])).tolist() == [[0, 1, 2, 0, 1, 0]]
    assert positions(np.array([[0, 0], [1, 1], [1, 2]])).tolist() == [[0, 0], [0, 1], [0, 0]]


def test_the_same_documents_give_the_same_bytes(tmp_path: Path) -> None:
    written(tmp_path, "a.parquet")
    written(tmp_path, "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("index", [-1, 1000])
def test_a_row_that_does_not_exist_is_an_error_and_not_another_row(tmp_path: Path, index: int) -> None:
    written(tmp_path, "a.parquet")
    with pytest.raises(IndexError, match=f"row {index} of "):
        PackedRows(tmp_path).take([index])


def test_an_empty_folder_has_no_rows(tmp_path: Path) -> None:
    assert len(PackedRows(tmp_path)) == 0


@pytest.mark.parametrize("size", [0, 4, 100], ids=["empty", "magic alone", "cut"])
def test_a_shard_that_was_cut_short_is_named(tmp_path: Path, size: int) -> None:
    written(tmp_path, "shard-007.parquet")
    os.truncate(tmp_path / "shard-007.parquet", size)
    with pytest.raises(ShardCorrupt, match=r"shard-007\.parquet: not a shard"):
        PackedRows(tmp_path)


def test_a_table_of_something_else_is_not_a_shard(tmp_path: Path) -> None:
    pq.write_table(pa.table({"input_ids": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ShardCorrupt, match=r"columns are \['input_ids'\], expected"):
        PackedRows(tmp_path)


def test_every_flipped_bit_in_the_pages_is_found_out(tmp_path: Path) -> None:
    written(tmp_path, "shard-000.parquet", count=400)
    path = tmp_path / "shard-000.parquet"
    whole = path.read_bytes()
    expected = {name: values.copy() for name, values in take_all(tmp_path).items()}
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
