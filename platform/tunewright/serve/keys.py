"""The endpoint's key: made once, kept in the store, known to the server by its hash alone."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Collection
from pathlib import Path

from tunewright.artifacts import explained
from tunewright.errors import ServeError

ENVIRONMENT = "TUNEWRIGHT_API_KEY"
PREFIX = "tw-"
MIN_LENGTH = 16


def endpoint_key(store_root: Path) -> str:
    """$TUNEWRIGHT_API_KEY, else the key in STORE/keys/endpoint.key, made at the first call.

    Raises:
        ServeError: a key too short to be a secret, or one that cannot stand in a header.
        StoreError: the file cannot be read or written.
    """
    given = os.environ.get(ENVIRONMENT)
    if given is not None:
        return _checked(given, ENVIRONMENT)
    path = store_root / "keys" / "endpoint.key"
    with explained(f"the endpoint's key {path}"):
        if not path.exists():
            _create(path)
        return _checked(path.read_text(encoding="ascii").strip(), str(path))


def key_hash(key: str) -> str:
    """SHA-256 of a key, in hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


def key_is_known(key: str, hashes: Collection[str]) -> bool:
    """Whether the key's hash is one of `hashes`; takes as long for every key."""
    digest = key_hash(key)
    return any([hmac.compare_digest(digest, known) for known in hashes])


def _create(path: Path) -> None:
    """Write a new key, whole, for this user alone; the first of several processes wins."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(PREFIX + secrets.token_urlsafe(32) + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(temporary, path)
    except FileExistsError:
        return
    finally:
        temporary.unlink()


def _checked(key: str, where: str) -> str:
    if len(key) < MIN_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
        raise ServeError(
            f"{where} holds no usable key: at least {MIN_LENGTH} printable ASCII characters are needed"
        )
    return key
