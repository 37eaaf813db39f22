"""Parquet and Arrow files, and snapshots of fetched rows -> raw rows, numbered from 1 in each file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tunewright.data.rows import Piece, RawRow
from tunewright.data.sources import parse
from tunewright.data.sources.extensions import refuse_extension_types
from tunewright.data.sources.parse import parse_row, problem_of, too_large
from tunewright.data.sources.places import is_remote
from tunewright.data.sources.plain import Columns
from tunewright.data.sources.streams import BOMB_FREE_BYTES, BOMB_RATIO, MIB, seekable
from tunewright.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

BATCH_ROWS = 1024
BATCH_BYTES = 8 << 20


def read_parquet(piece: Piece, file: str) -> Iterator[RawRow]:
    """`start` and `end` of the piece count row groups.

    Raises:
        DataError: the file is damaged, a bomb, or has columns that rows cannot hold.
    """
    with open_parquet_file(piece.path) as parquet:
        groups = range(piece.start, parquet.num_row_groups if piece.end < 0 else piece.end)
        columns = Columns(piece.path, parquet.schema_arrow)
        batches = parquet.iter_batches(_batch_rows(parquet), row_groups=list(groups), use_threads=False)
        yield from _rows(batches, columns, file, piece.first_line)


@contextmanager
def open_parquet_file(path: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file that somebody else wrote. pyarrow's errors inside become ours.

    Raises:
        DataError: it has extension types, is damaged, or a bomb.
    """
    import pyarrow.parquet as pq

    with seekable(path) as content, _explained(path, "Parquet"):
        refuse_extension_types(path, content)
        parquet = pq.ParquetFile(content, pre_buffer=is_remote(path), page_checksum_verification=True)
        _refuse_bomb(path, parquet)
        yield parquet


def read_arrow(piece: Piece, file: str) -> Iterator[RawRow]:
    """`start` and `end` of the piece count record batches.

    Raises:
        DataError: the file is damaged or has columns that rows cannot hold.
    """
    with seekable(piece.path) as content, _explained(piece.path, "Arrow"):
        schema, batches = open_arrow(piece.path, content)
        columns = Columns(piece.path, schema)
        wanted = _between(batches, piece.start, piece.end)
        yield from _rows(_sliced(wanted), columns, file, piece.first_line)


def open_arrow(path: str, content: BinaryIO) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Schema and record batches of an Arrow file or stream, each checked when it comes."""
    import pyarrow as pa

    refuse_extension_types(path, content)
    is_file = content.read(6) == b"ARROW1"
    content.seek(0)
    # Mapped, so that a batch that is passed over is not read.
    source = pa.memory_map(content.name) if _is_on_disk(content) else content
    if not is_file:
        stream = pa.ipc.open_stream(source)
        return stream.schema, iter(stream)
    reader = pa.ipc.open_file(source)
    return reader.schema, (reader.get_batch(number) for number in range(reader.num_record_batches))


def read_snapshot(piece: Piece, file: str, decryption: Any) -> Iterator[RawRow]:
    """Rows that snapshot.py wrote: `line`, and the row as JSON.

    Args:
        decryption: pyarrow's decryption properties, where the snapshot is encrypted.
    Raises:
        DataError: it is damaged, or encrypted with another key.
    """
    from tunewright.data.tables import map_parquet

    parquet, _ = map_parquet(Path(piece.path), decryption)
    with _explained(piece.path, "Parquet"):
        for batch in parquet.iter_batches(BATCH_ROWS, columns=["line", "row"], use_threads=False):
            for line, text in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                if len(text) > parse.ROW_BYTES:
                    yield too_large(file, line, text)
                else:
                    yield parse_row(file, line, text)


def _rows(batches: Iterator[pa.RecordBatch], columns: Columns, file: str, line: int) -> Iterator[RawRow]:
    for batch in batches:
        for value, problem in columns.rows(batch):
            text = json.dumps(value, ensure_ascii=False)
            problem = problem or problem_of(value, text)
            if len(text) > parse.ROW_BYTES:
                yield too_large(file, line, text)
            else:
                yield RawRow(file, line, text, None if problem else value, problem)
            line += 1


def _batch_rows(parquet: pq.ParquetFile) -> int:
    """Rows of a batch that are about BATCH_BYTES together."""
    metadata = parquet.metadata
    size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    return int(max(1, min(BATCH_ROWS, BATCH_BYTES * metadata.num_rows // max(1, size))))


def _sliced(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The batches in parts of BATCH_ROWS, after a look at whether their bytes fit together."""
    for batch in batches:
        batch.validate(full=True)
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS)


def _between(batches: Iterator[pa.RecordBatch], start: int, end: int) -> Iterator[pa.RecordBatch]:
    for number, batch in enumerate(batches):
        if 0 <= end <= number:
            return
        if number >= start:
            yield batch


def _refuse_bomb(path: str, parquet: pq.ParquetFile) -> None:
    metadata = parquet.metadata
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        columns = [group.column(number) for number in range(group.num_columns)]
        packed = sum(column.total_compressed_size for column in columns)
        out = sum(column.total_uncompressed_size for column in columns)
        if out > BOMB_FREE_BYTES and out > BOMB_RATIO * packed:
            raise DataError(
                f"{path}: {packed:,} bytes unpack to {out // MIB:,} MiB; at most {BOMB_RATIO} times is taken"
            )


def _is_on_disk(content: BinaryIO) -> bool:
    return isinstance(getattr(content, "name", None), str)


@contextmanager
def _explained(path: str, kind: str) -> Iterator[None]:
    """What pyarrow says of damaged bytes as a `DataError`; it says some of it as `OSError`."""
    import pyarrow as pa

    try:
        yield
    except pa.ArrowException as error:
        said = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read as {kind}: {said[:300]}") from None
    except OSError as error:
        if error.errno is not None or is_remote(path):
            raise  # of the disk or the network: perhaps only for now
        said = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read as {kind}: {said[:300]}") from None
