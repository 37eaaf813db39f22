"""Files of every type give the same rows, and no value changes its type on the way."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from file_sources import (
    PACKERS,
    ROWS,
    WRITERS,
    file_source,
    read_rows,
    records,
    write_arrow,
    write_stream,
)
from tunewright.data.rows import Chunk, Piece
from tunewright.data.sources import json_list, read_chunk, source_files, streams
from tunewright.data.sources.snapshot import row_text, write_snapshot
from tunewright.errors import DataError

STORIES = Path(__file__).resolve().parents[5] / "shared" / "data" / "gsm8k" / "train.jsonl"


@pytest.mark.parametrize("packer", [None, *PACKERS])
@pytest.mark.parametrize("kind", WRITERS)
def test_each_type_gives_the_same_rows_packed_or_not(tmp_path: Path, kind: str, packer: str | None) -> None:
    path = tmp_path / f"rows.{kind}"
    WRITERS[kind](path)
    if packer:
        path.write_bytes(PACKERS[packer](path.read_bytes()))  # known by its bytes: the name says nothing
    rows = read_rows(path, kind)
    assert records(rows) == ROWS
    assert [(row.problem, row.file) for row in rows] == [("", f"rows.{kind}")] * 2
    assert records(read_rows(path, kind, max_rows=1)) == ROWS[:1]


def test_an_arrow_stream_is_read_as_a_file_is(tmp_path: Path) -> None:
    write_stream(tmp_path / "rows.arrow")
    assert records(read_rows(tmp_path / "rows.arrow", "arrow")) == ROWS


def test_types_stay_what_they_were_written_as(tmp_path: Path) -> None:
    row = {"a": "007", "b": 7, "c": 7.0, "d": True, "e": None, "f": ["1", 1], "g": {"h": "1e5"}}
    (tmp_path / "a.jsonl").write_text(json.dumps(row), encoding="utf-8")
    (tmp_path / "a.json").write_text(json.dumps([row]), encoding="utf-8")
    (tmp_path / "a.csv").write_text("a,b\n007,7\n", encoding="utf-8")
    for kind in ("jsonl", "json"):
        (read,) = read_rows(tmp_path / f"a.{kind}", kind)
        assert read.record == row
        assert [type(value) for value in read.record.values()] == [type(value) for value in row.values()]
    assert records(read_rows(tmp_path / "a.csv", "csv")) == [{"a": "007", "b": "7"}]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv"])
def test_a_byte_order_mark_and_carriage_returns_change_nothing(tmp_path: Path, kind: str) -> None:
    plain, windows = tmp_path / "plain", tmp_path / "windows"
    WRITERS[kind](plain)
    ends = plain.read_bytes().replace(b"\r\n", b"\n")
    if kind in ("jsonl", "json"):  # within quotes a line end is content
        ends = ends.replace(b"\n", b"\r\n")
    windows.write_bytes(b"\xef\xbb\xbf" + ends)
    assert records(read_rows(windows, kind)) == ROWS


def test_a_text_is_cut_into_documents_at_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\n \r\n\r\nthree caf\xc3\xa9")
    assert [(row.line, row.record) for row in read_rows(path, "text")] == [
        (1, {"text": "one\ntwo"}),
        (6, {"text": "three caf\u00e9"}),
    ]


# CSV


def test_a_csv_row_has_the_number_of_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'a,b\r\n"x\r\ny",z\r\n\r\n"say ""hi""",\r\n1,2')
    rows = read_rows(path, "csv")
    assert [(row.line, row.record) for row in rows] == [
        (2, {"a": "x\r\ny", "b": "z"}),
        (5, {"a": 'say "hi"', "b": ""}),
        (6, {"a": "1", "b": "2"}),
    ]
    assert [row.text for row in rows] == ['"x\r\ny",z', '"say ""hi""",', "1,2"]


def test_a_csv_row_of_another_width_is_one_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n1\n1,2,3\n3,4\n", encoding="utf-8")
    rows = read_rows(path, "csv")
    assert records(rows) == [{"a": "1", "b": "2"}, None, None, {"a": "3", "b": "4"}]
    assert [(row.line, row.text) for row in rows[1:3]] == [(3, "1"), (4, "1,2,3")]
    assert {row.problem for row in rows[1:3]} == {"another number of columns than the header"}


def test_a_very_long_csv_field_is_a_row_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n" + "x" * 200_000 + ",y\n", encoding="utf-8")
    (row,) = read_rows(path, "csv")
    assert row.record is not None
    assert len(row.record["a"]) == 200_000


# JSON lists


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_a_list_is_the_same_rows_whatever_the_blocks_it_is_read_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    given: list[Any] = [
        {"a": [1, 12, {"b": ']},{\\"'}]},
        12345,
        "caf\u00e9\U0001f600",
        {"c": 1.5e3},
        {},
        [],
        None,
    ]
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf \n" + json.dumps(given, ensure_ascii=False, indent=2).encode() + b"\n ")
    monkeypatch.setattr(streams, "BLOCK_BYTES", size)
    rows = read_rows(path, "json")
    assert records(rows) == [value if isinstance(value, dict) else None for value in given]
    assert [row.line for row in rows] == list(range(1, 8))
    assert [json.loads(row.text) for row in rows] == given
    path.write_bytes(b" [ ] ")
    assert read_rows(path, "json") == []


def test_a_list_is_not_held_in_memory_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "x" * 1000}] * 500), encoding="utf-8")
    monkeypatch.setattr(streams, "BLOCK_BYTES", 4096)
    held = []
    value = json_list._Reading.value

    def measured(self: Any) -> Any:
        held.append(len(self.text))
        return value(self)

    monkeypatch.setattr(json_list._Reading, "value", measured)
    assert len(read_rows(path, "json")) == 500
    assert max(held) < 10_000 < path.stat().st_size / 10


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": 1}', "expected a list of rows, found an object; with one object a line, say type: jsonl"),
        (b"12", "expected a list of rows"),
        (b"  ", "not JSON"),
        (b'[{"a": 1}', "not JSON: Expecting ',' or ']' (row 1)"),
        (b'[{"a": 1},', "not JSON: Expecting value (row 2)"),
        (b'[{"a": 1}, {"a": ]', "not JSON: Expecting value (row 2)"),
        (b'[{"a": 1}]]', "not JSON: Extra data after the list (row 1)"),
        (b"[" * 100_000, "not JSON: maximum recursion depth"),
        (b'[{"a": 1}, {"a": "\xe9"}]', "not UTF-8: invalid continuation byte, after row "),
    ],
    ids=["object", "number", "blank", "cut", "cut after comma", "broken", "more", "deep", "latin-1"],
)
def test_a_json_file_that_is_no_list_of_rows_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(f"{path}: {words}")):
        read_rows(path, "json")


def test_one_item_that_is_no_row_costs_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    deep = "[" * 150 + "]" * 150
    path.write_text('[{"a": NaN}, {"a": "\\ud800"}, 3, {"a": ' + deep + '}, {"a": 1}]', encoding="utf-8")
    rows = read_rows(path, "json")
    assert [(row.line, row.problem) for row in rows] == [
        (1, "NaN is not JSON"),
        (2, "holds a lone surrogate"),
        (3, "a row must be an object, found int"),
        (4, "nested deeper than 100"),
        (5, ""),
    ]
    assert records(rows) == [None, None, None, None, {"a": 1}]


# Parquet and Arrow


def write_parquet(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path)


TABLES: dict[str, Callable[[Path, pa.Table], None]] = {"parquet": write_parquet, "arrow": write_arrow}


@pytest.mark.parametrize("kind", TABLES)
def test_values_that_json_has_no_word_for_become_text(tmp_path: Path, kind: str) -> None:
    when = datetime(2026, 11, 21, 7, 30, tzinfo=UTC)
    inner = pa.struct([("at", pa.timestamp("us", "UTC")), ("n", pa.int8()), ("f", pa.float32())])
    columns = {
        "when": pa.array([when], pa.timestamp("us", "UTC")),
        "exact": pa.array([nanoseconds(when)], pa.timestamp("ns")),
        "day": pa.array([date(2026, 11, 21)]),
        "clock": pa.array([time(7, 30)]),
        "lasted": pa.array([timedelta(hours=1)]),
        "price": pa.array([Decimal("1.10")]),
        "raw": pa.array(["caf\u00e9".encode()], pa.binary()),
        "none": pa.array([float("nan")]),
        "missing": pa.array([None], pa.timestamp("s")),
        "label": pa.array(["yes"]).dictionary_encode(),
        "many": pa.array([[Decimal("2.50"), None]]),
        "inner": pa.array([{"at": when, "n": 1, "f": None}], inner),
        "pairs": pa.array([[("k", 1.5)]], pa.map_(pa.string(), pa.float64())),
    }  # fmt: skip
    path = tmp_path / "rows"
    TABLES[kind](path, pa.table(columns))
    (row,) = read_rows(path, kind)
    assert row.record == {
        "when": "2026-11-21T07:30:00+00:00",
        "exact": "2026-11-21T07:30:00.000000123",
        "day": "2026-11-21",
        "clock": "07:30:00",
        "lasted": "1:00:00",
        "price": "1.10",
        "raw": "caf\u00e9",
        "none": None,
        "missing": None,
        "label": "yes",
        "many": ["2.50", None],
        "inner": {"at": "2026-11-21T07:30:00+00:00", "n": 1, "f": None},
        "pairs": {"k": 1.5},
    }
    assert json.loads(row.text) == row.record


def nanoseconds(when: datetime) -> int:
    """The moment in nanoseconds, and 123 more."""
    return int(when.timestamp()) * 10**9 + 123


@pytest.mark.parametrize("kind", TABLES)
def test_a_value_that_cannot_be_text_costs_its_row_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "rows"
    raw = pa.array([b"good", b"\xff\xfe", b"more", b"last"], pa.binary())
    score = pa.array([1.0, 2.0, float("inf"), 4.0])
    TABLES[kind](path, pa.table({"raw": raw, "score": score}))
    rows = read_rows(path, kind)
    assert [row.problem for row in rows] == [
        "", "column `raw`: not UTF-8", "column `score`: Infinity is not JSON", "",
    ]  # fmt: skip
    assert [row.line for row in rows] == [1, 2, 3, 4]
    assert rows[3].record == {"raw": "last", "score": 4.0}
    assert json.loads(rows[1].text) == {"score": 2.0}


def test_a_column_that_no_row_can_hold_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.arrow"
    union = pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])])
    write_arrow(path, pa.table({"a": pa.array([1]), "odd": union}))
    with pytest.raises(
        DataError, match=r"rows\.arrow: column `odd` is of type sparse_union.*JSON has no form"
    ):
        read_rows(path, "arrow")
    write_arrow(path, pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]))
    with pytest.raises(DataError, match=r"rows\.arrow: two columns are named `a`"):
        read_rows(path, "arrow")


# What `datasets.save_to_disk` writes


def saved(folder: Path) -> Path:
    import datasets

    datasets.Dataset.from_list(ROWS * 3).save_to_disk(str(folder), num_shards=2)
    return folder


def test_a_saved_data_set_is_its_shards_without_its_caches(tmp_path: Path) -> None:
    folder = saved(tmp_path / "saved")
    write_stream(folder / "cache-1234.arrow")
    files = source_files(file_source(folder, "arrow"))
    assert [Path(file).name for file in files] == ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    assert records(read_rows(folder, "arrow")) == ROWS * 3
    assert records(read_rows(folder.parent, "arrow")) == ROWS * 3
    Path(files[1]).unlink()
    with pytest.raises(
        DataError, match=r"state\.json: names `data-00001-of-00002\.arrow`, which is not there"
    ):
        source_files(file_source(folder, "arrow"))


def test_a_saved_data_set_of_several_splits_asks_for_one(tmp_path: Path) -> None:
    saved(tmp_path / "train")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}', encoding="utf-8")
    with pytest.raises(DataError, match="holds the splits train, test; name the folder of one of them"):
        source_files(file_source(tmp_path, "arrow"))
    assert len(read_rows(tmp_path / "train", "arrow")) == 6


# Snapshots


def test_a_snapshot_is_read_with_the_lines_that_it_keeps(tmp_path: Path) -> None:
    texts = [row_text(row) for row in [*ROWS, {"a": "\ud800"}]]
    write_snapshot(tmp_path, texts)
    piece = Piece(str(tmp_path / "rows-00000.parquet"))
    rows = list(read_chunk(Chunk(0, 0, "rows", (piece,))))
    assert records(rows) == [*ROWS, None]
    assert [row.line for row in rows] == [1, 2, 3]
    assert rows[2].problem == "holds a lone surrogate"


@pytest.mark.skipif(not STORIES.is_file(), reason="needs the real data in ../shared")
def test_real_rows_are_the_same_in_every_type(tmp_path: Path) -> None:
    wanted = records(read_rows(STORIES, "jsonl", max_rows=500))
    assert len(wanted) == 500
    table = pa.Table.from_pylist(wanted)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    write_arrow(tmp_path / "a.arrow", table)
    (tmp_path / "a.json").write_text(json.dumps(wanted), encoding="utf-8")
    for kind in ("parquet", "arrow", "json"):
        assert records(read_rows(tmp_path / f"a.{kind}", kind)) == wanted
