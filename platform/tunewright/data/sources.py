"""Sources -> chunks of files -> raw rows, each with the line it came from.

JSONL is read as text and parsed line by line: `"007"` stays a string, and one bad line costs one
row, not a block. A chunk is a byte range of a file, so that a large file is read in parallel;
chunk borders depend on the file alone.
"""

from __future__ import annotations

import csv
import glob
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.artifacts import file_sha256
from tunewright.config import BuiltinSource, FileSource, Source
from tunewright.errors import DataError

CHUNK_BYTES = 16 << 20
SUFFIXES = {
    "jsonl": (".jsonl", ".ndjson"),
    "json": (".json",),
    "csv": (".csv",),
    "tsv": (".tsv",),
    "parquet": (".parquet",),
    "text": (".txt", ".md"),
}
MAGIC = {
    b"\x1f\x8b": "a gzip archive",
    b"PAR1": "a Parquet file",
    b"PK\x03\x04": "a zip archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"%PDF": "a PDF",
    b"SQLite format 3": "an SQLite database",
}


@dataclass(frozen=True)
class Chunk:
    """Rows `first_line`.. of a file: bytes start..end, or the whole file where end is -1."""

    source: int
    type: str
    path: str
    start: int
    end: int
    first_line: int
    max_rows: int | None


@dataclass(frozen=True)
class RawRow:
    """A row as it was found; `record` is None where it could not be parsed, and `problem` says why."""

    line: int
    text: str
    record: dict[str, Any] | None
    problem: str = ""


def source_files(source: FileSource) -> list[Path]:
    """The files that a source names, sorted.

    Raises:
        DataError: nothing there, an empty file, or a file that is not what the source says.
    """
    path = Path(source.path).expanduser()
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES[source.type] and p.is_file())
        if not files:
            raise DataError(f"{path}: the folder has no {' or '.join(SUFFIXES[source.type])} file")
    elif path.is_file():
        files = [path]
    elif any(c in source.path for c in "*?["):
        files = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
        if not files:
            raise DataError(f"{source.path}: the pattern matches no file")
    else:
        raise DataError(f"{path}: no such file or folder")
    for file in files:
        _check_claim(file, source.type)
    return files


def source_identity(source: Source) -> dict[str, Any]:
    """What decides the rows of a source: its settings and the SHA-256 of each of its files."""
    settings = source.model_dump(mode="json")
    if isinstance(source, BuiltinSource):
        return settings
    settings.pop("path")
    return {**settings, "files": [[p.name, file_sha256(p)] for p in source_files(source)]}


def write_builtin(source: BuiltinSource, folder: Path) -> FileSource:
    """Generate the rows of a builtin source into a file, and describe that file as a source."""
    from tunewright.data import support_desk

    settings = (source.name, source.part, source.rows, source.seed, source.dirty_fraction)
    path = folder / f"{'-'.join(map(str, settings))}.jsonl"
    if source.part == "train":
        lines = support_desk.training_lines(source.rows, source.seed, source.dirty_fraction)
    elif source.part == "heldout":
        lines = support_desk.heldout_lines(source.rows, source.seed)
    else:
        documents = support_desk.pretraining_documents(source.rows, source.seed)
        lines = (json.dumps({"text": text}, ensure_ascii=False) for text in documents)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
    form = "text" if source.part == "pretrain" else "messages"
    return FileSource(type="jsonl", path=str(path), format=form)


def source_chunks(index: int, source: FileSource) -> list[Chunk]:
    """The chunks of a source, in order."""
    chunks = []
    for path in source_files(source):
        ranges = _line_ranges(path) if source.type == "jsonl" and source.max_rows is None else [(0, -1, 1)]
        chunks += [
            Chunk(index, source.type, str(path), start, end, line, source.max_rows)
            for start, end, line in ranges
        ]
    return chunks


def read_chunk(chunk: Chunk) -> Iterator[RawRow]:
    """The rows of a chunk, those that cannot be parsed included.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    reader = {
        "jsonl": _read_jsonl,
        "json": _read_json,
        "csv": _read_csv,
        "tsv": _read_csv,
        "parquet": _read_parquet,
        "text": _read_text,
    }[chunk.type]
    for count, row in enumerate(reader(chunk)):
        if chunk.max_rows is not None and count >= chunk.max_rows:
            return
        yield row


def _check_claim(path: Path, kind: str) -> None:
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    with path.open("rb") as file:
        head = file.read(4096)
    for magic, what in MAGIC.items():
        if head.startswith(magic) and not (kind == "parquet" and magic == b"PAR1"):
            raise DataError(f"{path}: type is {kind}, but the file is {what}")
    if kind == "parquet" and not head.startswith(b"PAR1"):
        raise DataError(f"{path}: type is parquet, but the file does not begin as one")
    if kind != "parquet" and b"\0" in head:
        raise DataError(f"{path}: type is {kind}, but the file is binary")
    if kind == "jsonl" and head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":
        raise DataError(f"{path}: type is jsonl, but the file is one JSON list; say type: json")


def _line_ranges(path: Path) -> list[tuple[int, int, int]]:
    """Byte ranges of about CHUNK_BYTES that end at line ends, with the number of their first line."""
    ranges = []
    start, line = 0, 1
    with path.open("rb") as file:
        while block := file.read(CHUNK_BYTES):
            block += file.readline()
            ranges.append((start, start + len(block), line))
            start += len(block)
            line += block.count(b"\n")
    return ranges


def _read_jsonl(chunk: Chunk) -> Iterator[RawRow]:
    with open(chunk.path, "rb") as file:
        file.seek(chunk.start)
        line = chunk.first_line - 1
        while chunk.end < 0 or file.tell() < chunk.end:
            raw = file.readline()
            if not raw:
                return
            line += 1
            if raw.strip(b" \t\r\n\xef\xbb\xbf"):
                yield _parse_line(line, raw)


def _parse_line(line: int, raw: bytes) -> RawRow:
    try:
        text = raw.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        return RawRow(line, raw.decode("utf-8", "replace"), None, f"not UTF-8: {error.reason}")
    try:
        return _as_row(line, json.loads(text, parse_constant=_refuse_constant), text)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", None) or str(error) or type(error).__name__
        return RawRow(line, text, None, f"not JSON: {reason}")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _as_row(line: int, value: Any, text: str) -> RawRow:
    if not isinstance(value, dict):
        return RawRow(line, text, None, f"a row must be an object, found {type(value).__name__}")
    try:
        text.encode("utf-8")
        json.dumps(value, ensure_ascii=False, default=str).encode("utf-8")
    except UnicodeEncodeError:
        return RawRow(line, text.encode("utf-8", "replace").decode(), None, "holds a lone surrogate")
    return RawRow(line, text, value)


def _read_json(chunk: Chunk) -> Iterator[RawRow]:
    try:
        rows = json.loads(Path(chunk.path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{chunk.path}: not JSON: {error}") from None
    if not isinstance(rows, list):
        raise DataError(f"{chunk.path}: expected a list of rows, found {type(rows).__name__}")
    for index, value in enumerate(rows, start=1):
        yield _as_row(index, value, json.dumps(value, ensure_ascii=False))


def _read_csv(chunk: Chunk) -> Iterator[RawRow]:
    try:
        text = Path(chunk.path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{chunk.path}: not UTF-8: {error.reason} at byte {error.start}") from None
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a long text is no damaged file
    delimiter = "\t" if chunk.type == "tsv" else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 0
    try:
        twice = [name for name, n in Counter(reader.fieldnames or ()).items() if n > 1]
        if twice:
            raise DataError(f"{chunk.path}: the header names the column `{twice[0]}` twice")
        for row in reader:
            line = reader.line_num
            shown = json.dumps(row, ensure_ascii=False, default=str)
            if None in row or None in row.values():
                yield RawRow(reader.line_num, shown, None, "another number of columns than the header")
            else:
                yield RawRow(reader.line_num, shown, dict(row))
    except csv.Error as error:
        # Without `strict`, a quote that is never closed would take in the rest of the file in silence.
        raise DataError(f"{chunk.path}:{line + 1}: not {chunk.type}: {error}") from None


def _read_parquet(chunk: Chunk) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    line = 0
    try:
        for batch in pq.ParquetFile(chunk.path).iter_batches(batch_size=1024):
            for value in batch.to_pylist():
                line += 1
                yield _as_row(line, value, json.dumps(value, ensure_ascii=False, default=str))
    except pa.ArrowException as error:
        raise DataError(f"{chunk.path}: cannot be read as Parquet: {error}") from None


def _read_text(chunk: Chunk) -> Iterator[RawRow]:
    """Paragraphs: a document ends at a blank line."""
    paragraph: list[str] = []
    first = number = 1
    try:
        with open(chunk.path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    if not paragraph:
                        first = number
                    paragraph.append(line)
                elif paragraph:
                    yield _text_row(first, paragraph)
                    paragraph = []
    except UnicodeDecodeError as error:
        raise DataError(f"{chunk.path}: not UTF-8: {error.reason}, after line {number}") from None
    if paragraph:
        yield _text_row(first, paragraph)


def _text_row(line: int, paragraph: list[str]) -> RawRow:
    text = "".join(paragraph).rstrip("\n")
    return RawRow(line, text, {"text": text})
