"""What is written is what was packed: tokens, masks, segments and classes, in rows of fixed length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.data import shards
from tunewright.data.pack import pack_best_fit
from tunewright.data.rows import NO_LABEL, Document
from tunewright.data.shards import PackedRows, positions, write_shard
from tunewright.errors import StoreError

SEQ_LEN = 16


def document(ids: list[int], segments: tuple[int, ...] = (), labels: list[int] | None = None) -> Document:
    mask = np.arange(len(ids), dtype=np.int8) % 2
    return Document(
        np.array(ids, np.int32), mask, None if labels is None else np.array(labels, np.int32), segments
    )


def documents(count: int, seed: int) -> list[Document]:
    numbers = np.random.default_rng(seed)
    return [document(numbers.integers(1, 1000, n).tolist()) for n in numbers.integers(1, SEQ_LEN + 1, count)]


def test_a_shard_is_documented_parquet(tmp_path: Path) -> None:
    docs = [document([7, 8, 9]), document([4, 5])]
    size = write_shard(tmp_path / "a.parquet", docs, [[0, 1], [1]], 8)
    assert size == (tmp_path / "a.parquet").stat().st_size
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.to_pydict() == {
        "input_ids": [[7, 8, 9, 4, 5, 0, 0, 0], [4, 5, 0, 0, 0, 0, 0, 0]],
        "loss_mask": [[0, 1, 0, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0]],
        "segment_ids": [[1, 1, 1, 2, 2, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]],
    }
    types = [(field.type.list_size, field.type.value_type) for field in table.schema]
    assert types == [(8, pa.int32()), (8, pa.int8()), (8, pa.int32())]


def test_both_answers_of_a_pair_stand_in_one_row_under_numbers_that_follow(tmp_path: Path) -> None:
    pairs = [document([1, 2, 3, 4, 5], (3, 2)), document([6, 7, 8], (1, 2))]
    write_shard(tmp_path / "a.parquet", pairs, [[0, 1]], 10)
    taken = PackedRows(tmp_path).take([0])
    assert taken["segment_ids"].tolist() == [[1, 1, 1, 2, 2, 3, 4, 4, 0, 0]]
    assert taken["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 0, 1, 0, 0]]


def test_classes_are_kept_and_padding_has_none(tmp_path: Path) -> None:
    docs = [document([1, 2, 3], labels=[NO_LABEL, 4, 0]), document([5, 6], labels=[1, NO_LABEL])]
    write_shard(tmp_path / "a.parquet", docs, [[0, 1]], 7)
    taken = PackedRows(tmp_path).take([0])
    assert taken["labels"].tolist() == [[NO_LABEL, 4, 0, 1, NO_LABEL, NO_LABEL, NO_LABEL]]
    assert taken["labels"].dtype == np.int64


segments = st.lists(st.integers(1, 6), min_size=1, max_size=3)


@given(st.lists(segments, max_size=30), st.booleans(), st.integers(1, 5))
def test_packed_rows_hold_every_token_of_every_segment(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[int]], labelled: bool, rows_per_group: int
) -> None:
    folder = tmp_path_factory.mktemp("shard")
    docs, next_id = [], 1
    for lengths in parts:
        ids = list(range(next_id, next_id + sum(lengths)))
        next_id += len(ids)
        docs.append(document(ids, tuple(lengths) if len(lengths) > 1 else (), ids if labelled else None))
    packed = pack_best_fit([len(d.ids) for d in docs], 18)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "TOKENS_PER_GROUP", 18 * rows_per_group)
        write_shard(folder / "a.parquet", docs, packed, 18)
    rows = PackedRows(folder)
    assert len(rows) == len(packed)
    taken = rows.take(range(len(rows)))
    for row, members in enumerate(packed):
        expected = [length for i in members for length in parts[i]]
        numbers = taken["segment_ids"][row]
        assert np.bincount(numbers, minlength=1)[1:].tolist() == expected
        assert numbers[: sum(expected)].tolist() == sorted(numbers[numbers > 0].tolist())
        ids = [i for m in members for i in docs[m].ids.tolist()]
        assert taken["input_ids"][row].tolist() == ids + [0] * (18 - len(ids))
        assert taken["loss_mask"][row].sum() == sum(docs[m].loss_mask.sum() for m in members)
        if labelled:
            assert taken["labels"][row].tolist() == ids + [NO_LABEL] * (18 - len(ids))
    assert sorted(taken["input_ids"][taken["segment_ids"] > 0].tolist()) == list(range(1, next_id))


def test_the_same_documents_give_the_same_bytes(tmp_path: Path) -> None:
    docs = documents(300, seed=1)
    packed = pack_best_fit([len(d.ids) for d in docs], SEQ_LEN)
    write_shard(tmp_path / "a.parquet", docs, packed, SEQ_LEN)
    # Other objects with the same content, as another worker would have.
    others = [Document(d.ids.copy(), d.loss_mask.copy(), None, (len(d.ids),)) for d in docs]
    write_shard(tmp_path / "b.parquet", others, [tuple(row) for row in packed], SEQ_LEN)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


def test_row_groups_hold_as_many_tokens_whatever_the_length_of_a_row(tmp_path: Path) -> None:
    rows_in_a_group = {}
    for seq_len in (256, 1024, 16_384, 32_768):
        path = tmp_path / "a.parquet"
        write_shard(path, [document([1])], [[0]] * 70, seq_len)
        rows_in_a_group[seq_len] = pq.ParquetFile(path).metadata.row_group(0).num_rows
    assert rows_in_a_group == {256: 64, 1024: 16, 16_384: 1, 32_768: 1}


def test_a_file_never_has_more_row_groups_than_parquet_can_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "MAX_GROUPS", 10)
    monkeypatch.setattr(shards, "TOKENS_PER_GROUP", 8)
    write_shard(tmp_path / "a.parquet", [document([n]) for n in range(101)], [[n] for n in range(101)], 8)
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 10
    rows = PackedRows(tmp_path)
    assert rows.take(range(101))["input_ids"][:, 0].tolist() == list(range(101))


def test_a_row_that_overflows_is_never_cut(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="a row of 10 tokens, seq_len=8"):
        write_shard(tmp_path / "a.parquet", [document([1] * 5)], [[0, 0]], 8)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong",
    [
        Document(np.ones(4, np.int32), np.ones(3, np.int8)),
        Document(np.ones(4, np.int32), np.ones(4, np.int8), None, (1, 2)),
    ],
    ids=["mask", "segments"],
)
def test_a_document_that_contradicts_itself_is_not_written(tmp_path: Path, wrong: Document) -> None:
    with pytest.raises(AssertionError, match="values"):
        write_shard(tmp_path / "a.parquet", [wrong], [[0]], 8)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"writing .*none/a\.parquet: .*No such file"):
        write_shard(tmp_path / "none" / "a.parquet", [document([1])], [[0]], 8)


def test_positions_begin_anew_with_each_document() -> None:
    assert positions(np.array([[1, 1, 1, 2, 2, 0]])).tolist() == [[0, 1, 2, 0, 1, 0]]
    assert positions(np.array([[0, 0], [1, 1], [1, 2]])).tolist() == [[0, 0], [0, 1], [0, 0]]
