"""A prepared data set, as training and evaluation read it. The settings it was made with say how."""

from __future__ import annotations

from pathlib import Path

from tunewright.artifacts import MANIFEST, read_json
from tunewright.data.encryption import Cipher
from tunewright.data.shards import PackedRows

LABELS = "labels.json"


def open_rows(folder: Path, split: str) -> PackedRows:
    """The packed rows of `train` or `eval` of the data artifact in `folder`.

    Raises:
        ShardCorrupt: a shard is damaged.
        DataError: the set is encrypted and the key is missing or another.
    """
    cipher = cipher_of(folder)
    return PackedRows(folder / split, decryption=cipher.decryption() if cipher else None)


def cipher_of(folder: Path) -> Cipher | None:
    """What decrypts the data artifact in `folder`; None if it is not encrypted."""
    encryption = read_json(folder / MANIFEST)["config"].get("encryption")
    return Cipher(encryption["key"]) if encryption else None


def labels_of(folder: Path) -> tuple[str, ...]:
    """The classes of the data artifact in `folder`, in the order of their numbers; none if it has none."""
    path = folder / LABELS
    return tuple(read_json(path)) if path.is_file() else ()
