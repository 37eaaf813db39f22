"""Reading a database by several tasks of `ray.data.read_sql`.

Each task holds its shard in memory and reads it in a transaction of its own. So the rows are counted
before and after: where a table changes meanwhile, a row could be missed or read twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Any

from tunewright.data.sources.database import Database
from tunewright.data.sources.question import SHARD, Question
from tunewright.errors import DataError, own_cause


def sharded_rows(database: Database, engine: Any, question: Question, shards: int) -> Iterator[str]:
    """The rows that `shards` tasks of Ray read.

    Raises:
        DataError: the number of rows was not the same before, during and after.
    """
    import ray

    if not ray.is_initialized():
        raise DataError(f"{database.label}: shards: {shards} needs a connected Ray; shards: 1 does not")
    before = _count(database, engine, question)
    if not before:
        return
    sql, parameters = question.rows
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    rows = ray.data.read_sql(
        sql,
        partial(ShardConnection, database, question),
        sql_params=parameters,
        shard_keys=[SHARD],
        shard_hash_fn="",  # the column is a number already: Ray asks MOD(ABS((tunewright_shard)), shards)
        override_num_blocks=shards,
    )
    read = 0
    try:
        batches: Iterator[Any] = iter(rows.iter_batches(batch_size=None, batch_format="pyarrow"))
        for batch in batches:
            read += batch.num_rows
            yield from batch.column("row").to_pylist()
    except ray.exceptions.RayError as error:
        said = str(own_cause(error) or error).splitlines()[0]  # Ray adds its advice to our sentence
        raise DataError(f"{database.label}: a reader, on a worker of Ray, failed: {said}") from None
    after = _count(database, engine, question)
    if not before == read == after:
        raise DataError(
            f"{database.label}: the table changes while it is read: {before} rows before, {read} read, "
            f"{after} after. Read it with shards: 1, in one transaction"
        )


def _count(database: Database, engine: Any, question: Question) -> int:
    """Rows to be read; each belongs to a shard."""
    assert question.counts is not None
    with (
        database.explained(),
        closing(database.read(engine)) as connection,
        closing(database.cursor(connection)) as cursor,
    ):
        cursor.execute(*question.counts)
        rows, in_shards = cursor.fetchone()
    assert rows == in_shards, "a row without a shard would be lost"
    return int(rows)


class ShardConnection:
    """The DB-API connection that a task of `ray.data.read_sql` uses: it reads, and rows come as JSON.

    Ray makes a table of what a cursor gives, guessing types from values; a column of JSON texts
    leaves it nothing to guess. Made where it is used: what travels is a `Database` without secrets.
    """

    def __init__(self, database: Database, question: Question):
        self.database, self.question = database, question
        with database.explained():
            self.connection = database.read()
        self.cursors: list[_ShardCursor] = []

    def cursor(self) -> _ShardCursor:
        self.cursors.append(_ShardCursor(self))
        return self.cursors[-1]

    def commit(self) -> None:
        """Nothing was written."""

    def rollback(self) -> None:
        """Nothing was written."""

    def close(self) -> None:
        for cursor in self.cursors:
            cursor.inner.close()
        self.connection.close()


class _ShardCursor:
    description = (("row", None, None, None, None, None, None),)

    def __init__(self, owner: ShardConnection):
        self.database, self.question = owner.database, owner.question
        self.inner = owner.database.cursor(owner.connection)

    def execute(self, sql: str, parameters: Any) -> None:
        with self.database.explained():
            self.inner.execute(sql, parameters)

    def executemany(self, sql: str, parameters: Any) -> None:
        raise DataError(f"{self.database.label}: only one SELECT at a time is sent")

    def fetchone(self) -> Any:
        """A row as it is: Ray asks for a count with it."""
        with self.database.explained():
            return self.inner.fetchone()

    def fetchall(self) -> list[tuple[str]]:
        with self.database.explained():
            return [(self.question.text(row),) for row in self.inner.fetchall()]
