"""What a certificate says: an entry for each claim, and the file that holds them.

Knows nothing of models; the report and the command line read it here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tunewright.artifacts import read_json, write_json
from tunewright.errors import CertificateFailed

CERTIFICATE = "certificate.json"
"""In the folder of a trained artifact."""
NAMES: Mapping[int, str] = {
    1: "what is learned",
    2: "packed as alone",
    3: "any split of a batch",
    4: "saved and read again",
    5: "merged as with adapter",
    6: "weights that move",
    7: "served as trained",
}


@dataclass(frozen=True)
class Entry:
    """One claim, measured.

    Attributes:
        passed: None where the claim does not apply to the run; `sentence` says why.
        measured: figures by name.
        tolerance: bounds by the names of the figures that they are for.
    """

    number: int
    passed: bool | None
    sentence: str
    measured: Mapping[str, Any] = field(default_factory=dict)
    tolerance: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return NAMES[self.number]

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}


def within(measured: Mapping[str, float], tolerance: Mapping[str, float]) -> bool:
    """Whether every figure that has a bound is at most it; a figure that is no number is not."""
    return all(measured[name] <= bound for name, bound in tolerance.items())


class Certificate:
    """The entries of one run, by number, as they are measured."""

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {}

    def add(self, entry: Entry) -> None:
        """Note an entry.

        Raises:
            CertificateFailed: its claim does not hold.
        """
        self.entries[entry.number] = entry
        if entry.passed is False:
            raise CertificateFailed(entry.number, entry.name, entry.sentence)

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        entries = [self.entries[number].as_dict() for number in sorted(self.entries)]
        write_json(folder / CERTIFICATE, {"told": told(entries), "entries": entries})


class Stopwatch:
    """Seconds that went into an entry; it may be measured in several stretches."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - begun

    def on(self, entry: Entry) -> Entry:
        """The entry with the seconds."""
        return replace(entry, seconds=round(self.seconds, 3))


def read_certificate(folder: Path) -> list[dict[str, Any]]:
    """The entries of the trained artifact in `folder`; none if it has no certificate."""
    path = folder / CERTIFICATE
    return list(read_json(path)["entries"]) if path.is_file() else []


def told(entries: Sequence[Mapping[str, Any]]) -> str:
    """`6 of 7 hold, 1 does not apply`, in 12.3 s."""
    held = sum(entry["passed"] is True for entry in entries)
    apart = sum(entry["passed"] is None for entry in entries)
    seconds = sum(entry["seconds"] for entry in entries)
    rest = f", {apart} {'does' if apart == 1 else 'do'} not apply" if apart else ""
    return f"{held} of {len(entries)} hold{rest}, in {seconds:.1f} s"


def certificate_rows(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    """Rows of a table, under claim, verdict, sentence and figures."""
    verdicts = {True: "holds", False: "fails", None: "does not apply"}
    return [
        (
            f"{entry['number']}. {entry['name']}",
            verdicts[entry["passed"]],
            entry["sentence"],
            "; ".join(_figure(name, value, entry["tolerance"]) for name, value in entry["measured"].items()),
        )
        for entry in entries
    ]


def _figure(name: str, value: Any, tolerance: Mapping[str, float]) -> str:
    shown = f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
    bound = f" (at most {tolerance[name]:g})" if name in tolerance else ""
    return f"{name.replace('_', ' ')} {shown}{bound}"
