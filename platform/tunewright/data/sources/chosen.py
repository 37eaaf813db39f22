"""Which files a source has; each is looked into before it counts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tunewright.config import FileSource
from tunewright.data.sources.claims import check_claim
from tunewright.data.sources.files import Found, find_files
from tunewright.data.sources.places import is_remote, open_file, unreadable
from tunewright.errors import DataError

THREADS, THREADS_REMOTE = 4, 16
WORTH_A_THREAD = 1 << 20
"""Bytes; for smaller files threads cost more than they save."""
PLAIN = {
    "jsonl": (".jsonl", ".ndjson"),
    "json": (".json",),
    "csv": (".csv",),
    "tsv": (".tsv",),
    "parquet": (".parquet",),
    "arrow": (".arrow",),
    "text": (".txt", ".md"),
}
PACKED = (".gz", ".zst")
SUFFIXES = {
    kind: tuple(name + more for name in names for more in ("", *PACKED)) for kind, names in PLAIN.items()
}
"""How the files of a folder are named, by type; a file named on its own may be called anything."""
SAVED_SPLIT, SAVED_DICT = "state.json", "dataset_dict.json"
"""What `datasets.save_to_disk` leaves beside the rows of one split, and of several."""
T = TypeVar("T")


def source_files(source: FileSource) -> list[str]:
    """The files that a source names, as paths or URIs, sorted.

    Raises:
        DataError: nothing there, an empty file, or a file that is not what the source says.
    """
    return [file.path for file in checked_files(source)]


def checked_files(source: FileSource) -> list[Found]:
    """As `source_files`, with what is known of each file."""
    files = _named_files(source)
    of_each(files, lambda file: check_claim(file, source.type))
    return files


def of_each(files: Sequence[Found], work: Callable[[Found], T]) -> list[T]:
    """`work` of each file, a few at once, in their order.

    Raises:
        DataError: `work` raised it, or could not read the file, which is named.
    """

    def named(file: Found) -> T:
        try:
            return work(file)
        except OSError as error:
            raise unreadable(file.path, error) from None

    remote = is_remote(files[0].path)
    if not remote and sum(file.size for file in files) < WORTH_A_THREAD * len(files):
        return [named(file) for file in files]
    with ThreadPoolExecutor(THREADS_REMOTE if remote else THREADS) as threads:
        return list(threads.map(named, files))


def _named_files(source: FileSource) -> list[Found]:
    endings = SUFFIXES[source.type]
    if source.type == "arrow":
        files = _saved(source.path, find_files(source.path, (*endings, SAVED_SPLIT, SAVED_DICT)))
    else:
        files = find_files(source.path, endings)
    if not files:
        raise DataError(
            f"{source.path}: the folder has no {' or '.join(PLAIN[source.type])} file, "
            f"and none with {' or '.join(PACKED)} after that"
        )
    for file in files:
        if file.what != "file":
            raise DataError(f"{file.path}: is a {file.what}, and must be a file")
    return files


def _saved(path: str, files: Iterable[Found]) -> list[Found]:
    """Of folders that `datasets.save_to_disk` wrote only the files of rows, and not its caches.

    Raises:
        DataError: a folder has several splits, or lacks one of its files.
    """
    kept = {file.name: file for file in files}
    for name, file in list(kept.items()):
        folder, _, last = name.rpartition("/")
        if last == SAVED_DICT:
            splits = _strings(file, lambda value: value["splits"])
            raise DataError(f"{path}: holds the splits {', '.join(splits)}; name the folder of one of them")
        if last == SAVED_SPLIT:
            names = _strings(file, lambda value: [each["filename"] for each in value["_data_files"]])
            listed = {f"{folder}/{each}".lstrip("/") for each in names}
            missing = sorted(listed - set(kept))
            if missing:
                raise DataError(f"{file.path}: names `{missing[0]}`, which is not there")
            kept = {n: f for n, f in kept.items() if n in listed or n.rpartition("/")[0] != folder}
    return list(kept.values())


def _strings(file: Found, pick: Callable[[Any], list[str]]) -> list[str]:
    try:
        with open_file(file.path) as content:
            return [str(each) for each in pick(json.loads(content.read()))]
    except OSError as error:
        raise unreadable(file.path, error) from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{file.path}: is not what `datasets.save_to_disk` writes") from None
