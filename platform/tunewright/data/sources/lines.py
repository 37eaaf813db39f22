"""Files of lines -> raw rows: JSONL, and text whose documents end at blank lines."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import TextIO

from tunewright.data.rows import Piece, RawRow
from tunewright.data.sources import parse
from tunewright.data.sources.parse import NUL, encodable, parse_row, too_large
from tunewright.data.sources.streams import blocks, open_text
from tunewright.errors import DataError


def read_jsonl(piece: Piece, file: str) -> Iterator[RawRow]:
    """A row a line; `line` is the line's number in the file."""
    for line, raw, whole in _lines(piece):
        if not whole:
            yield too_large(file, line, raw[: 4 * parse.EXCERPT_CHARS].decode("utf-8", "replace"))
            continue
        if raw[:3] == codecs.BOM_UTF8:
            raw = raw[3:]
        try:
            text = raw.decode().strip()
        except UnicodeDecodeError as error:
            yield RawRow(file, line, raw.decode("utf-8", "replace"), None, f"not UTF-8: {error.reason}")
            continue
        if text:
            yield parse_row(file, line, text) if "\0" not in text else RawRow(file, line, text, None, NUL)


def read_text(piece: Piece, file: str) -> Iterator[RawRow]:
    """A document a paragraph; `line` is that of its first line.

    Raises:
        DataError: the file is not UTF-8.
    """
    paragraph: list[str] = []
    size = first = line = 0
    with open_text(piece.path, None) as content:
        try:
            for line, (text, whole) in enumerate(_text_lines(content), start=1):
                if whole and text.isspace():
                    if paragraph:
                        yield _document(file, first, paragraph, size)
                    paragraph, size = [], 0
                    continue
                if not paragraph:
                    first = line
                size += len(text) if whole else parse.ROW_BYTES + 1
                if size <= parse.ROW_BYTES or not paragraph:
                    paragraph.append(text)
        except UnicodeDecodeError as error:
            raise DataError(f"{piece.path}: not UTF-8: {error.reason}, after line {line}") from None
    if paragraph:
        yield _document(file, first, paragraph, size)


def _document(file: str, line: int, paragraph: list[str], size: int) -> RawRow:
    text = "".join(paragraph).rstrip("\n")
    if size > parse.ROW_BYTES:
        return too_large(file, line, text)
    if "\0" in text:
        return RawRow(file, line, encodable(text), None, NUL)
    return RawRow(file, line, text, {"text": text})


def _text_lines(content: TextIO) -> Iterator[tuple[str, bool]]:
    """Each line; of one that is too large the beginning, and False."""
    while text := content.readline(parse.ROW_BYTES):
        whole = text.endswith("\n") or len(text) < parse.ROW_BYTES
        yield text if whole else text[: parse.EXCERPT_CHARS], whole
        while text and not text.endswith("\n"):
            text = content.readline(parse.ROW_BYTES)


def _lines(piece: Piece) -> Iterator[tuple[int, bytes, bool]]:
    """Number and bytes of each line that is not blank; of one that is too large its beginning, and False."""
    line = piece.first_line
    begun = b""
    skipping = False
    for block in blocks(piece.path, piece.start, piece.end):
        if skipping:
            end = block.find(b"\n")
            if end < 0:
                continue
            block = block[end + 1 :]
            skipping = False
            line += 1
        ended = (begun + block).split(b"\n") if begun else block.split(b"\n")
        begun = ended.pop()
        for raw in ended:
            if raw and not raw.isspace():
                yield line, raw, len(raw) <= parse.ROW_BYTES
            line += 1
        if len(begun) > parse.ROW_BYTES:
            yield line, begun, False
            begun, skipping = b"", True
    if begun and not begun.isspace():
        yield line, begun, True
