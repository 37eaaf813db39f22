"""CSV and TSV -> raw rows, whose values are all text: `007` stays `007`."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from io import TextIOWrapper

from tunewright.data.rows import Piece, RawRow
from tunewright.data.sources import parse
from tunewright.data.sources.parse import NUL, too_large
from tunewright.data.sources.streams import open_text
from tunewright.errors import DataError

WIDTH = "another number of columns than the header"


def read_csv(piece: Piece, file: str) -> Iterator[RawRow]:
    return _read(piece, file, ",", "csv")


def read_tsv(piece: Piece, file: str) -> Iterator[RawRow]:
    return _read(piece, file, "\t", "tsv")


def _read(piece: Piece, file: str, delimiter: str, kind: str) -> Iterator[RawRow]:
    """A row a record; `line` is that of its first line.

    Raises:
        DataError: the file is not UTF-8, its header names a column twice, or a quote is never closed:
            without `strict` that would take in the rest of the file in silence.
    """
    csv.field_size_limit(parse.ROW_BYTES)  # 128 KiB as a rule, and a long text is no damaged file
    with open_text(piece.path, "") as content:
        lines = _Lines(content)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header: list[str] = []
        while True:
            lines.begin()
            try:
                values = next(reader, None)
            except _TooLarge as error:
                if not error.closed:
                    problem = f"a row {parse.TOO_LARGE}; is a quote never closed?"
                    raise DataError(f"{piece.path}:{lines.first}: not {kind}: {problem}") from None
                yield too_large(file, lines.first, lines.taken[0])
                continue
            except csv.Error as error:
                raise DataError(f"{piece.path}:{lines.first}: not {kind}: {error}") from None
            except UnicodeDecodeError as error:
                where = f"after line {lines.number}"
                raise DataError(f"{piece.path}: not UTF-8: {error.reason}, {where}") from None
            if values is None:
                return
            if not values:
                continue  # a blank line
            if not header:
                header = values
                _check_header(piece.path, header)
                continue
            text = "".join(lines.taken).rstrip("\r\n")
            if len(values) != len(header):
                yield RawRow(file, lines.first, text, None, WIDTH)
            elif "\0" in text:
                yield RawRow(file, lines.first, text, None, NUL)
            else:
                yield RawRow(file, lines.first, text, dict(zip(header, values, strict=True)))


def _check_header(path: str, header: list[str]) -> None:
    twice = [name for name, times in Counter(header).items() if times > 1]
    if twice:
        raise DataError(f"{path}: the header names the column `{twice[0]}` twice")


class _TooLarge(Exception):
    """A record that takes more than a row may.

    Attributes:
        closed: it is one line, which was read to its end, and each of its quotes is closed.
    """

    def __init__(self, closed: bool):
        super().__init__()
        self.closed = closed


class _Lines:
    """The lines of a file for `csv.reader`, and which of them the record at hand has taken.

    Attributes:
        number: of the last line.
        first: of the first line of the record.
    """

    def __init__(self, content: TextIOWrapper):
        self._content = content
        self.number = self.first = 0
        self.taken: list[str] = []
        self._size = 0

    def begin(self) -> None:
        """The next line is the first of a record."""
        self.taken, self._size = [], 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._content.readline(parse.ROW_BYTES)
        if not line:
            raise StopIteration
        self.number += 1
        if not self.taken:
            self.first = self.number
        self.taken.append(line)
        self._size += len(line)
        if self._size >= parse.ROW_BYTES:
            raise _TooLarge(len(self.taken) == 1 and self._pass_over(line))
        return line

    def _pass_over(self, line: str) -> bool:
        """Read to the end of the line; whether its quotes come in pairs."""
        quotes = line.count('"')
        while line and not line.endswith(("\n", "\r")):
            line = self._content.readline(parse.ROW_BYTES)
            quotes += line.count('"')
        return quotes % 2 == 0
