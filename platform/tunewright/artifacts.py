"""Artifacts: immutable directories with a manifest, and the store that holds them.

A stage reads artifacts and makes one. Its id is the hash of its parents, its resolved
configuration and the source code of the stage, so that a stage run twice is found and not
repeated. An artifact becomes visible by one rename, last; a half-written one is never read.

    artifacts/KIND/ID/   manifest.json and the files it names
    work/KIND-ID/        what a stage is writing; kept when it dies, so that it can resume
    runs/NAME/           configuration, summary and report of a run
    registry/MODEL/      versions and aliases
    quarantine/          damaged things, moved aside and never deleted

Knows nothing of Ray, torch or what is in the files. The root is a local folder or one that all
nodes mount.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from tunewright.errors import StoreError, StoreLocked

MANIFEST = "manifest.json"
PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Manifest:
    """What an artifact says of itself.

    Attributes:
        parents: role -> `kind/id` of the artifacts it was made from.
        config: the resolved configuration of the stage that made it.
        code: hash of that stage's source code.
        files: relative path -> {"sha256", "bytes"} of every file.
        facts: figures of interest: rows, tokens, losses, scores.
        seal: hash of all the above and below, so that a damaged manifest is found out too.
    """

    kind: str
    id: str
    parents: dict[str, str]
    config: dict[str, Any]
    code: str
    files: dict[str, dict[str, Any]]
    facts: dict[str, Any]
    created: str
    seconds: float = 0.0
    seal: str = ""

    def sealed(self) -> Manifest:
        """The same manifest with the seal that belongs to it."""
        content = json.loads(json.dumps({**asdict(self), "seal": ""}))  # as it will be read
        return replace(self, seal=digest(content))


@dataclass(frozen=True)
class Artifact:
    """A finished directory of the store."""

    path: Path
    manifest: Manifest = field(repr=False)

    @property
    def ref(self) -> str:
        """`kind/id`, as other manifests name it."""
        return f"{self.manifest.kind}/{self.manifest.id}"

    @property
    def facts(self) -> dict[str, Any]:
        return self.manifest.facts


@dataclass(frozen=True)
class Plan:
    """An artifact that does not exist yet: its identity, known before any work."""

    kind: str
    parents: dict[str, str]
    config: dict[str, Any]
    code: str

    @property
    def id(self) -> str:
        return digest({"kind": self.kind, "parents": self.parents, "config": self.config, "code": self.code})


def digest(value: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def code_hash(*parts: str) -> str:
    """Hash of the source of the named modules or packages of Tunewright.

    A change of a stage's code makes new artifacts; a change elsewhere does not.
    """
    sha = hashlib.sha256()
    for part in parts:
        at = PACKAGE / part
        for path in sorted(at.rglob("*.py")) if at.is_dir() else [at.with_suffix(".py")]:
            sha.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    return sha.hexdigest()[:16]


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Replace `path` with the JSON of `value`: readers see the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, sort_keys=True, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


class Store:
    """The folder that holds artifacts, runs and the registry.

    Raises:
        StoreError: the folder cannot be made or written; says why and what to do.
    """

    def __init__(self, root: str | Path):
        if "://" in str(root):
            raise StoreError(f"store {root}: give a local folder, or one that all nodes mount")
        self.root = Path(root).expanduser().absolute()
        with explained(f"store {self.root}"):
            for name in ("artifacts", "work", "runs", "registry"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{os.getpid()}-{time.monotonic_ns()}"
            probe.write_bytes(b"x" * 65536)
            probe.unlink()

    def find(self, plan: Plan) -> Artifact | None:
        """The artifact of `plan` if it is complete and undamaged.

        A damaged one is moved to quarantine with a message in its place, and made again.
        """
        path = self.root / "artifacts" / plan.kind / plan.id
        if not path.exists():
            return None
        try:
            return self.load(f"{plan.kind}/{plan.id}")
        except StoreError as error:
            self.quarantine(path, str(error))
            return None

    def load(self, ref: str, verify: bool = True) -> Artifact:
        """The artifact named `kind/id`, every file checked against its SHA-256.

        Raises:
            StoreError: not there, or a file differs from the manifest; names the file.
        """
        path = self.root / "artifacts" / ref
        try:
            manifest = Manifest(**read_json(path / MANIFEST))
        except FileNotFoundError:
            raise StoreError(f"artifact {ref} is not in {self.root}") from None
        except (ValueError, TypeError, NotADirectoryError, IsADirectoryError) as error:
            raise StoreError(f"artifact {ref}: manifest is damaged: {error}") from None
        if manifest != manifest.sealed():
            raise StoreError(f"artifact {ref}: manifest is damaged: it does not match its seal")
        if verify:
            for name, entry in manifest.files.items():
                file = path / name
                if not file.is_file() or file.stat().st_size != entry["bytes"]:
                    raise StoreError(f"artifact {ref}: {name} is missing or has another size")
                if file_sha256(file) != entry["sha256"]:
                    raise StoreError(f"artifact {ref}: {name} does not match its SHA-256")
        return Artifact(path, manifest)

    def list(self, kind: str) -> list[Artifact]:
        """All finished artifacts of a kind, oldest first; damaged ones are left out."""
        found = []
        for path in sorted((self.root / "artifacts" / kind).glob("*/" + MANIFEST)):
            try:
                found.append(self.load(f"{kind}/{path.parent.name}", verify=False))
            except StoreError:
                continue
        return sorted(found, key=lambda a: a.manifest.created)

    def work_dir(self, plan: Plan) -> Path:
        """Where the stage writes; what an earlier, killed try left is still there."""
        path = self.root / "work" / f"{plan.kind}-{plan.id}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def publish(self, plan: Plan, folder: Path, facts: Mapping[str, Any], seconds: float = 0.0) -> Artifact:
        """Make `folder`, on the same file system, the artifact of `plan`, by one rename."""
        with explained(f"publishing {plan.kind}/{plan.id}"):
            names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
            files = {
                name: {"sha256": file_sha256(folder / name), "bytes": (folder / name).stat().st_size}
                for name in names
                if name != MANIFEST
            }
            manifest = Manifest(
                kind=plan.kind,
                id=plan.id,
                parents=plan.parents,
                config=plan.config,
                code=plan.code,
                files=files,
                facts=dict(facts),
                created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                seconds=round(seconds, 3),
            ).sealed()
            for name in names:
                fsync(folder / name)
            write_json(folder / MANIFEST, asdict(manifest))
            final = self.root / "artifacts" / plan.kind / plan.id
            final.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(final)
            fsync(final.parent)
        return Artifact(final, manifest)

    def quarantine(self, path: Path, reason: str) -> Path:
        """Move a damaged file or folder aside, with the reason beside it; returns its new place."""
        folder = self.root / "quarantine"
        target = folder / f"{path.name}-{time.time_ns()}"
        with explained(f"moving damaged {path.name} aside"):
            folder.mkdir(exist_ok=True)
            path.rename(target)
            (folder / f"{target.name}.reason.txt").write_text(f"{path}\n{reason}\n", encoding="utf-8")
        return target

    @contextmanager
    def lock(self, name: str, doing: str) -> Iterator[None]:
        """Hold the writer's lock on `name` for this process; it goes away when the process dies.

        Raises:
            StoreLocked: another process holds it; says who, since when, and what it does.
        """
        path = self.root / "work" / f".{name}.lock"
        with path.open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise StoreLocked(
                    f"store {self.root} is being written by another run: {holder}. "
                    f"Wait for it, stop it, or give this run its own store (store: FOLDER)"
                ) from None
            file.truncate(0)
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            file.write(f"{doing} (process {os.getpid()} on {socket.gethostname()}, since {since})")
            file.flush()
            yield


def clear_dir(path: Path) -> Path:
    """An empty folder at `path`, whatever was there before."""
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)
    return path


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn the operating system's refusals into a `StoreError` that says what to do."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{what}: {explain_os_error(error)}") from error


def explain_os_error(error: OSError) -> str:
    """A sentence for a refused file operation: what happened and what to do."""
    at = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"the disk is full{at}; free some space and run the same command again: finished stages are kept"
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"it cannot be written{at}; choose another folder with `store:` or TUNEWRIGHT_STORE"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"a file stands where a folder is needed{at}"
    return f"{error.strerror or error}{at}"


def fsync(path: Path) -> None:
    """Return when what was written to the file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
