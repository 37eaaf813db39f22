"""Parquet and Arrow files that carry extension types are refused before anything of them is unpickled."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from file_sources import file_source, gzipped, read_rows, write_arrow
from tunewright.data.sources import extensions, source_files
from tunewright.errors import DataError


class Planted:
    """Unpickling one creates a file."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.path),)


class Careless(pa.ExtensionType):
    """An extension type whose package unpickles what the file says, as Ray's did."""

    def __init__(self, trap: bytes = b""):
        self.trap = trap
        super().__init__(pa.int64(), "tunewright.tests.careless")

    def __arrow_ext_serialize__(self) -> bytes:
        return self.trap

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Careless:
        pickle.loads(serialized)
        return cls(serialized)


@pytest.fixture
def sprung(tmp_path: Path) -> Iterator[Path]:
    """What exists once the trap was sprung."""
    pa.register_extension_type(Careless())
    yield tmp_path / "sprung"
    pa.unregister_extension_type("tunewright.tests.careless")


def trapped(sprung: Path, shape: str) -> pa.Table:
    column = pa.ExtensionArray.from_storage(Careless(pickle.dumps(Planted(str(sprung)))), pa.array([1, 2]))
    if shape == "struct":
        column = pa.StructArray.from_arrays([column], ["inner"])
    if shape == "list":
        column = pa.ListArray.from_arrays(pa.array([0, 1, 2]), column)
    return pa.table({"text": ["a", "b"], "x" * (len(shape) % 3 + 1): column})


def write(path: Path, table: pa.Table, kind: str) -> None:
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        write_arrow(path, table, stream=kind == "stream")


@pytest.mark.parametrize("shape", ["plain", "struct", "list"])
@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_a_planted_pickle_is_never_loaded(tmp_path: Path, sprung: Path, kind: str, shape: str) -> None:
    path = tmp_path / "rows"
    write(path, trapped(sprung, shape), kind)
    source = file_source(path, "parquet" if kind == "parquet" else "arrow")
    with pytest.raises(DataError, match="rows: a column has an Arrow extension type, which can carry code"):
        source_files(source)
    with pytest.raises(DataError, match="rows: a column has an Arrow extension type"):
        read_rows(path, source.type)
    path.write_bytes(gzipped(path.read_bytes()))
    with pytest.raises(DataError, match="rows: a column has an Arrow extension type"):
        read_rows(path, source.type)
    assert not sprung.exists()


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_the_trap_is_a_real_one(tmp_path: Path, sprung: Path, kind: str) -> None:
    path = tmp_path / "rows"
    write(path, trapped(sprung, "plain"), kind)
    opened = {"parquet": pq.read_metadata, "file": pa.ipc.open_file, "stream": pa.ipc.open_stream}[kind]
    opened(str(path) if kind == "parquet" else pa.memory_map(str(path)))
    if kind == "parquet":
        pq.read_schema(path)
    assert sprung.exists()


def test_a_type_that_nobody_registered_is_refused_as_well(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    field = pa.field("a", pa.int64(), metadata={"ARROW:extension:name": "nobody.knows"})
    pq.write_table(pa.table([pa.array([1])], pa.schema([field])), path)
    with pytest.raises(DataError, match="a column has an Arrow extension type"):
        source_files(file_source(path, "parquet"))


def test_an_arrow_file_is_judged_by_both_of_its_schemas(tmp_path: Path, sprung: Path) -> None:
    # A reader of files takes the schema in the footer, a reader of streams the one in front.
    path = tmp_path / "rows"
    write(path, trapped(sprung, "plain"), "file")
    content = path.read_bytes()
    first, last = content.index(extensions.EXTENSION), content.rindex(extensions.EXTENSION)
    assert first < last
    for hidden in (first, last):
        path.write_bytes(content[:hidden] + b"arrow" + content[hidden + 5 :])
        with pytest.raises(DataError, match="a column has an Arrow extension type"):
            source_files(file_source(path, "arrow"))


def test_a_stream_of_an_old_arrow_is_looked_into(tmp_path: Path, sprung: Path) -> None:
    path = tmp_path / "rows"
    table = trapped(sprung, "plain")
    options = pa.ipc.IpcWriteOptions(use_legacy_format=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    assert path.read_bytes()[:4] != b"\xff\xff\xff\xff"
    with pytest.raises(DataError, match="a column has an Arrow extension type"):
        source_files(file_source(path, "arrow"))
    with pa.OSFile(str(path), "wb") as sink:
        harmless = pa.table({"n": [1]})
        with pa.ipc.new_stream(sink, harmless.schema, options=options) as writer:
            writer.write_table(harmless)
    assert [row.record for row in read_rows(path, "arrow")] == [{"n": 1}]


def test_the_name_is_found_in_base64_wherever_it_begins() -> None:
    for before in range(12):
        for after in range(4):
            encoded = base64.b64encode(b"s" * before + extensions.EXTENSION + b"e" * after)
            assert any(mark in encoded for mark in extensions.MARKS)


def test_ordinary_columns_are_no_extension_types(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.table({"text": ["ARROW:extension:name"]})  # in a row it is only text
    pq.write_table(table.replace_schema_metadata({"note": "none"}), path, write_statistics=False)
    assert [row.record for row in read_rows(path, "parquet")] == [{"text": "ARROW:extension:name"}]
