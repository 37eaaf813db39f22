"""Wrapping of data keys: each file has a key of its own, stored in it wrapped by a master key.

The master key is a local one (`LocalKms`), or stays in a key service that an installed package
plugs in under the entry point group `tunewright.kms`:

    [project.entry-points."tunewright.kms"]
    vault = "acme_vault:VaultKms"          # data.encryption.key: kms:vault/KEY-ID

The object behind the entry point is called without arguments, in each process that works on the
data, and returns a `Kms`.
"""

from __future__ import annotations

import base64
import binascii
import os
from importlib.metadata import entry_points
from typing import Any, NoReturn, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tunewright.errors import DataError, ShardCorrupt
from tunewright.security.key_source import is_key_source, load_key

ENTRY_POINTS = "tunewright.kms"
NONCE_BYTES = 12


class Kms(Protocol):
    """A key service: holds master keys and wraps data keys with them.

    What it raises reaches the user as it is, so its messages must not hold keys or tokens.
    """

    def wrap(self, data_key: bytes, key_id: str) -> str:
        """The data key, encrypted with the master key `key_id`, as text."""
        ...

    def unwrap(self, wrapped: str, key_id: str) -> bytes:
        """The data key that `wrap` was given."""
        ...


class LocalKms:
    """Wraps data keys with one 32-byte key, by AES-256-GCM bound to the key's id.

    `key_id` is derived from the key and says nothing about it. It is stored with what was wrapped,
    so that another key is known to be another one before anything is decrypted.

    Args:
        key: 32 bytes.
        name: how messages call it, such as `${NAME}`.
    """

    def __init__(self, key: bytes, name: str):
        self._aead = AESGCM(key)
        self._name = name
        derived = HKDF(hashes.SHA256(), length=8, salt=None, info=b"tunewright key id").derive(key)
        self.key_id = f"local-{derived.hex()}"

    def wrap(self, data_key: bytes, key_id: str) -> str:
        nonce = os.urandom(NONCE_BYTES)
        sealed = self._aead.encrypt(nonce, data_key, key_id.encode())
        return base64.b64encode(nonce + sealed).decode()

    def unwrap(self, wrapped: str, key_id: str) -> bytes:
        """The data key that `wrap` was given.

        Raises:
            DataError: it was wrapped by another key.
            ShardCorrupt: it is not what `wrap` made.
        """
        if key_id != self.key_id:
            raise DataError(f"the key in {self._name} is not the one that the data set was written with")
        try:
            sealed = base64.b64decode(wrapped, validate=True)
            return self._aead.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], key_id.encode())
        except (InvalidTag, ValueError, binascii.Error):
            raise ShardCorrupt("its data key was changed after it was written") from None

    def __repr__(self) -> str:
        return f"LocalKms({self.key_id})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a LocalKms holds a key and does not travel; send where the key is instead")


def is_kms_spec(spec: str) -> bool:
    """Whether `spec` says where a master key is, without looking whether it is there."""
    scheme, _, rest = spec.partition(":")
    name, _, key_id = rest.partition("/")
    return is_key_source(spec) or (scheme == "kms" and bool(name) and bool(key_id))


def open_kms(spec: str) -> tuple[Kms, str]:
    """The key service that `spec` names, and the id of the master key there.

    `${NAME}` and `file:PATH` hold the key itself; `kms:SERVICE/KEY-ID` is that of a plug-in.

    Raises:
        DataError: the key cannot be had, or no installed package offers the service.
    """
    if not spec.startswith("kms:"):
        local = LocalKms(load_key(spec), spec)
        return local, local.key_id
    name, _, key_id = spec.removeprefix("kms:").partition("/")
    offered: dict[str, Any] = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in offered:
        known = ", ".join(sorted(offered)) or "none"
        raise DataError(
            f"no installed package offers the key service {name!r} ({ENTRY_POINTS}); found: {known}"
        )
    kms: Kms = offered[name].load()()
    return kms, key_id
