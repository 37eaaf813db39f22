"""Files -> chunks: what one task reads.

Where chunks begin and end depends on the files alone, and so do the numbers of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

from tunewright.config import FileSource
from tunewright.data.rows import Chunk, Piece
from tunewright.data.sources.chosen import checked_files, of_each
from tunewright.data.sources.files import Found
from tunewright.data.sources.places import is_remote, open_file
from tunewright.data.sources.streams import blocks, is_packed
from tunewright.data.sources.tabular import open_arrow, open_parquet_file

CHUNK_BYTES = 4 << 20
CHUNK_FILES = 500


@dataclass(frozen=True)
class _Sized:
    """A piece and its bytes on disk."""

    piece: Piece
    size: int


def source_chunks(index: int, source: FileSource, first_number: int = 0) -> list[Chunk]:
    """The chunks of a source, in order.

    A large file is divided: JSONL at line ends, Parquet between row groups, Arrow between record
    batches. Compressed files, and types whose rows cannot be found without reading all before
    them, are one piece each. Small files go together. With `max_rows` there is one chunk.

    Args:
        index: of the source in the configuration.
        first_number: of the first chunk.
    Raises:
        DataError: a file is missing, or not what the source says.
    """
    files = checked_files(source)
    root = _shared_folder([file.path.partition("?")[0] for file in files])
    if source.max_rows is not None:
        # The first rows of them all can only be counted by one who reads in order, and stops.
        pieces = [_Sized(Piece(file.path), file.size) for file in files]
        return [_chunk(index, first_number, source, pieces, root)]
    divided = of_each(files, lambda file: _pieces(file, source.type))
    groups = _groups(piece for pieces in divided for piece in pieces)
    return [_chunk(index, n, source, group, root) for n, group in enumerate(groups, start=first_number)]


def _shared_folder(paths: list[str]) -> str:
    """The folder that all paths share, with its slash: names without it still tell files apart."""
    folders = [path.rpartition("/")[0].split("/") for path in (min(paths), max(paths))]
    shared = [a for a, b in takewhile(lambda pair: pair[0] == pair[1], zip(*folders, strict=False))]
    return "/".join(shared) + "/"


def _chunk(index: int, number: int, source: FileSource, pieces: list[_Sized], root: str) -> Chunk:
    return Chunk(
        source=index,
        number=number,
        type=source.type,
        pieces=tuple(each.piece for each in pieces),
        max_rows=source.max_rows,
        size=sum(each.size for each in pieces),
        root=root,
    )


def _groups(pieces: Iterator[_Sized]) -> Iterator[list[_Sized]]:
    """Neighbours, as many as a chunk may have."""
    group: list[_Sized] = []
    size = 0
    for piece in pieces:
        if group and (size + piece.size > CHUNK_BYTES or len(group) == CHUNK_FILES):
            yield group
            group, size = [], 0
        group.append(piece)
        size += piece.size
    yield group


def _pieces(file: Found, kind: str) -> list[_Sized]:
    if file.size > CHUNK_BYTES and not _is_packed(file.path):
        if kind == "jsonl":
            return _line_ranges(file.path)
        if kind == "parquet":
            return _row_groups(file.path)
        if kind == "arrow" and not is_remote(file.path):
            return _record_batches(file)
    return [_Sized(Piece(file.path), file.size)]


def _is_packed(path: str) -> bool:
    with open_file(path) as file:
        return is_packed(file.read(4))


def _line_ranges(path: str) -> list[_Sized]:
    """Byte ranges of about CHUNK_BYTES that end at line ends, with the number of their first line."""
    ranges = []
    start = at = 0
    first = line = 1

    def end_at(end: int) -> None:
        nonlocal start, first
        ranges.append(_Sized(Piece(path, start, end, first), end - start))
        start, first = end, line

    for block in blocks(path):
        done = 0
        while (cut := block.find(b"\n", max(done, start + CHUNK_BYTES - at)) + 1) > 0:
            line += block.count(b"\n", done, cut)
            done = cut
            end_at(at + cut)
        line += block.count(b"\n", done)
        at += len(block)
    if at > start:
        end_at(at)
    return ranges


def _row_groups(path: str) -> list[_Sized]:
    """Runs of row groups of about CHUNK_BYTES on disk."""
    with open_parquet_file(path) as parquet:
        metadata = parquet.metadata
        sizes = []
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            columns = map(group.column, range(group.num_columns))
            sizes.append((sum(column.total_compressed_size for column in columns), group.num_rows))
    return _runs(path, sizes)


def _record_batches(file: Found) -> list[_Sized]:
    """Runs of record batches of about CHUNK_BYTES in memory; of a file that is mapped none is read."""
    with open_file(file.path) as content:
        _, batches = open_arrow(file.path, content)
        sizes = [(batch.nbytes, batch.num_rows) for batch in batches]
    return _runs(file.path, sizes)


def _runs(path: str, sizes: list[tuple[int, int]]) -> list[_Sized]:
    """Pieces of parts of (bytes, rows); `start` and `end` count the parts."""
    runs = []
    start, first, line, size = 0, 1, 1, 0
    for number, (part, rows) in enumerate(sizes):
        if size and size + part > CHUNK_BYTES:
            runs.append(_Sized(Piece(path, start, number, first), size))
            start, first, size = number, line, 0
        size += part
        line += rows
    return [*runs, _Sized(Piece(path, start, len(sizes), first), size)]
