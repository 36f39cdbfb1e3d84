"""A gateway whose store is on the Hub, as on a Space: slow requests and failures of the Hub affect nothing else."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from deployed import KEY, Deployed
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import _http
from predictors import Echo, echo_folder
from services.hub_faults import Fault
from services.hub_server import Hub
from services.hub_server import serving as serving_hub
from serving import serving
from waiting import until

from free_ml_stack.deployment.deploy import deploy
from free_ml_stack.gateway.app import Gateway
from free_ml_stack.gateway.protocol.express import ExpressProtocol
from free_ml_stack.storage.stores import hub_store


@dataclass
class OnHub(Deployed):
    """A running gateway and its Hub."""

    hub: Hub


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OnHub]:
    """A gateway with version 0.1.0 of `me/demo`; its store is a bucket."""
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / 1000)))  # retries
    with serving_hub(hub) as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setenv("HF_TOKEN", "hf_write")
        HfApi().create_bucket("me/store")
        project = hub_store("hf://buckets/me/store/me/project")
        deploy(echo_folder(tmp_path / "model"), project, "demo", Echo())
        app = Gateway(
            store=hub_store("hf://buckets/me/store"),
            project=project,
            user="me",
            keys=[KEY],
            algorithm="me/demo",
            predictor=Echo(),
            poll_seconds=0.05,
        )
        with serving(app, http=ExpressProtocol) as url:
            yield OnHub(url, project, app, hub)


def test_a_broken_connection_does_not_end_the_polling(
    gateway: OnHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = gateway.client()
    assert client.algo("me/demo").pipe("word").result == "hello"
    broken = Fault("reset", match="index.json")
    gateway.hub.app.faults = [broken]
    until(lambda: broken.seen > 20)  # several rounds, each with the client's retries
    gateway.hub.app.faults = []
    deploy(echo_folder(tmp_path / "second", "again"), gateway.store, "demo", Echo())
    until(lambda: client.algo("me/demo").pipe("word").result == "again", 30)
    reports = [record.getMessage() for record in caplog.records if record.name.startswith("free_ml_stack")]
    assert len(reports) == 1 and "demo: cannot update, keeping the loaded versions" in reports[0]


@pytest.mark.slow
def test_a_slow_store_delays_no_other_request(gateway: OnHub) -> None:
    collection, key, content = f"{gateway.url}/v1/data/me/files", {"X-API-Key": KEY}, {"data": b"kept"}
    public = {"json": {"acl": {"read": ["user://*"]}}}
    for method, path, headers, options in (
        ("PUT", "/note.txt", key, content),
        ("GET", "/note.txt", key, {}),
        ("PATCH", "", key, public),
        ("HEAD", "/note.txt", {}, {}),
        ("DELETE", "/note.txt", key, {}),
    ):
        requests.put(f"{collection}/note.txt", headers=key, timeout=20, **content)
        slow = Fault("slow", seconds=0.5)  # each request of the gateway to the Hub
        gateway.hub.app.faults = [slow]
        with ThreadPoolExecutor(1) as threads:
            answer = threads.submit(requests.request, method, collection + path, headers=headers, timeout=60, **options)
            longest = 0.0
            while not answer.done():
                begun = time.monotonic()
                assert requests.get(f"{gateway.url}/healthz", timeout=20).ok
                longest = max(longest, time.monotonic() - begun)
                time.sleep(0.01)
        gateway.hub.app.faults = []
        assert answer.result().ok and slow.seen, (method, path)
        assert longest < 0.4, (method, path)
