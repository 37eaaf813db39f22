"""What decides the rows of a source, and the rows that Tunewright generates itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunewright.artifacts import file_sha256
from tunewright.config import BuiltinSource, FileSource
from tunewright.data.sources.chosen import checked_files, of_each
from tunewright.data.sources.files import Found
from tunewright.data.sources.places import is_remote


def source_identity(source: FileSource | BuiltinSource) -> dict[str, Any]:
    """The settings of a source and what tells its files apart, but not where they lie.

    Of a file on this machine that is its name in the source and its SHA-256. Of one in a bucket it is
    name, size and time of change: to hash it would be to download it all before each run, and
    storage that is written by whole objects gives each new one a new time.

    Raises:
        DataError: a file is missing, or not what the source says.
    """
    if isinstance(source, BuiltinSource):
        return source.model_dump(mode="json")
    files = of_each(checked_files(source), _identity)
    return {**source.model_dump(mode="json", exclude={"path"}), "files": files}


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


def _identity(file: Found) -> list[str | int]:
    if is_remote(file.path):
        return [file.name, file.size, file.mtime_ns]
    return [file.name, file_sha256(Path(file.path))]
