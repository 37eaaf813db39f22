"""A PostgreSQL of the test's own, from Debian's package: `Server` starts it, and stops what it started."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

START_S = 20
# Long and odd: it is looked for in whatever a test leaves behind, and would need quoting in a URL.
PASSWORD = "pw-c4nary/@:%41 #x"
PASSWORD_VARIABLE = "TUNEWRIGHT_TEST_PASSWORD"


@dataclass(frozen=True)
class Server:
    """A running server with a database `chats`, owned by the superuser `app`."""

    port: int

    @property
    def url(self) -> str:
        """SQLAlchemy's URL; the password is in the environment."""
        return f"postgresql://app:${{{PASSWORD_VARIABLE}}}@127.0.0.1:{self.port}/chats"

    @property
    def open_url(self) -> str:
        """The URL of `reader`, who needs no password: Ray's workers started before the test's environment."""
        return f"postgresql://reader@127.0.0.1:{self.port}/chats"

    def connect(self, database: str = "chats") -> Any:
        """A connection that may write, each statement for itself."""
        import psycopg

        return psycopg.connect(
            host="127.0.0.1", port=self.port, user="app", password=PASSWORD, dbname=database, autocommit=True
        )


def programs() -> Path | None:
    """The folder of PostgreSQL's programs, the newest."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    on_path = shutil.which("initdb")
    if found:
        return max(found, key=lambda folder: int(folder.parent.name))
    return Path(on_path).resolve().parent if on_path else None


@contextmanager
def running_server() -> Iterator[Server]:
    """A server on a free port of the loopback, gone afterwards; skips the test where there is no package."""
    folder = programs()
    if folder is None:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    pytest.importorskip("psycopg", reason="needs psycopg: pip install 'psycopg[binary]'")
    # Not in tmp_path: its parents are closed to the user that the server runs as.
    home = Path(tempfile.mkdtemp(prefix="twpg-"))
    process = None
    try:
        process, server = _started(folder, home)
        yield server
    finally:
        if process is not None:
            process.send_signal(signal.SIGINT)  # a fast shutdown
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(home, ignore_errors=True)


def _started(programs: Path, home: Path) -> tuple[subprocess.Popen[bytes], Server]:
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        user = {"user": "postgres", "group": "postgres", "extra_groups": ()}
        shutil.chown(home, "postgres", "postgres")
    data, log = home / "data", home / "log"
    secret = home / "secret"
    secret.write_text(PASSWORD, encoding="utf-8")
    secret.chmod(0o644)
    options = [
        "-U",
        "app",
        "-A",
        "scram-sha-256",
        "--pwfile",
        secret,
        "-E",
        "UTF8",
        "--locale=C",
        "--no-sync",
    ]
    subprocess.run(
        [programs / "initdb", "-D", data, *options],
        check=True,
        capture_output=True,
        timeout=60,
        cwd=home,
        **user,
    )
    rules = data / "pg_hba.conf"
    rules.write_text(f"host all reader 127.0.0.1/32 trust\n{rules.read_text('utf-8')}", "utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [programs / "postgres", "-D", data, "-k", home, "-p", str(port), "-h", "127.0.0.1", "-F"],
            stdout=out, stderr=out, cwd=home, **user,
        )  # fmt: skip
    server = Server(port)
    try:
        _wait_for(server, process, log)
    except BaseException:
        process.kill()
        process.wait()
        raise
    with server.connect("postgres") as connection:
        connection.execute("CREATE DATABASE chats")
        connection.execute("CREATE ROLE reader LOGIN IN ROLE pg_read_all_data")
    return process, server


def _wait_for(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    import psycopg

    end = time.monotonic() + START_S
    while True:
        try:
            server.connect("postgres").close()
            return
        except psycopg.OperationalError as error:
            if process.poll() is not None or time.monotonic() > end:
                said = log.read_text(encoding="utf-8", errors="replace")[-2000:]
                raise RuntimeError(f"PostgreSQL did not start: {error}\n{said}") from None
            time.sleep(0.1)
