"""What a registered version is, and how its file is read and written."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tunewright.artifacts import read_json
from tunewright.errors import RegistryError

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
NUMBER = re.compile(r"v([1-9][0-9]{0,8})")
RESERVED = ("base",)
"""What an endpoint calls the untuned model; no model or alias may take the name."""


@dataclass(frozen=True)
class Version:
    """A trained artifact with the evaluation that judges it; never changes.

    Attributes:
        train, base, evaluation: references of artifacts, `kind/id`.
        run: the run that registered it.
        facts: {"train": ..., "evaluation": ...}, the figures of those artifacts.
    """

    model: str
    number: int
    train: str
    base: str
    evaluation: str
    run: str
    created: str
    facts: dict[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """`model@v3`, as clients and commands write it."""
        return f"{self.model}@v{self.number}"

    @property
    def missed_gates(self) -> list[str]:
        """A sentence for each gate of the evaluation that was not passed."""
        return [
            f"{gate['name']} is {gate['value']}, {gate['needed']} is needed"
            for gate in self.facts["evaluation"].get("gates", [])
            if not gate["passed"]
        ]


def check_name(what: str, name: str) -> None:
    """Raises `RegistryError` unless `name` can be a folder, a URL part and half of `model@alias`."""
    if not NAME.fullmatch(name):
        raise RegistryError(
            f"{what} name {name!r}: use 1 to 64 of a-z 0-9 . _ -, starting with a letter or a digit"
        )
    if name in RESERVED or NUMBER.fullmatch(name):
        raise RegistryError(f"{what} name {name!r} is taken: it means the base model or a version number")


def read_version(path: Path) -> Version:
    try:
        return Version(**read_json(path))
    except (ValueError, TypeError) as error:
        raise RegistryError(f"{path} is damaged: {error}") from None


def create_version(folder: Path, version: Version) -> bool:
    """Write `vN.json`, whole or not at all; False when another process took the number first."""
    final = folder / f"v{version.number}.json"
    temporary = folder / f".{final.name}.{os.getpid()}.{time.monotonic_ns()}.tmp"
    try:
        with temporary.open("x", encoding="utf-8") as file:
            json.dump(asdict(version), file, indent=1, sort_keys=True, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, final)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True
