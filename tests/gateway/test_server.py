"""The server: other versions of uvicorn, and shutdown under load."""

import json
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from deployed import KEY, open_app
from predictors import Echo, echo_folder
from services.ports import listening
from test_serve import process
from uvicorn.protocols.http import httptools_impl
from waiting import until

from free_ml_stack.deployment.deploy import deploy
from free_ml_stack.gateway.protocol import server
from free_ml_stack.gateway.protocol.direct import Direct, DirectProtocol
from free_ml_stack.gateway.protocol.express import ExpressProtocol
from free_ml_stack.gateway.protocol.guarded import GuardedProtocol

CALL = (
    b"POST /v1/algo/me/demo HTTP/1.1\r\nHost: x\r\nAuthorization: %b\r\nContent-Type: %b\r\nContent-Length: 6\r\n\r\n"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    store, _ = open_app(tmp_path / "data")
    deploy(echo_folder(tmp_path / "model"), store, "demo", Echo())
    return tmp_path


def take_from_instances(cls: Any, name: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Return a patch that removes an attribute from new instances of a class."""

    def take(patch: pytest.MonkeyPatch) -> None:
        begin = cls.__init__

        def without(self: Any, *args: Any, **options: Any) -> None:
            begin(self, *args, **options)
            delattr(self, name)

        patch.setattr(cls, "__init__", without)

    return take


@pytest.mark.parametrize(
    "take",
    [
        lambda patch: patch.delattr(httptools_impl, "STATUS_LINE"),
        lambda patch: patch.delattr(httptools_impl, "RequestResponseCycle"),
        lambda patch: patch.delattr(httptools_impl.HttpToolsProtocol, "_unset_keepalive_if_required"),
        lambda patch: patch.delattr(httptools_impl.HttpToolsProtocol, "on_message_complete"),
        take_from_instances(httptools_impl.HttpToolsProtocol, "connections"),
        take_from_instances(httptools_impl.RequestResponseCycle, "waiting_for_100_continue"),
    ],
)
def test_uvicorns_protocol_is_used_if_an_attribute_is_missing(
    root: Path, take: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    take(monkeypatch)
    _, app = open_app(root / "data")
    running = server.make_server(app)
    assert "uvicorn" in caplog.text and " lacks " in caplog.text
    with listening() as listener:
        thread = threading.Thread(target=running.run, args=([listener],))
        thread.start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            answer = requests.post(f"{url}/v1/algo/me/demo", json="word", headers={"X-API-Key": KEY}, timeout=20)
            assert answer.json()["result"] == "hello"
            content = bytes(300_000)
            address, headers = f"{url}/v1/data/.my/project/large", {"X-API-Key": KEY}
            assert requests.put(address, data=content, headers=headers, timeout=20).ok
            assert requests.get(address, headers=headers, timeout=20).content == content
        finally:
            running.should_exit = True
            thread.join()


def test_uvicorns_shutdown_is_used_if_an_attribute_is_missing(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def missing(listener: socket.socket) -> list[socket.socket]:
        raise AttributeError("no attribute 'servers'")

    monkeypatch.setattr(server, "accept_all", missing)
    _, app = open_app(root / "data")
    running = server.make_server(app)
    with listening() as listener:
        thread = threading.Thread(target=running.run, args=([listener],))
        thread.start()
        try:
            assert requests.get(f"http://127.0.0.1:{listener.getsockname()[1]}/healthz", timeout=20).ok
        finally:
            running.should_exit = True
            thread.join(30)
    assert not thread.is_alive() and "no attribute 'servers'" in caplog.text
    assert running.lifespan.shutdown_event.is_set() and not running.lifespan.shutdown_failed


def test_a_system_without_packet_filters_ends_the_server(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SO_ATTACH_FILTER", 0x7FFF)  # ENOPROTOOPT, as in a sandbox that lacks the option
    _, app = open_app(root / "data")
    running = server.make_server(app)
    with listening() as listener:
        thread = threading.Thread(target=running.run, args=([listener],))
        thread.start()
        until(lambda: running.started)
        running.should_exit = True
        thread.join(30)
    assert running.lifespan.shutdown_event.is_set() and not running.lifespan.shutdown_failed


def test_all_attributes_of_uvicorn_in_use_are_checked() -> None:
    folder = Path(server.__file__).parent
    code = "".join((folder / f"{name}.py").read_text() for name in ("guarded", "direct", "express"))
    code = re.sub(r"(?m)^from .*", "", code)
    own = {name for cls in (GuardedProtocol, DirectProtocol, ExpressProtocol, Direct) for name in vars(cls)}
    own |= {"protocol", "deadline"}  # of an instance
    known = {*server.PROTOCOL, *server.CYCLE, *server.FLOW, *server.STATE}
    for holder in (r"(?:self|super\(\)|protocol)", "cycle", "flow", "server_state"):
        assert set(re.findall(rf"\b{holder}\.(\w+)", code)) - own <= known, holder


def test_this_version_of_uvicorn_supports_the_gateways_protocol() -> None:
    assert server.http_protocol() is ExpressProtocol


class Caller(threading.Thread):
    """A client that calls until its connection is refused; `lost` are accepted calls without an answer."""

    def __init__(self, url: str, key: bytes, keep: bool, pause: float) -> None:
        super().__init__()
        host, port = url.removeprefix("http://").split(":")
        self.address, self.keep, self.pause = (host, int(port)), keep, pause
        kind = b"application/json" if keep else b"application/json; charset=utf-8"  # the fast path, and the normal path
        self.message = CALL % (key, kind) + b'"word"'
        self.answered, self.lost = 0, []

    def run(self) -> None:
        while True:
            try:
                connection = socket.create_connection(self.address, timeout=20)
            except ConnectionError:
                return  # nothing was accepted
            with connection:
                self.use(connection)

    def use(self, connection: socket.socket) -> None:
        first = True
        while True:
            try:
                connection.sendall(self.message)
                answer = b""
                while b'"metadata"' not in answer:
                    piece = connection.recv(65536)
                    if not piece:
                        raise ConnectionAbortedError
                    answer += piece
            except OSError as error:
                self.lost.append(f"{error!r}, {self.keep=}, {self.answered=}, {first=}")
                return
            first = False
            self.answered += 1
            if not self.keep or b"connection: close" in answer:
                return
            time.sleep(self.pause)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_shutdown_under_load_is_fast_and_loses_no_call(root: Path, workers: str) -> None:
    end_under_load(root, workers)


def end_under_load(root: Path, workers: str) -> None:
    with process(root, workers) as (running, url):
        key = json.loads((root / "gateway.json").read_text())["key"].encode()
        callers = [Caller(url, key, number % 2 == 0, 0.001 * (number % 5)) for number in range(16)]
        for caller in callers:
            caller.start()
        until(lambda: all(caller.answered > 5 for caller in callers))
        with socket.create_connection(callers[0].address):  # an idle client does not delay the shutdown
            running.send_signal(signal.SIGTERM)
            begun = time.monotonic()
            assert running.wait(20) == 0
            assert time.monotonic() - begun < 10
        for caller in callers:
            caller.join()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(callers[0].address)
    losses = [loss for caller in callers for loss in caller.lost]
    assert not losses, losses
