"""Unauthenticated clients that send incomplete requests."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests
from deployed import KEY, Deployed, deployed
from waiting import until

from free_ml_stack.gateway import http
from free_ml_stack.gateway.protocol import guarded

HEAD = b"PUT /v1/data/.my/slow/file HTTP/1.1\r\nHost: x\r\nAuthorization: %b\r\n" % KEY.encode()


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployed]:
    monkeypatch.setattr(guarded, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(http, "IDLE_SECONDS", 0.3)
    with deployed(tmp_path) as gateway:
        yield gateway


def connected(gateway: Deployed) -> socket.socket:
    host, port = gateway.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


@pytest.mark.parametrize("begin", [b"GET /", b"GET / HTTP/1.1\r\nA: ", b"GET / HTTP/1.1\r\nA: b\r\n"])
def test_an_endless_head_is_rejected(gateway: Deployed, begin: bytes) -> None:
    sent = 0
    with connected(gateway) as connection:
        try:
            connection.sendall(begin)
            while sent < 64 << 20:
                connection.sendall((b"a: b\r\n" if begin.endswith(b"\n") else b"aaaaaa") * 10_000)
                sent += 60_000
        except ConnectionError:
            pass
    assert sent < 16 << 20  # the size of the network buffers
    assert requests.get(f"{gateway.url}/healthz", timeout=20).ok


def test_the_total_size_of_heads_is_limited(gateway: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of the usual size are still accepted."""
    monkeypatch.setattr(guarded, "HEAD_SECONDS", 60)
    monkeypatch.setattr(guarded, "TOTAL_HEAD_BYTES", 500_000)
    with ExitStack() as stack:
        for _ in range(30):
            stranger = stack.enter_context(connected(gateway))
            stranger.sendall(b"GET / HTTP/1.1\r\nA: " + b"a" * 50_000)
        last = stack.enter_context(connected(gateway))
        last.sendall(b"GET / HTTP/1.1\r\nA: " + b"a" * 50_000)
        assert last.recv(100).startswith(b"HTTP/1.1 503 ")
        assert max(guarded.heads.values()) <= 500_000
        assert requests.get(f"{gateway.url}/healthz", timeout=20).ok
    until(lambda: set(guarded.heads.values()) == {0})


def test_the_number_of_connections_is_limited(gateway: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded, "HEAD_SECONDS", 60)
    monkeypatch.setattr(guarded, "CONNECTIONS", 5)
    with ExitStack() as stack:
        first, *_ = [stack.enter_context(connected(gateway)) for _ in range(5)]
        with connected(gateway) as sixth:
            assert sixth.recv(1) == b""
        first.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert first.recv(100).startswith(b"HTTP/1.1 200 ")
    until(lambda: requests.get(f"{gateway.url}/healthz", timeout=20).ok)


@pytest.mark.parametrize("path", ["/v1/algo/me/demo", "/v1/algo/me/demo?output=void", "/v1/data/.my/project"])
def test_the_total_size_of_bodies_in_memory_is_limited(
    gateway: Deployed, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(http, "HELD_BYTES", 1_000_000)
    monkeypatch.setattr(http, "IDLE_SECONDS", 60)
    begun = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {KEY}\r\nContent-Type: application/json; a=b\r\n".encode()
    )
    with connected(gateway) as other:
        other.sendall(begun + b"Content-Length: 990000\r\n\r\n" + b"1" * 900_000)
        until(lambda: gateway.app.memory.held >= 900_000)
        headers = {"Authorization": KEY, "Content-Type": "application/json; a=b"}
        answer = requests.post(gateway.url + path, data=b" " * 200_000, headers=headers, timeout=20)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert requests.get(f"{gateway.url}/healthz", timeout=20).ok
    until(lambda: gateway.app.memory.held == 0)
    for _ in range(10):
        assert (
            requests.post(gateway.url + path, data=b"[1]" + b" " * 200_000, headers=headers, timeout=20).status_code
            != 503
        )
        until(lambda: gateway.app.memory.held == 0)  # a call without an answer holds its input longer


def test_a_long_head_is_accepted(gateway: Deployed) -> None:
    headers = {f"X-{number}": "v" * 1000 for number in range(30)}
    assert requests.get(f"{gateway.url}/healthz", headers=headers, timeout=20).ok


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", b""),
        (b"GET / HTTP/1.1\r\nHos", b"408"),
        (HEAD + b"Content-Length: 9\r\n\r\nabc", b"408"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"408"),
        (HEAD.replace(b"PUT", b"POST") + b"Content-Length: 9\r\n\r\n{", b"408"),
        (HEAD.replace(KEY.encode(), b"none") + b"Content-Length: 9\r\n\r\nabc", b"401"),
    ],
)
def test_an_incomplete_request_times_out(gateway: Deployed, sent: bytes, status: bytes) -> None:
    """Also if single bytes arrive: a connection is closed after the timeout of a request."""
    with connected(gateway) as connection:
        connection.sendall(sent)
        connection.settimeout(0.2)
        received, end = b"", time.monotonic() + 15
        while time.monotonic() < end:
            try:
                piece = connection.recv(65536)
            except TimeoutError:
                if received:  # it is answered; continue to send single bytes
                    connection.sendall(b"x")
                continue
            except ConnectionResetError:
                break
            if not piece:
                break
            received += piece
    assert time.monotonic() < end
    assert received.partition(b"\r\n")[0].split(b" ")[1:2] == ([status] if status else [])
    assert not (gateway.app.data.tree.locate("me/slow/file")).exists()


def test_a_keep_alive_connection_stays_open(gateway: Deployed) -> None:
    with requests.Session() as session:
        assert session.get(f"{gateway.url}/healthz", timeout=20).ok
        before = [id(pool) for pool in session.adapters["http://"].poolmanager.pools._container.values()]
        time.sleep(0.6)  # longer than the timeout of a head
        assert session.get(f"{gateway.url}/healthz", timeout=20).ok
        [pool] = session.adapters["http://"].poolmanager.pools._container.values()
        assert [id(pool)] == before
        assert pool.num_connections == 1
