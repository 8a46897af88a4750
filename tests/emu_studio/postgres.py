"""Debian's PostgreSQL on 127.0.0.1, in a folder of its own, started and killed by a test."""

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from tests.e2e.pages import free_port
from tests.processes import runs

BINARIES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
# It refuses to run as root, whose place Debian's own user takes.
AS_POSTGRES = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []


def is_here() -> bool:
    return BINARIES is not None and (not AS_POSTGRES or bool(shutil.which("runuser")))


needed = pytest.mark.skipif(not is_here(), reason="no PostgreSQL: Debian's package `postgresql`")


@dataclass
class Server:
    """A cluster. url: of its database."""

    folder: Path
    port: int

    def url_of(self, name: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    @property
    def url(self) -> str:
        return self.url_of("postgres")

    def new_database(self) -> str:
        """Make an empty database and return its URL."""
        name = f"studio_{secrets.token_hex(6)}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
        return self.url_of(name)

    @property
    def pid(self) -> int:
        """Of the process whose children are all its others."""
        return int((self.folder / "postmaster.pid").read_text().splitlines()[0])

    def start(self) -> None:
        assert BINARIES is not None
        options = (
            f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories='' -c max_connections=120"
        )
        command = [str(BINARIES / "pg_ctl"), "-D", str(self.folder), "-w", "-o", options, "-l", f"{self.folder}/log"]
        done = subprocess.run([*AS_POSTGRES, *command, "start"], capture_output=True, timeout=60, cwd="/")
        assert done.returncode == 0, (self.folder / "log").read_text()[-2000:]

    def kill(self) -> None:
        """kill -9, of the server and of all its processes."""
        pid = self.pid
        children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
        everybody = [pid, *map(int, children)]
        for one in everybody:
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while any(map(runs, everybody)) and time.monotonic() < deadline:
            time.sleep(0.05)
        (self.folder / "postmaster.pid").unlink()  # a zombie that nobody waits for would count as running


@contextmanager
def running() -> Iterator[Server]:
    assert BINARIES is not None
    parent = Path(tempfile.mkdtemp(prefix="emu-postgres-"))
    try:
        if AS_POSTGRES:
            shutil.chown(parent, "postgres")
        folder = parent / "data"
        command = [str(BINARIES / "initdb"), "-D", str(folder), "-U", "postgres", "-A", "trust", "--no-sync"]
        subprocess.run([*AS_POSTGRES, *command], check=True, capture_output=True, timeout=120, cwd="/")
        server = Server(folder, free_port())
        server.start()
        yield server
        server.kill()
    finally:
        shutil.rmtree(parent, ignore_errors=True)
