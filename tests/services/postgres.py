"""A real PostgreSQL server on loopback, from Debian's package."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from services import ports


def programs() -> Path | None:
    """The folder of initdb and pg_ctl, of the newest version that is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[4]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


class Server:
    """A server that runs; `url` names its database, without a password."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.url = f"postgresql://stack@127.0.0.1:{port}/postgres"

    def control(self, *words: str) -> None:
        """Run pg_ctl, which refuses root."""
        found = programs()
        assert found, "PostgreSQL not found: `apt-get install postgresql`"
        run(str(found / "pg_ctl"), "-D", str(self.folder / "data"), "-w", "-l", str(self.folder / "log"), *words)

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder} -c fsync=off"
        self.control("-o", options, "start")

    def stop(self, how: str = "fast") -> None:
        self.control("-m", how, "stop")


def run(*words: str) -> None:
    """Run a program as a user who is not root."""
    prefix = ("runuser", "-u", user(), "--") if os.geteuid() == 0 else ()
    done = subprocess.run([*prefix, *words], cwd="/tmp", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr


def user() -> str:
    """Return an account that can run the server: postgres on Debian, or nobody."""
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("postgres").pw_name
    return "nobody"


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server with an empty database, until the block ends."""
    found = programs()
    assert found, "PostgreSQL not found: `apt-get install postgresql`"
    with tempfile.TemporaryDirectory(prefix="postgres-", dir="/tmp") as scratch:
        folder = Path(scratch)
        if os.geteuid() == 0:
            shutil.chown(folder, user())
        with ports.listening() as free:
            port = free.getsockname()[1]
        run(str(found / "initdb"), "-D", str(folder / "data"), "-U", "stack", "-A", "trust", "-N")
        server = Server(folder, port)
        server.start()
        try:
            yield server
        finally:
            server.stop("immediate")
