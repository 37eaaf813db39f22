"""Databases read by several tasks of Ray: every row once, the same as one reader gives."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from postgres import Server, running_server
from tunewright.artifacts import Store
from tunewright.config import SqlSource
from tunewright.data.sources.fetch import fetch_source
from tunewright.data.sources.sql import sql_rows
from tunewright.errors import DataError

pytestmark = pytest.mark.cluster

ROWS = 2000


def row(n: int) -> tuple[int, str, str | None]:
    """A row; every seventh has no value to divide by."""
    return n, f"100% of question {n}", None if n % 7 == 0 else f"user {n % 13}"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as found:
        with found.connect() as connection:
            connection.execute("CREATE TABLE chats (id INTEGER PRIMARY KEY, prompt TEXT, who TEXT)")
            connection.cursor().executemany("INSERT INTO chats VALUES (%s, %s, %s)", map(row, range(ROWS)))
        yield found


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    path = tmp_path / "chats.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE chats (id INTEGER PRIMARY KEY, prompt TEXT, who TEXT)")
        connection.executemany("INSERT INTO chats VALUES (?, ?, ?)", map(row, range(ROWS)))
    return f"sqlite:///{path}"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "sqlite":
        return str(request.getfixturevalue("sqlite_url"))
    return str(request.getfixturevalue("server").open_url)


@pytest.fixture
def read_sql(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The data sets that `ray.data.read_sql` made."""
    import ray

    made: list[Any] = []
    real = ray.data.read_sql

    def spy(*args: Any, **options: Any) -> Any:
        made.append(real(*args, **options))
        return made[-1]

    monkeypatch.setattr(ray.data, "read_sql", spy)
    return made


@pytest.mark.parametrize(
    "asked",
    [
        {"table": "chats"},
        {"table": "chats", "select": ("prompt",), "where": {"id": tuple(range(100, 900))}},
        {"table": "chats", "max_rows": 700},
        {
            "query": "SELECT id, prompt, who FROM chats WHERE id < :most AND prompt LIKE '100% of %'",
            "allow_query": True,
            "parameters": {"most": 900},
        },
    ],
    ids=["table", "where", "max_rows", "query"],
)
def test_shards_give_every_row_once(url: str, asked: dict[str, Any], read_sql: list[Any]) -> None:
    alone = sorted(sql_rows(SqlSource(type="sql", url=url, **asked)))
    together = sorted(sql_rows(SqlSource(type="sql", url=url, shards=4, shard_by="who", **asked)))
    assert together == alone
    assert len(set(alone)) == len(alone) in (ROWS, 800, 700, 900)
    (data,) = read_sql
    assert data.materialize().num_blocks() == 4, "Ray divided the reading"


def test_shards_change_no_snapshot(url: str, read_sql: list[Any], tmp_store: Store) -> None:
    refs = set()
    for shards in (1, 2, 5):
        source = SqlSource(type="sql", url=url, table="chats", shards=shards, shard_by="id")
        artifact, _ = fetch_source(tmp_store, 0, source)
        assert artifact.facts["rows"] == ROWS
        refs.add(artifact.ref)
    assert len(refs) == 1
    assert len(read_sql) == 2


def test_a_table_that_changes_meanwhile_is_an_error(server: Server, ray_cluster: None) -> None:
    source = SqlSource(type="sql", url=server.open_url, table="chats", shards=3, shard_by="id")
    rows = sql_rows(source)
    next(rows)
    with server.connect() as connection:
        connection.execute("DELETE FROM chats WHERE id = 5")
        try:
            with pytest.raises(DataError, match="the table changes while it is read: 2000 rows before"):
                list(rows)
        finally:
            connection.execute("INSERT INTO chats VALUES (%s, %s, %s)", row(5))


def test_what_fails_on_a_worker_is_one_sentence(
    server: Server, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Set here, and not where Ray's workers run.
    monkeypatch.setenv("TWT_LATE_USER", "reader")
    url = server.open_url.replace("reader", "${TWT_LATE_USER}")
    source = SqlSource(type="sql", url=url, table="chats", shards=3, shard_by="id")
    with pytest.raises(DataError, match=r"worker of Ray, failed: \$\{TWT_LATE_USER\} is not set") as caught:
        list(sql_rows(source))
    assert "\n" not in str(caught.value)
