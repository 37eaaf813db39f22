"""What the store knows of runs and versions, as rows for `tunewright runs` and `tunewright models`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.artifacts import read_json
from tunewright.errors import StoreError

if TYPE_CHECKING:
    from tunewright.registry import Registry


def list_runs(root: Path) -> list[dict[str, Any]]:
    """One row a run, newest first; a run without a summary is not finished."""
    folders = [p for p in (root / "runs").glob("*") if p.is_dir()]
    folders.sort(key=lambda p: p.stat().st_mtime, reverse=True)
    return [_row(folder) for folder in folders]


def read_summary(root: Path, name: str) -> dict[str, Any]:
    """The summary of the run `name`.

    Raises:
        StoreError: no such run, or it has not ended; names the runs there are.
    """
    path = root / "runs" / name / "summary.json"
    if path.parent.parent == root / "runs" and path.is_file():
        summary: dict[str, Any] = read_json(path)
        return summary
    names = sorted(p.name for p in (root / "runs").glob("*") if p.is_dir())
    if name in names:
        raise StoreError(f"run {name} has no summary: it has not come to its end; run it again to go on")
    raise StoreError(f"there is no run {name} in {root}; runs: {', '.join(names) or 'none yet'}")


def list_versions(registry: Registry) -> list[dict[str, Any]]:
    """One row a version, by model, newest first, with the aliases that stand at it."""
    rows = []
    for model in registry.models():
        aliases = registry.aliases(model)
        for version in reversed(registry.versions(model)):
            rows.append(
                {
                    "version": version.name,
                    "aliases": ", ".join(a for a, number in aliases.items() if number == version.number),
                    "created": version.created,
                    "run": version.run,
                    "method": version.facts.get("train", {}).get("method"),
                    "gates": "missed" if version.missed_gates else "passed",
                }
            )
    return rows


def _row(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    if not path.is_file():
        return {"run": folder.name, "state": "unfinished"} | dict.fromkeys(
            ("version", "base", "tuned", "seconds", "endpoint")
        )
    summary = read_json(path)
    return {
        "run": folder.name,
        "state": "done",
        "version": summary.get("version"),
        "base": (summary.get("base") or {}).get("exact_match"),
        "tuned": (summary.get("tuned") or {}).get("exact_match"),
        "seconds": summary.get("seconds"),
        "endpoint": summary.get("endpoint"),
    }
