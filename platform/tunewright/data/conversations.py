"""Rows of a source: their format, a held-out task's conversations, texts, a data set's evaluation rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.artifacts import Artifact
from tunewright.config import BuiltinSource, FileSource
from tunewright.data.dataset import cipher_of
from tunewright.data.formats.detect import detect_format
from tunewright.data.formats.turns import INSTRUCTING
from tunewright.data.records import example_texts, from_payload, to_example
from tunewright.data.rows import Example, RawRow
from tunewright.data.sources import read_chunk, source_chunks, write_builtin
from tunewright.data.tables import read_table
from tunewright.errors import DataError

if TYPE_CHECKING:
    from tunewright.data.encryption import Cipher
    from tunewright.data.sources.snapshot import SnapshotSource

Message = dict[str, Any]
PEEK_ROWS = 50
PEEK_BROKEN = 1000
"""Rows that cannot be parsed, after which no more are looked at to find a format."""


def format_of(
    index: int, source: FileSource | SnapshotSource, cipher: Cipher | None = None
) -> tuple[str, str]:
    """The format of a source's rows and why, from the first rows that parse.

    Args:
        index: of the source in the configuration.
        cipher: of the data set, where what was fetched is encrypted.
    Raises:
        DataError: no row can be read, no format fits, or two do; names the source.
    """
    if source.format != "auto":
        return source.format, "stated"
    records: list[dict[str, Any]] = []
    broken: list[RawRow] = []
    for raw in _raw_rows(index, source, cipher):
        if raw.record is None:
            broken.append(raw)
        else:
            records.append(raw.record)
        if len(records) == PEEK_ROWS or len(broken) == PEEK_BROKEN:
            break
    if not records:
        problem = f"{broken[0].file}:{broken[0].line}: {broken[0].problem}" if broken else "no rows"
        raise DataError(f"{source.path}: no row can be read as {source.type}: {problem}")
    try:
        return detect_format(records, source.columns)
    except DataError as error:
        raise DataError(f"{source.path}: {error}") from None


def read_examples(data: Artifact, limit: int | None = None) -> list[list[Message]]:
    """The evaluation conversations of a data set, in the order of their content hash.

    Raises:
        DataError: its examples cannot be asked as a question; says why.
    """
    out: list[list[Message]] = []
    cipher = cipher_of(data.path)
    for path in sorted((data.path / "examples").glob("examples-*.parquet")):
        for text in read_table(path, cipher=cipher).column("example").to_pylist():
            out.append(_messages(from_payload(text)))
            if limit is not None and len(out) == limit:
                return out
    return out


def read_conversations(source: FileSource | BuiltinSource, folder: Path) -> list[list[Message]]:
    """All conversations of a (small) source, such as a held-out task; every row must be valid.

    Args:
        folder: where rows that Tunewright generates are written.
    Raises:
        DataError: a row is not a conversation that a task can ask; names the line.
    """
    file = write_builtin(source, folder) if isinstance(source, BuiltinSource) else source
    return [_messages(example, where) for example, where in _valid_examples(file)]


def read_texts(source: FileSource) -> Iterator[str]:
    """What people wrote in the rows of an evaluation set; instructions to the model, which sets share, not.

    Raises:
        DataError: a row is not valid; names the line.
    """
    for example, _ in _valid_examples(source):
        content = example.content
        if "messages" in content:
            kept = [m for m in content["messages"] if m["role"] not in INSTRUCTING]
            example = Example(example.task, {**content, "messages": kept})
        yield from example_texts(example)


def _valid_examples(source: FileSource) -> Iterator[tuple[Example, str]]:
    """Each row as an example, and where it stands."""
    form, _ = format_of(0, source)
    for raw in _raw_rows(0, source, None):
        where = f"{source.path}: {raw.file}:{raw.line}: "
        if raw.record is None:
            raise DataError(f"{where}{raw.problem}")
        try:
            yield to_example(raw.record, form, source.columns, source.system), where
        except DataError as error:
            raise DataError(f"{where}{error}") from None


def _raw_rows(index: int, source: FileSource | SnapshotSource, cipher: Cipher | None) -> Iterator[RawRow]:
    chunks = source_chunks(index, source) if isinstance(source, FileSource) else source.chunks(index)
    for chunk in chunks:
        yield from read_chunk(chunk, cipher.decryption() if cipher and chunk.type == "rows" else None)


def _messages(example: Example, where: str = "") -> list[Message]:
    """The conversation whose last answer is the expected one."""
    content = example.content
    if "messages" not in content or example.task == "kto":
        raise DataError(
            f"{where}rows of {example.task} hold no question with the answer that is wanted; map their "
            f"columns to both, such as columns: {{prompt: text, completion: label}}"
        )
    if content.get("tools") or "tool_calls" in content["messages"][-1]:
        raise DataError(
            f"{where}the conversation has tools, and tasks ask without: the figures would mislead"
        )
    messages: list[Message] = content["messages"]
    return [*messages, *content["chosen"]] if "chosen" in content else messages
