"""The Data API over a folder, with two users, for tests of its clients.

`python storing.py FOLDER PORT [BYTES]` serves it in a separate process, in which files above BYTES fail with a full disk.
"""

import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn
from services.ports import listening

if __name__ == "__main__":
    import places  # noqa: F401 - puts the skeleton on the path

from free_ml_stack.gateway.data.api import DataAPI
from free_ml_stack.gateway.http import DisconnectedError, HTTPError, Memory, make_request
from free_ml_stack.gateway.protocol.direct import DirectProtocol
from free_ml_stack.storage.local import local_store

USERS = {b"key-of-me": "me", b"key-of-you": "you"}


def data_app(folder: Path) -> Any:
    """Return an app of the Data API alone, with a table of keys, as authentication is done by the gateway."""
    api = DataAPI(local_store(folder))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        request = make_request(scope, receive, send, Memory())
        request.user = USERS.get(request.headers.get(b"authorization", b""))
        with suppress(DisconnectedError):
            try:
                await api(request)
            except HTTPError as error:
                await request.answer_error(error)

    return app


def free_port() -> int:
    """Return a free port."""
    with listening() as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def process(folder: Path, port: int, limit: int = -1) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server process on a port; kill it at the end."""
    command = [sys.executable, __file__, str(folder), str(port), str(limit)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout
            assert server.stdout.readline() == b"ready\n"
            yield server
        finally:
            server.kill()


if __name__ == "__main__":
    limit = int(sys.argv[3])
    if limit >= 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with listening(int(sys.argv[2])) as listener:
        print("ready", flush=True)  # connections queue from now on
        config = uvicorn.Config(data_app(Path(sys.argv[1])), log_level="warning", lifespan="off", http=DirectProtocol)
        uvicorn.Server(config).run([listener])
