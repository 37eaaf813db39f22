"""`tunewright export`: a registered version as a folder that needs nothing of Tunewright.

An adapter as PEFT reads it, or base and adapter in one model, proved to answer as the two did. What
is not proved equal is not left behind.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.artifacts import Artifact, Store, explained, file_sha256, read_json, write_json
from tunewright.errors import ConfigError, ModelError, StoreError
from tunewright.models.adapter_config import name_base
from tunewright.registry import Registry

if TYPE_CHECKING:
    from tunewright.models.merge import Precision

EQUIVALENCE = "equivalence.json"
HELD_OUT_TOKENS = 8192
"""Tokens on which the merged model is compared: 0.97 of them is known to within 0.004."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how it was proved; no proof is needed of a copy."""

    folder: Path
    name: str
    kind: str
    equivalence: dict[str, Any] | None = None

    def told(self) -> str:
        """One line for the person who asked."""
        if self.equivalence is None:
            return f"{self.name}: {self.kind} copied to {self.folder}"
        found, effect = self.equivalence["merged"], self.equivalence["tuning"]
        moved = f"; the tuning itself is KL {effect['kl']:.2g}" if effect else ""
        return (
            f"{self.name}: {self.kind} in {self.equivalence['precision']} in {self.folder}. "
            f"On {found['tokens']:,} {self.equivalence['rows']} tokens: mean KL {found['kl']:.2g}, same "
            f"likeliest token {found['top1']:.2%}, largest logit difference "
            f"{found['max_logit_difference']:.2g}{moved}"
        )


def export_version(
    store: Store, ref: str, out: Path, merge: bool = False, precision: Precision | None = None
) -> Exported:
    """Write what `ref` names to the folder `out`, which must not be there or be empty.

    Args:
        ref: MODEL@vN, MODEL@ALIAS, ALIAS; a MODEL alone, which means its alias prod or else its newest
            version; or a training's artifact, train/ID.
        merge: base and adapter in one model, instead of the adapter.
        precision: of the model's weights; the base's when left out.
    Raises:
        RegistryError: no such version.
        StoreError: the folder cannot be written, or an artifact is damaged.
        ModelError: it cannot be merged, or the merged model does not answer as it should.
    """
    name, trained = find_trained(store, ref)
    base = store.load(trained.manifest.parents["base"])
    check_unchanged(base)
    adapter = trained.path / "adapter"
    if precision is not None and not merge:
        raise ConfigError("--dtype is for --merge; without it the trained files are copied as they are")
    with _written_whole(out) as folder:
        if not merge:
            kind = "adapter" if adapter.is_dir() else "model"
            shutil.copytree(trained.path / kind, folder, dirs_exist_ok=True)
            if kind == "adapter":
                name_base(folder, base)
            _copy_tokenizer(trained, folder)
            return Exported(out, name, kind)
        proof = merge_trained(store, trained, base, folder, precision)
        write_json(folder / EQUIVALENCE, {"version": name, **proof})
        return Exported(out, name, "whole model", proof)


def precision_named(name: str | None) -> Precision | None:
    """The precision that a person named; None if nobody did.

    Raises:
        ConfigError: there is none of that name.
    """
    known: dict[str | None, Precision | None] = {None: None, "fp32": "fp32", "bf16": "bf16", "fp16": "fp16"}
    if name not in known:
        raise ConfigError(f"--dtype {name}: choose fp32, bf16 or fp16, or leave it out for the base's own")
    return known[name]


def find_trained(store: Store, ref: str) -> tuple[str, Artifact]:
    """The name and the training's artifact of a version.

    Raises:
        RegistryError: nothing of that name; says what there is.
    """
    if ref.startswith("train/"):
        return ref, store.load(ref)
    registry = Registry(store)
    if ref in registry.models():
        aliases = registry.aliases(ref)
        ref = f"{ref}@v{aliases.get('prod', registry.versions(ref)[-1].number)}"
    version = registry.resolve(ref)
    return version.name, store.load(version.train)


def check_unchanged(base: Artifact) -> None:
    """Raises `ModelError` when a base outside the store is not the one that was trained on."""
    from tunewright.models.base import model_folder

    folder = model_folder(base)
    if folder == base.path / "model":
        return  # its files were checked when it was loaded
    for name, sha in base.manifest.config["files"].items():
        path = folder / name
        if not path.is_file() or file_sha256(path) != sha:
            state = "has changed" if path.is_file() else "is gone"
            raise ModelError(
                f"{path} {state} since {base.ref} was trained on it; an adapter is right on its own base only"
            )


def merge_trained(
    store: Store, trained: Artifact, base: Artifact, folder: Path, precision: Precision | None
) -> dict[str, Any]:
    """Write base and adapter as one model with its tokenizer, and return the proof that it is both.

    Raises:
        ModelError: it cannot be merged, or the merged model does not answer as it should.
    """
    from tunewright.models.base import model_folder
    from tunewright.models.merge import check_mergeable, stored_precision, why_not_equal, write_merged
    from tunewright.models.prove import agreement_with
    from tunewright.train.checkpoint import disk_errors

    whole, adapter = model_folder(base), trained.path / "adapter"
    if adapter.is_dir():
        check_mergeable(adapter)
    chosen = precision or stored_precision(whole)
    source: tuple[Path, Path | None] = (
        (whole, adapter) if adapter.is_dir() else (trained.path / "model", None)
    )
    with disk_errors(folder):
        write_merged(*source, folder, chosen)
    _copy_tokenizer(trained, folder)
    _join_generation(whole, trained.path / "tokenizer", folder)
    rows, documents = _held_out(store, trained)
    merged, tuning = agreement_with(source, folder, documents)
    reason = why_not_equal(merged, tuning, chosen)
    if reason:
        raise ModelError(f"the merged model is not what was trained, and was not kept: {reason}")
    return {
        "precision": chosen,
        "computed_in": "fp32",
        "rows": rows,
        "documents": len(documents),
        "merged": asdict(merged),
        "tuning": asdict(tuning) if tuning else None,
        "trained": trained.ref,
        "base": base.ref,
        "data": trained.manifest.parents["data"],
    }


def _held_out(store: Store, trained: Artifact) -> tuple[str, list[list[int]]]:
    """What rows they are, and the documents of the run's evaluation rows; its training rows' if it has none.

    Raises:
        DataError: the rows are encrypted and the key is not there.
    """
    from tunewright.data.dataset import open_rows
    from tunewright.models.compare import documents_of

    data = store.load(trained.manifest.parents["data"])
    for split, said in (("eval", "held-out"), ("train", "training")):
        rows = open_rows(data.path, split)
        documents: list[list[int]] = []
        for number in range(len(rows)):
            left = HELD_OUT_TOKENS - sum(map(len, documents))
            if left <= 0:
                break
            documents += documents_of(rows.take([number]), left)
        if documents:
            return said, documents
    raise ModelError(f"{data.ref} has no document of two tokens, so nothing can be proved on it")


def _copy_tokenizer(trained: Artifact, folder: Path) -> None:
    """The tokenizer and chat template that training used, beside the weights."""
    for path in sorted((trained.path / "tokenizer").iterdir()):
        if path.name != "generation_config.json":
            shutil.copy(path, folder / path.name)


def _join_generation(base: Path, tokenizer: Path, folder: Path) -> None:
    """What the base says of generation, with the stop tokens that training used."""
    joined: dict[str, Any] = {}
    for place in (base, tokenizer):
        path = place / "generation_config.json"
        if path.is_file():
            joined |= read_json(path)
    (folder / "generation_config.json").write_text(json.dumps(joined, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _written_whole(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` when the block ends well, and is removed when it does not.

    Raises:
        StoreError: something stands there, or it cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise StoreError(f"--out {out} is a file; name a folder that is not there yet")
    if out.is_dir() and any(out.iterdir()):
        raise StoreError(f"--out {out} is not empty; name another folder, or empty this one")
    writing = out.parent / f".{out.name}.writing-{os.getpid()}"
    with explained(f"writing {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        writing.mkdir()
        try:
            yield writing
            writing.replace(out)
        finally:
            shutil.rmtree(writing, ignore_errors=True)
