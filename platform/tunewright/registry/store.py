"""The registry: which trained artifacts have a name, and which of them is meant by `prod`.

    STORE/registry/MODEL/versions/vN.json       a version; written once
    STORE/registry/MODEL/aliases/ALIAS.json     where an alias stands, and where it stood before
    STORE/registry/MODEL/history.jsonl          every move: when, from, to, by whom, why

Knows nothing of weights, Ray or HTTP.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunewright.artifacts import Artifact, Store, explained, read_json, write_json
from tunewright.errors import GateRefused, RegistryError
from tunewright.registry.version import NUMBER, Version, check_name, create_version, read_version


class Registry:
    """Versions and aliases of the models of one store."""

    def __init__(self, store: Store):
        self.store = store
        self.root = store.root / "registry"

    def register(self, model: str, train: Artifact, evaluation: Artifact, run: str) -> Version:
        """The version of these artifacts under `model`; the same artifacts are the same version.

        A trained artifact judged by another evaluation is another version, as its gates may differ.

        Raises:
            RegistryError: a bad name, or an artifact that is not what a version is made of.
        """
        check_name("model", model)
        if train.manifest.kind != "train" or "base" not in train.manifest.parents:
            raise RegistryError(f"{train.ref} is not a trained model with a base")
        folder = self.root / model / "versions"
        with explained(f"registering {train.ref} as {model}"):
            folder.mkdir(parents=True, exist_ok=True)
            while True:
                known = self.versions(model)
                for version in known:
                    if (version.train, version.evaluation) == (train.ref, evaluation.ref):
                        return version
                version = Version(
                    model=model,
                    number=1 + max((v.number for v in known), default=0),
                    train=train.ref,
                    base=train.manifest.parents["base"],
                    evaluation=evaluation.ref,
                    run=run,
                    created=_now(),
                    facts={"train": dict(train.facts), "evaluation": dict(evaluation.facts)},
                )
                if create_version(folder, version):
                    return version

    def models(self) -> list[str]:
        """Names of the models that have a version."""
        return sorted({path.parent.parent.name for path in self.root.glob("*/versions/v*.json")})

    def versions(self, model: str) -> list[Version]:
        """All versions of a model, oldest first; empty when there is no such model."""
        check_name("model", model)
        paths = (self.root / model / "versions").glob("v*.json")
        return sorted((read_version(path) for path in paths), key=lambda version: version.number)

    def version(self, model: str, number: int) -> Version:
        """Raises `RegistryError` that names the versions there are."""
        known = self.versions(model)
        for version in known:
            if version.number == number:
                return version
        if not known:
            names = ", ".join(self.models()) or "none yet"
            raise RegistryError(f"there is no model {model}; registered models: {names}")
        names = ", ".join(v.name for v in known)
        raise RegistryError(f"{model}@v{number} does not exist; versions: {names}")

    def aliases(self, model: str) -> dict[str, int]:
        """Alias -> version number."""
        check_name("model", model)
        paths = sorted((self.root / model / "aliases").glob("*.json"))
        return {path.stem: int(_read_alias(path)["number"]) for path in paths}

    def promote(
        self, model: str, alias: str, number: int, by: str, reason: str, force: bool = False
    ) -> Version:
        """Move `alias` to version `number`, atomically; where it already stands, nothing is recorded.

        Raises:
            GateRefused: the evaluation missed a gate and `force` is not given.
            RegistryError: no such version, or a bad alias name.
        """
        check_name("alias", alias)
        version = self.version(model, number)
        missed = version.missed_gates
        if missed and not force:
            raise GateRefused(f"{version.name} may not become {alias}: {'; '.join(missed)}")
        with self._moving(model, alias) as before:
            if before["number"] != number:
                stack = [*before["previous"], before["number"]] if before["number"] else []
                self._move(model, alias, before["number"], number, stack, by, reason, forced=bool(missed))
        return version

    def rollback(self, model: str, alias: str, by: str = "", reason: str = "rollback") -> Version:
        """Move `alias` back to the version it stood at before; again and again, to the first.

        Raises:
            RegistryError: no such alias, or it never stood elsewhere.
        """
        self._require_alias(model, alias)
        with self._moving(model, alias) as before:
            if not before["previous"]:
                raise RegistryError(
                    f"{model}@{alias} has always been v{before['number']}: nothing to go back to"
                )
            *stack, number = before["previous"]
            version = self.version(model, number)
            self._move(model, alias, before["number"], number, stack, by, reason, forced=False)
        return version

    def resolve(self, ref: str, default_model: str | None = None) -> Version:
        """The version that `model@v3`, `model@prod`, `prod` or `v3` means now.

        Without a model in `ref`, `default_model` is meant, or the only model with that alias.

        Raises:
            RegistryError: nothing or more than one thing is meant; names what there is.
        """
        model, at, name = ref.rpartition("@")
        if at and not model:
            raise RegistryError(f"{ref!r} names no model; write MODEL@v1 or MODEL@ALIAS")
        model = model or default_model or self._only_model_with(name)
        number = NUMBER.fullmatch(name)
        if number:
            return self.version(model, int(number[1]))
        self._require_alias(model, name)
        return self.version(model, self.aliases(model)[name])

    def history(self, model: str) -> list[dict[str, Any]]:
        """Every move of the model's aliases, oldest first."""
        check_name("model", model)
        path = self.root / model / "history.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def lineage(self, version: Version) -> list[str]:
        """References of all artifacts the version was made from, nearest first.

        Raises:
            StoreError: one of them is not in the store.
        """
        refs = [version.train, version.evaluation]
        for ref in refs:  # grows while it is walked
            parents = self.store.load(ref, verify=False).manifest.parents.values()
            refs += [parent for parent in parents if parent not in refs]
        return refs

    def _only_model_with(self, name: str) -> str:
        if NUMBER.fullmatch(name):
            raise RegistryError(f"{name} of which model? Write MODEL@{name}; models: {self._known_models()}")
        check_name("alias", name)
        found = [model for model in self.models() if name in self.aliases(model)]
        if len(found) == 1:
            return found[0]
        if not found:
            raise RegistryError(f"no model has the alias {name}; models: {self._known_models()}")
        names = ", ".join(f"{model}@{name}" for model in found)
        raise RegistryError(f"the alias {name} means more than one version: {names}; write one of these")

    def _require_alias(self, model: str, alias: str) -> None:
        check_name("alias", alias)
        known = self.aliases(model)
        if alias in known:
            return
        versions = ", ".join(version.name for version in self.versions(model))
        if not versions:
            raise RegistryError(f"there is no model {model}; registered models: {self._known_models()}")
        aliases = ", ".join(f"{name} (v{number})" for name, number in known.items()) or "none"
        raise RegistryError(f"{model} has no alias {alias}; aliases: {aliases}; versions: {versions}")

    def _known_models(self) -> str:
        return ", ".join(self.models()) or "none yet"

    @contextmanager
    def _moving(self, model: str, alias: str) -> Iterator[dict[str, Any]]:
        """Where the alias stands, while no other process can move one of this model."""
        with explained(f"moving {model}@{alias}"):
            path = self.root / model / "aliases" / f"{alias}.json"
            path.parent.mkdir(exist_ok=True)
            with (self.root / model / ".lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield _read_alias(path) if path.exists() else {"number": 0, "previous": []}

    def _move(
        self,
        model: str,
        alias: str,
        before: int,
        number: int,
        previous: list[int],
        by: str,
        reason: str,
        forced: bool,
    ) -> None:
        when = _now()
        # The alias first: it is the truth. A crash in between loses a line of history, not the move.
        path = self.root / model / "aliases" / f"{alias}.json"
        write_json(path, {"number": number, "previous": previous, "by": by, "reason": reason, "when": when})
        line = {
            "when": when,
            "alias": alias,
            "from": before or None,
            "to": number,
            "by": by,
            "reason": reason,
        }
        with (self.root / model / "history.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | {"forced": forced}, ensure_ascii=False) + "\n")


def _read_alias(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
        return {"number": int(found["number"]), "previous": [int(n) for n in found["previous"]]}
    except (ValueError, TypeError, KeyError) as error:
        raise RegistryError(f"{path} is damaged: {error!r}") from None


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
