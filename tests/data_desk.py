"""A newborn base and data sets made over it, for tests of the data stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tunewright.artifacts import Artifact, Store, file_sha256
from tunewright.config import DataConfig
from tunewright.data.dataset import open_rows
from tunewright.data.prepare import gather, prepare, prepare_plan

ROWS, SEED, DIRTY = 600, 5, 0.2
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Desk:
    """A store with a newborn base, and the data set of generated tickets made with it."""

    store: Store
    base: Artifact
    data: Artifact

    def make(self, **changes: Any) -> Artifact:
        """Another data set over the same base, found if it was made before."""
        config = data_config(**changes)
        inputs = gather(self.store, config)
        plan = prepare_plan(config, self.base, inputs)
        return self.store.find(plan) or prepare(self.store, config, self.base, plan, inputs)


def data_config(**changes: Any) -> DataConfig:
    builtin = {"type": "builtin", "rows": ROWS, "seed": SEED, "dirty_fraction": DIRTY}
    values: dict[str, Any] = {
        "sources": [builtin],
        "rules": {"max_bad_fraction": 0.3},
        "split": {"eval": 0.1},
        "pack": {"seq_len": 192},
    }
    return DataConfig.model_validate({**values, **changes})


def documents(data: Artifact, split: str) -> Iterator[tuple[Ids, Ids]]:
    """(ids, loss mask) of every document in the shards of a split."""
    rows = open_rows(data.path, split)
    for index in range(len(rows)):
        row = {name: values[0] for name, values in rows.take([index]).items()}
        for number in range(1, int(row["segment_ids"].max()) + 1):
            at = row["segment_ids"] == number
            yield tuple(row["input_ids"][at]), tuple(row["loss_mask"][at])


def shard_hashes(data: Artifact) -> dict[str, str]:
    return {
        f"{split}/{path.name}": file_sha256(path)
        for split in ("train", "eval", "examples")
        for path in sorted((data.path / split).iterdir())
    }


def quarantined(folder: Path, what: str) -> list[dict[str, Any]]:
    """The rows of all quarantine files of one kind."""
    paths = sorted((folder / "quarantine").glob(f"{what}-*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def write_lines(path: Path, lines: list[str]) -> dict[str, Any]:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return {"type": "jsonl", "path": str(path), "format": "messages"}
