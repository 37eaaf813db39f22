"""Files in buckets are read as files on this machine are, with the environment's credentials."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from file_sources import ROWS, WRITERS, file_source, gzipped, read_rows, records, zstandard
from tunewright.data.sources import chunks, places, read_chunk, source_chunks, source_files, source_identity
from tunewright.errors import DataError

moto = pytest.importorskip("moto.server", reason="needs moto, of the extra `dev`, in place of S3")

BUCKET = "tunewright-tests"
FAKE = {
    "AWS_ACCESS_KEY_ID": "fake",
    "AWS_SECRET_ACCESS_KEY": "canary-of-the-secret-key",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The address of a server that speaks S3, in this process."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket, as boto3 sees it."""
    import boto3

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in FAKE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{endpoint}")
    places._filesystem.cache_clear()
    made = boto3.resource("s3", region_name="us-east-1").Bucket(BUCKET)
    made.create()
    yield made
    made.objects.all().delete()
    made.delete()
    places._filesystem.cache_clear()


def put(bucket: Any, key: str, content: bytes) -> None:
    bucket.put_object(Key=key, Body=content)


@pytest.mark.parametrize("kind", WRITERS)
def test_each_type_is_read_from_a_bucket(bucket: Any, tmp_path: Path, kind: str) -> None:
    WRITERS[kind](tmp_path / "rows")
    put(bucket, f"set/rows.{kind}", (tmp_path / "rows").read_bytes())
    uri = f"s3://{BUCKET}/set/rows.{kind}"
    rows = read_rows(uri, kind)
    assert records(rows) == ROWS
    assert {row.file for row in rows} == {f"rows.{kind}"}
    assert source_files(file_source(uri, kind)) == [uri]


def test_folders_and_patterns_of_a_bucket_are_found(bucket: Any) -> None:
    for key in ("a.jsonl", "set/b.jsonl", "set/x y/c[1].jsonl", "set/.hidden/d.jsonl", "set/e.csv"):
        put(bucket, key, b'{"key": "%s"}\n' % key.encode())
    put(bucket, "set/f.jsonl.gz", gzipped(b'{"key": "f"}\n'))
    put(bucket, "set/g.jsonl.zst", zstandard(b'{"key": "g"}\n'))

    def found(path: str) -> list[str]:
        files = source_files(file_source(f"s3://{BUCKET}{path}", "jsonl"))
        return [file.removeprefix(f"s3://{BUCKET}/") for file in files]

    inside = ["set/b.jsonl", "set/f.jsonl.gz", "set/g.jsonl.zst", "set/x y/c[1].jsonl"]
    assert found("/set") == found("/set/") == inside
    assert found("") == ["a.jsonl", *inside]
    assert found("/*.jsonl") == found("/?.jsonl") == ["a.jsonl"]
    assert found("/**/*.jsonl") == ["a.jsonl", "set/b.jsonl", "set/x y/c[1].jsonl"]
    assert found("/set/*/*") == found("/set/x y/c[1].jsonl") == ["set/x y/c[1].jsonl"]
    rows = read_rows(f"s3://{BUCKET}/set", "jsonl")
    assert [row.record and row.record["key"] for row in rows] == [
        "set/b.jsonl",
        "f",
        "g",
        "set/x y/c[1].jsonl",
    ]


def test_large_objects_are_divided_like_files(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = b"".join(b'{"n": %d}\n' % n for n in range(1000))
    (tmp_path / "a.jsonl").write_bytes(lines)
    put(bucket, "a.jsonl", lines)
    table = io.BytesIO()
    pq.write_table(pa.table({"n": range(1000)}), table, row_group_size=90)
    put(bucket, "a.parquet", table.getvalue())
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2000)
    here = source_chunks(0, file_source(tmp_path / "a.jsonl", "jsonl"))
    there = source_chunks(0, file_source(f"s3://{BUCKET}/a.jsonl", "jsonl"))
    assert len(there) == len(here) > 3
    assert [(c.pieces[0].start, c.pieces[0].end, c.size) for c in there] == [
        (c.pieces[0].start, c.pieces[0].end, c.size) for c in here
    ]
    for kind in ("jsonl", "parquet"):
        rows = read_rows(f"s3://{BUCKET}/a.{kind}", kind)
        assert [row.record and row.record["n"] for row in rows] == list(range(1000))
    assert len(source_chunks(0, file_source(f"s3://{BUCKET}/a.parquet", "parquet"))) > 3


def test_an_object_that_changed_is_another_source(bucket: Any) -> None:
    put(bucket, "set/a.jsonl", b'{"a": 1}\n')
    source = file_source(f"s3://{BUCKET}/set", "jsonl")
    one = source_identity(source)
    assert source_identity(source) == one
    ((name, size, changed),) = one["files"]
    assert (name, size) == ("a.jsonl", 9)
    assert changed > 1_600_000_000 * 10**9
    put(bucket, "set/a.jsonl", b'{"a": 10}\n')
    assert source_identity(source) != one
    json.dumps(one)


def test_the_endpoint_may_be_said_in_the_path(
    bucket: Any, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    put(bucket, "set/a.jsonl", b'{"a": 1}\n')
    settings = f"?scheme=http&endpoint_override={endpoint}"
    source = file_source(f"s3://{BUCKET}/set{settings}", "jsonl")
    assert source_files(source) == [f"s3://{BUCKET}/set/a.jsonl{settings}"]
    (row,) = read_rows(source.path, "jsonl")
    assert (row.record, row.file) == ({"a": 1}, "a.jsonl")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (f"s3://{BUCKET}/none.jsonl", "no such file or folder"),
        (f"s3://{BUCKET}/*.csv", "the pattern matches no file"),
        ("s3://no-such-bucket/a.jsonl", "there is no bucket `no-such-bucket`, or its owner hides it"),
        ("s3://no-such-bucket/*.jsonl", "there is no bucket `no-such-bucket`, or its owner hides it"),
        (f"s3://{BUCKET}/a.jsonl?nonsense=1", "Unexpected query parameter in S3 URI: 'nonsense'"),
    ],
)
def test_what_is_not_there_is_named(bucket: Any, path: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        source_files(file_source(path, "jsonl"))
    assert words in str(caught.value)
    assert BUCKET in str(caught.value) or "no-such-bucket" in str(caught.value)


def test_a_cut_object_and_an_empty_one_are_refused(bucket: Any) -> None:
    put(bucket, "cut.jsonl.gz", gzipped(os.urandom(1000).hex().encode())[:-20])
    put(bucket, "empty.jsonl", b"")
    for name, words in {
        "cut.jsonl.gz": "the gzip file is cut off at byte",
        "empty.jsonl": "is empty",
    }.items():
        with pytest.raises(DataError, match=words):
            read_rows(f"s3://{BUCKET}/{name}", "jsonl")


def test_storage_that_denies_says_what_to_set_and_keeps_the_secret(bucket: Any, endpoint: str) -> None:
    put(bucket, "a.jsonl", b"{}\n")
    (chunk,) = source_chunks(0, file_source(f"s3://{BUCKET}/a.jsonl", "jsonl"))
    httpx.post(f"http://{endpoint}/moto-api/reset-auth", content=b"0")  # from now on keys are checked
    try:
        for path in ("a.jsonl", "*.jsonl", ""):
            with pytest.raises(
                DataError, match="access denied; set AWS_ACCESS_KEY_ID and AWS_SECRET"
            ) as caught:
                source_files(file_source(f"s3://{BUCKET}/{path}", "jsonl"))
            assert "canary" not in str(caught.value)
        with pytest.raises(DataError, match=r"a\.jsonl: access denied; set AWS_ACCESS_KEY_ID"):
            list(read_chunk(chunk))
    finally:
        httpx.post(f"http://{endpoint}/moto-api/reset-auth", content=b"Infinity")


def test_storage_that_cannot_be_reached_is_named() -> None:
    nobody = "scheme=http&endpoint_override=127.0.0.1:9&retry_limit_seconds=1"
    with pytest.raises(DataError, match="the storage cannot be reached: Could not connect to server"):
        source_files(file_source(f"gs://anonymous@bucket/a.jsonl?{nobody}", "jsonl"))
    aws = "AWS Error NETWORK_CONNECTION during HeadObject: curlCode: 7, Could not connect to server; more"
    error = places.unreadable("s3://b/a.jsonl", OSError(aws))
    assert "the storage cannot be reached: NETWORK_CONNECTION during HeadObject: curlCode: 7" in str(error)
    assert "more" not in str(error)


def test_google_paths_lead_to_googles_storage() -> None:
    from pyarrow.fs import GcsFileSystem

    place = places.place_of("gs://bucket/set/*.jsonl")
    assert isinstance(place, places.Remote)
    assert isinstance(place.files, GcsFileSystem)
    assert place.root == "bucket/set/*.jsonl"
    assert place.address("bucket/set/a.jsonl") == "gs://bucket/set/a.jsonl"
