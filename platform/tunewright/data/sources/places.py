"""Where files lie: this machine, S3, Google's storage. What a folder holds, and the bytes of a file.

A path of this machine stays a path and is opened by Python itself; `s3://` and `gs://` go through
`pyarrow.fs`, with the credentials of the environment.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

from tunewright.errors import DataError

if TYPE_CHECKING:
    import pyarrow.fs

REMOTE = ("s3", "gs")
GS_RETRY_S = 60
"""Google's client would try for a quarter of an hour otherwise."""
_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*)://")
_SETTINGS = re.compile(r"\?(?=[a-z_]+=)")  # `a?.jsonl` is a pattern, `a.jsonl?region=eu-west-1` is not


_DENIED = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|EXPIRED_TOKEN|CREDENTIAL|HTTP status 40[13]|authentication"
)
_NETWORK = re.compile(
    r"(Could not|Couldn't|Failed to) (connect|resolve)[^;}]*|NETWORK_CONNECTION[^;}]*|[Tt]imed out"
)
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE,",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
}


@dataclass(frozen=True)
class Entry:
    """What a folder holds; `what` is `file`, `folder`, or the name of something else."""

    path: str
    what: str
    size: int = 0
    mtime_ns: int = 0
    identity: object = None
    """Of a folder: equal for two ways to the same one."""

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


def is_remote(path: str) -> bool:
    return path.startswith(tuple(f"{scheme}://" for scheme in REMOTE))


def open_file(path: str) -> BinaryIO:
    """A file's bytes, to read and to seek in; `OSError` where it cannot be opened."""
    if not is_remote(path):
        return open(_local(path), "rb")
    place = Remote(path)
    return cast("BinaryIO", place.files.open_input_file(place.root))


def unreadable(path: str, error: OSError) -> DataError:
    """The error for the user: what the operating system or the storage refused, and what to do."""
    said = " ".join(str(error).split())
    if isinstance(error, PermissionError) or error.errno in (errno.EACCES, errno.EPERM):
        return DataError(f"{path}: cannot be read: permission denied")
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: no such file or folder")
    if _DENIED.search(said):
        scheme = path.partition("://")[0]
        return DataError(
            f"{path}: access denied; set {_CREDENTIALS.get(scheme, _CREDENTIALS['s3'])} in the environment "
            f"of the job, or ask for the right to read"
        )
    network = _NETWORK.search(said) if is_remote(path) else None
    if network:
        return DataError(f"{path}: the storage cannot be reached: {network[0][:200]}")
    return DataError(f"{path}: cannot be read: {error.strerror or said[:300]}")


def passing(error: OSError) -> bool:
    """Whether the same try may succeed a little later."""
    lasting = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
    return not isinstance(error, lasting) and not _DENIED.search(str(error))


def place_of(path: str) -> Place:
    """Where a path leads.

    Raises:
        DataError: to nowhere that is known.
    """
    scheme = _SCHEME.match(path)
    if scheme is None or scheme[1] == "file":
        return Local(path)
    if scheme[1] not in REMOTE:
        raise DataError(f"{path.split('?')[0]}: `{scheme[1]}://` is not known; valid: s3://, gs://, file://")
    return Remote(path)


def _local(path: str) -> str:
    """The path of a file on this machine, however it is written."""
    if not path.startswith("file://"):
        return os.path.expanduser(path)
    parts = urlsplit(path)
    if parts.netloc not in ("", "localhost"):
        raise DataError(f"{path}: a file:// path names no other machine; write file:///PATH")
    return unquote(path.removeprefix("file://").removeprefix("localhost"))


class Local:
    """This machine's folders."""

    def __init__(self, path: str):
        self.root = Path(_local(path)).as_posix()

    def entry(self, path: str) -> Entry | None:
        try:
            facts = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return self._entry(path, facts)

    def entries(self, folder: str) -> Iterator[Entry]:
        with os.scandir(folder) as inside:
            for each in inside:
                path = os.path.join(folder, each.name)
                try:
                    yield self._entry(path, each.stat())
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.ELOOP):
                        raise
                    yield Entry(path, "link that leads nowhere")

    def address(self, path: str) -> str:
        return path

    def explain_absence(self, path: str) -> None:
        pass

    def _entry(self, path: str, facts: os.stat_result) -> Entry:
        kinds = {
            stat.S_IFREG: "file",
            stat.S_IFDIR: "folder",
            stat.S_IFIFO: "FIFO",
            stat.S_IFSOCK: "socket",
            stat.S_IFCHR: "device",
            stat.S_IFBLK: "device",
        }
        what = kinds.get(stat.S_IFMT(facts.st_mode), "special file")
        return Entry(path, what, facts.st_size, facts.st_mtime_ns, (facts.st_dev, facts.st_ino))


class Remote:
    """A bucket."""

    def __init__(self, path: str):
        scheme, _, rest = path.partition("://")
        rest, *settings = _SETTINGS.split(rest, maxsplit=1)
        bucket, _, key = rest.partition("/")
        if "@" in bucket and bucket.partition("@")[0] != "anonymous":
            raise DataError(
                f"{scheme}://{bucket.rpartition('@')[2]}: credentials do not belong into a path, which is "
                f"shown and kept; set them in the environment of the job"
            )
        if not bucket:
            raise DataError(f"{path}: names no bucket; write {scheme}://BUCKET/PATH")
        self.root = f"{bucket.rpartition('@')[2]}/{key}".rstrip("/")
        self._before = f"{scheme}://{bucket.removesuffix(self.bucket)}"
        self._after = f"?{settings[0]}" if settings else ""
        self.files = _filesystem(scheme, bucket, settings[0] if settings else "")

    @property
    def bucket(self) -> str:
        return self.root.partition("/")[0]

    def entry(self, path: str) -> Entry | None:
        return self._entry(self.files.get_file_info(path))

    def entries(self, folder: str) -> Iterator[Entry]:
        from pyarrow.fs import FileSelector

        for facts in self.files.get_file_info(FileSelector(folder, allow_not_found=True)):
            entry = self._entry(facts)
            if entry is not None and not (entry.what == "file" and entry.path == folder):
                yield entry

    def address(self, path: str) -> str:
        return f"{self._before}{path}{self._after}"

    def explain_absence(self, path: str) -> None:
        """Raises where it is the bucket that is not there."""
        if self.entry(self.bucket) is None:
            raise DataError(f"{path}: there is no bucket `{self.bucket}`, or its owner hides it")

    def _entry(self, facts: Any) -> Entry | None:
        from pyarrow.fs import FileType

        if facts.type is FileType.NotFound:
            return None
        if facts.type is FileType.Directory:
            return Entry(facts.path, "folder", identity=facts.path)
        return Entry(facts.path, "file", facts.size, facts.mtime_ns or 0)


@cache
def _filesystem(scheme: str, bucket: str, settings: str) -> pyarrow.fs.FileSystem:
    import pyarrow as pa
    from pyarrow.fs import FileSystem

    if scheme == "gs" and "retry_limit_seconds" not in settings:
        settings = f"{settings}&retry_limit_seconds={GS_RETRY_S}".removeprefix("&")
    uri = f"{scheme}://{bucket}"
    try:
        return FileSystem.from_uri(f"{uri}?{settings}" if settings else uri)[0]
    except pa.ArrowException as error:
        raise DataError(f"{uri}: {error}") from None
    except OSError as error:
        raise unreadable(uri, error) from None


Place = Local | Remote
