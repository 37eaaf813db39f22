"""Packed rows on disk: Parquet with fixed-length columns, written once, read by index.

input_ids    fixed_size_list<int32, L>   tokens, then padding
loss_mask    fixed_size_list<int8, L>    1 where the token is to be learned
segment_ids  fixed_size_list<int32, L>   document number within the row from 1; 0 is padding
"""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tunewright.errors import ShardCorrupt

ROWS_PER_GROUP = 256
COLUMNS = ("input_ids", "loss_mask", "segment_ids")
Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Document:
    """One tokenized document, ready to be packed."""

    ids: npt.NDArray[np.int32]
    loss_mask: npt.NDArray[np.int8]


def write_shard(
    path: Path, documents: Sequence[Document], rows: Sequence[Sequence[int]], seq_len: int
) -> int:
    """Write packed rows (lists of indices into `documents`); returns the file's size in bytes."""
    shape = (len(rows), seq_len)
    ids = np.zeros(shape, np.int32)
    mask = np.zeros(shape, np.int8)
    segments = np.zeros(shape, np.int32)
    for r, members in enumerate(rows):
        at = 0
        for number, index in enumerate(members, start=1):
            document = documents[index]
            end = at + len(document.ids)
            ids[r, at:end] = document.ids
            mask[r, at:end] = document.loss_mask
            segments[r, at:end] = number
            at = end
    table = pa.table(
        {
            "input_ids": pa.FixedSizeListArray.from_arrays(pa.array(ids.ravel()), seq_len),
            "loss_mask": pa.FixedSizeListArray.from_arrays(pa.array(mask.ravel()), seq_len),
            "segment_ids": pa.FixedSizeListArray.from_arrays(pa.array(segments.ravel()), seq_len),
        }
    )
    temporary = path.with_suffix(".tmp")
    pq.write_table(
        table, temporary, row_group_size=ROWS_PER_GROUP, compression="zstd", write_page_checksum=True
    )
    temporary.replace(path)
    return path.stat().st_size


class PackedRows:
    """Random access to the rows of a folder of shards.

    A row is found in O(1); row groups are read when first asked for and the last few are kept.

    Args:
        folder: the shards; their order is that of their names.
        groups_kept: row groups held in memory.
    Raises:
        ShardCorrupt: a file is not a shard, or, when its rows are read, a page fails its checksum.
    """

    def __init__(self, folder: Path, groups_kept: int = 64):
        self._paths = sorted(folder.glob("*.parquet"))
        self._files: list[pq.ParquetFile] = []
        self._group_starts: list[int] = []
        self._groups: list[tuple[int, int]] = []
        self._cache: OrderedDict[int, dict[str, npt.NDArray[np.int32]]] = OrderedDict()
        self._groups_kept = groups_kept
        total = 0
        for path in self._paths:
            try:
                file = pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)
            except (pa.ArrowException, OSError) as error:
                raise ShardCorrupt(f"{path}: not a shard: {error}") from error
            if tuple(file.schema_arrow.names) != COLUMNS:
                raise ShardCorrupt(f"{path}: columns are {file.schema_arrow.names}, expected {COLUMNS}")
            for group in range(file.num_row_groups):
                self._group_starts.append(total)
                self._groups.append((len(self._files), group))
                total += file.metadata.row_group(group).num_rows
            self._files.append(file)
        self._total = total

    def __len__(self) -> int:
        return self._total

    def take(self, indices: Sequence[int]) -> dict[str, Array]:
        """The named rows as int64 arrays of shape (rows, seq_len), `position_ids` included."""
        rows = [self._row(int(i)) for i in indices]
        batch = {name: np.stack([row[name] for row in rows]).astype(np.int64) for name in COLUMNS}
        batch["position_ids"] = positions(batch["segment_ids"])
        return batch

    def _row(self, index: int) -> dict[str, npt.NDArray[np.int32]]:
        if not 0 <= index < self._total:
            raise IndexError(f"row {index} of {self._total}")
        group = bisect.bisect_right(self._group_starts, index) - 1
        if group not in self._cache:
            file, number = self._groups[group]
            try:
                table = self._files[file].read_row_group(number)
            except (pa.ArrowException, OSError) as error:
                raise ShardCorrupt(f"{self._paths[file]}: row group {number}: {error}") from error
            self._cache[group] = {
                name: np.asarray(table.column(name).combine_chunks().flatten()).reshape(table.num_rows, -1)
                for name in COLUMNS
            }
            if len(self._cache) > self._groups_kept:
                self._cache.popitem(last=False)
        self._cache.move_to_end(group)
        at = index - self._group_starts[group]
        return {name: values[at] for name, values in self._cache[group].items()}


def positions(segment_ids: Array) -> Array:
    """Position of each token in its own document: [1, 1, 1, 2, 2, 0] -> [0, 1, 2, 0, 1, 0]."""
    rows, length = segment_ids.shape
    index = np.broadcast_to(np.arange(length), (rows, length))
    starts = np.ones((rows, length), bool)
    starts[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    begin = np.maximum.accumulate(np.where(starts, index, 0), axis=1)
    return np.where(segment_ids > 0, index - begin, 0)
