"""Slow calls do not delay other calls, storage or health; a model that hangs is replaced."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from Algorithmia.errors import AlgorithmException
from deployed import KEY, Deployed, deployed
from predictors import Echo, Freezing, echo_folder
from waiting import until

from free_ml_stack.deployment.worker import work
from free_ml_stack.gateway.algorithms import batching, models
from free_ml_stack.gateway.algorithms.calls import Limits
from free_ml_stack.gateway.algorithms.workers import start_process

HEADERS = {"Authorization": KEY}
FREEZES = [{"sleep": 1.5}, {"freeze": 1.5}]


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Deployed]:
    """A gateway that has measured a fast model and has started its spare process."""
    with deployed(tmp_path, Freezing()) as gateway:
        for _ in range(5):
            assert ask(gateway, "word") == "hello"
        until(lambda: len(batcher(gateway).idle) == batching.FREE_WORKERS)
        yield gateway


def batcher(gateway: Deployed) -> Any:
    return gateway.app.models.find("demo", "")


def ask(gateway: Deployed, payload: Any, **options: Any) -> Any:
    """Return the result of a call with the official client."""
    return gateway.client().algo("me/demo").set_options(**options).pipe(payload).result


@contextmanager
def meanwhile(work: Callable[[], Any]) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield thread
    finally:
        thread.join()


@pytest.mark.parametrize("slow", FREEZES, ids=["asleep", "frozen"])
def test_a_slow_call_does_not_delay_other_requests(gateway: Deployed, slow: Any) -> None:
    asked = [
        ("GET", "/healthz", {}),
        ("PUT", "/v1/data/.my/project/file", {"data": b"x"}),
        ("GET", "/v1/data/.my/project/file", {}),
        ("POST", "/v1/algo/me/demo", {"json": "word"}),
        ("POST", "/v1/algo/me/demo?timeout=10", {"json": "word"}),
    ]
    answered = 0
    with requests.Session() as session, meanwhile(lambda: ask(gateway, slow)) as caller:
        until(lambda: batcher(gateway).busy)
        while caller.is_alive():
            for method, path, options in asked:
                assert session.request(method, gateway.url + path, headers=HEADERS, timeout=20, **options).ok
                answered += caller.is_alive()
    assert answered >= 3 * len(asked)  # a request that waits for the slow call is not answered before it


@pytest.mark.parametrize("slow", FREEZES, ids=["asleep", "frozen"])
def test_a_slow_call_does_not_delay_calls_of_its_batch(gateway: Deployed, slow: Any) -> None:
    """A busy machine may need some time to start another process."""
    slow = dict.fromkeys(slow, 5.0)

    def call(number: int) -> float:
        begun = time.perf_counter()
        assert ask(gateway, slow if number == 8 else number) == (slow if number == 8 else number)
        return time.perf_counter() - begun

    with ThreadPoolExecutor(16) as pool:
        times = list(pool.map(call, range(16)))
    assert times.pop(8) > 4.9
    assert max(times) < 4


@pytest.mark.parametrize("hanging", ["spin", {"freeze": 1000}], ids=["spinning", "frozen"])
def test_a_model_that_hangs_is_replaced_and_logged(gateway: Deployed, hanging: Any, caplog: Any) -> None:
    before = {worker.process.pid for worker in batcher(gateway).idle}
    begun = time.monotonic()
    with pytest.raises(AlgorithmException, match="no answer within 1 seconds") as raised:
        ask(gateway, hanging, timeout=1)
    assert 1 <= time.monotonic() - begun < 3  # test_a_timeout_is_accurate has the limit
    assert raised.value.error_type == "TimeoutError"
    until(lambda: "replacing its process" in caplog.text)
    assert "demo 0.1.0: a call has not finished after" in caplog.text
    until(lambda: len(batcher(gateway).idle) == batching.FREE_WORKERS)
    [ended] = before - {worker.process.pid for worker in batcher(gateway).idle}
    until(lambda: not Path(f"/proc/{ended}").exists())
    assert ask(gateway, "word") == "hello"


@pytest.mark.parametrize("timeout", [0.1, 0.5])
def test_a_timeout_is_accurate(gateway: Deployed, timeout: float) -> None:
    """To a fifth, by the fastest of several calls, as the machine may be busy."""
    for slow in FREEZES:
        times: list[float] = []
        while len(times) < 10 and min(times, default=9) >= timeout * 1.2 + 0.02:
            begun = time.monotonic()
            with pytest.raises(AlgorithmException, match=f"no answer within {timeout:g} seconds"):
                ask(gateway, slow, timeout=timeout)
            times.append(time.monotonic() - begun)
        assert timeout <= min(times) < timeout * 1.2 + 0.02


def test_calls_have_a_default_timeout(tmp_path: Path) -> None:
    with deployed(tmp_path, Freezing(), limits=Limits(call_seconds=0.5)) as gateway:
        for headers in ({"Content-Type": "application/json"}, {"Content-Type": "application/json; charset=utf-8"}):
            answer = requests.post(
                f"{gateway.url}/v1/algo/me/demo", data='{"sleep": 3}', headers=HEADERS | headers, timeout=20
            )
            assert answer.json()["error"]["message"] == "timeout: no answer within 0.5 seconds"


def test_a_model_process_that_exits_is_replaced(gateway: Deployed, caplog: Any) -> None:
    """Its caller gets an error; other calls of the batch are answered."""
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda number: attempt(gateway, "crash" if number == 3 else number), range(8)))
    assert "the model process exited" in results.pop(3)
    assert results == [0, 1, 2, 4, 5, 6, 7]
    assert "the model process exited during a call; replacing it" in caplog.text


def attempt(gateway: Deployed, payload: Any, **options: Any) -> Any:
    try:
        return ask(gateway, payload, **options)
    except AlgorithmException as error:
        return str(error)


def test_the_gateway_recovers_if_all_processes_hang(gateway: Deployed) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: attempt(gateway, "spin", timeout=0.5), range(8)))
    assert all("no answer within 0.5 seconds" in result for result in results)
    assert ask(gateway, "word") == "hello"
    assert len(batcher(gateway).idle) + len(batcher(gateway).busy) <= models.MAX_WORKERS


def test_the_model_is_never_in_the_gateways_process(gateway: Deployed) -> None:
    assert {ask(gateway, "process") for _ in range(10)}.isdisjoint({os.getpid()})


def test_a_large_model_is_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "WORKER_BYTES", 1)
    with deployed(tmp_path, Freezing()) as gateway:
        assert ask(gateway, "word") == "hello"
        assert (batcher(gateway).max_workers, len(batcher(gateway).idle)) == (1, 1)
        with pytest.raises(AlgorithmException, match="no answer within 0.2 seconds"):
            ask(gateway, "spin", timeout=0.2)
        assert ask(gateway, "word", timeout=60) == "hello"


def test_a_model_that_is_loading_exits_quietly_if_the_gateway_ends(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        process = start_process(work, theirs, Echo(), echo_folder(tmp_path / "model"))
    process.join(60)
    assert process.exitcode == 0
