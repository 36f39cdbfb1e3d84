"""The call log: on the Hub one request for all algorithms, which also removes old files; nothing is lost at the end."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from Algorithmia.errors import AlgorithmException
from deployed import deployed
from fsspec import AbstractFileSystem
from fsspec.implementations.dirfs import DirFileSystem
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import _http, disable_progress_bars
from predictors import Careless, echo_folder
from services.hub_faults import Fault
from services.hub_server import Hub, serving

from free_ml_stack.deployment.answering import JSON, load
from free_ml_stack.deployment.monitor import read_calls
from free_ml_stack.gateway.log import call_log
from free_ml_stack.gateway.log.call_log import CallLog
from free_ml_stack.storage.repository import HubFileSystem

CALL: dict[str, Any] = {"version": "0.1.0", "latency_ms": 1.0, "outcome": "ok"}


async def write(store: AbstractFileSystem, times: int) -> CallLog:
    """Log calls of two algorithms several times."""
    log = CallLog(store, "One")
    for _ in range(times):
        for name in ("One", "Two"):
            log.record(name, dict(CALL))
        await log.flush()
    return log


@pytest.mark.parametrize("place", ["buckets/me/logged", "datasets/me/logged"])
def test_a_flush_to_the_hub_is_one_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    disable_progress_bars()
    monkeypatch.setattr(call_log, "FILES", 2)
    hub = Hub(tmp_path / "hub")
    with serving(hub) as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setenv("HF_TOKEN", "hf_write")
        HfApi().create_bucket("me/logged")
        HfApi().create_repo("me/logged", repo_type="dataset")
        store = DirFileSystem(f"{place}/me/digits", fs=HubFileSystem(skip_instance_cache=True))
        log = asyncio.run(write(store, 4))
        changes = [commit.changed for commit in hub.repo("dataset", "me/logged").commits[1:]]
        changes += [tuple(batch) for batch in hub.buckets.all["me/logged"].batches]
        assert [len(change) for change in changes] == [2, 2, 4, 4]
        for name in ("One", "Two"):
            assert len(store.find(f"logs/{name}")) == 2
        # a repository gets at most one commit in ten minutes
        assert log.seconds == (600 if place.startswith("datasets") else 30)
        hub.app.faults = [Fault(403, match="/batch"), Fault(403, match="/commit/")]
        log = asyncio.run(write(store, 1))
        assert set(log.lines) == {"One", "Two"}  # kept for the next attempt


def test_a_broken_connection_to_the_hub_ends_no_log(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / 1000)))  # retries
    HfApi().create_bucket("me/logged")
    store = DirFileSystem("buckets/me/logged/me/digits", fs=HubFileSystem(skip_instance_cache=True))
    broken = Fault("reset", match="/batch")
    hub.app.faults = [broken]

    async def write_through_an_outage() -> None:
        log = CallLog(store, "One")
        log.seconds = 0.05
        writing = asyncio.ensure_future(log.write_periodically())
        log.record("One", dict(CALL))
        while broken.seen < 20:
            await asyncio.wait([writing], timeout=0.01)
            assert not writing.done()
        hub.app.faults = []
        while log.lines:
            await asyncio.sleep(0.01)
        writing.cancel()
        await log.flush()

    asyncio.run(write_through_an_outage())
    [path] = store.find("logs/One")
    assert len(store.cat_file(path).splitlines()) == 1
    reports = [record.getMessage() for record in caplog.records if record.name.startswith("free_ml_stack")]
    assert len(reports) == 1 and "call log not written, retrying later" in reports[0]


def test_a_write_that_has_not_begun_survives_shutdown(tmp_path: Path) -> None:
    async def stop_before_the_write() -> list[str]:
        first, second = threading.Event(), threading.Event()
        with ThreadPoolExecutor(1) as threads:
            asyncio.get_running_loop().set_default_executor(threads)
            threads.submit(first.wait)
            log = CallLog(DirFileSystem(str(tmp_path)), "One")
            log.record("One", dict(CALL))
            writing = asyncio.ensure_future(log.write_periodically())
            while not log.lines:
                await asyncio.sleep(0.01)
            threads.submit(second.wait)
            first.set()  # the write is queued behind the second
            while log.lines:
                await asyncio.sleep(0.01)
            writing.cancel()
            await asyncio.wait([writing])
            second.set()
            await log.flush()
        return [line for path in tmp_path.rglob("*.jsonl") for line in path.read_text().splitlines()]

    assert len(asyncio.run(stop_before_the_write())) == 1


def test_errors_in_descriptions_of_calls_affect_neither_calls_nor_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with deployed(tmp_path, Careless()) as gateway:
        algo = gateway.client().algo("me/demo")
        for word in ("a", "list", "leave", "b", "c"):
            assert algo.pipe(word).result == word
        with pytest.raises(AlgorithmException, match="not this one") as raised:
            algo.pipe("enum")
        assert raised.value.error_type == "UnsupportedError"
    calls = read_calls(gateway.store, "demo")
    assert [call.get("watched") for call in calls if "error" not in call] == [
        {"length": 1.0},
        None,
        None,
        *[{"length": 1.0}] * 2,
    ]
    assert caplog.text == ""


class Leaving(Careless):
    """Careless with functions for batches that exit."""

    def apply_batch(self, payloads: list[Any], model: Any) -> Any:
        raise SystemExit(2)

    watch_batch = apply_batch  # type: ignore[assignment]


def test_calls_of_a_batch_that_exits_are_answered_and_described_alone(tmp_path: Path) -> None:
    model = load(Leaving(), echo_folder(tmp_path / "model"))
    outputs, pairs = model.answers([(JSON, b'"a"', False), (JSON, b'"b"', False)])
    assert [content for _, content, _ in outputs] == [b'"a"', b'"b"']
    assert model.watched(pairs) == [{"length": 1.0}] * 2
