"""The fast path for plain calls: the same answers as through uvicorn's parser, and no lost call."""

import json
import random
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from deployed import KEY, Deployed, deployed, open_app
from forking import readable
from predictors import Echo, echo_folder
from waiting import until

from free_ml_stack.deployment.deploy import deploy
from free_ml_stack.gateway.protocol import guarded

HEAD = ("Host: x", f"Authorization: {KEY}", "Content-Type: application/json")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Deployed, Deployed]]:
    """The gateway with its own protocol, and with uvicorn's."""
    with (
        deployed(tmp_path_factory.mktemp("short")) as short,
        deployed(tmp_path_factory.mktemp("long"), http="httptools") as long,
    ):
        yield short, long


def call(body: bytes, *more: str, length: int | None = None, start: str = "") -> bytes:
    """Return a plain call, with the given changes."""
    lines = (start or "POST /v1/algo/me/demo HTTP/1.1", *HEAD)
    size = f"Content-Length: {len(body) if length is None else length}"
    return "\r\n".join([*lines, *more, size, "", ""]).encode() + body


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        yield connection


def answers(connection: socket.socket, count: int) -> list[object]:
    """Return the results of `count` calls in the order received."""
    received = b""
    while received.count(b'"metadata"') < count:
        piece = connection.recv(65536)
        assert piece, received
        received += piece
    return [json.loads(found) for found in re.findall(rb'"result":(.*?),"metadata"', received)]


def responses(gateway: Deployed, message: bytes, seconds: float) -> list[tuple[bytes, list[bytes], bytes]]:
    """Send some bytes; return the status, headers and body of each response, without fields that vary per call.

    Receiving ends if nothing arrives for some seconds after the first bytes.
    """
    with connected(gateway.url) as connection:
        connection.sendall(message)
        received = b""
        while readable(connection, seconds if received or message in SILENT else 20):
            if not (piece := connection.recv(65536)):
                break
            received += piece
    parts = re.split(rb"(HTTP/1\.1 \d+)", received)[1:]
    found = []
    for status, rest in zip(parts[::2], parts[1::2], strict=True):
        head, _, body = rest.partition(b"\r\n\r\n")
        lines = sorted(line for line in head.split(b"\r\n")[1:] if not line.startswith((b"date", b"content-length")))
        found.append((status, lines, re.sub(rb'"(duration|request_id|id)":[^,}]+', b"", body)))
    return found


def agree(both: tuple[Deployed, Deployed], message: bytes) -> bool:
    """Return whether both gateways answer the same; on a busy machine the rest of a response may be late."""
    return any(responses(both[0], message, wait) == responses(both[1], message, wait) for wait in (0.1, 1, 4))


MESSAGES = {
    "plain": call(b'"word"'),
    "twice": call(b'"word"') + call(b"[1]"),
    "one in another": call(call(b"1"), length=6),
    "too short": call(b'"word"', length=3),
    "too long": call(b'"word"', length=10) + b"    ",
    "length twice": call(b'"word"', "Content-Length: 6"),
    "two lengths": call(b'"word"', "Content-Length: 1"),
    "length with a sign": call(b'"word"', "Content-Length: +6"),
    "no length": b"\r\n".join([b"POST /v1/algo/me/demo HTTP/1.1", *(line.encode() for line in HEAD), b"", b""]),
    "length of nothing": call(b""),
    "chunked": call(b"", "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
    + b'6\r\n"word"\r\n0\r\n\r\n',
    "chunked with a length": call(b'6\r\n"word"\r\n0\r\n\r\n', "Transfer-Encoding: chunked"),
    "chunked in disguise": call(b'6\r\n"word"\r\n0\r\n\r\n', "Transfer-Encoding : chunked"),
    "folded": call(b'"word"', "X-A: b\r\n c"),
    "folded length": call(b'"word"').replace(b"Content-Length: 6", b"Content-Length:\r\n 6"),
    "bare line ends": call(b'"word"').replace(b"\r\n", b"\n"),
    "null in a header": call(b'"word"', "X-A: \0"),
    "space before the colon": call(b'"word"', "X-A : b"),
    "no colon": call(b'"word"', "X-A"),
    "no name": call(b'"word"', ": b"),
    "empty value": call(b'"word"', "X-A:"),
    "not ASCII": call(b'"word"', "X-A: ü"),
    "to be closed": call(b'"word"', "Connection: close"),
    "to be kept": call(b'"word"', "Connection: Keep-Alive"),
    "old": call(b'"word"', start="POST /v1/algo/me/demo HTTP/1.0"),
    "unknown version": call(b'"word"', start="POST /v1/algo/me/demo HTTP/3.1"),
    "read": call(b'"word"', start="GET /v1/algo/me/demo HTTP/1.1"),
    "expect header": call(b'"word"', "Expect: 100-continue"),
    "upgrade": call(b'"word"', "Connection: upgrade", "Upgrade: websocket"),
    "with options": call(b'"word"', start="POST /v1/algo/me/demo?output=raw HTTP/1.1"),
    "escaped": call(b'"word"', start="POST /v1/algo/me/d%65mo HTTP/1.1"),
    "other paths": call(b'"word"', start="POST /v1/algo/me/../me/demo HTTP/1.1"),
    "doubled slashes": call(b'"word"', start="POST //v1/algo/me/demo HTTP/1.1"),
    "a version": call(b'"word"', start="POST /v1/algo/me/demo/0.1.0 HTTP/1.1"),
    "nobody": call(b'"word"', start="POST /v1/algo/me/nothing HTTP/1.1"),
    "an unknown key": call(b'"word"').replace(KEY.encode(), b"none"),
    "two keys": call(b'"word"', "Authorization: none"),
    "a key of another form": call(b'"word"').replace(KEY.encode(), b"Bearer " + KEY.encode()),
    "no JSON": call(b"{"),
    "text": call(b'"word"').replace(b"application/json", b"text/plain"),
    "fails": call(b'"fail"'),
    "refuses": call(b'"refuse"'),
    "ends": call(b'"exit"'),
}  # fmt: skip


SILENT = [MESSAGES["too long"]]  # incomplete


@pytest.mark.parametrize("name", MESSAGES)
def test_the_answers_are_the_same_as_with_uvicorns_protocol(both: tuple[Deployed, Deployed], name: str) -> None:
    assert agree(both, MESSAGES[name])


def test_the_answers_do_not_depend_on_segmentation(both: tuple[Deployed, Deployed]) -> None:
    """The same bytes in two segments, split at random places, and two messages in one segment."""
    chance = random.Random(0)
    whole = [message for message in MESSAGES.values() if message not in SILENT]
    for _ in range(20):
        first, second = chance.choices(whole, k=2)
        assert agree(both, first + second)
    message = MESSAGES["plain"]
    for place in chance.sample(range(1, len(message)), 20):
        with connected(both[0].url) as connection:
            for piece in (message[:place], message[place:]):
                connection.sendall(piece)
                select.select([], [], [], 0.002)  # so that they are usually two segments
            assert answers(connection, 1) == ["hello"]


def test_pipelined_calls_of_many_clients_are_answered_in_order(tmp_path: Path) -> None:
    """More clients than a batch, so that some send the next call while another is being answered."""
    chance = random.Random(1)
    with deployed(tmp_path) as gateway, ExitStack() as stack:
        connections = [stack.enter_context(connected(gateway.url)) for _ in range(200)]
        for number in range(5):
            for place, connection in enumerate(connections):
                connection.sendall(call(b'{"sleep": 0.0005, "me": [%d, %d]}' % (place, number)))
                if chance.random() < 0.3:
                    connection.sendall(call(b'{"sleep": 0, "me": [%d, -1]}' % place))
        for place, connection in enumerate(connections):
            found = [answer["me"] for answer in answers(connection, 5) if answer["me"][1] >= 0]
            assert found == [[place, number] for number in range(len(found))]


def test_a_connection_in_use_stays_open_and_an_idle_one_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarded, "HEAD_SECONDS", 1.5)
    with deployed(tmp_path) as gateway, connected(gateway.url) as connection:
        end = time.monotonic() + 3.2
        while time.monotonic() < end:
            connection.sendall(call(b'"word"'))
            assert answers(connection, 1) == ["hello"]
            time.sleep(0.1)  # a client with occasional calls
        begun = time.monotonic()
        assert connection.recv(1) == b""
        assert 0.5 < time.monotonic() - begun < 10


def test_received_calls_are_answered_on_shutdown(tmp_path: Path) -> None:
    store, _ = open_app(tmp_path / "data")
    deploy(echo_folder(tmp_path / "model"), store, "demo", Echo())
    server = [sys.executable, str(Path(__file__).parents[1] / "serve_echo.py"), str(tmp_path)]
    with subprocess.Popen(server, stdout=subprocess.PIPE, text=True) as process, ExitStack() as stack:
        assert process.stdout
        url = process.stdout.readline().split()[-1]
        key = json.loads((tmp_path / "gateway.json").read_text())["key"].encode()
        first, *others = [stack.enter_context(connected(url)) for _ in range(200)]
        begun = tmp_path / "begun"
        busy = call(json.dumps({"sleep": 0.5, "begun": str(begun)}).encode())
        first.sendall(busy.replace(KEY.encode(), key))
        until(begun.exists)  # it blocks the loop while the others are received
        for connection in others:
            connection.sendall(call(b'{"sleep": 0.002}').replace(KEY.encode(), key))
        assert answers(first, 1)
        assert answers(others[0], 1)  # so all have been received
        process.send_signal(signal.SIGTERM)
        for connection in others[1:]:
            assert answers(connection, 1) == [{"sleep": 0.002}]
        assert process.wait(20) == 0
