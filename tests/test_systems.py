"""Differences of Windows and macOS, simulated on this system."""

import ast
import asyncio
import errno
import os
import shutil
import signal
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from deployed import KEY, deployed

import free_ml_stack
from free_ml_stack.errors import StackError
from free_ml_stack.gateway.serve import open_port, serve
from free_ml_stack.storage import atomic
from free_ml_stack.training.run import stop_after_checkpoint

SOURCE = Path(free_ml_stack.__file__).parent


@pytest.mark.parametrize("absent", ["add_reader", "sendfile"])
def test_files_are_sent_and_received_with_a_loop_without_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absent: str
) -> None:
    if absent == "sendfile":
        monkeypatch.delattr(os, "sendfile")
        monkeypatch.setattr(shutil, "_USE_CP_SENDFILE", False)  # found out when shutil is imported
    else:
        monkeypatch.setattr(asyncio.SelectorEventLoop, "add_reader", asyncio.AbstractEventLoop.add_reader)
        monkeypatch.setattr(asyncio.SelectorEventLoop, "add_writer", asyncio.AbstractEventLoop.add_writer)
    with deployed(tmp_path) as gateway:
        address, headers = f"{gateway.url}/v1/data/.my/project/large", {"X-API-Key": KEY}
        for size in (100_000, 5_000_000):
            content = os.urandom(size)
            assert requests.put(address, data=content, headers=headers, timeout=20).ok
            assert requests.get(address, headers=headers, timeout=20).content == content
        assert gateway.client().algo("me/demo").pipe("word").result == "hello"


def test_several_workers_need_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fork")
    with pytest.raises(StackError, match="--workers 2: this system cannot fork processes; use --workers 1"):
        serve(lambda keys: pytest.fail("no application is made"), workers=2)


def test_a_port_is_not_shared_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_KEEPALIVE, raising=False)  # any option of Linux
    with open_port("127.0.0.1", 0) as listening:
        assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert not listening.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)


def test_training_stops_with_a_checkpoint_on_sigbreak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)
    checkpoints = SimpleNamespace(stopping=False)
    with stop_after_checkpoint(checkpoints):  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGUSR1)
        assert checkpoints.stopping
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_a_file_open_in_another_process_is_replaced_after_its_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, refused = Path.replace, []

    def busy(path: Path, target: Path) -> Path:
        if len(refused) < 3:
            error = PermissionError(errno.EACCES, "in use")
            error.winerror = 32  # type: ignore[attr-defined]
            refused.append(error)
            raise error
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", busy)
    atomic.replace(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert len(refused) == 3
    refused.clear()
    monkeypatch.setattr(atomic, "CLOSE_SECONDS", 0.0)
    with pytest.raises(PermissionError):
        atomic.replace(tmp_path / "a", b"newer")
    assert (tmp_path / "a").read_bytes() == b"new"


def test_macos_flushes_files_to_disk_with_fcntl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[int] = []
    monkeypatch.setattr(
        atomic, "fcntl", SimpleNamespace(F_FULLFSYNC=51, fcntl=lambda number, command: commands.append(command))
    )
    atomic.replace(tmp_path / "a", b"new")
    assert commands == [51, 51]  # the file and its folder


def test_output_and_files_are_utf_8_on_every_system() -> None:
    """Formats do not depend on the encoding of the system."""
    for path in SOURCE.rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.Call)):
            given = {keyword.arg: keyword.value for keyword in call.keywords}
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            place = f"{path.name}:{call.lineno}"
            assert "encoding" in given or not {"text", "universal_newlines"} & set(given), place
            if name in ("read_text", "write_text"):
                assert "encoding" in given or call.args[name == "write_text" :], place
