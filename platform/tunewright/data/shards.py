"""Packed rows on disk: Parquet with fixed-length columns, written once, read by index.

input_ids    fixed_size_list<int32, L>   tokens, then padding
loss_mask    fixed_size_list<int8, L>    1 where the token is to be learned
segment_ids  fixed_size_list<int32, L>   segment number within the row from 1; 0 is padding
labels       fixed_size_list<int32, L>   only where the task has classes; NO_LABEL is none, and padding

Nothing is null. Documents of one segment are numbered 1, 2, 3...; of pairs, the first of each is odd.
"""

from __future__ import annotations

import mmap
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tunewright.data.encryption import Cipher
from tunewright.data.rows import NO_LABEL, Document
from tunewright.data.tables import map_parquet, read_group_of, write_groups
from tunewright.errors import ShardCorrupt

TOKENS_PER_GROUP = 16_384
"""A row group is decoded as a whole to get at one row: 0.25 ms; 256 rows of 1,024 take 4."""
MAX_GROUPS = 16_384
"""Row groups of a file; encrypted Parquet can number twice as many."""
OPEN_COST = 32_768
"""Bound on the files held open, each counted as `FILE_COST` + its row groups, of 3.3 KB metadata."""
FILE_COST = 128
COLUMNS = ("input_ids", "loss_mask", "segment_ids")
Array = npt.NDArray[np.int64]


def shard_schema(seq_len: int, labelled: bool = False) -> pa.Schema:
    """The columns of a shard, those of a task with classes if `labelled`."""
    types = [pa.int32(), pa.int8(), pa.int32()] + [pa.int32()] * labelled
    names = (*COLUMNS, "labels")[: len(types)]
    lists = (pa.list_(pa.field("element", t, nullable=False), seq_len) for t in types)
    return pa.schema([pa.field(n, t, nullable=False) for n, t in zip(names, lists, strict=True)])


def write_shard(
    path: Path,
    documents: Sequence[Document],
    rows: Sequence[Sequence[int]],
    seq_len: int,
    cipher: Cipher | None = None,
) -> int:
    """Write packed rows (lists of indices into `documents`); returns the file's size in bytes.

    One row group is held at a time. Either all documents have labels or none has.
    """
    schema = shard_schema(seq_len, bool(documents) and documents[0].labels is not None)
    size = max(1, TOKENS_PER_GROUP // seq_len, -(-len(rows) // MAX_GROUPS))
    groups = (_packed(documents, rows[at : at + size], schema, seq_len) for at in range(0, len(rows), size))
    repetitive = [f"{name}.list.element" for name in schema.names if name != "input_ids"]
    write_groups(path, groups, schema, cipher, dictionary=repetitive)
    return path.stat().st_size


def _packed(
    documents: Sequence[Document], rows: Sequence[Sequence[int]], schema: pa.Schema, seq_len: int
) -> pa.Table:
    """Rows as a table, made in one go for each column: every row's documents, then its padding."""
    padding = {name: np.full(seq_len, NO_LABEL if name == "labels" else 0, np.int32) for name in schema.names}
    padding["loss_mask"] = padding["loss_mask"].astype(np.int8)
    pieces: dict[str, list[Any]] = {name: [] for name in schema.names}
    numbers: list[int] = []
    lengths: list[int] = []
    for row in rows:
        members = [documents[index] for index in row]
        parts = [length for d in members for length in d.segments or (len(d.ids),)]
        left = seq_len - sum(parts)
        assert left >= 0, f"a row of {seq_len - left} tokens, seq_len={seq_len}"
        numbers += range(1, len(parts) + 1)
        numbers.append(0)
        lengths += parts
        lengths.append(left)
        pieces["input_ids"] += [d.ids for d in members]
        pieces["loss_mask"] += [d.loss_mask for d in members]
        if "labels" in pieces:
            pieces["labels"] += [d.labels for d in members]
        for name in pieces:
            pieces[name].append(padding[name][:left])
    pieces["segment_ids"] = [np.repeat(np.array(numbers, np.int32), lengths)]
    columns = []
    for field in schema:
        values = np.concatenate(pieces[field.name])
        assert values.shape == (len(rows) * seq_len,), f"{field.name} has {values.shape} values"
        array = pa.array(values, field.type.value_type)
        columns.append(pa.FixedSizeListArray.from_arrays(array, type=field.type))
    return pa.Table.from_arrays(columns, schema=schema)


@dataclass(frozen=True)
class _Shard:
    """A file that is open; all its row groups but the last have `per_group` rows."""

    file: pq.ParquetFile
    content: mmap.mmap
    rows: int
    per_group: int

    @property
    def cost(self) -> int:
        return FILE_COST + int(self.file.num_row_groups)


class PackedRows:
    """Random access to the rows of a folder of shards, in memory that does not grow with them.

    A row is found in O(1). Files are mapped, and their pages given back after each read; a row group
    is decoded when one of its rows is asked for, and the last few are kept.

    Args:
        folder: the shards; their order is that of their names.
        groups_kept: row groups held in memory, of 9 bytes a token or 150 KB each.
        decryption: of the `Cipher` that the shards were written with.
    Raises:
        DataError: the shards are encrypted and there is no key, or another one.
        ShardCorrupt: a file is not a shard, or, when its rows are read, a page fails its checksum.
    """

    def __init__(self, folder: Path, groups_kept: int = 64, decryption: Any = None):
        self._paths = sorted(folder.glob("*.parquet"))
        self._decryption, self._groups_kept = decryption, groups_kept
        self._schema: pa.Schema | None = None
        self._open: OrderedDict[int, _Shard] = OrderedDict()
        self._cache: OrderedDict[tuple[int, int], dict[str, npt.NDArray[Any]]] = OrderedDict()
        rows, self._per_group = [], []
        for number in range(len(self._paths)):
            rows.append(self._shard(number).rows)
            self._per_group.append(self._shard(number).per_group)
        self._file_of_row = np.repeat(np.arange(len(rows), dtype=np.int32), rows)
        self._first_row = np.cumsum([0, *rows])
        self._names = tuple(self._schema.names) if self._schema else COLUMNS
        self._seq_len = self._schema.field(0).type.list_size if self._schema else 0

    def __len__(self) -> int:
        return len(self._file_of_row)

    def take(self, indices: Sequence[int]) -> dict[str, Array]:
        """The named rows as int64 arrays of shape (rows, seq_len), `position_ids` included."""
        shape = (len(indices), self._seq_len)
        batch = {name: np.empty(shape, np.int64) for name in self._names}
        for at, index in enumerate(indices):
            group, row = self._locate(int(index))
            for name, values in group.items():
                batch[name][at] = values[row]
        batch["position_ids"] = positions(batch["segment_ids"])
        return batch

    def _locate(self, index: int) -> tuple[dict[str, npt.NDArray[Any]], int]:
        """The decoded row group that holds a row, and where it stands there."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = int(self._file_of_row[index])
        group, row = divmod(index - int(self._first_row[number]), self._per_group[number])
        key = number, group
        if key not in self._cache:
            self._cache[key] = self._decoded(number, group)
            if len(self._cache) > self._groups_kept:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key], row

    def _decoded(self, number: int, group: int) -> dict[str, npt.NDArray[Any]]:
        path, shard = self._paths[number], self._shard(number)
        table = read_group_of(shard.file, path, group)
        expected = min(shard.per_group, shard.rows - group * shard.per_group)
        if table.num_rows != expected:
            raise ShardCorrupt(f"{path}: row group {group} has {table.num_rows} rows, expected {expected}")
        shard.content.madvise(mmap.MADV_DONTNEED)  # else what was read counts as ours until it is all
        shape = expected, self._seq_len
        return {name: table.column(name).chunk(0).values.to_numpy().reshape(shape) for name in self._names}

    def _shard(self, number: int) -> _Shard:
        """A file, opened again if it was closed for others."""
        if number not in self._open:
            path = self._paths[number]
            file, content = map_parquet(path, self._decryption)
            self._check_schema(path, file.schema_arrow)
            rows, groups = file.metadata.num_rows, file.num_row_groups
            per_group = max(1, file.metadata.row_group(0).num_rows) if groups else 1
            if groups != -(-rows // per_group):
                raise ShardCorrupt(f"{path}: {rows} rows in {groups} row groups, the first of {per_group}")
            self._open[number] = _Shard(file, content, rows, per_group)
            while len(self._open) > 1 and sum(shard.cost for shard in self._open.values()) > OPEN_COST:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]

    def _check_schema(self, path: Path, schema: pa.Schema) -> None:
        names = tuple(schema.names)
        if names not in (COLUMNS, (*COLUMNS, "labels")):
            raise ShardCorrupt(f"{path}: columns are {list(names)}, expected {list(COLUMNS)} (and labels)")
        size = getattr(schema.field(0).type, "list_size", 0)
        if not schema.equals(shard_schema(size, "labels" in names)):
            found = ", ".join(f"{field.name} {field.type}" for field in schema)
            raise ShardCorrupt(f"{path}: not a shard's types: {found}")
        self._schema = self._schema or schema
        if not schema.equals(self._schema):
            raise ShardCorrupt(f"{path}: has {list(names)} of {size} tokens, unlike {self._paths[0].name}")


def positions(segment_ids: Array) -> Array:
    """Position of each token in its own document: [1, 1, 1, 2, 2, 0] -> [0, 1, 2, 0, 1, 0]."""
    rows, length = segment_ids.shape
    index = np.arange(length)
    starts = np.ones((rows, length), bool)
    starts[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    begin = np.maximum.accumulate(np.where(starts, index, 0), axis=1)
    return np.where(segment_ids > 0, index - begin, 0)
