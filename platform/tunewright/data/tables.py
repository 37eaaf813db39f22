"""Parquet files of the data stage, its shards among them: how they are written, and opened.

Each is written by rename, is the same bytes for the same content unless it is encrypted, and has a
checksum on every page, which is verified when the page is read.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tunewright.artifacts import explained
from tunewright.data.encryption import Cipher
from tunewright.errors import DataError, ShardCorrupt


def write_table(
    path: Path, table: pa.Table, cipher: Cipher | None = None, row_group_rows: int | None = None
) -> None:
    """Write a table, in row groups of `row_group_rows` rows, or a million.

    Raises:
        StoreError: the disk is full, or the folder cannot be written.
    """
    with _writer(path, table.schema, cipher, False) as writer:
        writer.write_table(table, row_group_rows)


def write_groups(
    path: Path,
    tables: Iterable[pa.Table],
    schema: pa.Schema,
    cipher: Cipher | None = None,
    dictionary: bool | list[str] = False,
) -> None:
    """Write each table as one row group, also an empty one; `read_group` reads them by number.

    Args:
        tables: may be made while they are written; one is held at a time.
        dictionary: the columns, as paths of the Parquet schema, whose values repeat a lot.
    Raises:
        StoreError: the disk is full, or the folder cannot be written.
    """
    with _writer(path, schema, cipher, dictionary) as writer:
        for table in tables:
            writer.write_table(table, max(1, table.num_rows))


@contextmanager
def _writer(
    path: Path, schema: pa.Schema, cipher: Cipher | None, dictionary: bool | list[str]
) -> Iterator[pq.ParquetWriter]:
    temporary = path.with_suffix(".tmp")
    with explained(f"writing {path}"):
        try:
            with pq.ParquetWriter(
                temporary,
                schema,
                compression="zstd",
                compression_level=1,
                use_dictionary=dictionary,
                write_statistics=False,
                write_page_checksum=True,
                encryption_properties=cipher.properties() if cipher else None,
            ) as writer:
                yield writer
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def open_parquet(path: Path, cipher: Cipher | None = None) -> pq.ParquetFile:
    """The file, mapped into memory; its pages' checksums are verified when they are read.

    Raises:
        DataError: it is encrypted and there is no key, or another one.
        ShardCorrupt: it is not Parquet, or not encrypted as it should be.
    """
    return map_parquet(path, cipher.decryption() if cipher else None)[0]


def read_group(
    path: Path, group: int, columns: Sequence[str] | None = None, cipher: Cipher | None = None
) -> pa.Table:
    """One row group of a file that `write_groups` wrote; all columns unless some are named.

    Raises:
        DataError, ShardCorrupt: as `open_parquet`; a page fails its checksum.
    """
    return read_group_of(open_parquet(path, cipher), path, group, columns)


def read_table(path: Path, columns: Sequence[str] | None = None, cipher: Cipher | None = None) -> pa.Table:
    """All rows of a file that `write_table` or `write_groups` wrote; raises as `read_group`."""
    file = open_parquet(path, cipher)
    with _damage(path):
        return file.read(None if columns is None else list(columns), use_threads=False)


def map_parquet(path: Path, decryption: Any) -> tuple[pq.ParquetFile, mmap.mmap]:
    """`open_parquet` for who has the properties of a cipher at hand; the mapping too."""
    try:
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: nothing can be mapped of an empty file
        raise ShardCorrupt(f"{path}: not a Parquet file: {error}") from None
    encrypted = content[-4:] == b"PARE"
    if encrypted and decryption is None:
        raise DataError(f"{path} is encrypted; say data.encryption.key, the one that it was written with")
    if decryption is not None and content[-4:] == b"PAR1":  # pyarrow would read it all the same
        raise ShardCorrupt(f"{path} is not encrypted, but the data set is: this file is not of it")
    with _damage(f"{path}" if encrypted else f"{path}: not a Parquet file"):
        source = pa.BufferReader(pa.py_buffer(content))
        file = pq.ParquetFile(source, page_checksum_verification=True, decryption_properties=decryption)
    return file, content


def read_group_of(
    file: pq.ParquetFile, path: Path, group: int, columns: Sequence[str] | None = None
) -> pa.Table:
    """`read_group` of a file that is open; `path` is for messages."""
    with _damage(f"{path}: row group {group}"):
        return file.read_row_group(group, None if columns is None else list(columns), use_threads=False)


@contextmanager
def _damage(what: object) -> Iterator[None]:
    """Turn what pyarrow says of damaged bytes into `ShardCorrupt`; name the file in our own errors."""
    try:
        yield
    except DataError as error:
        raise type(error)(f"{what}: {error}") from None
    except (pa.ArrowException, OSError) as error:
        raise ShardCorrupt(f"{what}: {str(error).strip()}") from error
