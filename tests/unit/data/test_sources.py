"""Files of every kind give the same rows, and a file that is not what it claims is named."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.config import BuiltinSource, FileSource
from tunewright.data import sources
from tunewright.data.sources import (
    RawRow,
    read_chunk,
    source_chunks,
    source_files,
    source_identity,
    write_builtin,
)
from tunewright.data.support_desk import heldout_lines, pretraining_documents, training_lines
from tunewright.errors import DataError

ROWS = [{"prompt": "007", "completion": 'caf\u00e9, "yes"\nno'}, {"prompt": "b", "completion": "1e5"}]


def source(path: Path, kind: str, **more: Any) -> FileSource:
    return FileSource.model_validate({"type": kind, "path": str(path), **more})


def read(path: Path, kind: str, **more: Any) -> list[RawRow]:
    return [row for chunk in source_chunks(0, source(path, kind, **more)) for row in read_chunk(chunk)]


def write_csv(path: Path, delimiter: str = ",") -> None:
    import csv

    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


WRITERS: dict[str, Callable[[Path], object]] = {
    "jsonl": lambda p: p.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8"),
    "json": lambda p: p.write_text(json.dumps(ROWS, indent=1), encoding="utf-8"),
    "csv": write_csv,
    "tsv": lambda p: write_csv(p, "\t"),
    "parquet": lambda p: pq.write_table(pa.Table.from_pylist(ROWS), p),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_each_type_gives_the_same_rows_and_no_value_changes_its_type(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rows.{kind}"
    WRITERS[kind](path)
    rows = read(path, kind)
    assert [row.record for row in rows] == ROWS
    assert [row.problem for row in rows] == ["", ""]
    assert [row.record for row in read(path, kind, max_rows=1)] == ROWS[:1]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv"])
def test_a_byte_order_mark_and_carriage_returns_change_nothing(tmp_path: Path, kind: str) -> None:
    plain, windows = tmp_path / "plain", tmp_path / "windows"
    WRITERS[kind](plain)
    ends = plain.read_bytes().replace(b"\r\n", b"\n")
    if kind in ("jsonl", "json"):  # within quotes a line end is content
        ends = ends.replace(b"\n", b"\r\n")
    windows.write_bytes(b"\xef\xbb\xbf" + ends)
    assert [row.record for row in read(windows, kind)] == ROWS


def test_a_text_is_cut_into_documents_at_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\n \r\n\r\nthree caf\xc3\xa9")
    assert [(row.line, row.record) for row in read(path, "text")] == [
        (1, {"text": "one\ntwo"}),
        (6, {"text": "three caf\u00e9"}),
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"a": 1', "not JSON: Expecting ',' delimiter"),
        ("hello", "not JSON: Expecting value"),
        ('{"a": NaN}', "not JSON: NaN is not JSON"),
        ('{"a": -Infinity}', "not JSON: -Infinity is not JSON"),
        ('{"a": "\\ud800"}', "holds a lone surrogate"),
        ('{"a": "\x01"}', "not JSON: Invalid control character at"),
        ("[1, 2]", "a row must be an object, found list"),
        ("null", "a row must be an object, found NoneType"),
        ('{"a": 1} {"a": 2}', "not JSON: Extra data"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "not JSON: maximum recursion depth"),
        ('{"a": ' + "9" * 5000 + "}", "not JSON: Exceeds the limit"),
        (b'{"a": "caf\xe9"}', "not UTF-8: "),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else "latin-1",
)
def test_a_bad_line_costs_one_row_and_says_why(tmp_path: Path, line: str | bytes, problem: str) -> None:
    path = tmp_path / "a.jsonl"
    bad = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(b'{"a": "first"}\n' + bad + b'\n\n{"a": "last"}\n')
    first, broken, last = read(path, "jsonl")
    assert (first.record, last.record) == ({"a": "first"}, {"a": "last"})
    assert [row.line for row in (first, broken, last)] == [1, 2, 4]
    assert broken.record is None
    assert broken.problem.startswith(problem)
    broken.text.encode("utf-8")  # what is kept of it can be written to the quarantine


LINES = st.sampled_from(["", " ", '{"a": 1}', '{"a": "\u00e9\u00e9\u00e9"}', "broken", "x" * 40])


@given(st.lists(LINES, max_size=30), st.integers(1, 60), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_chunks_of_any_size_give_the_same_rows_with_the_same_line_numbers(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], size: int, end: str, ended: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "chunks.jsonl"
    path.write_bytes((end.join(["{}", *lines]) + end * ended).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "CHUNK_BYTES", size)
        chunks = source_chunks(0, source(path, "jsonl"))
        rows = [row for chunk in chunks for row in read_chunk(chunk)]
    assert chunks[0].start == 0
    assert all(a.end == b.start for a, b in pairwise(chunks))
    assert chunks[-1].end == path.stat().st_size
    wanted = [(n, line.strip()) for n, line in enumerate(["{}", *lines], start=1) if line.strip()]
    assert [(row.line, row.text) for row in rows] == wanted


def test_a_large_file_is_read_in_several_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"n": {n}}}\n' for n in range(100)), encoding="utf-8")
    monkeypatch.setattr(sources, "CHUNK_BYTES", 200)
    chunks = source_chunks(3, source(path, "jsonl"))
    assert len(chunks) > 3
    assert {chunk.source for chunk in chunks} == {3}
    assert [row.record["n"] for c in chunks for row in read_chunk(c) if row.record] == list(range(100))


def gzipped(path: Path) -> None:
    with gzip.open(path, "wb") as file:
        file.write(b'{"a": 1}\n')


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.jsonl", '{"a": 1}')


@pytest.mark.parametrize(
    ("kind", "write", "words"),
    [
        ("jsonl", lambda p: p.touch(), "the file is empty"),
        ("jsonl", gzipped, "type is jsonl, but the file is a gzip archive"),
        ("csv", zipped, "type is csv, but the file is a zip archive"),
        ("jsonl", WRITERS["parquet"], "type is jsonl, but the file is a Parquet file"),
        ("jsonl", lambda p: p.write_bytes('{"a": 1}'.encode("utf-16")), "the file is UTF-16 text"),
        ("jsonl", lambda p: p.write_bytes('{"a": 1}'.encode("utf-16-le")), "but the file is binary"),
        ("text", lambda p: p.write_bytes(b"%PDF-1.7 ..."), "type is text, but the file is a PDF"),
        ("json", lambda p: p.write_bytes(b"SQLite format 3\0"), "the file is an SQLite database"),
        ("jsonl", WRITERS["json"], "type is jsonl, but the file is one JSON list; say type: json"),
        ("jsonl", lambda p: p.write_bytes(b"\xef\xbb\xbf\n [{}]"), "the file is one JSON list; say type"),
        ("parquet", WRITERS["jsonl"], "type is parquet, but the file does not begin as one"),
    ],
    ids=["empty", "gzip", "zip", "parquet", "utf-16", "utf-16 without mark", "pdf", "sqlite", "list",
         "list after a mark", "not parquet"],
)  # fmt: skip
def test_a_file_that_is_not_what_it_claims_is_named(
    tmp_path: Path, kind: str, write: Callable[[Path], object], words: str
) -> None:
    path = tmp_path / "rows"
    write(path)
    with pytest.raises(DataError) as caught:
        source_files(source(path, kind))
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "content", "words"),
    [
        ("json", b'{"a": 1}', "expected a list of rows, found dict"),
        ("json", b'{"a": 1}\n{"a": 2}\n', "not JSON: Extra data: line 2"),
        ("json", b"[" * 100_000, "not JSON: maximum recursion depth"),
        ("json", b'[{"a": "\xe9"}]', "not JSON: 'utf-8' codec can't decode"),
        ("csv", b"a,b\ncaf\xe9,2\n", "not UTF-8: invalid continuation byte at byte 7"),
        ("csv", b"a,b,a\n1,2,3\n", "the header names the column `a` twice"),
        ("text", b"one\n\ncaf\xe9 two\n", "not UTF-8: invalid continuation byte, after line "),
        ("parquet", b"PAR1" + b"x" * 100, "cannot be read as Parquet: "),
    ],
    ids=["object", "lines", "deep", "latin-1", "latin-1 csv", "same column", "latin-1 text", "cut parquet"],
)
def test_a_file_that_cannot_be_read_as_a_whole_is_named(
    tmp_path: Path, kind: str, content: bytes, words: str
) -> None:
    path = tmp_path / "rows"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path, kind)
    assert str(caught.value).startswith(f"{path}: {words}")


def test_a_csv_row_of_another_width_is_one_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('a,b\n1,2\n1\n1,2,3\n"x\ny",z\n\n"say ""hi""",\n', encoding="utf-8")
    rows = read(path, "csv")
    assert [row.record for row in rows] == [
        {"a": "1", "b": "2"}, None, None, {"a": "x\ny", "b": "z"}, {"a": 'say "hi"', "b": ""},
    ]  # fmt: skip
    assert [row.line for row in rows[:3]] == [2, 3, 4]
    assert {row.problem for row in rows[1:3]} == {"another number of columns than the header"}


def test_a_quote_that_is_never_closed_does_not_swallow_the_rest_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('a,b\n1,2\n3,"open\n' + "5,6\n" * 100, encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.csv:3: not csv: unexpected end of data"):
        read(path, "csv")


def test_a_very_long_csv_field_is_a_row_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n" + "x" * 200_000 + ",y\n", encoding="utf-8")
    (row,) = read(path, "csv")
    assert row.record is not None
    assert len(row.record["a"]) == 200_000


def test_parquet_values_that_json_has_no_word_for_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    when = datetime(2026, 11, 21, tzinfo=UTC)
    pq.write_table(pa.table({"text": ["a"], "when": [when], "raw": [b"\xff"], "none": [float("nan")]}), path)
    (row,) = read(path, "parquet")
    assert row.record is not None
    assert row.record["text"] == "a"
    assert "2026-11-21" in row.text


def test_a_folder_gives_its_files_in_order_and_leaves_out_others(tmp_path: Path) -> None:
    for name in ("b.jsonl", "sub/a.ndjson", "a.jsonl", "notes.md", "c.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}\n", encoding="utf-8")
    names = [path.relative_to(tmp_path).as_posix() for path in source_files(source(tmp_path, "jsonl"))]
    assert names == ["a.jsonl", "b.jsonl", "sub/a.ndjson"]
    globbed = source_files(source(tmp_path / "*.jsonl", "jsonl"))
    assert [path.name for path in globbed] == ["a.jsonl", "b.jsonl"]
    assert len(source_files(source(tmp_path / "**" / "*.*js*", "jsonl"))) == 3


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    path = tmp_path / "rows[1].jsonl"
    path.write_text("{}\n", encoding="utf-8")
    assert source_files(source(path, "jsonl")) == [path]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.jsonl", "no such file or folder"),
        ("*.jsonl", "the pattern matches no file"),
        ("", "the folder has no .jsonl or .ndjson file"),
    ],
    ids=["file", "pattern", "folder"],
)
def test_a_source_that_is_not_there_is_named(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "a.csv").write_text("a\n1\n", encoding="utf-8")
    with pytest.raises(DataError, match=words) as caught:
        source_files(source(tmp_path / name, "jsonl"))
    assert str(tmp_path) in str(caught.value)


def test_one_bad_file_of_a_folder_is_the_one_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n", encoding="utf-8")
    (tmp_path / "b.jsonl").touch()
    with pytest.raises(DataError, match=r"b\.jsonl: the file is empty"):
        source_files(source(tmp_path, "jsonl"))


def test_the_identity_of_a_source_is_its_content_and_settings_and_not_its_place(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "a.jsonl" for folder in ("x", "y")]
    for path in paths:
        path.parent.mkdir()
        path.write_text('{"a": 1}\n', encoding="utf-8")
    one, other = (source_identity(source(path, "jsonl")) for path in paths)
    assert one == other
    assert source_identity(source(paths[0], "jsonl", max_rows=5)) != one
    paths[0].write_text('{"a": 2}\n', encoding="utf-8")
    assert source_identity(source(paths[0], "jsonl")) != one


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
