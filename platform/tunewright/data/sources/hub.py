"""Rows of a Hugging Face data set: of the hub at a fixed revision, or of a local folder.

Class numbers become their names. No code of a data set is ever run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from tunewright.config import HuggingFaceSource
from tunewright.data.sources.extensions import refuse_extension_types
from tunewright.data.sources.snapshot import row_text
from tunewright.errors import DataError

BATCH_ROWS = 1000
SAVED = ("state.json", "dataset_dict.json")
"""What `datasets.save_to_disk` leaves: of one split, of several."""


def hub_rows(source: HuggingFaceSource, scratch: Path) -> Iterator[str]:
    """The rows as JSON, in their order, at most `max_rows`.

    Args:
        scratch: where a local folder is converted; what is downloaded stays in the hub's own cache.
    Raises:
        DataError: no revision is given, the hub cannot be reached, or there is no such data set,
            configuration or split.
    """
    folder = Path(source.dataset).expanduser()
    local = folder.is_dir()
    if not local and source.revision is None:
        raise DataError(
            f"{source.dataset}: give revision, a commit or tag of the hub: its branches move "
            f"(or a folder, if `{source.dataset}` should be one: there is none of that name)"
        )
    if local:
        _refuse_extension_types(folder)
    rows = _loaded(source, folder if local else None, scratch)
    names = _class_names(rows.features)
    batches = rows.iter(batch_size=BATCH_ROWS)
    values = (
        dict(zip(batch, row, strict=True)) for batch in batches for row in zip(*batch.values(), strict=True)
    )
    try:
        for row in islice(values, source.max_rows):
            for column, classes in names.items():
                row[column] = _named(row[column], classes)
            yield row_text(row)
    except DataError as error:
        raise DataError(f"{source.dataset}: {error}") from None


def _loaded(source: HuggingFaceSource, folder: Path | None, scratch: Path) -> Any:
    import datasets

    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        if folder and any((folder / name).is_file() for name in SAVED):
            found = datasets.load_from_disk(str(folder))
            if not isinstance(found, datasets.DatasetDict):
                return _undecoded(found)
            if source.split not in found:
                raise DataError(f"{source.dataset}: no split `{source.split}`; there are {', '.join(found)}")
            return _undecoded(found[source.split])
        found = datasets.load_dataset(
            str(folder or source.dataset),
            source.name,
            split=source.split,
            revision=None if folder else source.revision,
            cache_dir=str(scratch / "datasets") if folder else None,
        )
        return _undecoded(found)
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(_explained(source, error)) from None
    finally:
        if not bars:
            datasets.enable_progress_bars()


def _refuse_extension_types(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".arrow", ".parquet") and path.is_file():
            with path.open("rb") as file:
                refuse_extension_types(str(path), file)


def _undecoded(rows: Any) -> Any:
    """The rows as stored: without images or sound being decoded, in Python's own types."""
    import datasets

    media = (datasets.Image, datasets.Audio, datasets.Video)
    for name, feature in rows.features.items():
        if isinstance(feature, media):
            raise DataError(f"column `{name}` holds {type(feature).__name__.lower()}; rows are text")
    return rows.with_format(None)


def _explained(source: HuggingFaceSource, error: Exception) -> str:
    """One sentence for what `datasets` says in forty lines."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    at = f" at revision {source.revision}" if source.revision else ""
    unreachable = ("offline", "connection", "couldn't reach", "resolve", "timed out")
    if isinstance(error, ConnectionError) or any(word in said.lower() for word in unreachable):
        return (
            f"{source.dataset}{at}: the hub cannot be reached and the data set is not in its cache "
            f"({said[:200]}); download it elsewhere, `save_to_disk`, and give that folder"
        )
    return f"{source.dataset}{at}: {said[:300]}"


def _class_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """Column -> names of its classes, for columns of classes and of lists of classes."""
    found = {}
    for column, feature in features.items():
        inner = getattr(feature, "feature", feature)
        names = getattr(inner, "names", None)
        if names:
            found[column] = list(names)
    return found


def _named(value: Any, classes: list[str]) -> Any:
    if isinstance(value, list):
        return [_named(item, classes) for item in value]
    return classes[value] if isinstance(value, int) and 0 <= value < len(classes) else None
