"""Where an encryption key comes from: the environment or a file. Messages never hold the key."""

from __future__ import annotations

import base64
import binascii
import os
import re
import socket
import stat
from pathlib import Path

from tunewright.errors import DataError

KEY_BYTES = 32
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_LONGEST_FILE = 4096
_NOT_THE_OWNERS = 0o037
"""A group may read a key file: that is how Kubernetes hands one to a container that is not root."""


def load_key(spec: str) -> bytes:
    """The 32 bytes that `${NAME}` (a variable of this machine's environment) or `file:PATH` holds.

    They are written as 64 hexadecimal digits or as base64; blanks around them do not count.

    Raises:
        DataError: there is no such variable or file, others may read the file, or it is no such key.
    """
    key = _decoded(_text(spec))
    if key is None:
        raise DataError(
            f"the encryption key in {spec} is not {KEY_BYTES} bytes as {2 * KEY_BYTES} hexadecimal digits "
            f"or as base64; make one with: openssl rand -hex {KEY_BYTES}"
        )
    return key


def is_key_source(spec: str) -> bool:
    """Whether `spec` has the form `${NAME}` or `file:PATH`."""
    return bool(_VARIABLE.fullmatch(spec)) or (spec.startswith("file:") and len(spec) > len("file:"))


def _text(spec: str) -> str:
    variable = _VARIABLE.fullmatch(spec)
    if variable:
        text = os.environ.get(variable[1])
        if not text:
            raise DataError(
                f"the encryption key: the variable {variable[1]} is not set on {socket.gethostname()}; "
                f"every machine that works on the data needs it"
            )
        return text
    if not is_key_source(spec):  # not shown: it may be the key itself
        raise DataError("the encryption key: say where it is, as ${NAME} or file:PATH, not what it is")
    return _file_text(Path(spec.removeprefix("file:")))


def _file_text(path: Path) -> str:
    if not path.is_absolute():
        raise DataError(
            f"the encryption key: file:{path} must be an absolute path, the same on every machine"
        )
    try:
        with open(path, "rb", opener=_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"the encryption key: {path} is not a file")
            if status.st_mode & _NOT_THE_OWNERS:
                raise DataError(
                    f"the encryption key: {path} is open to other users (mode {status.st_mode & 0o777:o}); "
                    f"take that away with: chmod 600 {path}"
                )
            return file.read(_LONGEST_FILE).decode("ascii", "replace")
    except OSError as error:
        raise DataError(
            f"the encryption key: {path} cannot be read on {socket.gethostname()}: {error.strerror}"
        ) from None


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe would wait for its writer


def _decoded(text: str) -> bytes | None:
    text = text.strip()
    try:
        key = bytes.fromhex(text) if len(text) == 2 * KEY_BYTES else base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return None
    return key if len(key) == KEY_BYTES else None
