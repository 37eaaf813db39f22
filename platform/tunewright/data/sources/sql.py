"""Rows of a table, a view or a query.

The statement is built by SQLAlchemy: names are looked up in the database first and quoted, values are
bound. One reader streams the rows in one transaction, so it sees one moment of the database; several
(`shards`) are described in sql_shards.py.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from tunewright.config import SqlSource
from tunewright.data.sources.database import HASH, Database
from tunewright.data.sources.question import SHARD, Question, Statement
from tunewright.data.sources.sql_shards import sharded_rows
from tunewright.errors import DataError

BATCH_ROWS = 1000


def sql_rows(source: SqlSource) -> Iterator[str]:
    """The rows as JSON, in no particular order, at most `max_rows`: the first by primary key, or else
    by all columns.

    Raises:
        DataError: the database cannot be reached, has no such table or column, or refuses; says
            which, and never the password.
    """
    database = Database(source.url)
    with database.explained():
        engine = database.engine()
        with engine.connect() as connection:
            try:
                question = _question(source, connection, database)
            except DataError as error:
                raise DataError(f"{database.label}: {error}") from None
        if source.shards == 1:
            yield from _streamed(database, engine, question)
            return
    yield from sharded_rows(database, engine, question, source.shards)


def _question(source: SqlSource, connection: Any, database: Database) -> Question:
    import sqlalchemy as sa

    statement, place, types = (
        _of_table(source, connection) if source.table else _of_query(source, connection, database)
    )
    counts = None
    if source.shards > 1:
        assert source.shard_by is not None, "the schema requires it"
        column = place.c[_known(source.shard_by, [c.name for c in place.c], "column")]
        statement = statement.add_columns(_shard_of(column, database.is_sqlite).label(SHARD))
        sharded = statement.subquery("t")
        shard = sa.func.mod(sa.func.abs(sharded.c[SHARD]), source.shards)
        counting = sa.select(sa.func.count(), sa.func.count(shard)).select_from(sharded)
        counts = _compiled(counting, connection)
    stored = {}
    if database.is_sqlite:
        kinds = {"json": sa.JSON, "bool": sa.Boolean}
        stored = {
            name: kind for name, type_ in types.items() for kind, of in kinds.items() if isinstance(type_, of)
        }
    return Question(_compiled(statement, connection), counts, tuple(types), stored, database.label)


def _compiled(statement: Any, connection: Any) -> Statement:
    compiled = statement.compile(dialect=connection.dialect, compile_kwargs={"render_postcompile": True})
    values = compiled.params
    if compiled.positional:
        return str(compiled), tuple(values[name] for name in compiled.positiontup)
    return str(compiled), dict(values)


def _of_table(source: SqlSource, connection: Any) -> tuple[Any, Any, dict[str, Any]]:
    """`SELECT columns FROM table WHERE ...`, the table, and the type of each column read."""
    import sqlalchemy as sa

    assert source.table is not None
    inspector = sa.inspect(connection)
    schema, table = _find_table(inspector, source.table)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sa.exc.SAWarning)  # a type it does not know is read as it comes
        types = {column["name"]: column["type"] for column in inspector.get_columns(table, schema)}
    known = sa.table(table, *(sa.column(name, type_) for name, type_ in types.items()), schema=schema)
    names = [_known(name, types, "column") for name in source.select] or list(types)
    statement = sa.select(*(known.c[name] for name in dict.fromkeys(names)))
    for name, value in source.where.items():
        column = known.c[_known(name, types, "column")]
        statement = statement.where(column.in_(value) if isinstance(value, tuple) else column == value)
    if source.max_rows is not None:
        keys = inspector.get_pk_constraint(table, schema).get("constrained_columns") or []
        order = [known.c[name] for name in keys] or [sa.cast(known.c[name], sa.Text) for name in types]
        statement = statement.order_by(*order).limit(source.max_rows)
    return statement, known, {name: types[name] for name in names}


def _of_query(source: SqlSource, connection: Any, database: Database) -> tuple[Any, Any, dict[str, Any]]:
    """The same of the user's query, as a subquery: nothing but a SELECT can stand there."""
    import sqlalchemy as sa

    assert source.query is not None
    query = sa.text(f"{source.query}\n")  # it may end with a comment
    asked = set(query.compile().params)
    if asked != set(source.parameters):
        wrong = asked ^ set(source.parameters)
        raise DataError(
            f"parameters and the names in query differ: {', '.join(sorted(wrong))}; "
            f"write `\\:` for a colon that begins no name"
        )
    query = query.bindparams(**source.parameters)
    if source.query.rstrip().endswith(";"):
        raise DataError("query is one SELECT without `;`")
    probe: Any = sa.select(sa.literal_column("*")).select_from(query.columns().subquery("q")).limit(0)
    with closing(database.read(connection.engine)) as reading, closing(database.cursor(reading)) as cursor:
        cursor.execute(*_compiled(probe, connection))
        names = [column[0] for column in cursor.description]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"query gives the column `{twice[0]}` twice; name one of them with AS")
    inner = query.columns(*(sa.column(name) for name in names)).subquery("q")
    statement = sa.select(*inner.c)
    if source.max_rows is not None:
        statement = statement.order_by(*(sa.cast(column, sa.Text) for column in inner.c)).limit(
            source.max_rows
        )
    return statement, inner, dict.fromkeys(names)


def _find_table(inspector: Any, name: str) -> tuple[str | None, str]:
    """Schema and name of a table or view that is there; nothing else ever reaches a statement."""
    schema, _, table = name.rpartition(".")
    for place, wanted in ((None, name), (schema or None, table)):
        if place is not None and place not in inspector.get_schema_names():
            continue
        found = [*inspector.get_table_names(place), *inspector.get_view_names(place)]
        if inspector.dialect.name == "postgresql":
            found += inspector.get_materialized_view_names(place)
        if wanted in found:
            return place, wanted
    return None, _known(name, found, "table")


def _known(name: str, names: Any, what: str) -> str:
    """The name, if it is one of those.

    Raises:
        DataError: it is not; shows the nearest.
    """
    names = list(names)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or sorted(names)[:10]
    hint = f"there are {', '.join(near)}" if near else "there are none"
    raise DataError(f"no {what} `{name[:100]}`; {hint}")


def _shard_of(column: Any, sqlite: bool) -> Any:
    """A number that divides the rows; never NULL, whose rows no shard would read."""
    import sqlalchemy as sa

    text = sa.cast(column, sa.Text)
    if sqlite:
        return sa.func.coalesce(getattr(sa.func, HASH)(text), 0)
    # A 32-bit hash: its smallest value has no absolute value of 32 bits.
    return sa.func.coalesce(sa.cast(sa.func.hashtext(text), sa.BigInteger), 0)


def _streamed(database: Database, engine: Any, question: Question) -> Iterator[str]:
    with closing(database.read(engine)) as connection, closing(database.cursor(connection)) as cursor:
        cursor.execute(*question.rows)
        while rows := cursor.fetchmany(BATCH_ROWS):
            yield from map(question.text, rows)
