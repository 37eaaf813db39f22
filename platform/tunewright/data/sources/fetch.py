"""Sources that are not files -> snapshots, each an artifact of kind `rows`.

Fetched once, before the data stage is planned: a task that is run again reads the snapshot and never
a table that has changed. The same rows of the same place are the same artifact.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.artifacts import Artifact, Plan, Store, clear_dir, code_hash, explained
from tunewright.config import HttpSource, HuggingFaceSource, SqlSource, source_label
from tunewright.data.sources.http import http_rows
from tunewright.data.sources.hub import hub_rows
from tunewright.data.sources.snapshot import SnapshotSource, in_order, write_snapshot
from tunewright.data.sources.sql import sql_rows
from tunewright.errors import DataError
from tunewright.security.crypto import open_kms

if TYPE_CHECKING:
    from tunewright.data.encryption import Cipher

log = logging.getLogger(__name__)

OnlineSource = SqlSource | HttpSource | HuggingFaceSource
# What decides which rows come; the rest is how they are fetched or used.
ASKED = {
    "sql": {"type", "url", "table", "select", "where", "query", "parameters", "max_rows"},
    "http": {"type", "url", "params", "rows", "pages", "max_rows"},
    "huggingface": {"type", "dataset", "name", "split", "revision", "max_rows"},
}


def fetch_source(
    store: Store, index: int, source: OnlineSource, encryption: Cipher | None = None
) -> tuple[Artifact, SnapshotSource]:
    """The rows of a source as an artifact, and what to read them as.

    A database read by several readers needs a connected Ray.

    Args:
        index: of the source in `data.sources`.
        encryption: writes and reads the snapshot's files, where they must not lie open.
    Raises:
        DataError: the source does not give its rows, or gives none.
    """
    started = time.monotonic()
    config = {"source": public_settings(source), "key": open_kms(encryption.key)[1] if encryption else None}
    code = code_hash("data/sources/snapshot")
    work = clear_dir(store.work_dir(Plan("rows", {}, {**config, "index": index}, code)))
    out, scratch = work / "rows", work / "scratch"
    try:
        with explained(f"keeping the rows of {source_label(source)}"):
            out.mkdir()
            scratch.mkdir()
            written = write_snapshot(out, _rows(source, scratch, encryption), encryption)
        if not written.rows:
            raise DataError(f"{source_label(source)}: no rows")
        plan = Plan("rows", {}, {**config, "content": written.content}, code)
        artifact = store.find(plan)
        log.info(
            "source fetched",
            extra={"source": source_label(source), "rows": written.rows, "known": artifact is not None},
        )
        if artifact is None:
            artifact = store.publish(plan, out, asdict(written), time.monotonic() - started)
    finally:
        # Half-read rows are of no use to a later try, and nobody should find them.
        shutil.rmtree(work, ignore_errors=True)
    return artifact, SnapshotSource.of(artifact, source)


def public_settings(source: OnlineSource) -> dict[str, Any]:
    """The settings that decide the rows, with placeholders where secrets go."""
    settings = source.model_dump(mode="json", include=ASKED[source.type])
    if isinstance(source, HttpSource):
        settings["headers"] = sorted(source.headers)
    if isinstance(source, HuggingFaceSource) and Path(source.dataset).expanduser().is_dir():
        settings["dataset"] = Path(source.dataset).name
    return settings


def _rows(source: OnlineSource, scratch: Path, encryption: Cipher | None) -> Iterator[str]:
    if isinstance(source, SqlSource):
        return in_order(sql_rows(source), scratch, encryption)
    if isinstance(source, HttpSource):
        return http_rows(source)
    return hub_rows(source, scratch)
