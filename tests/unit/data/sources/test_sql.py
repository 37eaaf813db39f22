"""Tables, views and queries of SQLite and PostgreSQL as rows."""

from __future__ import annotations

import json
import pickle
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from postgres import PASSWORD, PASSWORD_VARIABLE, Server, running_server
from tunewright.config import SqlSource
from tunewright.data.sources.database import Database
from tunewright.data.sources.sql import sql_rows
from tunewright.errors import DataError

TABLE = """
CREATE TABLE chats
(id INTEGER PRIMARY KEY, prompt TEXT, answer TEXT, good BOOLEAN, meta JSON, day DATE, cents FLOAT)
"""


def chat(n: int) -> tuple[Any, ...]:
    good = None if n % 5 == 0 else n % 2 == 0
    return (
        n,
        f"question {n}",
        f'5% of "{n}"',
        good,
        f'{{"n": [{n}, null]}}',
        f"2026-01-{1 + n % 28:02d}",
        n / 4,
    )


def expected(n: int) -> dict[str, Any]:
    names = ("id", "prompt", "answer", "good", "meta", "day", "cents")
    return {**dict(zip(names, chat(n), strict=True)), "meta": {"n": [n, None]}}


@pytest.fixture(scope="module")
def sqlite_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database with 60 chats, the same as a view, and a table without a key."""
    path = tmp_path_factory.mktemp("sqlite") / "chats #1?.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(TABLE)
        connection.executemany("INSERT INTO chats VALUES (?, ?, ?, ?, ?, ?, ?)", map(chat, range(60)))
        connection.execute('CREATE VIEW "good ""chats""" AS SELECT * FROM chats WHERE good')
        connection.execute("CREATE TABLE keyless AS SELECT prompt, answer FROM chats")
        connection.execute("CREATE TABLE blobs AS SELECT x'00ff' AS picture, 'a' AS text")
        connection.execute("CREATE TABLE empty (id INTEGER)")
    return f"sqlite:///{quote(str(path))}"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A PostgreSQL with the same, and types that only it has."""
    with running_server() as found:
        with found.connect() as connection:
            connection.execute(TABLE.replace("JSON", "JSONB"))
            connection.cursor().executemany(
                "INSERT INTO chats VALUES (%s, %s, %s, %s, %s, %s, %s)", map(chat, range(60))
            )
            connection.execute('CREATE VIEW "good ""chats""" AS SELECT * FROM chats WHERE good')
            connection.execute("CREATE MATERIALIZED VIEW kept AS SELECT id FROM chats")
            connection.execute("CREATE SCHEMA sales")
            connection.execute("CREATE TABLE sales.keyless AS SELECT prompt, meta FROM chats")
            connection.execute("CREATE TABLE blobs AS SELECT '\\x00ff'::bytea AS picture, 'a' AS text")
            connection.execute("CREATE TABLE empty (id INTEGER)")
            connection.execute(
                "CREATE TABLE typed AS SELECT 12.50::numeric AS price, '12:30'::time AS t, "
                "'NaN'::float8 AS nan, '2026-01-02T03:04:05Z'::timestamptz AS at, "
                "ARRAY['a', NULL] AS list, '[1.5]'::json AS raw, "
                "'00000000-0000-0000-0000-000000000001'::uuid AS u, '10.0.0.1'::inet AS ip, "
                "'1 day'::interval AS d"
            )
        yield found


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each database in turn."""
    monkeypatch.setenv(PASSWORD_VARIABLE, PASSWORD)
    if request.param == "sqlite":
        return str(request.getfixturevalue("sqlite_url"))
    return str(request.getfixturevalue("server").url)


@pytest.fixture
def postgres_url(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(PASSWORD_VARIABLE, PASSWORD)
    return server.url


def texts(url: str, **changes: Any) -> list[str]:
    return list(sql_rows(SqlSource.model_validate({"type": "sql", "url": url, **changes})))


def rows(url: str, **changes: Any) -> list[Any]:
    return [json.loads(text) for text in texts(url, **changes)]


def ids(url: str, **changes: Any) -> set[int]:
    return {row["id"] for row in rows(url, **changes)}


def test_a_table_is_read_with_its_types(url: str) -> None:
    assert sorted(rows(url, table="chats"), key=lambda row: row["id"]) == [expected(n) for n in range(60)]


def test_columns_are_read_in_the_order_asked_for(url: str) -> None:
    assert texts(url, table="chats", select=["answer", "id"], where={"id": 7}) == [
        '{"answer":"5% of \\"7\\"","id":7}'
    ]


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ({"id": 3}, {3}),
        ({"id": [1, 2, 99]}, {1, 2}),
        ({"id": []}, set()),
        ({"good": True, "id": [2, 3, 4, 5]}, {2, 4}),
        ({"answer": '5% of "9"'}, {9}),
        ({"prompt": "x' OR '1'='1"}, set()),
        ({"cents": 2.5}, {10}),
    ],
)
def test_where_keeps_the_rows_with_these_values(url: str, where: dict[str, Any], found: set[int]) -> None:
    assert ids(url, table="chats", select=["id"], where=where) == found


def test_a_view_with_an_odd_name_is_read(url: str) -> None:
    assert ids(url, table='good "chats"') == {n for n in range(60) if n % 5 and n % 2 == 0}


def test_max_rows_are_the_first_by_key(url: str) -> None:
    assert ids(url, table="chats", max_rows=4) == {0, 1, 2, 3}


def test_max_rows_without_a_key_are_the_first_by_all_columns(sqlite_url: str, postgres_url: str) -> None:
    # As text: 10 stands before 2, whatever order the rows were written in.
    first = {"question 0", "question 1", "question 10"}
    for url, table in ((sqlite_url, "keyless"), (postgres_url, "sales.keyless")):
        assert {row["prompt"] for row in rows(url, table=table, max_rows=3)} == first
    query = "SELECT prompt FROM chats"
    assert {row["prompt"] for row in rows(sqlite_url, query=query, allow_query=True, max_rows=3)} == first


def test_a_query_binds_its_parameters(url: str) -> None:
    query = "SELECT id, answer AS a FROM chats WHERE id < :most AND answer LIKE :like OR prompt = :odd"
    parameters = {"most": 30, "like": '5% of "1%', "odd": "'; DROP TABLE chats; --"}
    found = rows(url, query=query, allow_query=True, parameters=parameters)
    assert {row["id"] for row in found} == {1, *range(10, 20)}
    assert all(row == {"id": row["id"], "a": f'5% of "{row["id"]}"'} for row in found)


def test_a_query_may_hold_percent_signs_and_colons(url: str) -> None:
    query = "SELECT id, 'a\\:b 100%' AS note FROM chats WHERE answer LIKE '5\\% of \"5_\"' ESCAPE '\\'"
    found = rows(url, query=query.replace("\\%", "%"), allow_query=True, max_rows=3)
    assert found == [{"id": n, "note": "a:b 100%"} for n in (50, 51, 52)]


def test_a_query_may_end_with_a_comment(url: str) -> None:
    assert rows(url, query="SELECT id FROM chats\nWHERE id = 3 -- the third", allow_query=True) == [{"id": 3}]


def test_a_schema_is_named_before_the_table(postgres_url: str) -> None:
    assert len(rows(postgres_url, table="sales.keyless")) == 60
    assert len(rows(postgres_url, table="sales.keyless", max_rows=5)) == 5
    assert len(rows(postgres_url, table="kept")) == 60


def test_types_of_postgresql_have_a_form_in_json(postgres_url: str) -> None:
    assert rows(postgres_url, table="typed") == [
        {
            "price": "12.50",
            "at": "2026-01-02T03:04:05+00:00",
            "t": "12:30:00",
            "nan": None,
            "list": ["a", None],
            "raw": [1.5],
            "u": "00000000-0000-0000-0000-000000000001",
            "ip": "10.0.0.1",
            "d": "1 day, 0:00:00",
        }
    ]


def test_bytes_are_refused_and_may_be_left_out(url: str) -> None:
    with pytest.raises(DataError, match="column `picture` holds bytes; rows are text: leave the column out"):
        rows(url, table="blobs")
    assert rows(url, table="blobs", select=["text"]) == [{"text": "a"}]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"table": "chat"}, r"no table `chat`; there are chats"),
        ({"table": "nothing_like_it"}, r"no table `nothing_like_it`; there are blobs, chats"),
        ({"table": "chats", "select": ["promt"]}, r"no column `promt`; there are prompt"),
        ({"table": "chats", "where": {"idd": 1}}, r"no column `idd`; there are id"),
        ({"table": "chats", "shard_by": "who", "shards": 2}, r"no column `who`; there are answer, cents"),
        ({"query": "SELECT * FROM chat", "allow_query": True}, "chat"),
        ({"query": "SELECT 1;", "allow_query": True}, "one SELECT without `;`"),
        ({"query": "SELECT :a AS a", "allow_query": True}, "parameters and the names in query differ: a"),
        ({"query": "SELECT 1", "allow_query": True, "parameters": {"b": 1}}, "differ: b"),
    ],
)
def test_what_is_not_there_is_named_with_what_is_near(url: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        rows(url, **changes)
    assert str(caught.value).startswith(("sqlite ", "postgresql 127.0.0.1"))
    assert "\n" not in str(caught.value)


def test_a_query_that_gives_a_column_twice_is_refused(postgres_url: str) -> None:
    with pytest.raises(DataError, match="gives the column `id` twice; name one of them with AS"):
        rows(postgres_url, query="SELECT a.id, b.id FROM chats a, chats b", allow_query=True)


def test_an_empty_table_gives_no_rows(url: str) -> None:
    assert rows(url, table="empty") == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ((PASSWORD_VARIABLE, "WRONG"), "password authentication failed for user"),
        (("/chats", "/chatz"), 'database "chatz" does not exist'),
        (("127.0.0.1", "no-such-host.invalid"), "failed to resolve host"),
    ],
)
def test_a_connection_that_fails_is_one_sentence(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, change: tuple[str, str], said: str
) -> None:
    monkeypatch.setenv("WRONG", "not-the-right-one")
    with pytest.raises(DataError, match=said) as caught:
        rows(postgres_url.replace(*change), table="chats")
    assert "not-the-right-one" not in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_nobody_listening_is_one_sentence() -> None:
    with pytest.raises(DataError, match=r"postgresql 127\.0\.0\.1:1/chats: .*Connection refused"):
        rows("postgresql://app@127.0.0.1:1/chats", table="chats")


def test_a_missing_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "psycopg"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(DataError, match=r"driver is missing: pip install 'psycopg\[binary\]'"):
        rows("postgresql://app@127.0.0.1:1/chats", table="chats")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("chats.db", "the URL cannot be read"),
        ("postgresql://app:x@host:port/db", "the URL cannot be read"),
        ("mysql://app@host/db", "mysql is not supported; postgresql and sqlite are"),
        ("postgresql+psycopg2://app@host/db", r"use postgresql\+psycopg://"),
        ("sqlite://", "give a file"),
        ("sqlite:///:memory:", "give a file"),
        ("sqlite:///chats.db?mode=rwc", "without options"),
        ("sqlite:///not/there.db", "not/there.db: no such file"),
        (
            "postgresql://app:${NOT_SET_ANYWHERE}@host/db",
            "set NOT_SET_ANYWHERE in the environment of the job",
        ),
        ("${NOT_SET_ANYWHERE}", "set NOT_SET_ANYWHERE in the environment of the job"),
    ],
)
def test_urls_that_cannot_be_used(url: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        rows(url, table="chats")


def test_the_whole_url_may_come_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "TWT_URL", f"postgresql://app:{quote(PASSWORD, safe='')}@127.0.0.1:{server.port}/chats"
    )
    assert len(rows("${TWT_URL}", table="chats")) == 60
    with pytest.raises(DataError, match="no table `chat`") as caught:
        rows("${TWT_URL}", table="chat")
    assert PASSWORD not in str(caught.value)


def test_a_file_that_is_no_database_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    path.write_text("no database " * 100, encoding="utf-8")
    with pytest.raises(DataError, match=r"sqlite chats\.db: file is not a database"):
        rows(f"sqlite:///{path}", table="chats")


def test_text_that_is_not_utf8_costs_its_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "latin.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE t (id INTEGER, text TEXT)")
        connection.execute("INSERT INTO t VALUES (1, CAST(x'636166e9' AS TEXT)), (2, 'fine')")
    first, second = sorted(texts(f"sqlite:///{path}", table="t"))
    assert first == '{"id":1,"text":"caf\\udce9"}', (
        "an escape that no UTF-8 can hold, so that reading rejects it"
    )
    assert second == '{"id":2,"text":"fine"}'


def test_damaged_json_stays_the_text_that_it_is(tmp_path: Path) -> None:
    path = tmp_path / "odd.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE t (messages JSON, ok BOOLEAN)")
        connection.execute("INSERT INTO t VALUES ('[1', 'maybe')")
    assert rows(f"sqlite:///{path}", table="t") == [{"messages": "[1", "ok": "maybe"}]


def test_a_database_travels_without_its_password(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, PASSWORD)
    database = Database(server.url)
    assert database.url.password == PASSWORD
    travelled = pickle.dumps(database)
    assert PASSWORD.encode() not in travelled
    assert pickle.loads(travelled).url == database.url


def test_a_relative_file_is_the_same_elsewhere(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(Database(sqlite_url).url.database)
    monkeypatch.chdir(path.parent)
    travelled = pickle.dumps(Database("sqlite:///" + quote(path.name)))
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(travelled).url.database == str(path)


def test_shards_need_ray(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(DataError, match="shards: 2 needs a connected Ray"):
        rows(sqlite_url, table="chats", shards=2, shard_by="id")


def test_a_statement_that_never_ends_is_stopped(
    sqlite_url: str, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunewright.data.sources.database.STATEMENT_S", 1)
    counting = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) AS c FROM n"
    for url, said in ((sqlite_url, "interrupted"), (postgres_url, "statement timeout")):
        with pytest.raises(DataError, match=said):
            rows(url, query=counting, allow_query=True)
