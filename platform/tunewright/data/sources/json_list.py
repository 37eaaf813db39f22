"""A JSON file that is one list of rows -> raw rows, read in pieces, so that any length fits in memory."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from tunewright.data.rows import Piece, RawRow
from tunewright.data.sources import parse
from tunewright.data.sources.parse import encodable, problem_of, too_large
from tunewright.data.sources.streams import blocks
from tunewright.errors import DataError

_blanks = re.compile(r"[ \t\r\n]*").match


def read_json(piece: Piece, file: str) -> Iterator[RawRow]:
    """A row an item; `line` is the item's number, from 1, as the whole list may stand on one line.

    Raises:
        DataError: the file is not UTF-8, not JSON, or no list.
    """
    reading = _Reading(piece.path)
    first = reading.peek()
    if first != "[":
        raise DataError(f"{piece.path}: {_not_a_list(first)}")
    reading.at += 1
    if reading.peek() == "]":
        reading.at += 1
        reading.finish()
        return
    while True:
        reading.row += 1
        value, text = reading.value()
        problem = f"{reading.constant} is not JSON" if reading.constant else problem_of(value, text)
        if len(text) > parse.ROW_BYTES:
            yield too_large(file, reading.row, text)
        elif problem:
            yield RawRow(file, reading.row, encodable(text), None, problem)
        else:
            yield RawRow(file, reading.row, text, value)
        mark = reading.peek()
        reading.at += 1
        if mark == "]":
            reading.finish()
            return
        if mark != ",":
            raise reading.error("Expecting ',' or ']'")


def _not_a_list(first: str) -> str:
    if first == "{":
        return "expected a list of rows, found an object; with one object a line, say type: jsonl"
    return "not JSON" if not first or first not in '"-0123456789tfn' else "expected a list of rows"


class _Reading:
    """The text of a file from `at` on, as much of it as is needed.

    Attributes:
        row: number of the row that is read.
        constant: NaN or Infinity, if the last value held one.
    """

    def __init__(self, path: str):
        self.path = path
        self.text, self.at, self.row = "", 0, 0
        self.constant = ""
        self._blocks = blocks(path)
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._ended = False
        self._decode = json.JSONDecoder(parse_constant=self._see_constant).raw_decode

    def peek(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            found = _blanks(self.text, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self.text) or not self._more(1):
                return self.text[self.at : self.at + 1]

    def value(self) -> tuple[Any, str]:
        """The next value, and its text.

        Raises:
            DataError: it is not JSON.
        """
        self.peek()
        wanted = 1
        while True:
            self.constant = ""
            try:
                value, end = self._decode(self.text, self.at)
            except (ValueError, RecursionError) as error:
                # Perhaps it only goes on in what was not read yet. Each try reads twice as much as the last.
                if not isinstance(error, json.JSONDecodeError) or not self._more(wanted):
                    raise self.error(getattr(error, "msg", str(error))) from None
            else:
                if end < len(self.text) or not self._more(wanted):  # `12` may be the beginning of `123`
                    text = self.text[self.at : end]
                    self.at = end
                    return value, text
            wanted = len(self.text) - self.at
            if wanted > 2 * parse.ROW_BYTES:
                raise DataError(f"{self.path}: row {self.row} is {parse.TOO_LARGE}, or its end is missing")

    def finish(self) -> None:
        """Return if only blanks are left.

        Raises:
            DataError: the text goes on.
        """
        if self.peek():
            raise self.error("Extra data after the list")

    def error(self, reason: str) -> DataError:
        return DataError(f"{self.path}: not JSON: {reason} (row {self.row})")

    def _more(self, chars: int) -> bool:
        """Read at least so many characters more, unless the file ends; False if there were none."""
        got: list[str] = []
        while sum(map(len, got)) < chars and not self._ended:
            block = next(self._blocks, b"")
            self._ended = not block
            try:
                got.append(self._utf8.decode(block, final=self._ended))
            except UnicodeDecodeError as error:
                raise DataError(f"{self.path}: not UTF-8: {error.reason}, after row {self.row}") from None
        self.text = self.text[self.at :] + "".join(got)
        self.at = 0
        return any(got)

    def _see_constant(self, name: str) -> None:
        self.constant = name
