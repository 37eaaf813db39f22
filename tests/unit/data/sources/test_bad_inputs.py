"""Bad rows and bad files: a row costs itself alone and says why, a file is refused by name."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from file_sources import file_source, read_rows, records, write_arrow
from tunewright.data.rows import Chunk, Piece
from tunewright.data.sources import parse, read, read_chunk, source_files, streams
from tunewright.errors import DataError

MIB = 1 << 20


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"a": 1', "not JSON: Expecting ',' delimiter"),
        ("hello", "not JSON: Expecting value"),
        ('{"a": NaN}', "not JSON: NaN is not JSON"),
        ('{"a": -Infinity}', "not JSON: -Infinity is not JSON"),
        ('{"a": "\\ud800"}', "holds a lone surrogate"),
        ('{"a": ["\\uDFFF"]}', "holds a lone surrogate"),
        ('{"\\udc00": 1}', "holds a lone surrogate"),
        ('{"a": "\x01"}', "not JSON: Invalid control character at"),
        ('{"a": "\0"}', "holds a NUL byte"),
        ("\0\0\0\0", "holds a NUL byte"),
        ("[1, 2]", "a row must be an object, found list"),
        ("null", "a row must be an object, found NoneType"),
        ('{"a": 1} {"a": 2}', "not JSON: Extra data"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "not JSON: maximum recursion depth"),
        ('{"a": ' + "[" * 100 + "]" * 100 + "}", "nested deeper than 100"),
        ('{"a": ' * 500 + "1" + "}" * 500, "nested deeper than 100"),
        ('{"a": ' + "9" * 5000 + "}", "not JSON: Exceeds the limit"),
        (b'{"a": "caf\xe9"}', "not UTF-8: "),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8: "),
    ],
    ids=lambda value: value[:12].replace("\0", "NUL") if isinstance(value, str) else "bytes",
)
def test_a_bad_line_costs_one_row_and_says_why(tmp_path: Path, line: str | bytes, problem: str) -> None:
    path = tmp_path / "a.jsonl"
    bad = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(b'{"a": "first, long enough to be text"}\n' * 2 + bad + b'\n\n{"a": "last"}\n')
    first, _, broken, last = read_rows(path, "jsonl")
    assert last.record == {"a": "last"}
    assert [row.line for row in (first, broken, last)] == [1, 3, 5]
    assert broken.record is None
    assert broken.problem.startswith(problem)
    broken.text.encode("utf-8")  # what is kept of it can be written to the quarantine


@pytest.mark.parametrize(
    "line",
    [
        '{"a": "\\ud83d\\ude00"}',
        '{"a": "\\\\ud800"}',
        '{"a": ' + "[" * 99 + "]" * 99 + "}",
        '{"a": [' + "[]," * 200 + "[]]}",
        '{"a": "' + "[{" * 200 + '"}',
        '{"a": "\\u0000"}',
    ],
    ids=["pair", "escaped backslash", "deep enough", "wide", "brackets in text", "escaped NUL"],
)
def test_a_row_that_only_looks_bad_is_kept(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(line, encoding="utf-8")
    (row,) = read_rows(path, "jsonl")
    assert row.problem == ""
    assert row.record is not None


def test_columns_may_differ_from_row_to_row_and_so_may_their_types(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"b": "x"}\n{"a": "1", "b": [1, "2"]}\n{}\n', encoding="utf-8")
    assert records(read_rows(path, "jsonl")) == [{"a": 1}, {"b": "x"}, {"a": "1", "b": [1, "2"]}, {}]


def test_nul_bytes_cost_their_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"a,b\n" + b"one,two\n" * 20 + b"x\0y,z\n3,4\n")
    (tmp_path / "a.txt").write_bytes(b"first words of a text\n\nbad \0 words\n\nlast")
    csv_rows, texts = read_rows(tmp_path / "a.csv", "csv"), read_rows(tmp_path / "a.txt", "text")
    assert [(row.line, row.problem) for row in csv_rows[20:]] == [(22, "holds a NUL byte"), (23, "")]
    assert [row.problem for row in texts] == ["", "holds a NUL byte", ""]


# Rows that are too large


@pytest.fixture
def small_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits a thousandth of the real ones."""
    monkeypatch.setattr(parse, "ROW_BYTES", 4000)
    monkeypatch.setattr(parse, "EXCERPT_CHARS", 50)
    monkeypatch.setattr(streams, "BLOCK_BYTES", 1024)


@pytest.mark.parametrize("size", [4001, 5000, 20_000])
@pytest.mark.parametrize(
    ("kind", "before", "row", "after", "wanted"),
    [
        ("jsonl", '{"a": 1}\n', '{"a": "%s"}\n', '{"a": 2}', [({"a": 1}, 1), (None, 2), ({"a": 2}, 3)]),
        ("csv", "a\n1\n", '"%s"\n', "2\n", [({"a": "1"}, 2), (None, 3), ({"a": "2"}, 4)]),
        ("csv", "a\n1\n", "%s\r\n", '"2"\r\n', [({"a": "1"}, 2), (None, 3), ({"a": "2"}, 4)]),
        ("text", "1\n\n", "%s\nmore\n\n", "2", [({"text": "1"}, 1), (None, 3), ({"text": "2"}, 6)]),
        ("text", "1\n\n", "a\n%s\n\n", "2", [({"text": "1"}, 1), (None, 3), ({"text": "2"}, 6)]),
        ("json", '[{"a": 1},\n', '{"a": "%s"}', ',{"a": 2}]', [({"a": 1}, 1), (None, 2), ({"a": 2}, 3)]),
    ],
    ids=["jsonl", "quoted csv", "csv", "text", "text in its second line", "json"],
)
def test_a_row_that_is_too_large_costs_itself_alone(
    tmp_path: Path, small_rows: None, kind: str, before: str, row: str, after: str, wanted: object, size: int
) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_text(
        before + row % ("x" * (min(size, 7000) if kind == "json" else size)) + after,
        encoding="utf-8",
        newline="",
    )
    rows = read_rows(path, kind)
    assert [(each.record, each.line) for each in rows] == wanted
    assert rows[1].problem == "larger than 32 MiB"
    assert 1 < len(rows[1].text) < 60


def test_many_lines_of_one_text_that_are_too_large_together_are_rejected(
    tmp_path: Path, small_rows: None
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("some words\n" * 500 + "\nlast", encoding="utf-8")
    assert records(read_rows(path, "text")) == [None, {"text": "last"}]


@pytest.mark.parametrize("quoted", ['"x', 'x\n"' + "y" * 9000, '"' + "y" * 9000])
def test_a_quote_that_is_never_closed_takes_no_rows_with_it_in_silence(
    tmp_path: Path, small_rows: None, quoted: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"a\n1\n{quoted}\n" + "some text\n" * 900, encoding="utf-8")
    with pytest.raises(
        DataError, match=r"a\.csv:[34]: not csv: a row larger than .* is a quote never closed\?"
    ):
        read_rows(path, "csv")
    path.write_text('a,b\n1,2\n3,"open\n' + "5,6\n" * 100, encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.csv:3: not csv: unexpected end of data"):
        read_rows(path, "csv")


def test_a_list_that_has_no_end_is_not_read_into_memory(tmp_path: Path, small_rows: None) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"a": "' + "x" * 50_000, encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.json: row 1 is larger than 32 MiB, or its end is missing"):
        read_rows(path, "json")


def test_a_line_of_50_mib_is_passed_over_without_being_held(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"n": 1}\n{"text": "')
        for _ in range(50):
            file.write(b"x" * MIB)
        file.write(b'"}\n{"n": 2}\n')
    tracemalloc.start()
    try:
        rows = read_rows(path, "jsonl")
        assert 30 * MIB < tracemalloc.get_traced_memory()[1] < 80 * MIB
    finally:
        tracemalloc.stop()
    assert [(row.line, row.record) for row in rows] == [(1, {"n": 1}), (2, None), (3, {"n": 2})]
    assert rows[1].problem == "larger than 32 MiB"


# Files that cannot be read as a whole


@pytest.mark.parametrize(
    ("kind", "content", "words"),
    [
        ("csv", b"a,b\ncaf\xe9,2\n", "not UTF-8: invalid continuation byte, after line "),
        ("csv", b"a,b,a\n1,2,3\n", "the header names the column `a` twice"),
        ("text", b"one\n\ncaf\xe9 two\n", "not UTF-8: invalid continuation byte, after line "),
        ("parquet", b"PAR1" + b"x" * 100 + b"PAR1", "cannot be read as Parquet: "),
        ("arrow", b"ARROW1\0\0" + b"x" * 100, "cannot be read as Arrow: "),
        ("arrow", b"\xff\xff\xff\xff\x10\0\0\0" + b"x" * 100, "cannot be read as Arrow: "),
    ],
    ids=["latin-1 csv", "same column", "latin-1 text", "parquet", "arrow file", "arrow stream"],
)
def test_a_file_that_cannot_be_read_as_a_whole_is_named(
    tmp_path: Path, kind: str, content: bytes, words: str
) -> None:
    path = tmp_path / "rows"
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(f"{path}: {words}")):
        read_rows(path, kind)


@pytest.mark.parametrize("at", [0.3, 0.6])
def test_damage_in_the_middle_of_a_parquet_file_is_named(tmp_path: Path, at: float) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"row {n} " * 20 for n in range(2000)]})
    pq.write_table(table, path, compression="zstd", use_dictionary=False, write_page_checksum=True)
    content = bytearray(path.read_bytes())
    middle = int(at * len(content))
    content[middle : middle + 400] = b"\xff" * 400
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as Parquet: "):
        read_rows(path, "parquet")


def test_arrow_bytes_that_do_not_fit_together_crash_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    write_arrow(path, pa.table({"text": ["abc", "def"]}))
    content = path.read_bytes()
    offsets = b"\0\0\0\0\x03\0\0\0\x06\0\0\0"
    assert content.count(offsets) == 1
    path.write_bytes(content.replace(offsets, b"\0\0\0\0\x03\0\0\0\xff\xff\xff\x0f"))
    with pytest.raises(DataError, match=r"a\.arrow: cannot be read as Arrow: "):
        read_rows(path, "arrow")


def test_parquet_of_other_types_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": [1, 2], "completion": [["a"], None]}), path)
    assert records(read_rows(path, "parquet")) == [
        {"prompt": 1, "completion": ["a"]},
        {"prompt": 2, "completion": None},
    ]


# What a disk or a network refuses for a moment


class Flaky:
    """Opens files as `streams` does; reading fails at the given bytes, each time once more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failures: list[int], error: OSError):
        self.failures, self.error = failures, error
        opened = streams.open_file

        def open_flaky(path: str) -> object:
            file = opened(path)
            outer = self

            class Reading:
                def read(self, size: int = -1) -> bytes:
                    if outer.failures and file.tell() >= outer.failures[0]:
                        del outer.failures[0]
                        raise outer.error
                    return file.read(size)

                def __getattr__(self, name: str) -> object:
                    return getattr(file, name)

                def __enter__(self) -> Reading:
                    return self

                def __exit__(self, *_: object) -> None:
                    file.close()

            return Reading()

        monkeypatch.setattr(streams, "open_file", open_flaky)
        monkeypatch.setattr(streams, "BLOCK_BYTES", 512)
        monkeypatch.setattr(read, "BACK_OFF_S", 0.001)


@pytest.fixture
def numbered(tmp_path: Path) -> Iterator[Chunk]:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(b'{"n": %d}\n' % n for n in range(1000)))
    yield Chunk(0, 0, "jsonl", (Piece(str(path)), Piece(str(path))))


def test_a_passing_failure_is_tried_again_and_no_row_comes_twice(
    numbered: Chunk, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaky = Flaky(monkeypatch, [0, 0, 600, 600, 600, 5000, 9000], OSError(5, "Input/output error"))
    rows = list(read_chunk(numbered))
    assert flaky.failures == []
    assert [row.record and row.record["n"] for row in rows] == [*range(1000), *range(1000)]


def test_a_failure_that_stays_names_the_file(numbered: Chunk, monkeypatch: pytest.MonkeyPatch) -> None:
    flaky = Flaky(monkeypatch, [3000] * 9, OSError(5, "Input/output error"))
    seen = 0
    with pytest.raises(DataError, match=r"a\.jsonl: cannot be read: Input/output error"):
        for _ in read_chunk(numbered):
            seen += 1
    assert 0 < seen < 1000
    assert len(flaky.failures) == 9 - 1 - read.RETRIES


def test_a_file_that_is_gone_is_not_waited_for(numbered: Chunk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read.time, "sleep", lambda seconds: pytest.fail("waited"))
    Path(numbered.pieces[0].path).unlink()
    with pytest.raises(DataError, match=r"a\.jsonl: no such file or folder"):
        list(read_chunk(numbered))


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the folder has no .txt or .md file"):
        source_files(file_source(tmp_path, "text"))
