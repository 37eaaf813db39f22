"""Chunks -> raw rows, each with the file and line it came from."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice
from typing import Any

from tunewright.data.rows import Chunk, Piece, RawRow
from tunewright.data.sources.delimited import read_csv, read_tsv
from tunewright.data.sources.json_list import read_json
from tunewright.data.sources.lines import read_jsonl, read_text
from tunewright.data.sources.places import passing, unreadable
from tunewright.data.sources.tabular import read_arrow, read_parquet, read_snapshot

log = logging.getLogger(__name__)

Reader = Callable[[Piece, str], Iterator[RawRow]]
READERS: dict[str, Reader] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "tsv": read_tsv,
    "parquet": read_parquet,
    "arrow": read_arrow,
    "text": read_text,
}
"""By type of the source; `rows`, of snapshots, is read by `read_snapshot`."""
RETRIES = 3
BACK_OFF_S = 0.2


def read_chunk(chunk: Chunk, decryption: Any = None) -> Iterator[RawRow]:
    """The rows of a chunk, those that cannot be parsed included.

    Args:
        decryption: pyarrow's decryption properties, for a snapshot that is encrypted.
    Raises:
        DataError: a file as a whole cannot be read.
    """
    read = partial(read_snapshot, decryption=decryption) if chunk.type == "rows" else READERS[chunk.type]
    rows = chain.from_iterable(_rows(piece, read, chunk.root) for piece in chunk.pieces)
    return rows if chunk.max_rows is None else islice(rows, chunk.max_rows)


def _rows(piece: Piece, read: Reader, root: str) -> Iterator[RawRow]:
    """The rows of a piece. What a disk or a network refuses for a moment is tried again.

    A try begins with the piece and passes over the rows that were given already, so none comes twice.
    """
    path = piece.path.partition("?")[0]
    name = path[len(root) :] if root and path.startswith(root) else path.rpartition("/")[2]
    given = tries = 0
    while True:
        begun = given
        try:
            for row in islice(read(piece, name), given, None):
                given += 1
                yield row
            return
        except OSError as error:
            tries = 1 if given > begun else tries + 1
            if tries > RETRIES or not passing(error):
                raise unreadable(piece.path, error) from None
            log.warning("reading again", extra={"file": name, "rows": given, "error": str(error)[:200]})
            time.sleep(BACK_OFF_S * 2 ** (tries - 1))
