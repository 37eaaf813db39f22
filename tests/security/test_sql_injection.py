"""Whatever a configuration asks of a database, nothing is written, run or opened there."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from postgres import PASSWORD, PASSWORD_VARIABLE, Server, running_server
from tunewright.artifacts import file_sha256
from tunewright.config import SqlSource
from tunewright.data.sources.database import Database
from tunewright.data.sources.sql import sql_rows
from tunewright.errors import DataError

NAMES = [
    "chats; DROP TABLE chats",
    "chats; DROP TABLE chats; --",
    'chats" ; DROP TABLE chats; --',
    "chats WHERE 1=1 UNION SELECT * FROM secrets",
    "(SELECT * FROM secrets)",
    "chats, secrets",
    "pg_catalog.pg_authid; --",
    "chats\0",
    "",
]
# Each would change or open something if it were run as it stands.
QUERIES = {
    "drop": "DROP TABLE chats",
    "second statement": "SELECT 1 AS a; DROP TABLE chats",
    "after the parenthesis": "SELECT 1) AS q; DROP TABLE chats; SELECT * FROM (SELECT 1 AS a",
    "commented parenthesis": "SELECT 1 AS a) AS q; DELETE FROM chats; --",
    "insert": "INSERT INTO chats VALUES (9, 'x') RETURNING id",
    "update": "UPDATE chats SET answer = 'x' RETURNING id",
    "writing CTE": "WITH gone AS (DELETE FROM chats RETURNING *) SELECT * FROM gone",
    "create": "CREATE TABLE evil (id INTEGER)",
    "commit": "COMMIT",
    "commit and drop": "SELECT 1 AS a) AS q; COMMIT; DROP TABLE chats; --",
    "vacuum": "VACUUM",
}
SQLITE = {
    "attach": "ATTACH DATABASE '{evil}' AS evil",
    "attach after the parenthesis": "SELECT 1 AS a) AS q; ATTACH DATABASE '{evil}' AS evil; --",
    "vacuum into": "VACUUM INTO '{evil}'",
    "pragma": "PRAGMA query_only = OFF",
    "pragma as a table": "SELECT * FROM pragma_query_only",
    "pragma as a function": "SELECT * FROM pragma_table_info('chats')",
    "extension": "SELECT load_extension('{evil}')",
    "writable schema": "SELECT writefile('{evil}', 'x')",
}
POSTGRES = {
    "copy to program": "COPY (SELECT 1) TO PROGRAM 'touch {evil}'",
    "copy from program": "COPY chats FROM PROGRAM 'touch {evil}; echo'",
    "copy after the parenthesis": "SELECT 1 AS a) AS q; COPY (SELECT 1) TO PROGRAM 'touch {evil}'; --",
    "copy to a file": "COPY chats TO '{evil}'",
    "read-write by function": "SELECT set_config('transaction_read_only', 'off', true)",
    "sequence": "SELECT nextval('counter')",
    "lock": "SELECT * FROM chats FOR UPDATE",
    "do block": "DO $$ BEGIN DELETE FROM chats; END $$",
    "function that writes": "SELECT wipe()",
    "set": "SET transaction_read_only = off",
    "into": "SELECT * INTO evil FROM chats",
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A PostgreSQL asked by its superuser, so that nothing but our own care keeps it safe."""
    with running_server() as found:
        with found.connect() as connection:
            connection.execute("CREATE TABLE chats (id INTEGER PRIMARY KEY, answer TEXT)")
            connection.execute("INSERT INTO chats VALUES (1, 'kept'), (2, 'too')")
            connection.execute("CREATE TABLE secrets AS SELECT 'canary' AS answer")
            connection.execute("CREATE SEQUENCE counter")
            connection.execute(
                "CREATE FUNCTION wipe() RETURNS int LANGUAGE sql AS 'DELETE FROM chats; SELECT 1'"
            )
        yield found


@pytest.fixture
def postgres_url(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The server's URL; its content is what it was afterwards."""
    monkeypatch.setenv(PASSWORD_VARIABLE, PASSWORD)
    before = postgres_content(server)
    yield server.url
    assert postgres_content(server) == before


@pytest.fixture
def evil() -> Iterator[Path]:
    """Where the server's user could write a file."""
    with tempfile.TemporaryDirectory(prefix="twevil-") as folder:
        Path(folder).chmod(0o777)
        yield Path(folder) / "evil"


def postgres_content(server: Server) -> list[Any]:
    """Rows, tables, the sequence and large objects."""
    with server.connect() as connection:
        return [
            connection.execute(sql).fetchall()
            for sql in (
                "SELECT * FROM chats ORDER BY id",
                "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1",
                "SELECT last_value, is_called FROM counter",
                "SELECT count(*) FROM pg_largeobject_metadata",
            )
        ]


@pytest.fixture
def sqlite_url(tmp_path: Path) -> Iterator[str]:
    """A database's URL; the folder holds the same bytes afterwards."""
    path = tmp_path / "chats.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE chats (id INTEGER PRIMARY KEY, answer TEXT)")
        connection.execute("INSERT INTO chats VALUES (1, 'kept'), (2, 'too')")
        connection.execute("CREATE TABLE secrets AS SELECT 'canary' AS answer")
    before = file_sha256(path)
    yield f"sqlite:///{path}"
    assert [file.name for file in tmp_path.iterdir()] == ["chats.db"]
    assert file_sha256(path) == before


def refused(url: str, evil: Path, **changes: Any) -> str:
    """The message of the refusal; nothing was made at `evil`."""
    source = SqlSource.model_validate({"type": "sql", "url": url, **changes})
    with pytest.raises(DataError) as caught:
        list(sql_rows(source))
    assert not evil.exists()
    return str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_looked_up_not_pasted(
    sqlite_url: str, postgres_url: str, tmp_path: Path, name: str
) -> None:
    for url in (sqlite_url, postgres_url):
        if name:
            assert "no table" in refused(url, tmp_path / "evil", table=name)
            assert "no column" in refused(url, tmp_path / "evil", table="chats", select=[name])
            assert "no column" in refused(url, tmp_path / "evil", table="chats", where={name: 1})
        assert "no column" in refused(url, tmp_path / "evil", table="chats", shard_by=name, shards=2)


@pytest.mark.parametrize(
    "value", ["x' OR '1'='1", "'; DROP TABLE chats; --", "%(id_1)s", ":answer_1", "?", "\\"]
)
def test_a_value_is_bound_not_pasted(sqlite_url: str, postgres_url: str, value: str) -> None:
    for url in (sqlite_url, postgres_url):
        for where in ({"answer": value}, {"answer": (value, value)}):
            assert list(sql_rows(SqlSource(type="sql", url=url, table="chats", where=where))) == []
        query = "SELECT * FROM chats WHERE answer = :answer"
        bound = SqlSource(type="sql", url=url, query=query, allow_query=True, parameters={"answer": value})
        assert list(sql_rows(bound)) == []


@pytest.mark.parametrize("query", [*QUERIES.values(), *SQLITE.values()], ids=[*QUERIES, *SQLITE])
def test_a_query_cannot_change_sqlite(sqlite_url: str, tmp_path: Path, query: str) -> None:
    evil = tmp_path / "evil"
    said = refused(sqlite_url, evil, query=query.format(evil=evil), allow_query=True)
    assert said.startswith("sqlite chats.db: ")


@pytest.mark.parametrize("query", [*QUERIES.values(), *POSTGRES.values()], ids=[*QUERIES, *POSTGRES])
def test_a_query_cannot_change_postgresql(postgres_url: str, evil: Path, query: str) -> None:
    said = refused(postgres_url, evil, query=query.format(evil=evil), allow_query=True)
    assert said.startswith("postgresql 127.0.0.1")


def test_the_attacks_on_postgresql_are_real(server: Server, evil: Path) -> None:
    with server.connect() as connection:
        connection.execute(POSTGRES["copy to program"].format(evil=evil))
    assert evil.exists()
    evil.unlink()


def test_what_a_function_makes_in_a_transaction_is_never_committed(postgres_url: str) -> None:
    # PostgreSQL lets a read-only transaction make a large object; ours is rolled back.
    source = SqlSource(type="sql", url=postgres_url, query="SELECT lo_create(0) AS id", allow_query=True)
    assert len(list(sql_rows(source))) == 1


def test_each_wall_of_sqlite_holds_alone(sqlite_url: str, tmp_path: Path) -> None:
    with closing(Database(sqlite_url).engine().raw_connection()) as connection:
        raw = connection.driver_connection
        with pytest.raises(sqlite3.OperationalError, match="readonly|read-only|query_only"):
            raw.execute("DELETE FROM chats")
        raw.execute("PRAGMA query_only = OFF")
        with pytest.raises(sqlite3.OperationalError, match="readonly database"):
            raw.execute("DELETE FROM chats")
        raw.rollback()
    with closing(Database(sqlite_url).read()) as connection:
        for sql in ("DELETE FROM chats", "PRAGMA query_only = OFF", f"ATTACH '{tmp_path}/evil' AS evil"):
            with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
                connection.driver_connection.execute(sql)


def test_each_wall_of_postgresql_holds_alone(postgres_url: str) -> None:
    import psycopg

    database = Database(postgres_url)
    with closing(database.read()) as connection:
        raw = connection.driver_connection
        assert raw.read_only is True
        assert raw.execute("SHOW default_transaction_read_only").fetchone() == ("on",)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            raw.execute("DELETE FROM chats")
        raw.rollback()
        with closing(database.cursor(connection)) as cursor, pytest.raises(psycopg.errors.SyntaxError):
            cursor.execute("SELECT 1; SELECT 2", {})


def test_a_query_needs_to_be_allowed() -> None:
    with pytest.raises(ValueError, match="allow_query: true"):
        SqlSource(type="sql", url="sqlite:///x.db", query="SELECT 1")
