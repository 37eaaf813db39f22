"""The files that a path, a folder or a pattern names, on this machine or in a bucket."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tunewright.data.sources.places import Entry, Place, place_of, unreadable
from tunewright.errors import DataError

_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Found:
    """A file of a source.

    Attributes:
        path: to open it with.
        name: its path within the source, the same wherever the source lies.
        what: `file`, or what it is instead.
    """

    path: str
    name: str
    size: int
    mtime_ns: int
    what: str = "file"


def find_files(path: str, endings: tuple[str, ...]) -> list[Found]:
    """The files that a path names, sorted: itself, what lies in the folder, or what fits the pattern.

    Of a folder only files whose names end with one of `endings`, in small letters.

    Names that begin with a dot are left out of folders, as shells do. Links to folders are followed; a
    folder that several ways lead to is looked at once, so that no file is found twice and no loop
    is endless.

    Raises:
        DataError: nothing is there, it may not be read, or the place is not known.
    """
    place = place_of(path)
    try:
        entry = place.entry(place.root)
        if entry is not None and entry.what == "folder":
            inside = _walk(place, entry)
            return _found(place, place.root, (e for e in inside if e.name.lower().endswith(endings)))
        if entry is not None:
            return _found(place, os.path.dirname(place.root), [entry])
        if _WILD.search(place.root):
            return _matching(place, path)
    except OSError as error:
        raise unreadable(path, error) from None
    place.explain_absence(path)
    raise DataError(f"{path}: no such file or folder")


def _walk(place: Place, folder: Entry) -> Iterator[Entry]:
    """Everything in a folder and the folders in it that is not a folder."""
    for inside in _folders(place, folder):
        for entry in inside:
            if entry.what != "folder" and not entry.name.startswith("."):
                yield entry


def _folders(place: Place, folder: Entry) -> Iterator[list[Entry]]:
    """What the folder holds, and what each folder in it does; each folder once, in a fixed order."""
    seen: set[object] = set()
    waiting = [folder]
    while waiting:
        folder = waiting.pop()
        if folder.identity in seen:
            continue
        seen.add(folder.identity)
        inside = list(place.entries(folder.path))
        yield inside
        folders = [each for each in inside if each.what == "folder" and not each.name.startswith(".")]
        waiting += sorted(folders, key=lambda each: each.path, reverse=True)


def _matching(place: Place, path: str) -> list[Found]:
    """The files that fit the pattern in `place.root`."""
    parts = re.sub(r"(/\*\*)+(?=/|$)", "/**", place.root).split("/")
    named = next(i for i, part in enumerate(parts) if _WILD.search(part))
    base = "/".join(parts[:named]) or ("/" if place.root.startswith("/") else ".")
    folder = place.entry(base)
    fits = list(_fitting(place, folder, parts[named:])) if folder and folder.what == "folder" else []
    found = _found(place, base, [entry for entry in fits if entry.what != "folder"])
    if not found:
        place.explain_absence(path)
        only = "only folders; end it with a pattern for files, such as /*" if fits else "no file"
        raise DataError(f"{path}: the pattern matches {only}")
    return found


def _fitting(place: Place, folder: Entry, parts: list[str]) -> Iterator[Entry]:
    """What lies under a folder at a path that fits the parts; `**` stands for any folders, or none."""
    deep = parts[0] == "**"
    part, *rest = (parts[1:] or ["*"]) if deep else parts
    fits = re.compile(fnmatch.translate(part)).match
    for inside in _folders(place, folder) if deep else [place.entries(folder.path)]:
        for entry in inside:
            hidden = entry.name.startswith(".") and not part.startswith(".")
            if hidden or not fits(entry.name):
                continue
            if not rest:
                yield entry
            elif entry.what == "folder":
                yield from _fitting(place, entry, rest)


def _found(place: Place, base: str, entries: Iterable[Entry]) -> list[Found]:
    """The entries as files, each once and in order."""
    by_path = {entry.path: entry for entry in entries}
    return [
        Found(
            place.address(path), path.removeprefix(base).lstrip("/"), entry.size, entry.mtime_ns, entry.what
        )
        for path, entry in sorted(by_path.items())
    ]
