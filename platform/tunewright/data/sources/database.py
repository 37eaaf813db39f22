"""A database that can only be read.

    PostgreSQL  through psycopg 3: read-only session and transaction, one statement a call (the
                extended protocol and a cursor allow no second one)
    SQLite      file opened with mode=ro, PRAGMA query_only, and an authorizer that allows nothing
                but to read: no ATTACH, no PRAGMA

Others are refused: how they are kept from writing has not been proved here. Passwords come from the
environment of whichever process connects, and are never part of what travels.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tunewright.data.sources.secrets import PLACEHOLDER, masked, refuse_literals, resolve_secrets
from tunewright.errors import DataError

CONNECT_S = 10
STATEMENT_S = 3600
HASH = "tunewright_hash"


@dataclass(frozen=True)
class Database:
    """Where to connect; pickles without any secret."""

    template: str
    """SQLAlchemy's URL, with `${NAME}` for what is secret."""

    @cached_property
    def url(self) -> Any:
        """SQLAlchemy's URL with everything filled in.

        Raises:
            DataError: it is no URL, holds a written-out password, or names a database that is not known.
        """
        from sqlalchemy import exc, make_url

        whole = PLACEHOLDER.fullmatch(self.template)
        text = resolve_secrets(self.template) if whole else self.template
        try:
            url = make_url(text)
        except (exc.ArgumentError, ValueError):
            raise DataError(
                "sql: the URL cannot be read; expected postgresql://USER:${PASSWORD}@HOST/DATABASE "
                "or sqlite:////PATH"
            ) from None
        backend = url.get_backend_name()
        if not whole:
            refuse_literals({"password": url.password or "", **_texts(url.query)}, _shown(url))
        if backend not in ("postgresql", "sqlite"):
            raise DataError(
                f"{_shown(url)}: {backend} is not supported; postgresql and sqlite are. "
                f"Export the table to Parquet or CSV and read that"
            )
        if not whole:
            url = _filled(url)
        if backend == "postgresql":
            if url.drivername not in ("postgresql", "postgresql+psycopg"):
                raise DataError(f"{_shown(url)}: driver {url.drivername}; use postgresql+psycopg://")
            return url.set(drivername="postgresql+psycopg")
        if url.query or not url.database or url.database == ":memory:":
            raise DataError("sql: give a file, sqlite:////PATH, without options")
        if not Path(url.database).is_file():
            raise DataError(f"sql: {url.database}: no such file")
        return url.set(database=str(Path(url.database).absolute()))

    @property
    def label(self) -> str:
        """What messages call it: host and database, no user, no password."""
        return _shown(self.url)

    @property
    def is_sqlite(self) -> bool:
        return str(self.url.get_backend_name()) == "sqlite"

    def engine(self) -> Any:
        """SQLAlchemy's engine; every connection of it can only read.

        Raises:
            DataError: the driver is not installed.
        """
        import sqlalchemy
        from sqlalchemy.pool import NullPool

        if self.is_sqlite:
            return sqlalchemy.create_engine(
                "sqlite://", creator=lambda: _open_sqlite(self.url), poolclass=NullPool
            )
        try:
            timeout = {} if "connect_timeout" in self.url.query else {"connect_timeout": CONNECT_S}
            engine = sqlalchemy.create_engine(self.url, poolclass=NullPool, connect_args=timeout)
        except ImportError:
            raise DataError(f"{self.label}: the driver is missing: pip install 'psycopg[binary]'") from None
        sqlalchemy.event.listen(engine, "connect", _keep_postgres_from_writing)
        return engine

    def read(self, engine: Any = None) -> Any:
        """A DB-API connection on which nothing can be written, `ATTACH`ed or set."""
        connection = (engine or self.engine()).raw_connection()
        if self.is_sqlite:
            connection.driver_connection.set_authorizer(_allow_reading)
        return connection

    def cursor(self, connection: Any) -> Any:
        """A cursor of such a connection; PostgreSQL's lives on the server and can be of one SELECT only."""
        return connection.cursor() if self.is_sqlite else connection.cursor("tunewright")

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn what SQLAlchemy or the driver says into one sentence without secrets."""
        try:
            yield
        except _database_errors() as error:
            raise self._error(getattr(error, "orig", None) or error) from None

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process has another working directory; and what `url` remembers stays here.
        template = f"sqlite:///{quote(self.url.database)}" if self.is_sqlite else self.template
        return Database, (template,)

    def _error(self, error: BaseException) -> DataError:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        password = self.url.password
        said = (lines[0] if lines else type(error).__name__)[:300]
        if password:
            said = said.replace(password, "***")
        return DataError(masked(f"{self.label}: {said}", self.template))


def _database_errors() -> tuple[type[Exception], ...]:
    import sqlite3

    from sqlalchemy.exc import SQLAlchemyError

    try:
        import psycopg
    except ImportError:
        return SQLAlchemyError, sqlite3.Error
    return SQLAlchemyError, sqlite3.Error, psycopg.Error


def _shown(url: Any) -> str:
    if url.get_backend_name() == "sqlite":
        return f"sqlite {Path(url.database or '').name}"
    host = PLACEHOLDER.sub("...", url.host or "local socket")
    port = f":{url.port}" if url.port else ""
    return f"{url.get_backend_name()} {host}{port}/{PLACEHOLDER.sub('...', url.database or '')}"


def _filled(url: Any) -> Any:
    """The URL with the values of its placeholders: each in its place, so that none needs quoting."""
    parts: dict[str, Any] = {}
    for part in ("username", "password", "host", "database"):
        value = getattr(url, part)
        if isinstance(value, str):
            parts[part] = resolve_secrets(value)
    return url.set(**parts, query={key: resolve_secrets(value) for key, value in _texts(url.query).items()})


def _texts(query: Any) -> dict[str, str]:
    return {key: value if isinstance(value, str) else value[-1] for key, value in query.items()}


def _keep_postgres_from_writing(connection: Any, record: object) -> None:
    """Each transaction of the connection is READ ONLY, sees one moment, and ends in time."""
    import psycopg

    connection.read_only = True
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = on")
        cursor.execute(f"SET statement_timeout = '{STATEMENT_S}s'")
    connection.commit()


def _open_sqlite(url: Any) -> Any:
    import sqlite3

    connection = sqlite3.connect(f"file:{quote(url.database)}?mode=ro", timeout=CONNECT_S, uri=True)
    connection.execute("PRAGMA query_only = ON")
    # Not UTF-8: the row will be rejected when it is read, and the others are not lost with it.
    connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    connection.create_function("mod", 2, lambda a, b: a % b, deterministic=True)
    connection.create_function(HASH, 1, _hash, deterministic=True)
    end = time.monotonic() + STATEMENT_S
    connection.set_progress_handler(lambda: int(time.monotonic() > end), 1_000_000)
    return connection


def _hash(value: object) -> int:
    return zlib.crc32(str(value).encode("utf-8", "surrogateescape"))


def _allow_reading(action: int, *what: object) -> int:
    import sqlite3

    allowed = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
    return sqlite3.SQLITE_OK if action in allowed else sqlite3.SQLITE_DENY
