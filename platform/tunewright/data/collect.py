"""Second pass: one bucket of all spill files -> unique, chosen, split, packed rows on disk.

A bucket holds every row whose content hashes to it, so rows with the same content meet here. Rows
are taken in the order of their content, so the files are the same bytes whatever the chunks were.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tunewright.data.convert import QUARANTINE, Part, Step, groups_of
from tunewright.data.figures import CLUSTERS_KEPT, TEXT_CHARS, Figures
from tunewright.data.mixing import Choice
from tunewright.data.near import near_groups
from tunewright.data.pack import pack_best_fit
from tunewright.data.privacy import Redactor
from tunewright.data.rows import Document
from tunewright.data.shards import write_shard
from tunewright.data.tables import write_table

EDGES: dict[str, list[float]] = {
    "tokens": [0, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 1 << 30],
    "chars": [0, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 1 << 40],
    "supervised_share": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
}
"""Borders of the report's histograms; the last of the first two stands for `and more`."""
ORDER = [("key", "ascending"), ("source", "ascending"), ("file", "ascending"), ("line", "ascending")]
PLACE = ("source", "file", "line")


Near = Mapping[str, tuple[str, float]]
"""Key of a near duplicate -> key of the row that is kept, and their similarity."""


@dataclass(frozen=True)
class Collect:
    """What a worker needs to write a bucket."""

    step: Step
    parts: tuple[Part, ...]
    choice: Choice
    near: Near
    label_names: tuple[str, ...]
    chunk_labels: tuple[tuple[str, ...], ...]
    """Label names as each chunk numbered them."""


def find_near_duplicates(step: Step, parts: Sequence[Part]) -> list[tuple[str, str, float]]:
    """(key, key of the row that is kept, similarity) of each row to leave out.

    The one part that holds something of every row at once: its signature, 4 bytes a permutation.
    """
    rules = step.config.near_duplicates
    assert rules is not None
    keys: list[str] = []
    signatures = bytearray()
    for bucket in range(step.buckets):
        for table in groups_of(parts, step, bucket, ("key", "signature")):
            keys += table.column("key").to_pylist()
            for value in table.column("signature").to_pylist():
                signatures += value
    matrix = np.frombuffer(signatures, np.uint32).reshape(len(keys), rules.permutations)
    _, first = np.unique(np.array(keys), return_index=True)  # exact duplicates are another matter
    if len(first) < len(keys):
        keys, matrix = [keys[i] for i in first], matrix[first]
    groups = near_groups(keys, matrix, rules.threshold)
    return [(key, group.kept, round(s, 3)) for group in groups for key, s in group.dropped.items()]


def count_bucket(bucket: int, step: Step, parts: Sequence[Part], near: Near) -> str:
    """What mixing must know of a bucket, as JSON for `merge_census`."""
    rows: Counter[tuple[int, str | None]] = Counter()
    strata: dict[str, tuple[int, str]] = {}
    columns = ("key", *PLACE, "stratum", "sampled")
    table = _bucket_table(bucket, step, parts, columns).sort_by(ORDER)
    keys = table.column("key").to_pylist()
    values = zip(*(table.column(c).to_pylist() for c in ("source", "sampled", "stratum")), strict=True)
    last = None
    for key, (source, sampled, stratum) in zip(keys, values, strict=True):
        if (step.config.rules.drop_duplicates and key == last) or key in near:
            continue
        last = key
        rows[(source, sampled)] += 1
        if stratum is not None:
            n, smallest = strata.get(stratum, (0, key))
            strata[stratum] = (n + 1, min(smallest, key))
    return json.dumps(
        {
            "rows": [[source, sampled, n] for (source, sampled), n in rows.items()],
            "strata": [[stratum, n, key] for stratum, (n, key) in strata.items()],
        }
    )


def write_bucket(bucket: int, work: Collect) -> dict[str, Any]:
    """Write all files of a bucket; returns its figures."""
    figures = Figures()
    table = _bucket_table(bucket, work.step, work.parts, None, work.chunk_labels, work.label_names)
    table = table.sort_by(ORDER)
    unique = _unique(table, work, figures)
    table = table.take(pa.array(unique))
    train, evaluation, copies = _chosen(table, work, figures)
    out, name = Path(work.step.out), f"shard-{bucket:05d}.parquet"
    facts = {
        "train": _write_split(table, np.repeat(train, copies), out / "train" / name, work, figures),
        "eval": _write_split(table, evaluation, out / "eval" / name, work, figures),
    }
    if len(evaluation):
        payloads = table.column("payload").take(pa.array(evaluation))
        path = out / "examples" / f"examples-{bucket:05d}.parquet"
        write_table(path, pa.table({"example": payloads}), work.step.cipher)
    return {"bucket": bucket, "splits": facts, "figures": figures.as_dict()}


def _bucket_table(
    bucket: int,
    step: Step,
    parts: Sequence[Part],
    columns: Sequence[str] | None,
    chunk_labels: Sequence[Sequence[str]] = (),
    label_names: Sequence[str] = (),
) -> pa.Table:
    number = {name: index for index, name in enumerate(label_names)}
    tables = []
    for (chunk, _), table in zip(parts, groups_of(parts, step, bucket, columns), strict=True):
        if label_names and table.num_rows:
            new = np.array([number[name] for name in chunk_labels[chunk]], np.int32)
            table = _renumbered(table, new)
        tables.append(table)
    return pa.concat_tables(tables).combine_chunks()


def _renumbered(table: pa.Table, new: npt.NDArray[np.int32]) -> pa.Table:
    """The table with a chunk's label numbers replaced by those of the whole data set."""
    column = table.column("labels")
    renumbered = []
    for value in column.to_pylist():
        labels = np.frombuffer(value, np.int32).copy()
        labels[labels >= 0] = new[labels[labels >= 0]]
        renumbered.append(labels.tobytes())
    at = table.schema.get_field_index("labels")
    return table.set_column(at, "labels", pa.array(renumbered, pa.large_binary()))


def _unique(table: pa.Table, work: Collect, figures: Figures) -> npt.NDArray[np.int64]:
    """Indices of the rows that are the first of their content; the others go to quarantine."""
    keys = table.column("key").to_pylist()
    kept: list[int] = []
    lost: list[tuple[int, str, str]] = []
    clusters: dict[int, int] = {}
    near_sizes = Counter(other for other, _ in work.near.values())
    first = -1
    for index, key in enumerate(keys):
        if first >= 0 and keys[first] == key and work.step.config.rules.drop_duplicates:
            lost.append((index, "exact duplicate", _same_as(table, first)))
            clusters[first] = clusters.get(first, 1) + 1
        elif key in work.near:
            other, similarity = work.near[key]
            lost.append((index, "near duplicate", f"{similarity:.2f} similar to the row with key {other}"))
            first = index
        else:
            kept.append(index)
            first = index
    _quarantine(table, lost, work, figures)
    shown = sorted(clusters.items(), key=lambda item: (-item[1], keys[item[0]]))[:CLUSTERS_KEPT]
    for index, size in shown:
        figures.clusters.append([size, "exact", *_shown(table, index, work)])
    near = sorted((index for index in kept if keys[index] in near_sizes), key=lambda i: -near_sizes[keys[i]])
    for index in near[:CLUSTERS_KEPT]:
        figures.clusters.append([1 + near_sizes[keys[index]], "near", *_shown(table, index, work)])
    figures.add("duplicates", Counter(kind.split()[0] for _, kind, _ in lost))
    return np.array(kept, np.int64)


def _same_as(table: pa.Table, index: int) -> str:
    source, file, line = (table.column(name)[index].as_py() for name in PLACE)
    return f"same content as source {source}, {file}:{line}"


def _shown(table: pa.Table, index: int, work: Collect) -> tuple[str, str]:
    """Where a row stands, and its text with personal data masked; no text of an encrypted data set."""
    _, file, line = (table.column(name)[index].as_py() for name in PLACE)
    text = "" if work.step.cipher else table.column("payload")[index].as_py()
    return f"{file}:{line}", Redactor(work.step.config.privacy).masked(text)[:TEXT_CHARS]


def _quarantine(
    table: pa.Table, lost: Sequence[tuple[int, str, str]], work: Collect, figures: Figures
) -> None:
    if not lost:
        return
    rows = table.take(pa.array([index for index, _, _ in lost]))
    reasons = [f"{kind}: {detail}" for _, kind, detail in lost]
    columns = {name: rows.column(name) for name in PLACE}
    columns |= {"reason": pa.array(reasons), "row": rows.column("payload")}
    bucket = int(rows.column("key")[0].as_py()[8:16], 16) % work.step.buckets
    path = Path(work.step.out) / "quarantine" / f"duplicates-{bucket:05d}.parquet"
    write_table(path, pa.table(columns, schema=QUARANTINE), work.step.cipher)
    places = zip(*(rows.column(name).to_pylist() for name in PLACE), strict=True)
    redactor = Redactor(work.step.config.privacy)
    for (source, file, line), (index, kind, _) in zip(places, lost, strict=True):
        shown = figures.shows(source, "unique", kind)
        text = table.column("payload")[index].as_py() if shown and not work.step.cipher else ""
        figures.lose(source, "unique", kind, file, line, redactor.masked(text) if text else "")


def _chosen(
    table: pa.Table, work: Collect, figures: Figures
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows for training, rows for evaluation, and how often each training row stands in an epoch."""
    train, evaluation, copies = [], [], []
    share = work.step.config.split.eval
    names = ("key", "side", "source", "sampled", "file", "line")
    columns = (table.column(name).to_pylist() for name in names)
    for index, (key, side, source, sampled, file, line) in enumerate(zip(*columns, strict=True)):
        figures.count(source, "unique")
        if not work.choice.uses(source, sampled, key):
            figures.lose(source, "kept", "not sampled", file, line, "")
            continue
        if side / 2**64 < share or key in work.choice.eval_keys:
            evaluation.append(index)
            figures.count(source, "kept")
            figures.count(source, "eval")
            continue
        times = work.choice.copies_of(source, key)
        if not times:
            figures.lose(source, "kept", "not drawn into the mixture", file, line, "")
            continue
        train.append(index)
        copies.append(times)
        figures.count(source, "kept")
        figures.count(source, "drawn", times)
    return np.array(train, np.int64), np.array(evaluation, np.int64), np.array(copies, np.int64)


def _write_split(
    table: pa.Table, indices: npt.NDArray[np.int64], path: Path, work: Collect, figures: Figures
) -> dict[str, int]:
    """Pack the named rows into a shard; returns rows, documents and tokens."""
    if not len(indices):
        return {"rows": 0, "documents": 0, "tokens": 0, "supervised_tokens": 0}
    taken = table.take(pa.array(indices))
    documents = list(_documents(taken))
    lengths = np.array([len(d.ids) for d in documents], np.int64)
    supervised = np.array([int(d.loss_mask.sum()) for d in documents], np.int64)
    seq_len = work.step.config.pack.seq_len
    packed = pack_best_fit(lengths.tolist(), seq_len)
    write_shard(path, documents, packed, seq_len, work.step.cipher)
    split = path.parent.name
    chars = np.array([len(text) for text in taken.column("payload").to_pylist()], np.int64)
    figures.add(f"tokens {split}", _histogram(lengths, EDGES["tokens"]))
    figures.add(f"chars {split}", _histogram(chars, EDGES["chars"]))
    figures.add(f"supervised_share {split}", _histogram(supervised / lengths, EDGES["supervised_share"]))
    _count_labels(taken, work, figures)
    return {
        "rows": len(packed),
        "documents": len(documents),
        "tokens": int(lengths.sum()),
        "supervised_tokens": int(supervised.sum()),
    }


def _documents(table: pa.Table) -> Iterator[Document]:
    names = ("ids", "mask", "labels", "segments", "documents")
    for row in zip(*(table.column(name).to_pylist() for name in names), strict=True):
        ids, mask = np.frombuffer(row[0], np.int32), np.frombuffer(row[1], np.int8)
        labels = np.frombuffer(row[2], np.int32) if row[2] else None
        segments, parts = np.frombuffer(row[3], np.int32), np.frombuffer(row[4], np.int32)
        if len(parts) == 1 and len(segments) == 1:
            yield Document(ids, mask, labels)
            continue
        token = segment = 0
        for count in parts.tolist():
            lengths = tuple(segments[segment : segment + count].tolist())
            end = token + sum(lengths)
            own = None if labels is None else labels[token:end]
            yield Document(ids[token:end], mask[token:end], own, lengths if count > 1 else ())
            token, segment = end, segment + count


def _histogram(values: npt.NDArray[Any], edges: Sequence[float]) -> dict[str, int]:
    counts, _ = np.histogram(values, edges)
    return {str(bin): int(count) for bin, count in enumerate(counts) if count}


def _count_labels(table: pa.Table, work: Collect, figures: Figures) -> None:
    names = work.label_names
    if not names:
        return
    labels = np.frombuffer(b"".join(table.column("labels").to_pylist()), np.int32)
    counts = np.bincount(labels[labels >= 0], minlength=len(names))
    figures.add("labels", {name: int(n) for name, n in zip(names, counts, strict=True) if n})
