"""`tunewright data preview`: the first rows of each source as the model will see them, token by token.

Nothing is written and Ray is not started. A row goes through what the data stage does to one row:
format, cleaning, rendering, tokenizing. What needs all rows (duplicates, splits, mixing) is not done.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.artifacts import Store
from tunewright.base_stage import SEED, TINY_SHAPE, TOKENIZER_DOCUMENTS
from tunewright.config import BuiltinSource, DataConfig, FileSource, RunConfig, source_label
from tunewright.errors import ConfigError, DataError, ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from tunewright.data.encode import Encoder
    from tunewright.data.rows import Document, RawRow
    from tunewright.data.sources.snapshot import SnapshotSource
    from tunewright.models.chat import ChatRenderer

RAW_CHARS = 300


def preview(run: RunConfig, root: Path, rows: int, only: int | None = None) -> list[dict[str, Any]]:
    """What `--json` prints: one entry a source with its format and its first `rows` rows.

    A source that cannot be read has its `problem` there, and a row that would be rejected its own.

    Args:
        root: of the store, where fetched rows and base models are looked up.
        only: number of the one source to show, from 1.
    Raises:
        ConfigError: there is no such source.
        ModelError: the base model's tokenizer is not there yet.
    """
    sources = list(enumerate(run.data.sources))
    if only is not None:
        if not 1 <= only <= len(sources):
            names = ", ".join(f"{i + 1} {source_label(source)}" for i, source in sources)
            raise ConfigError(f"there is no source {only}; sources are {names}")
        sources = [sources[only - 1]]
    renderer = preview_renderer(run, root)
    with tempfile.TemporaryDirectory(prefix="tunewright-") as folder:
        return [_source(run, root, index, rows, renderer, Path(folder)) for index, _ in sources]


def preview_renderer(run: RunConfig, root: Path) -> ChatRenderer:
    """The renderer that the run will use.

    Raises:
        ModelError: a base of the hub that no run has fetched yet, or one that cannot be used.
        DataError: the chat template cannot be used.
    """
    from tunewright.models.load import load_renderer
    from tunewright.models.templates import resolve_template

    template = resolve_template(run.data.chat_template)
    if run.base.model != "tiny":
        return load_renderer(_base_folder(run, root), template)
    from tunewright.data.support_desk import pretraining_documents
    from tunewright.models.tiny import write_newborn

    # The tokenizer depends on the texts alone, so a model of hardly any size will do.
    shape = TINY_SHAPE.model_copy(
        update={"hidden_size": 2, "num_heads": 1, "num_layers": 1, "intermediate_size": 2}
    )
    with tempfile.TemporaryDirectory(prefix="tunewright-") as folder:
        write_newborn(Path(folder), pretraining_documents(TOKENIZER_DOCUMENTS, SEED), shape, SEED)
        return load_renderer(Path(folder), template)


def settings_of_base(run: RunConfig, root: Path, renderer: ChatRenderer) -> PretrainedConfig:
    """The base model's settings; its weights are not looked at.

    Args:
        renderer: of the run, whose tokenizer says how large the vocabulary of `tiny` is.
    Raises:
        ModelError: a base of the hub that no run has fetched yet, or one that cannot be used.
    """
    if run.base.model == "tiny":
        from tunewright.models.tiny import tiny_config

        return tiny_config(TINY_SHAPE, len(renderer.tokenizer))
    from tunewright.models.skeleton import read_config

    return read_config(_base_folder(run, root))


@dataclass(frozen=True)
class EncodedSource:
    """The first rows of a source as documents.

    Attributes:
        looked_at: rows that were encoded, those that cannot be used among them.
        rows: that the source has.
    """

    documents: list[Document]
    looked_at: int
    rows: int


def encoded_rows(
    run: RunConfig, root: Path, data: DataConfig, rows: int, renderer: ChatRenderer
) -> Iterator[EncodedSource]:
    """The first `rows` rows of each source of a data section; the others are counted.

    Raises:
        DataError: a source cannot be read, or was not fetched yet.
    """
    from tunewright.data.clean import clean
    from tunewright.data.conversations import format_of
    from tunewright.data.encode import Encoder
    from tunewright.data.prepare import TASK_OF_FORMAT
    from tunewright.data.privacy import Redactor
    from tunewright.data.records import to_example

    told = run.model_copy(update={"data": data})
    with tempfile.TemporaryDirectory(prefix="tunewright-") as folder:
        for index in range(len(data.sources)):
            file = _readable(told, root, index, Path(folder))
            form, _ = format_of(index, file)
            encoder = Encoder(renderer, data, TASK_OF_FORMAT[form])
            redactor = Redactor(data.privacy)
            documents: list[Document] = []
            count = 0
            for count, raw in enumerate(_raw_rows(told, index, file), start=1):
                if count > rows or raw.record is None:
                    continue
                try:
                    example, _ = clean(
                        to_example(raw.record, form, file.columns, file.system), data, redactor
                    )
                except DataError:
                    continue
                encoded = encoder.encode([example])[0]
                documents += [] if isinstance(encoded, DataError) else encoded.documents
            yield EncodedSource(documents, min(rows, count), count)


def _base_folder(run: RunConfig, root: Path) -> Path:
    from tunewright.models.base import check_base, is_hub_id, locate, model_folder

    base = run.base
    local = Path(base.model).expanduser()
    if local.is_dir():  # its weights, which nobody looks at here, may not be there yet
        return local
    check_base(base)
    if not is_hub_id(base.model):
        return locate(base)
    known = Store(root).list("base") if root.is_dir() else []
    for artifact in reversed(known):
        if (
            artifact.facts.get("model") == base.model
            and artifact.manifest.config["revision"] == base.revision
        ):
            return model_folder(artifact)
    raise ModelError(
        f"base model {base.model}@{base.revision} has not been fetched yet, so its tokenizer is not here; "
        f"fetch it with: tunewright prepare CONFIG"
    )


def _source(
    run: RunConfig, root: Path, index: int, rows: int, renderer: ChatRenderer, folder: Path
) -> dict[str, Any]:
    """The entry of one source."""
    from tunewright.data.conversations import format_of
    from tunewright.data.encode import Encoder
    from tunewright.data.prepare import TASK_OF_FORMAT

    given = run.data.sources[index]
    entry: dict[str, Any] = {"number": index + 1, "source": source_label(given), "type": given.type}
    try:
        file = _readable(run, root, index, folder)
        form, because = format_of(index, file)
        encoder = Encoder(renderer, run.data, TASK_OF_FORMAT[form])
        raws = islice(_raw_rows(run, index, file), rows)
        shown = [_row(run, raw, form, file, encoder) for raw in raws]
    except DataError as error:
        return {**entry, "format": None, "because": None, "problem": str(error), "rows": []}
    return {**entry, "format": form, "because": because, "problem": None, "rows": shown}


def _readable(run: RunConfig, root: Path, index: int, folder: Path) -> FileSource | SnapshotSource:
    """The source as files.

    Raises:
        DataError: rows of a database, an API or the hub that no run has fetched yet.
    """
    from tunewright.data.sources import write_builtin
    from tunewright.data.sources.fetch import public_settings
    from tunewright.data.sources.snapshot import SnapshotSource

    source = run.data.sources[index]
    if isinstance(source, FileSource):
        return source
    if isinstance(source, BuiltinSource):
        return write_builtin(source, folder)
    known = Store(root).list("rows") if root.is_dir() else []
    for artifact in reversed(known):
        if artifact.manifest.config["source"] == public_settings(source):
            return SnapshotSource.of(artifact, source)
    raise DataError(
        f"{source_label(source)}: its rows are not here yet; they are fetched by: tunewright prepare CONFIG"
    )


def _raw_rows(run: RunConfig, index: int, file: FileSource | SnapshotSource) -> Iterator[RawRow]:
    from tunewright.data.encryption import Cipher
    from tunewright.data.sources import read_chunk, source_chunks

    if isinstance(file, FileSource):
        return chain.from_iterable(read_chunk(chunk) for chunk in source_chunks(index, file))
    decryption = Cipher(run.data.encryption.key).decryption() if run.data.encryption else None
    return chain.from_iterable(read_chunk(chunk, decryption) for chunk in file.chunks(index))


def _row(
    run: RunConfig, raw: RawRow, form: str, file: FileSource | SnapshotSource, encoder: Encoder
) -> dict[str, Any]:
    """The entry of one row: its documents, or why it would be rejected."""
    from tunewright.data.clean import clean
    from tunewright.data.decoded import described
    from tunewright.data.privacy import Redactor
    from tunewright.data.records import to_example

    entry: dict[str, Any] = {"file": raw.file, "line": raw.line}
    try:
        if raw.record is None:
            raise DataError(raw.problem)
        example = to_example(raw.record, form, file.columns, file.system)
        example, _ = clean(example, run.data, Redactor(run.data.privacy))
        encoded = encoder.encode([example])[0]
        if isinstance(encoded, DataError):
            raise encoded
    except DataError as error:
        text = Redactor(run.data.privacy).masked(raw.text[: 4 * RAW_CHARS])[:RAW_CHARS]
        return {**entry, "problem": str(error), "text": text, "notes": [], "documents": []}
    renderer = encoder.renderer
    shown = [
        described(renderer.tokenizer, document, example.task, renderer.stop_ids, encoder.label_names)
        for document in encoded.documents
    ]
    if example.task == "text":  # a text that was split ends with its last document
        for continued in shown[:-1]:
            continued |= {"answers": 0, "ended": 0}
    return {**entry, "problem": None, "text": None, "notes": list(encoded.notes), "documents": shown}
