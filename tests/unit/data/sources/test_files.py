"""A source names its files, each once and in order; what is no file of rows is refused by name."""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from file_sources import ROWS, WRITERS, file_source, gzipped, read_rows, records, zstandard
from tunewright.data.sources import SUFFIXES, source_files
from tunewright.errors import DataError


def names(path: Path | str, kind: str = "jsonl", root: Path | None = None) -> list[str]:
    found = source_files(file_source(path, kind))
    return [Path(file).relative_to(root).as_posix() if root else Path(file).name for file in found]


def touch(folder: Path, *files: str) -> None:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}\n", encoding="utf-8")


def test_a_folder_gives_its_files_in_order_and_leaves_out_others(tmp_path: Path) -> None:
    touch(
        tmp_path, "b.jsonl", "sub/a.ndjson", "a.JSONL", "notes.md", "c.csv", ".hidden.jsonl", ".git/x.jsonl"
    )
    (tmp_path / "z.jsonl.gz").write_bytes(gzipped(b"{}\n"))
    (tmp_path / "z.jsonl.zst").write_bytes(zstandard(b"{}\n"))
    wanted = ["a.JSONL", "b.jsonl", "sub/a.ndjson", "z.jsonl.gz", "z.jsonl.zst"]
    assert names(tmp_path, root=tmp_path) == wanted
    assert ".csv.zst" in SUFFIXES["csv"]


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("*.jsonl", ["a.jsonl", "b.jsonl"]),
        ("?.jsonl", ["a.jsonl", "b.jsonl"]),
        ("[!a].jsonl", ["b.jsonl"]),
        ("**/*.jsonl", ["a.jsonl", "b.jsonl", "x/c.jsonl", "x/y/d.jsonl"]),
        ("**/**/*.jsonl", ["a.jsonl", "b.jsonl", "x/c.jsonl", "x/y/d.jsonl"]),
        ("x/**", ["x/c.jsonl", "x/y/d.jsonl"]),
        ("*/*.jsonl", ["x/c.jsonl"]),
        ("x*/**/d.*", ["x/y/d.jsonl"]),
        ("**/y/*", ["x/y/d.jsonl"]),
        (".h*", [".h.jsonl"]),
    ],
)
def test_a_pattern_gives_what_fits_it(tmp_path: Path, pattern: str, wanted: list[str]) -> None:
    touch(tmp_path, "a.jsonl", "b.jsonl", "x/c.jsonl", "x/y/d.jsonl", ".h.jsonl", ".g/e.jsonl")
    assert names(tmp_path / pattern, root=tmp_path) == wanted


def test_relative_and_home_paths_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jsonl", "x/c.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("a.jsonl", "*.jsonl", "~/a.jsonl", "~/a*", "x/../a.jsonl", "./a.jsonl"):
        assert names(path) == ["a.jsonl"], path
    for path in (".", "**/*.jsonl", tmp_path.as_uri(), f"file://localhost{tmp_path}"):
        assert names(path) == ["a.jsonl", "c.jsonl"], path


def test_a_file_uri_may_have_blanks(tmp_path: Path) -> None:
    touch(tmp_path, "a b.jsonl")
    path = (tmp_path / "a b.jsonl").as_uri()
    assert "%20" in path
    assert records(read_rows(path, "jsonl")) == [{}]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    touch(tmp_path, "rows[1].jsonl", "rows1.jsonl")
    assert names(tmp_path / "rows[1].jsonl") == ["rows[1].jsonl"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("none.jsonl", "no such file or folder"),
        ("none/*.jsonl", "the pattern matches no file"),
        ("*.jsonl", "the pattern matches no file"),
        ("fol*", "the pattern matches only folders; end it with a pattern for files, such as /*"),
        ("", "the folder has no .jsonl or .ndjson file, and none with .gz or .zst after that"),
        ("a.csv/b.jsonl", "no such file or folder"),
    ],
    ids=["file", "folder of pattern", "pattern", "folders", "folder", "file as folder"],
)
def test_a_source_that_is_not_there_is_named(tmp_path: Path, path: str, words: str) -> None:
    touch(tmp_path, "a.csv")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError) as caught:
        source_files(file_source(tmp_path / path, "jsonl"))
    assert str(caught.value) == f"{tmp_path / path}: {words}"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("ftp://host/a.jsonl", "`ftp://` is not known; valid: s3://, gs://, file://"),
        ("file://host/a.jsonl", "a file:// path names no other machine"),
        ("s3://", "names no bucket; write s3://BUCKET/PATH"),
        ("s3://AKIA:hunter2@bucket/a.jsonl", "credentials do not belong into a path"),
        ("gs://bucket/a.jsonl?nonsense=1", "gs://bucket: Unexpected query parameter in GCS URI: 'nonsense'"),
    ],
)  # fmt: skip
def test_a_place_that_is_not_known_is_named(path: str, words: str) -> None:
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        source_files(file_source(path, "jsonl"))
    assert "hunter2" not in str(caught.value)


# Links and what is no file


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    touch(tmp_path, "data/a.jsonl", "data/sub/b.jsonl", "elsewhere/c.jsonl")
    data = tmp_path / "data"
    for link, target in {
        "loop": data,
        "sub/up": data,
        "sub/self": data / "sub",
        "z": tmp_path / "elsewhere",
    }.items():
        (data / link).symlink_to(target)
    (data / "d.jsonl").symlink_to(tmp_path / "elsewhere" / "c.jsonl")
    for path in (data, data / "**" / "*.jsonl"):
        assert names(path, root=data) == ["a.jsonl", "d.jsonl", "sub/b.jsonl", "z/c.jsonl"]


def test_a_link_that_leads_nowhere_is_refused_where_rows_are_expected(tmp_path: Path) -> None:
    touch(tmp_path, "a.jsonl")
    (tmp_path / "other").symlink_to(tmp_path / "gone")
    assert names(tmp_path) == ["a.jsonl"]
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "gone")
    (tmp_path / "c.jsonl").symlink_to(tmp_path / "c.jsonl")
    with pytest.raises(DataError, match=r"b\.jsonl: is a link that leads nowhere, and must be a file"):
        source_files(file_source(tmp_path, "jsonl"))
    with pytest.raises(DataError, match=r"c\.jsonl: cannot be read: Too many levels of symbolic links"):
        source_files(file_source(tmp_path / "c.jsonl", "jsonl"))


@pytest.mark.parametrize("way", ["folder", "pattern", "file"])
def test_a_pipe_is_refused_and_never_waited_for(tmp_path: Path, way: str) -> None:
    touch(tmp_path, "a.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    os.mkfifo(tmp_path / "other")
    path = {"folder": tmp_path, "pattern": tmp_path / "p*l", "file": tmp_path / "pipe.jsonl"}[way]
    with pytest.raises(DataError, match=r"pipe\.jsonl: is a FIFO, and must be a file"):
        source_files(file_source(path, "jsonl"))


def test_sockets_and_devices_are_refused() -> None:
    with pytest.raises(DataError, match="/dev/zero: is a device, and must be a file"):
        source_files(file_source("/dev/zero", "text"))
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{folder}/s.jsonl")  # such a path may have about 100 characters
        with pytest.raises(DataError, match="is a socket, and must be a file"):
            source_files(file_source(folder, "jsonl"))


@pytest.fixture
def nobodys_folder() -> Iterator[Path]:
    """A folder that may be entered by a user without rights, as whom the test runs meanwhile."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_file_that_may_not_be_read_is_named(nobodys_folder: Path, what: str) -> None:
    touch(nobodys_folder, "sub/a.jsonl")
    closed = nobodys_folder / "sub" if what == "folder" else nobodys_folder / "sub" / "a.jsonl"
    closed.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read whatever it is
    try:
        with pytest.raises(DataError, match=": cannot be read: permission denied"):
            source_files(file_source(nobodys_folder, "jsonl"))
    finally:
        os.seteuid(user)
        closed.chmod(0o755)


def test_thousands_of_tiny_files_are_few_chunks_in_a_moment(tmp_path: Path) -> None:
    from tunewright.data.sources import source_chunks

    for number in range(2000):
        (tmp_path / f"{number:05d}.jsonl").write_text(f'{{"n": {number}}}\n', encoding="utf-8")
    begun = time.monotonic()
    chunks = source_chunks(0, file_source(tmp_path, "jsonl"))
    assert time.monotonic() - begun < 5
    assert [len(chunk.pieces) for chunk in chunks] == [500] * 4
    rows = read_rows(tmp_path, "jsonl")
    assert [row.record for row in rows] == [{"n": number} for number in range(2000)]
    assert {row.line for row in rows} == {1}
    assert rows[7].file == "00007.jsonl"


# Files that are not what they claim


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.jsonl", '{"a": 1}')


def tarred(path: Path, packed: bool = False) -> None:
    import tarfile

    inside = path.with_name("inside")
    inside.write_bytes(b'{"a": 1}\n')
    with tarfile.open(path, "w:gz" if packed else "w") as file:
        file.add(inside, "a.jsonl")


@pytest.mark.parametrize(
    ("kind", "write", "words"),
    [
        ("jsonl", lambda p: p.touch(), "the file is empty"),
        ("jsonl", lambda p: p.write_bytes(gzipped(b"")), "the file is empty once it is unpacked"),
        ("csv", zipped, "type is csv, but the file is a zip archive; unpack it first"),
        ("jsonl", tarred, "type is jsonl, but the file is a tar archive; unpack it first"),
        ("jsonl", lambda p: tarred(p, True), "type is jsonl, but the file is a tar archive; unpack it first"),
        ("jsonl", lambda p: p.write_bytes(gzipped(gzipped(b"{}"))), "the file is compressed twice"),
        ("jsonl", lambda p: p.write_bytes(b"BZh91AY"), "the file is compressed with bzip2"),
        ("jsonl", WRITERS["parquet"], "type is jsonl, but the file is a Parquet file"),
        ("jsonl", WRITERS["arrow"], "type is jsonl, but the file is an Arrow file"),
        ("arrow", WRITERS["parquet"], "type is arrow, but the file is a Parquet file"),
        ("parquet", WRITERS["arrow"], "type is parquet, but the file is an Arrow file"),
        ("jsonl", lambda p: p.write_bytes('{"a": 1}'.encode("utf-16")), "the file is UTF-16 text; save it"),
        ("jsonl", lambda p: p.write_bytes('{"a": 1}'.encode("utf-16-le")), "UTF-16 text without its mark"),
        ("csv", lambda p: p.write_bytes("a,b\n1,2\n".encode("utf-16-be")), "UTF-16 text without its mark"),
        ("text", lambda p: p.write_bytes("\u65e5\u672c \n".encode("utf-16-le")), "UTF-16 text without its"),
        ("text", lambda p: p.write_bytes(b"\x7fELF\x02\0\xff" * 9), "type is text, but the file is binary"),
        ("text", lambda p: p.write_bytes(b"%PDF-1.7 ..."), "type is text, but the file is a PDF"),
        ("json", lambda p: p.write_bytes(b"SQLite format 3\0"), "an SQLite database; see type: sql"),
        ("jsonl", WRITERS["json"], "type is jsonl, but the file is one JSON list; say type: json"),
        ("jsonl", lambda p: p.write_bytes(b"\xef\xbb\xbf\n [{}]"), "the file is one JSON list; say type"),
        ("parquet", WRITERS["jsonl"], "type is parquet, but the file does not begin as one"),
        ("arrow", WRITERS["csv"], "type is arrow, but the file does not begin as one"),
        ("parquet", lambda p: p.write_bytes(b"PAR1" + b"x" * 99), "the Parquet file is cut off"),
    ],
    ids=["empty", "empty gzip", "zip", "tar", "tar.gz", "gzip in gzip", "bzip2", "parquet", "arrow",
         "parquet as arrow", "arrow as parquet", "utf-16", "utf-16-le", "utf-16-be", "japanese", "binary",
         "pdf", "sqlite", "list", "list after a mark", "not parquet", "not arrow", "cut parquet"],
)  # fmt: skip
def test_a_file_that_is_not_what_it_claims_is_named(
    tmp_path: Path, kind: str, write: Callable[[Path], object], words: str
) -> None:
    path = tmp_path / "rows"
    write(path)
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: .*{re.escape(words)}"):
        source_files(file_source(path, kind))


def test_one_bad_file_of_a_folder_is_the_one_that_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.jsonl", "c.jsonl")
    (tmp_path / "b.jsonl").touch()
    with pytest.raises(DataError, match=r"b\.jsonl: the file is empty"):
        source_files(file_source(tmp_path, "jsonl"))


def test_rows_of_a_folder_come_in_the_order_of_its_files(tmp_path: Path) -> None:
    for name in ("b", "a"):
        WRITERS["csv"](tmp_path / f"{name}.csv")
    (tmp_path / "a.csv").write_bytes((tmp_path / "a.csv").read_bytes() + b"last,row\n")
    rows = read_rows(tmp_path, "csv")
    assert records(rows) == [*ROWS, {"prompt": "last", "completion": "row"}, *ROWS]
    assert [row.file for row in rows] == ["a.csv"] * 3 + ["b.csv"] * 2
