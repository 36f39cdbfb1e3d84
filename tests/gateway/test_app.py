"""Authentication, limits, batching, and hostile requests."""

import asyncio
import contextlib
import itertools
import json
import multiprocessing
import random
import socket
import string
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import Algorithmia
import pytest
import requests
from Algorithmia.errors import AlgorithmException
from attacks import ESCAPES, bodies
from deployed import KEY, Deployed, deployed, open_app
from predictors import Digits, Echo, Slow, digits_folder, echo_folder
from serving import serving
from starlette.applications import Starlette
from starlette.routing import Mount
from waiting import until

from free_ml_stack.algorithmia import bundle
from free_ml_stack.deployment.deploy import deploy
from free_ml_stack.gateway.algorithms.calls import Limits
from free_ml_stack.storage.checksums import read_digest, read_preferred_digest

IMAGE = [number % 17 for number in range(64)]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    with deployed(tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    root = tmp_path_factory.mktemp("digits")
    with deployed(root, Digits(), digits_folder(root / "model")) as gateway:
        yield gateway


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": KEY},
        {"Authorization": f"Simple {KEY}"},
        {"Authorization": f"simple  {KEY}"},
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": "revocable"},
        {"X-API-Key": KEY},
        {"X-API-Key": KEY, "Authorization": "Bearer hf_another_services_token"},
    ],
)
def test_a_key_is_accepted_in_each_form(gateway: Deployed, headers: dict[str, str]) -> None:
    answer = requests.post(f"{gateway.url}/v1/algo/me/demo", json=1, headers=headers, timeout=10)
    assert answer.json()["result"] == 1
    assert requests.get(f"{gateway.url}/v1/algorithms/me/demo", headers=headers, timeout=10).ok


def test_the_official_client_works_with_a_key_in_the_path(gateway: Deployed) -> None:
    client = Algorithmia.client("another services key", f"{gateway.url}/k/revocable")
    assert client.algo("me/demo").pipe("word").result == "hello"
    assert client.algo("me/demo").exists()
    client.file("data://.my/project/prefixed.txt").put("x")
    assert gateway.client().file("data://me/project/prefixed.txt").getString() == "x"
    assert client.username() == "me"


def test_a_trailing_slash_in_the_path_is_ignored(gateway: Deployed) -> None:
    client = Algorithmia.client(KEY, f"{gateway.url}/")
    assert client.algo("me/demo").pipe("word").result == "hello"
    assert client.algo("me/demo").exists()


def guesses(count: int) -> list[str]:
    """Return keys that are similar to the valid one, and others."""
    chosen = random.Random(1)
    near = [
        KEY[:-1],
        KEY + "x",
        KEY[1:],
        KEY.upper(),
        KEY[:14],
        "Simple",
        "Bearer",
        "Simple Simple",
    ]
    near += [
        f"Basic {KEY}",
        f"Token {KEY}",
        "null",
        "None",
        "undefined",
        "*",
        "%",
        "revocable ,",
        "REVOCABLE",
        "'--",
    ]
    alphabet = string.ascii_letters + string.digits + "-_.~"
    return near + ["".join(chosen.choices(alphabet, k=chosen.randint(1, 40))) for _ in range(count - len(near))]


@pytest.mark.slow
def test_500_wrong_keys_are_rejected(gateway: Deployed) -> None:
    with requests.Session() as session:
        session.trust_env = False
        for number, guess in enumerate(guesses(500)):
            headers: dict[str, bytes] = {}
            prefix = ""
            match number % 3:
                case 0:
                    headers = {"Authorization": guess.encode()}
                case 1:
                    headers = {"X-API-Key": guess.encode()}
                case _:
                    prefix = "/k/" + requests.utils.quote(guess, safe="")
            answer = session.post(f"{gateway.url}{prefix}/v1/algo/me/demo", json=1, headers=headers, timeout=10)
            assert answer.json()["error"]["message"] == "authorization required", guess
            for path in ("/v1/algorithms/me/demo", "/stats", "/metrics", "/v1/data/.my/project"):
                assert session.get(f"{gateway.url}{prefix}{path}", headers=headers, timeout=10).status_code in (
                    401,
                    403,
                )


PUBLIC = {"/healthz": 200, "/readyz": 200}
PRIVATE = (
    "/v1/data/",
    "/v1/data/me/project",
    "/v1/algorithms/me/demo",
    "/v1/scms",
    "/stats",
    "/metrics",
    "/",
    "/x",
)


def test_unauthenticated_clients_can_only_read_health(gateway: Deployed) -> None:
    for path, status in PUBLIC.items():
        assert requests.get(gateway.url + path, timeout=10).status_code == status
    for path in PRIVATE:
        answer = requests.get(gateway.url + path, timeout=10)
        assert answer.status_code == 401, path
        assert "demo" not in answer.text
    head = requests.head(f"{gateway.url}/v1/data/.my/project", timeout=10)
    assert (head.status_code, head.headers["x-error-message"]) == (401, "authorization required")


def test_readiness_contains_the_served_version(gateway: Deployed) -> None:
    assert requests.get(f"{gateway.url}/readyz", timeout=10).json() == {"status": "ready", "version": "0.1.0"}


def test_storage_is_ready_before_the_first_deployment(tmp_path: Path) -> None:
    with serving(open_app(tmp_path)[1]) as url:
        assert requests.get(f"{url}/readyz", timeout=10).json() == {"status": "ready", "version": None}


def test_it_is_not_ready_if_the_model_cannot_be_loaded(tmp_path: Path) -> None:
    store, app = open_app(tmp_path / "data")
    build = deploy(echo_folder(tmp_path / "model"), store, "demo", Echo())
    store.rm_file(f"{build.folder}/word.txt")
    with serving(app) as url:
        assert requests.get(f"{url}/readyz", timeout=10).status_code == 503
        with pytest.raises(AlgorithmException, match=r"word.txt is missing") as raised:
            Algorithmia.client(KEY, url).algo("me/demo").pipe("word")
        assert raised.value.error_type == "LoadingError"


def test_the_processes_of_models_end_with_a_server_that_fails(tmp_path: Path) -> None:
    """They ignore SIGTERM, so they would wait for calls, and the gateway's exit for them."""
    store, app = open_app(tmp_path / "data")
    deploy(echo_folder(tmp_path / "model"), store, "demo", Echo())
    before = set(multiprocessing.active_children())

    async def fail() -> None:
        began, forever = asyncio.Event(), asyncio.Event()

        async def receive() -> dict[str, Any]:
            if began.is_set():
                await forever.wait()
            return {"type": "lifespan.startup"}

        async def send(message: dict[str, Any]) -> None:
            began.set()

        life = asyncio.ensure_future(app({"type": "lifespan"}, receive, send))
        await began.wait()
        assert set(multiprocessing.active_children()) - before
        life.cancel()  # as the end of the event loop does
        with contextlib.suppress(asyncio.CancelledError):
            await life

    asyncio.run(fail())
    until(lambda: not set(multiprocessing.active_children()) - before)


def test_it_can_be_mounted_below_a_path(tmp_path: Path) -> None:
    store, app = open_app(tmp_path / "data")
    deploy(echo_folder(tmp_path / "model"), store, "demo", Echo())

    @contextlib.asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        yield
        await app.stop()

    with serving(Starlette(routes=[Mount("/deep/er", app)], lifespan=life)) as url:
        for address in (f"{url}/deep/er", f"{url}/deep/er/k/{KEY}"):
            client = Algorithmia.client(KEY, address)
            assert client.algo("me/demo").pipe("word").result == "hello"
            client.file("data://.my/project/a b.txt").put("x")
            assert client.file("data://.my/project/a b.txt").getString() == "x"
            assert client.algo("me/demo").exists()


@pytest.mark.slow
def test_100_concurrent_clients(digits: Deployed) -> None:
    def work(number: int) -> list[Any]:
        client = digits.client()
        file = client.file(f"data://.my/project/{number}.txt")
        image = [(number + place) % 17 for place in range(64)]
        with contextlib.closing(client.requestSession):
            file.put(f"text {number}")
            label = client.algo("me/demo").pipe(image).result["label"]
            return [file.getString(), label, Digits().apply(image, model)["label"]]

    assert digits.client().algo("me/demo").pipe(IMAGE).result
    [(build_id, loaded)] = digits.app.models.loaded.items()
    model = Digits().load(Path(loaded.copy) / build_id)
    with ThreadPoolExecutor(100) as pool:
        for number, (text, label, expected) in enumerate(pool.map(work, range(300))):
            assert (text, label) == (f"text {number}", expected)


def test_concurrent_calls_form_a_batch(tmp_path: Path) -> None:
    """Calls that arrive during a slow batch form the next one."""
    noted = tmp_path / "sizes"
    with deployed(tmp_path, Slow(noted, 0.2)) as gateway, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: gateway.client().algo("me/demo").pipe("word").result, range(32)))
    sizes = [int(line) for line in noted.read_text().split()]
    assert set(answers) == {"hello"}
    assert sum(sizes) >= 33  # including the sample at the deployment
    assert max(sizes) > 4


def test_an_invalid_input_does_not_fail_its_batch(digits: Deployed) -> None:
    def call(payload: Any) -> str:
        try:
            return str(digits.client().algo("me/demo").pipe(payload).result["label"])
        except AlgorithmException as error:
            return str(error.error_type)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(call, [IMAGE, "bad", [17] * 64, IMAGE] * 16))
    assert [answer for answer in answers if not answer.isdigit()] == ["InputError"] * 32
    assert len(set(answers)) == 2


def post(url: str, path: str, body: Any, **headers: str) -> requests.Response:
    return requests.post(url + path, data=body, headers={"Authorization": KEY} | headers, timeout=20)


def test_a_body_that_is_too_large_is_rejected(tmp_path: Path) -> None:
    with deployed(tmp_path, limits=Limits(body_bytes=1000)) as gateway:
        assert gateway.client().algo("me/demo").pipe("x" * 1000).result == "x" * 1000
        for size in (1001, 100_000, 50_000_000):
            with pytest.raises(AlgorithmException, match="larger than 1000 bytes") as raised:
                gateway.client().algo("me/demo").pipe("x" * size)
            assert raised.value.error_type == "TooLargeError"
        pieces = (b"1" * 500 for _ in range(10))
        answer = post(gateway.url, "/v1/algo/me/demo", pieces, **{"Content-Type": "application/json"})
        assert answer.json()["error"]["error_type"] == "TooLargeError"


def test_an_incomplete_body_times_out(tmp_path: Path) -> None:
    with deployed(tmp_path, limits=Limits(body_seconds=0.2)) as gateway, connected(gateway) as connection:
        connection.sendall(head(f"Authorization: {KEY}", "Content-Type: text/plain", "Content-Length: 100") + b"abc")
        answer = b""
        while b"after 0.2 seconds" not in answer and (piece := connection.recv(10_000)):
            answer += piece
    assert b"request body incomplete after 0.2 seconds" in answer


@contextlib.contextmanager
def connected(gateway: Deployed) -> Iterator[socket.socket]:
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        yield connection


def head(*lines: str, path: str = "/v1/algo/me/demo", method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *lines, "", ""]).encode()


def test_a_call_over_its_timeout_gets_a_timeout_error(tmp_path: Path) -> None:
    with deployed(tmp_path) as gateway:
        for _ in range(2):  # so that the gateway measures a slow model
            gateway.client().algo("me/demo").pipe({"sleep": 0.1})
        with pytest.raises(AlgorithmException, match=r"no answer within 0.1 seconds") as raised:
            gateway.client().algo("me/demo").set_options(timeout=0.1).pipe({"sleep": 0.5})
        assert raised.value.error_type == "TimeoutError"
        assert gateway.client().algo("me/demo").pipe("word").result == "hello"


def test_a_full_queue_answers_429_with_retry_after(tmp_path: Path) -> None:
    with deployed(tmp_path, limits=Limits(queue=2)) as gateway:
        for _ in range(2):  # so that the gateway measures a slow model
            gateway.client().algo("me/demo").pipe({"sleep": 0.1})
        with ThreadPoolExecutor(8) as pool:
            body = json.dumps({"sleep": 0.3})
            answers = list(
                pool.map(
                    lambda _: post(gateway.url, "/v1/algo/me/demo", body, **{"Content-Type": "application/json"}),
                    range(8),
                )
            )
        refused = [answer for answer in answers if answer.status_code == 429]
        assert refused
        assert all(answer.headers["retry-after"] == "1" for answer in refused)
        assert all(answer.ok for answer in answers if answer not in refused)
        assert gateway.client().algo("me/demo").pipe("word").result == "hello"


def test_health_is_answered_while_the_model_is_busy(tmp_path: Path) -> None:
    with deployed(tmp_path) as gateway:
        for _ in range(2):  # so that the gateway measures a slow model
            gateway.client().algo("me/demo").pipe({"sleep": 0.1})
        begun, end = tmp_path / "begun", tmp_path / "end"
        payload = {"sleep": 0, "begun": str(begun), "end": str(end)}
        slow = threading.Thread(target=lambda: gateway.client().algo("me/demo").pipe(payload))
        slow.start()
        until(begun.exists)
        assert requests.get(f"{gateway.url}/healthz", timeout=10).ok
        end.touch()
        slow.join()


@pytest.mark.slow
def test_each_hostile_body_gets_a_clear_error(digits: Deployed) -> None:
    with requests.Session() as session:
        for kind, body in bodies(IMAGE):
            headers = {"Authorization": KEY.encode(), "Content-Type": kind.encode("latin-1")}
            answer = session.post(f"{digits.url}/v1/algo/me/demo", data=body, headers=headers, timeout=20)
            assert answer.status_code == 200, (kind, body[:80])
            content = answer.json()
            if "error" in content:
                assert content["error"]["error_type"] in ("InputError", "ParsingError", "UnsupportedError"), (
                    kind,
                    body[:80],
                    content,
                )
                assert content["error"]["message"]
            else:
                assert 0 <= content["result"]["label"] <= 9
    assert digits.client().algo("me/demo").pipe(IMAGE).result["label"] in range(10)


@pytest.mark.parametrize("escape", ESCAPES)
def test_no_path_points_outside_the_store(
    gateway: Deployed, tmp_path_factory: pytest.TempPathFactory, escape: str
) -> None:
    """Paths of published attacks, sent unchanged."""
    for prefix in (
        "/v1/data/",
        "/v1/connector/data/",
        "/v1/algo/",
        "/v1/algorithms/",
        "/v1/algorithms/me/demo/versions/",
    ):
        for method in ("GET", "POST", "PUT", "DELETE"):
            with connected(gateway) as connection:
                lines = (
                    f"Authorization: {KEY}",
                    "Content-Type: application/json",
                    "Content-Length: 2",
                    "Connection: close",
                )
                connection.sendall(head(*lines, path=prefix + escape, method=method) + b"{}")
                answer = b"".join(iter(lambda connection=connection: connection.recv(65536), b""))
            status = int(answer.split(b" ", 2)[1])
            assert status < 500, (method, prefix, answer)
            assert b"root:" not in answer
            assert b"\nX-Evil" not in answer
            assert b"Traceback" not in answer


def test_unauthenticated_clients_get_no_traceback(gateway: Deployed) -> None:
    for body in ("fail", "refuse", "object"):
        answer = requests.post(f"{gateway.url}/v1/algo/me/demo", data=body, timeout=10)
        assert "Traceback" not in answer.text


def test_pipelined_calls_are_answered_in_order(gateway: Deployed) -> None:
    requests_at_once = b"".join(
        head(f"Authorization: {KEY}", "Content-Type: application/json", f"Content-Length: {len(str(number))}")
        + str(number).encode()
        for number in range(200)
    )
    with connected(gateway) as connection:
        connection.sendall(requests_at_once)
        received = b""
        while received.count(b'"result"') < 200:
            received += connection.recv(65536)
    results = [int(part.split(b",")[0]) for part in received.split(b'"result":')[1:]]
    assert results == list(range(200))


def test_a_call_in_small_chunks_is_answered(gateway: Deployed) -> None:
    message = (
        head(
            f"Authorization: {KEY}",
            "Content-Type: application/json",
            "Content-Length: 6",
            "Connection: close",
        )
        + b'"word"'
    )
    with connected(gateway) as connection:
        for place in range(0, len(message), 7):
            connection.sendall(message[place : place + 7])
            time.sleep(0.002)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b'"result":"hello"' in answer


def test_a_disconnected_client_does_not_affect_others(gateway: Deployed) -> None:
    for _ in range(50):
        with connected(gateway) as connection:
            connection.sendall(
                head(f"Authorization: {KEY}", "Content-Type: application/json", "Content-Length: 6") + b'"word"'
            )
    assert gateway.client().algo("me/demo").pipe("word").result == "hello"


READ_HEADERS = (
    "Authorization", "X-API-Key", "Content-Type", "Content-Range", "Range", "If-Range", "If-None-Match",
    "Repr-Digest", "Want-Repr-Digest", "Expect", "Host", "X-Forwarded-For", "Forwarded", "Content-Encoding",
    "Inference-Header-Content-Length",
)  # fmt: skip
DIGITS = b"9" * 5000
VALUES = (
    b"", b" ", b"=", b":", b",", b"*", b"\xff\xfe", b"\xb2", b"-1", b"%00", b"a" * 9000, DIGITS,
    b"bytes=%b-" % DIGITS, b"bytes=-%b" % DIGITS, b"bytes=0-%b" % DIGITS, b"bytes=%b1-3" % (b"0" * 5000), b"bytes=\xb2-3",
    b"md5=:x:", b"md5=:%b:" % DIGITS, b"md5=:\xe9\xe9:", b"sha-256=::", b"md5=%b" % DIGITS, b"md5=\xb2", b"Basic",
    b"application/json;" * 500, b"text/plain; charset=\xff", b"application/vnd", b"bytes 0-1/%b" % DIGITS,
)  # fmt: skip
ADDRESSES = (
    ("GET", "/v1/data/.my/project/fuzzed"),
    ("HEAD", "/v1/data/.my/project/fuzzed"),
    ("PUT", "/v1/data/.my/project/fuzzed"),
    ("POST", "/v1/data/.my/project"),
    ("POST", "/v1/algo/me/demo"),
    ("GET", "/v1/algorithms/me/demo/versions"),
    ("POST", "/v1/algorithms/me/demo/compile"),
    ("POST", "/v1/insights"),
    ("POST", "/v2/models/demo/infer"),
)


@pytest.mark.parametrize("name", READ_HEADERS)
def test_no_header_value_causes_a_server_error(gateway: Deployed, name: str, caplog: Any) -> None:
    address = f"{gateway.url}/v1/data/.my/project/fuzzed"
    assert requests.put(address, data=b"0123456789", headers={"X-API-Key": KEY}, timeout=20).ok
    known = {"Content-Type": "application/json", "Authorization": KEY}
    host, port = gateway.url.removeprefix("http://").split(":")
    for (method, path), value in itertools.product(ADDRESSES, VALUES):
        lines = {**known, "Host": host, "Content-Length": "2", "Connection": "close", name: value}
        text = b"".join(b"%b: %b\r\n" % (key.encode(), as_bytes(lines[key])) for key in lines)
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(f"{method} {path} HTTP/1.1\r\n".encode() + text + b"\r\n{}")
            answer = b"".join(iter(lambda connection=connection: connection.recv(65536), b""))
        assert 200 <= int(answer.split(b" ", 2)[1]) < 500, (method, path, value[:40])
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("text", ["a" * 60_000, "md5=" * 15_000, "md5=:" + "a" * 60_000])
def test_long_checksum_headers_are_read_in_linear_time(text: str) -> None:
    began = time.process_time()
    assert (read_digest(text), read_preferred_digest(text)) == (("", b""), "")
    assert time.process_time() - began < 0.5  # in quadratic time, seconds, in which the gateway would stand still


def test_checksum_headers_with_several_kinds_and_parameters_are_read() -> None:
    assert read_preferred_digest("unixsum=9, SHA-256=3 ,md5=1;x=y") == "sha-256"
    assert read_preferred_digest("md5=0, sha-256=abc, xxh3-128=100") == ""
    assert read_digest("crc32=:AAAA:, SHA-256=:YWJj:;x=y, md5=:AA==:") == ("sha-256", b"abc")
    assert read_digest("md5=:AA==:") == ("md5", b"\0")


def as_bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


@pytest.mark.parametrize(
    ("wanted", "status", "content"),
    [
        (b"bytes=%b-" % DIGITS, 416, None),
        (b"bytes=0-%b" % DIGITS, 206, b"0123456789"),
        (b"bytes=-%b" % DIGITS, 206, b"0123456789"),
        (b"bytes=%b7-8" % (b"0" * 5000), 206, b"78"),
    ],
)
def test_ranges_with_large_numbers(gateway: Deployed, wanted: bytes, status: int, content: bytes | None) -> None:
    address, headers = f"{gateway.url}/v1/data/.my/project/ranges", {"X-API-Key": KEY}
    assert requests.put(address, data=b"0123456789", headers=headers, timeout=20).ok
    answer = requests.get(address, headers=headers | {"Range": wanted.decode()}, timeout=20)
    assert (answer.status_code, answer.content if content else None) == (status, content)


def test_an_invalid_checksum_is_rejected(gateway: Deployed) -> None:
    address, headers = (
        f"{gateway.url}/v1/data/.my/project/summed",
        {"X-API-Key": KEY, "Repr-Digest": "md5=:x:"},
    )
    answer = requests.put(address, data=b"x", headers=headers, timeout=20)
    assert answer.status_code == 400
    assert "checksum mismatch: the body has another md5 than Repr-Digest" in answer.json()["error"]["message"]


@pytest.mark.parametrize("kind", [bundle.TYPE, "application/json"])
def test_an_unauthenticated_body_is_not_read(gateway: Deployed, kind: str) -> None:
    """The response is sent before the body is received."""
    for method, path in ADDRESSES:
        if method in ("PUT", "POST") and path != "/v1/insights":
            with connected(gateway) as connection:
                lines = (f"Content-Type: {kind}", "Content-Length: 8000000")
                connection.sendall(head(*lines, path=path, method=method))
                answer = b""
                while b"authorization required" not in answer:
                    answer += (piece := connection.recv(65536))
                    assert piece, (path, answer)
