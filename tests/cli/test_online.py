"""The demo online with four real clients and loopback services; no key is left anywhere."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import Algorithmia
import pytest
import requests
from huggingface_hub import HfApi
from services.online import KEYS, Online, online

MARKS = [value.encode() for value in KEYS.values()]
MARKS += [base64.b64encode(b"api:" + MARKS[1]).rstrip(b"=")]


class Watch(threading.Thread):
    """The command lines of all processes seen while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[bytes] = set()
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.seen.add(path.read_bytes())
                except OSError:  # the process has ended
                    continue


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Online, dict[str, Any], set[bytes]]]:
    """The services after a demo, its results, and the command lines seen during it."""
    watch = Watch()
    watch.start()
    try:
        with online(tmp_path_factory.mktemp("online")) as services:
            sweep = services.project / "sweep.yaml"
            sweep.write_text(sweep.read_text().replace("run_cap: 8", "run_cap: 2"))  # one for each agent
            services.run("demo")
            found = json.loads((services.project / "runs" / "demo.json").read_text())
            yield services, found, watch.seen
    finally:
        watch.ended.set()
        watch.join()


Done = tuple[Online, dict[str, Any], set[bytes]]


@pytest.mark.slow
def test_keys_are_checked_by_the_services_when_the_project_is_generated(done: Done) -> None:
    for service in ("Algorithmia", "Weights & Biases", "Hugging Face"):
        assert f"{service}: ok: valid, as me" in done[0].printed


@pytest.mark.slow
def test_wandb_has_the_run_with_every_number(done: Done) -> None:
    services, found, _ = done
    run = services.wandb.store.run(Path(found["run"]).name)
    rows = [json.loads(line) for line in (Path(found["run"]) / "metrics.jsonl").read_text().splitlines()]
    assert run.state == "finished"
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    sent = {row["step"]: row["loss"] for row in run.history if "loss" in row}
    assert sent == losses
    assert run.values["lr"] > 0


@pytest.mark.slow
def test_the_hub_has_the_model_under_its_version(done: Done) -> None:
    services, found, _ = done
    api = HfApi(endpoint=services.hub.url, token=KEYS["HF_TOKEN"])
    files = set(api.list_repo_files("me/digits-online"))
    assert {"README.md", "model.safetensors", "config.json", "model.onnx", "manifest.json"} <= files
    assert [tag.name for tag in api.list_repo_refs("me/digits-online").tags] == ["v0.1.0"]
    card = services.hub.files("model", "me/digits-online")["README.md"]
    assert card == Path(found["card"]).read_bytes()
    assert str(found["test"]["accuracy"]) in card.decode()


@pytest.mark.slow
def test_few_requests_are_sent_to_the_hub(done: Done) -> None:
    """A free account has 1,000 requests in five minutes and 128 commits in an hour; the loopback Hub holds to that."""
    hub = done[0].hub
    assert [len(repo.commits) for repo in hub.repos.values()] == [2]  # the Hub's own first one, and the model
    asked = [call for call in hub.calls if "/api/" in call]
    assert len(asked) < 40, asked
    assert len([call for call in asked if "whoami" in call]) < 10


@pytest.mark.slow
def test_algorithmia_has_data_model_and_calls(done: Done) -> None:
    services, found, _ = done
    url = services.environment["ALGORITHMIA_API"]
    assert found["gateway"] == url
    client = Algorithmia.client(KEYS["ALGORITHMIA_API_KEY"], url)
    assert client.file("data://.my/digits-online/data/manifest.json").exists()
    model = f"data://.my/digits-online/models/{Path(found['model']).name}/model.onnx"
    assert client.file(model).getBytes() == (Path(found["model"]) / "model.onnx").read_bytes()
    assert found["calls"] == 270
    assert found["drift"] == "none"


@pytest.mark.slow
def test_no_key_is_left_anywhere(done: Done) -> None:
    """Files, output, command lines and requests contain no key, except the header of the key's service."""
    services, _, lines = done
    folder = services.project.parent
    record = folder / "elsewhere" / services.project.name / ".stack" / "gateway.json"
    assert record.stat().st_mode & 0o777 == 0o600
    assert not leaking(services.printed.encode())
    assert not [line for line in lines if leaking(line)]
    files = [path for path in folder.rglob("*") if path.is_file() and path != record]
    assert len(files) > 200
    assert [str(path) for path in files if leaking(path.read_bytes())] == []
    store = services.wandb.store
    kept = [run.facts | run.config | run.summary | run.streams for run in store.runs.values()]
    assert not leaking(repr((kept, services.wandb.sent)).encode())
    assert not [name for name, blob in store.blobs.items() if leaking(blob)]


@pytest.mark.slow
def test_the_page_of_the_gateway_shows_no_key(done: Done) -> None:
    services, _, _ = done
    url, key = services.environment["ALGORITHMIA_API"], KEYS["ALGORITHMIA_API_KEY"]
    for path in ("/", "/metrics", "/openapi.json"):
        answer = requests.get(url + path, headers={"Authorization": f"Bearer {key}"}, timeout=10)
        assert not leaking(answer.content), path


@pytest.mark.slow
@pytest.mark.parametrize("command", ["data", "publish", "doctor"])
def test_error_messages_contain_no_key(done: Done, command: str) -> None:
    services, _, _ = done
    nowhere = dict.fromkeys(("ALGORITHMIA_API", "WANDB_BASE_URL", "HF_ENDPOINT"), "http://127.0.0.1:9")
    broken = Online(services.hub, services.wandb, services.project, services.environment | nowhere)
    process = broken.start(command)
    printed, _ = process.communicate(timeout=240)
    # An unreachable service leaves the key unknown, so doctor does not fail.
    assert process.returncode == (0 if command == "doctor" else 1)
    assert "Traceback" not in printed
    assert not leaking(printed.encode())


@pytest.mark.slow
def test_no_process_outlives_the_demo(done: Done) -> None:
    services, _, _ = done
    mark = str(services.project).encode()
    end = time.monotonic() + 10
    while still := [name for name in running() if mark in name and b"elsewhere" not in name]:
        assert time.monotonic() < end, still


def running() -> list[bytes]:
    """The command lines and working folders of all processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            found.append((path / "cmdline").read_bytes() + str((path / "cwd").readlink()).encode())
        except OSError:  # ended, or owned by another user
            continue
    return found


def leaking(content: bytes) -> list[bytes]:
    """The keys that occur in some bytes."""
    return [mark for mark in MARKS if mark in content]
