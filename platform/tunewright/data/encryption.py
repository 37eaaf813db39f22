"""Encryption at rest: Parquet modular encryption with AES-256-GCM, a key of its own for each file.

Footer, statistics and every column are encrypted with the file's key: `uniform_encryption` leaves
no column out, where a list of columns would leave those in the clear that it does not name.
"""

from __future__ import annotations

from typing import Any

import pyarrow.parquet.encryption as pe

from tunewright.errors import DataError
from tunewright.security.crypto import Kms, is_kms_spec, open_kms


class Cipher:
    """Encrypts and decrypts Parquet files with the key that `key` names.

    It holds where the key is, never the key: pickled into a task, it loads the key where it runs. So
    the variable or file must be there on every node that works on the data.

    Args:
        key: `${NAME}`, `file:PATH` or `kms:SERVICE/KEY-ID`.
    Raises:
        DataError: `key` is of none of these forms.
    """

    def __init__(self, key: str):
        if not is_kms_spec(key):  # not shown: it may be the key itself
            raise DataError("the encryption key: say where it is, as ${NAME} or file:PATH, not what it is")
        self.key = key
        self._opened: tuple[pe.CryptoFactory, str] | None = None
        self._decryption: pe.FileDecryptionProperties | None = None

    def properties(self) -> Any:
        """`encryption_properties` of one file to be written: its data key is new, and no other file's.

        Raises:
            DataError: the key cannot be had here.
        """
        factory, key_id = self._open()
        settings = pe.EncryptionConfiguration(
            footer_key=key_id,
            uniform_encryption=True,
            encryption_algorithm="AES_GCM_V1",
            data_key_length_bits=256,
            plaintext_footer=False,
            double_wrapping=False,
            internal_key_material=True,
        )
        return factory.file_encryption_properties(pe.KmsConnectionConfig(), settings)

    def decryption(self) -> Any:
        """`decryption_properties` for any files written with this key.

        pyarrow reads a file that is not encrypted with these as well; `open_parquet` and `PackedRows`
        of shards.py refuse it.

        Raises:
            DataError: the key cannot be had here; a wrong one shows when a file is opened.
        """
        if self._decryption is None:
            factory, _ = self._open()
            self._decryption = factory.file_decryption_properties(pe.KmsConnectionConfig())
        return self._decryption

    def _open(self) -> tuple[Any, str]:
        if self._opened is None:
            kms, key_id = open_kms(self.key)
            self._opened = pe.CryptoFactory(lambda _: _Client(kms)), key_id
        return self._opened

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.key,)

    def __repr__(self) -> str:
        return f"Cipher({self.key!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cipher) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)


class _Client(pe.KmsClient):  # type: ignore[misc]
    """A `Kms` as pyarrow calls it."""

    def __init__(self, kms: Kms):
        pe.KmsClient.__init__(self)
        self._kms = kms

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> str:
        return self._kms.wrap(key_bytes, master_key_identifier)

    def unwrap_key(self, wrapped_key: str, master_key_identifier: str) -> bytes:
        return self._kms.unwrap(wrapped_key, master_key_identifier)
