"""The gateway's page in a real browser, its figures, the Prometheus metrics, insights and the call log."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import Algorithmia
import numpy as np
import pytest
import requests
from browsing import browse, faults
from deployed import KEY, Deployed, deployed, open_app
from predictors import Digits, Echo, Labelled, digits_folder, echo_folder
from prometheus_client.parser import text_string_to_metric_families
from serving import serving
from waiting import until

from free_ml_stack.deployment.deploy import deploy
from free_ml_stack.deployment.monitor import read_calls
from free_ml_stack.evaluation.drift import reference
from free_ml_stack.gateway import dashboard
from free_ml_stack.gateway.log.statistics import latency_class, percentiles, upper_end
from free_ml_stack.storage.manifest import write_manifest

FIGURES = "document.getElementById('state').textContent === 'live'"  # true once a part of the page is shown
FORM = "document.getElementById('state').textContent === 'key needed'"
IMAGES = [[(7 * row + column * column) % 17 for column in range(64)] for row in range(60)]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """A gateway with 60 answered calls similar to the reference, and 3 rejected ones."""
    folder = folder_with_reference(tmp_path_factory.mktemp("page") / "model", Digits())
    with deployed(folder.parent, Digits(), folder) as gateway:
        for payload in [*IMAGES, "no", "images", [1, 2]]:
            send(gateway, payload)
        yield gateway


def folder_with_reference(folder: Path, predictor: Digits) -> Path:
    """A model folder with the reference for drift."""
    digits_folder(folder)
    answers = predictor.apply_batch(IMAGES, predictor.load(folder))
    known = reference([predictor.watch(*pair, None) for pair in zip(IMAGES, answers, strict=True)])
    (folder / "reference.json").write_text(json.dumps(known))
    write_manifest(folder)
    return folder


def send(gateway: Deployed, payload: Any) -> Any:
    headers = {"Authorization": KEY}
    return requests.post(f"{gateway.url}/v1/algo/me/demo", json=payload, headers=headers, timeout=60).json()


def get(gateway: Deployed, path: str) -> requests.Response:
    return requests.get(gateway.url + path, headers={"X-API-Key": KEY}, timeout=60)


@pytest.mark.slow
def test_the_page_shows_the_figures(gateway: Deployed) -> None:
    page = browse(f"{gateway.url}/k/{KEY}/", FIGURES)
    for shown in ("me/demo", "version 0.1.0", "63 total", "InputError 3", "from 60 calls"):
        assert f">{shown}<" in page, shown
    assert '<b id="verdict" class="good">none</b>' in page
    assert page.count(">live<") == 2  # the connection and the version
    assert page.count("<path") == 5  # throughput, its area, failures, two of latency
    assert "confidence" in page


@pytest.mark.slow
def test_the_link_that_serve_prints_opens_the_page(gateway: Deployed) -> None:
    page = browse(f"{gateway.url}/#key={KEY}", FIGURES)
    assert ">63 total<" in page
    assert KEY not in page


@pytest.mark.slow
def test_without_a_key_the_page_shows_a_form_only(gateway: Deployed) -> None:
    page = browse(f"{gateway.url}/", FORM)
    assert ">key needed<" in page
    assert "me/demo" not in page
    assert requests.get(gateway.url, timeout=60).status_code == 401


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "name"), [(2, "class"), (100, "a rather long name, such as that of a product,")])
def test_the_page_is_accessible_for_any_number_of_classes(classes: int, name: str, tmp_path: Path) -> None:
    predictor = Labelled(classes, name)
    folder = folder_with_reference(tmp_path / "model", predictor)
    with deployed(tmp_path, predictor, folder) as gateway:
        for payload in [[[number % 2] * 64 for number in range(40)], IMAGES][classes > 2] + ["no"]:
            send(gateway, payload)
        assert get(gateway, "/stats").json()["drift"]["verdict"] == ("none" if classes > 2 else "strong")
        assert faults(f"{gateway.url}/k/{KEY}/", FIGURES) == []


@pytest.mark.slow
def test_the_form_for_the_key_is_accessible(gateway: Deployed) -> None:
    assert faults(gateway.url, FORM) == []


def test_the_page_loads_no_external_resources(gateway: Deployed) -> None:
    answer = get(gateway, "/")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert answer.text.replace("http://www.w3.org/2000/svg", "").count("://") == 0


def test_the_latency_of_the_last_minutes_ends_with_the_traffic(tmp_path: Path) -> None:
    with deployed(tmp_path) as gateway:
        send(gateway, "word")
        assert get(gateway, "/stats").json()["latency"]["p50"] > 0
        counts = gateway.app.calls.log.statistics.counts
        counts.seconds = {str(int(at) - dashboard.WINDOW): second for at, second in counts.seconds.items()}
        figures = get(gateway, "/stats").json()
    assert figures["calls"] == 1 and figures["latency"]["p50"] is None


def test_figures(gateway: Deployed) -> None:
    figures = get(gateway, "/stats").json()
    assert figures["calls"] == 63
    assert figures["errors"] == {"InputError": 3}
    assert sum(figures["watched"]["label"].values()) == 60
    assert figures["drift"]["verdict"] == "none"
    assert figures["latency"]["p50"] <= figures["latency"]["p99"]
    assert [version["calls"] for version in figures["versions"]] == [63]
    assert figures["recent"][0]["error"] == "InputError"


def test_calls_unlike_the_training_data_show_as_drift(tmp_path: Path) -> None:
    folder = folder_with_reference(tmp_path / "model", Digits())
    with deployed(tmp_path, Digits(), folder) as gateway:
        for number in range(40):
            send(gateway, [number % 2] * 64)
        drift = get(gateway, "/stats").json()["drift"]
    assert drift["verdict"] == "strong"
    assert drift["scores"]["mean"] > 1


def test_prometheus_can_read_the_metrics(gateway: Deployed) -> None:
    answer = get(gateway, "/metrics")
    found = {family.name: family for family in text_string_to_metric_families(answer.text)}
    [calls] = found["algorithm_calls"].samples
    assert (calls.labels, calls.value) == ({"version": "0.1.0"}, 63)
    assert found["algorithm_errors"].samples[0].labels == {"error_type": "InputError"}
    last = [sample for sample in found["algorithm_call_seconds"].samples if sample.name.endswith("_count")]
    assert last[0].value == 63
    assert {sample.labels["quantity"] for sample in found["algorithm_drift"].samples} >= {"label", "mean"}


@pytest.mark.parametrize("path", ["/stats", "/metrics"])
def test_figures_need_a_key(gateway: Deployed, path: str) -> None:
    assert requests.get(gateway.url + path, timeout=60).status_code == 401


def test_insights_of_the_official_client_are_recorded(gateway: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALGORITHMIA_API", gateway.url)
    Algorithmia.client(KEY).report_insights({"queue": 3, "share": 0.5})
    assert get(gateway, "/stats").json()["insights"] == {"queue": 3, "share": 0.5}
    assert 'algorithm_insight{key="queue"} 3.0' in get(gateway, "/metrics").text


@pytest.mark.parametrize(
    "body", [{"a": 1}, [1], [{"insight_key": "a"}], [{"insight_key": "a", "insight_value": "many"}],
             [{"insight_key": "request_id", "insight_value": 1}],
             [{"insight_key": str(number), "insight_value": 1} for number in range(26)]],
)  # fmt: skip
def test_invalid_insights_are_rejected(gateway: Deployed, body: Any) -> None:
    assert requests.post(f"{gateway.url}/v1/insights", json=body, timeout=60).status_code == 400


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"Origin": "https://page.example"}, 401),
        ({"Origin": "null"}, 401),
        ({"Host": "page.example"}, 401),
        ({"Via": "1.1 proxy"}, 401),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_a_web_page_cannot_send_insights(gateway: Deployed, change: dict[str, str], status: int) -> None:
    headers = {"Content-Type": "application/json"} | change
    body = b'[{"insight_key": "forged", "insight_value": 1}]'
    assert requests.post(f"{gateway.url}/v1/insights", body, headers=headers, timeout=10).status_code == status
    assert "forged" not in get(gateway, "/stats").json()["insights"]


@pytest.mark.parametrize("name", ["", "x" * 65, "1", "a\nb", "<b>", {}, [], None, 7])
def test_an_invalid_name_of_an_insight_is_rejected(gateway: Deployed, name: Any) -> None:
    body = [{"insight_key": name, "insight_value": 1}]
    assert requests.post(f"{gateway.url}/v1/insights", json=body, timeout=10).status_code == 400


def test_insights_are_limited_in_number_and_rate(gateway: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "INSIGHT_RATE", 20)
    monkeypatch.setattr(dashboard, "INSIGHT_NAMES", 30)
    found = set()
    for number in range(100):
        body = [{"insight_key": f"k{number}_{place}", "insight_value": 1} for place in range(10)]
        found.add(requests.post(f"{gateway.url}/v1/insights", json=body, timeout=10).status_code)
    assert found <= {200, 400, 429}
    assert 400 in found
    assert len(get(gateway, "/stats").json()["insights"]) <= 30
    monkeypatch.setattr(dashboard, "INSIGHT_RATE", 0)
    answer = requests.post(f"{gateway.url}/v1/insights", json=[], timeout=10)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    gateway.app.dashboard.reports = 0, 0


def test_insights_through_a_proxy_need_a_key(gateway: Deployed) -> None:
    proxied = {"X-Forwarded-For": "127.0.0.1"}
    body = [{"insight_key": "a", "insight_value": 1}]
    for prefix, status in (("", 401), (f"/k/{KEY}", 200)):
        answer = requests.post(f"{gateway.url}{prefix}/v1/insights", json=body, headers=proxied, timeout=60)
        assert answer.status_code == status


def test_every_call_is_in_the_log(gateway: Deployed) -> None:
    until(lambda: len(read_calls(gateway.store, "demo")) == 63)
    call = read_calls(gateway.store, "demo")[0]
    assert call["version"] == "0.1.0"
    assert call["latency_ms"] > 0
    assert call["watched"].keys() == {"label", "confidence", "mean", "std"}
    assert call["watched"]["mean"] == float(np.mean(IMAGES[0]))
    assert set(call) == {"time", "version", "latency_ms", "watched"}


def test_the_log_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("free_ml_stack.gateway.log.call_log.FILE_BYTES", 2000)
    monkeypatch.setattr("free_ml_stack.gateway.log.call_log.FILES", 3)
    store, app = open_app(tmp_path)
    app.calls.log.seconds = 0.01
    deploy(echo_folder(tmp_path / "model"), store, "demo", Echo())
    with serving(app) as url:
        client = Algorithmia.client(KEY, url)
        for number in range(100):
            client.algo("me/demo").pipe(number)
    files = sorted(store.glob("logs/demo/*.jsonl"))
    assert len(files) == 3
    assert all(store.size(path) <= 2000 for path in files)


def test_percentiles_are_accurate_to_a_fifth() -> None:
    latencies = [0.0004 + 0.00001 * number for number in range(1000)]
    classes = [0] * 80
    for latency in latencies:
        classes[latency_class(latency)] += 1
    for percent, found in zip((1, 50, 99, 100), percentiles(classes, (1, 50, 99, 100)), strict=True):
        true = latencies[min(999, percent * 10)]
        assert found == pytest.approx(true, rel=0.2)
    assert percentiles([0] * 80, (50,)) == [None]
    assert upper_end(latency_class(0.01)) >= 0.01
