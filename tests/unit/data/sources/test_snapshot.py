"""Snapshots: every row once, in order, whatever the parts; the same rows are the same artifact."""

from __future__ import annotations

import datetime
import decimal
import json
import random
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.artifacts import Store
from tunewright.config import HuggingFaceSource, SqlSource
from tunewright.data.encryption import Cipher
from tunewright.data.sources import snapshot
from tunewright.data.sources.fetch import fetch_source
from tunewright.data.sources.snapshot import SnapshotSource, in_order, row_text, write_snapshot
from tunewright.data.tables import open_parquet
from tunewright.errors import DataError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts, groups and runs of a few rows."""
    for name, chars in (("PART_CHARS", 300), ("GROUP_CHARS", 100), ("RUN_CHARS", 200)):
        monkeypatch.setattr(snapshot, name, chars)


def stored(folder: Path, cipher: Cipher | None = None) -> list[tuple[int, str]]:
    """(line, row) of all parts, in order."""
    found = []
    for path in sorted(folder.glob("rows-*.parquet")):
        table = open_parquet(path, cipher).read()
        found += list(zip(*(table.column(name).to_pylist() for name in ("line", "row")), strict=True))
    return found


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(max_size=5), values))
def test_a_row_of_json_comes_back_as_it_was(row: dict[str, Any]) -> None:
    text = row_text(row)
    assert json.loads(text) == row
    assert "\n" not in text
    text.encode()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC), '"2026-01-02T03:04:05+00:00"'),
        (datetime.date(2026, 1, 2), '"2026-01-02"'),
        (decimal.Decimal("12.50"), '"12.50"'),
        (uuid.UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (float("nan"), "null"),
        ([1.5, float("nan"), {"a": float("nan")}], '[1.5,null,{"a":null}]'),
        ("NaN", '"NaN"'),
        ("é\0\u2028", '"é\\u0000\u2028"'),
        ("\ud800é", '"\\ud800\\u00e9"'),
    ],
)
def test_values_that_json_lacks_have_one_form(value: Any, text: str) -> None:
    assert row_text({"a": value}) == f'{{"a":{text}}}'


@pytest.mark.parametrize(
    ("value", "said"), [(b"\0", "`b` holds bytes"), ({1}, "`b` holds a set"), ([b""], "bytes")]
)
def test_what_has_no_form_in_json_names_its_column(value: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        row_text({"a": 1, "b": value})


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 500])
def test_every_row_is_written_once_in_order(tmp_path: Path, count: int) -> None:
    rows = [row_text({"id": n, "text": "x" * (n % 50)}) for n in range(count)]
    written = write_snapshot(tmp_path, iter(rows))
    assert stored(tmp_path) == list(enumerate(rows, start=1))
    assert (written.rows, written.chars) == (count, sum(map(len, rows)))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(written.parts)
    for name, first_line in written.parts.items():
        assert pq.read_table(tmp_path / name).column("line")[0].as_py() == first_line
    assert len(written.parts) >= count // 10


@pytest.mark.usefixtures("small_parts")
def test_order_does_not_depend_on_how_rows_come(tmp_path: Path) -> None:
    rows = [row_text({"id": n, "text": "é" * (n % 9)}) for n in range(300)] + ['{"id":7}'] * 3
    contents = set()
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        scratch, out = tmp_path / f"scratch{seed}", tmp_path / f"out{seed}"
        scratch.mkdir()
        out.mkdir()
        written = write_snapshot(out, in_order(iter(rows), scratch))
        contents.add(written.content)
        assert [row for _, row in stored(out)] == sorted(rows)
        assert len(list(scratch.iterdir())) > 10, "more rows than fit into memory"
    assert len(contents) == 1


def test_one_changed_character_changes_the_content(tmp_path: Path) -> None:
    found = set()
    for rows in (["a", "b"], ["a", "c"], ["b", "a"], ["a"], ["ab"], ["a", "b", ""]):
        out = tmp_path / str(len(found))
        out.mkdir()
        found.add(write_snapshot(out, iter([json.dumps(row) for row in rows])).content)
    assert len(found) == 6


@pytest.mark.usefixtures("small_parts")
def test_an_encrypted_snapshot_shows_nothing_not_even_while_it_is_sorted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWT_KEY", "ab" * 32)
    cipher = Cipher("${TWT_KEY}")
    rows = [row_text({"text": f"canary-{n:03d}"}) for n in range(100)]
    scratch, out = tmp_path / "scratch", tmp_path / "out"
    scratch.mkdir()
    out.mkdir()
    write_snapshot(out, in_order(reversed(rows), scratch, cipher), cipher)
    assert [row for _, row in stored(out, cipher)] == rows
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not any(b"canary" in path.read_bytes() for path in files)


def database(path: Path, answers: list[str]) -> SqlSource:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DROP TABLE IF EXISTS chats")
        connection.execute("CREATE TABLE chats (prompt TEXT, answer TEXT)")
        connection.executemany("INSERT INTO chats VALUES ('?', ?)", [(answer,) for answer in answers])
    return SqlSource(type="sql", url=f"sqlite:///{path}", table="chats", weight=2.0, system="Be kind")


def left_over(store: Store) -> list[Path]:
    return list((store.root / "work").iterdir())


def test_the_same_rows_are_the_same_artifact_and_other_rows_another(tmp_path: Path, tmp_store: Store) -> None:
    path = tmp_path / "chats.db"
    first, _ = fetch_source(tmp_store, 0, database(path, ["a", "b", "c"]))
    again, _ = fetch_source(tmp_store, 3, database(path, ["c", "b", "a"]))
    assert again.ref == first.ref
    changed, _ = fetch_source(tmp_store, 0, database(path, ["a", "b", "d"]))
    assert changed.ref != first.ref
    assert {artifact.ref for artifact in tmp_store.list("rows")} == {first.ref, changed.ref}
    assert left_over(tmp_store) == []
    assert (first.facts["rows"], first.manifest.kind) == (3, "rows")


def test_a_snapshot_is_read_in_place_of_its_source(tmp_path: Path, tmp_store: Store) -> None:
    given = database(tmp_path / "chats.db", ["a", "b"])
    artifact, source = fetch_source(tmp_store, 0, given)
    assert (source.format, source.columns, source.system) == ("auto", {}, "Be kind")
    assert source.settings()["weight"] == 2.0
    assert str(tmp_path) not in json.dumps(source.settings())
    (chunk,) = source.chunks(index=4, first_number=7)
    assert (chunk.source, chunk.number, chunk.type, chunk.max_rows) == (4, 7, "rows", None)
    assert chunk.size == sum(entry["bytes"] for entry in artifact.manifest.files.values())
    (piece,) = chunk.pieces
    assert [row for _, row in stored(Path(piece.path).parent)] == [
        '{"prompt":"?","answer":"a"}',
        '{"prompt":"?","answer":"b"}',
    ]


@pytest.mark.usefixtures("small_parts")
def test_each_part_is_a_chunk(tmp_path: Path, tmp_store: Store) -> None:
    _, source = fetch_source(tmp_store, 0, database(tmp_path / "chats.db", [f"{n:04d}" for n in range(100)]))
    chunks = source.chunks(0, first_number=2)
    assert [chunk.number for chunk in chunks] == list(range(2, 2 + len(chunks)))
    assert len(chunks) >= 8
    for chunk in chunks:
        (piece,) = chunk.pieces
        assert pq.read_table(piece.path).column("line")[0].as_py() == piece.first_line


def test_a_source_without_rows_is_refused_and_leaves_nothing(tmp_path: Path, tmp_store: Store) -> None:
    with pytest.raises(DataError, match="sql chats: no rows"):
        fetch_source(tmp_store, 0, database(tmp_path / "chats.db", []))
    assert left_over(tmp_store) == tmp_store.list("rows") == []


def test_a_fetch_that_fails_half_way_leaves_nothing(
    tmp_path: Path, tmp_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(source: SqlSource) -> Iterator[str]:
        yield from ["{}"] * 10
        raise DataError("the database went away")

    monkeypatch.setattr("tunewright.data.sources.fetch.sql_rows", half)
    with pytest.raises(DataError, match="went away"):
        fetch_source(tmp_store, 0, database(tmp_path / "chats.db", ["a"]))
    assert left_over(tmp_store) == tmp_store.list("rows") == []


def test_an_encrypted_snapshot_is_another_artifact(
    tmp_path: Path, tmp_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = database(tmp_path / "chats.db", ["canary-1"])
    refs, keys = [], ["ab" * 32, "cd" * 32, "ab" * 32]
    refs.append(fetch_source(tmp_store, 0, source)[0].ref)
    for key in keys:
        monkeypatch.setenv("TWT_KEY", key)
        artifact, _ = fetch_source(tmp_store, 0, source, Cipher("${TWT_KEY}"))
        assert len(stored(artifact.path, Cipher("${TWT_KEY}"))) == 1
        assert not any(b"canary" in path.read_bytes() for path in artifact.path.iterdir())
        refs.append(artifact.ref)
    assert refs[1] == refs[3]
    assert len(set(refs)) == 3


def test_a_local_data_set_is_known_by_its_rows_not_its_folder(tmp_path: Path, tmp_store: Store) -> None:
    refs = set()
    for parent in ("here", "there"):
        folder = tmp_path / parent / "chats"
        folder.mkdir(parents=True)
        (folder / "train.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n', encoding="utf-8")
        artifact, source = fetch_source(
            tmp_store, 0, HuggingFaceSource(type="huggingface", dataset=str(folder))
        )
        refs.add(artifact.ref)
        assert isinstance(source, SnapshotSource)
        assert stored(artifact.path) == [(1, '{"text":"a"}'), (2, '{"text":"b"}')]
    assert len(refs) == 1
    assert left_over(tmp_store) == []
