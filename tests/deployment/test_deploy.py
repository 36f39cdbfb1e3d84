"""Deployment, pinning and rollback; a failed deployment leaves nothing behind."""

import json
import resource
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import Algorithmia
import pytest
from deployed import KEY, deployed
from fsspec import AbstractFileSystem
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError
from predictors import Digits, Echo, digits_folder, echo_folder
from services.hub_faults import Fault
from services.hub_server import Hub
from waiting import until

from free_ml_stack.deployment.deploy import deploy, rollback, versions
from free_ml_stack.deployment.monitor import read_calls
from free_ml_stack.errors import StackError
from free_ml_stack.gateway.algorithms import models
from free_ml_stack.storage.local import local_store
from free_ml_stack.storage.manifest import write_manifest
from free_ml_stack.storage.stores import hub_store


@pytest.fixture
def store(tmp_path: Path) -> AbstractFileSystem:
    return local_store(tmp_path / "store")


def test_a_model_folder_is_deployed_as_a_version(store: AbstractFileSystem, tmp_path: Path) -> None:
    folder = digits_folder(tmp_path / "model")
    build = deploy(folder, store, "digits", Digits())
    assert build.version == "0.1.0"
    assert build.folder.startswith("deployments/digits/0.1.0-")
    assert store.cat_file(f"{build.folder}/model.onnx") == (folder / "model.onnx").read_bytes()
    assert deploy(folder, store, "digits", Digits(), "revision").version == "0.1.1"
    assert deploy(folder, store, "digits", Digits(), "major").version == "1.0.0"
    assert [build.version for build in versions(store, "digits")] == ["1.0.0", "0.1.1", "0.1.0"]


def damaged(folder: Path) -> None:
    (folder / "word.txt").write_text("hellO")


def changed_with_new_sums(folder: Path) -> None:
    damaged(folder)
    write_manifest(folder)


def without_sample(folder: Path) -> None:
    (folder / "sample.json").unlink()
    write_manifest(folder)


def refused_sample(folder: Path) -> None:
    (folder / "sample.json").write_text(json.dumps({"input": "refuse", "output": ""}))
    write_manifest(folder)


def sample_that_is_no_strict_json(folder: Path) -> None:
    (folder / "sample.json").write_text(json.dumps({"input": [float("nan")], "output": [float("nan")]}))
    write_manifest(folder)


def reference_that_is_no_strict_json(folder: Path) -> None:
    (folder / "reference.json").write_text(json.dumps({"rows": float("inf")}))
    write_manifest(folder)


def answer_that_is_none(folder: Path) -> None:
    (folder / "sample.json").write_text(json.dumps({"input": "object", "output": ""}))
    write_manifest(folder)


def without_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (damaged, "word.txt"),
        (changed_with_new_sums, "sample.json: expected 'hello', got 'hellO' from the model"),
        (without_sample, "sample.json not found"),
        (refused_sample, "fails on its own sample input: that makes no sense"),
        (sample_that_is_no_strict_json, "sample.json is not valid JSON: .*; run `publish` again"),
        (reference_that_is_no_strict_json, "reference.json is not valid JSON"),
        (answer_that_is_none, "the answer is not JSON-serializable"),
        (without_manifest, "manifest.json not found"),
    ],
)
def test_an_invalid_model_folder_is_not_deployed(
    store: AbstractFileSystem, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    deploy(echo_folder(tmp_path / "good"), store, "demo", Echo())
    folder = echo_folder(tmp_path / "bad")
    spoil(folder)
    before = store.find("")
    with pytest.raises(StackError, match=message):
        deploy(folder, store, "demo", Echo())
    assert store.find("") == before


def test_a_full_disk_leaves_the_store_unchanged(store: AbstractFileSystem, tmp_path: Path) -> None:
    deploy(echo_folder(tmp_path / "good"), store, "demo", Echo())
    folder = echo_folder(tmp_path / "large")
    (folder / "weights.bin").write_bytes(bytes(1 << 20))
    write_manifest(folder)
    before, (soft, hard) = store.find(""), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            deploy(folder, store, "demo", Echo())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.find("") == before
    assert deploy(folder, store, "demo", Echo()).version == "0.2.0"


def test_the_sample_is_compared_with_a_tolerance(store: AbstractFileSystem, tmp_path: Path) -> None:
    folder = digits_folder(tmp_path / "model")
    sample = json.loads((folder / "sample.json").read_text())
    for change, refused in ((5e-6, False), (5e-5, True)):
        sample["output"]["confidence"] += change
        (folder / "sample.json").write_text(json.dumps(sample))
        write_manifest(folder)
        if refused:
            with pytest.raises(StackError, match="sample.json: expected"):
                deploy(folder, store, "digits", Digits())
        else:
            deploy(folder, store, "digits", Digits())


def test_rollback(store: AbstractFileSystem, tmp_path: Path) -> None:
    for word in ("one", "two", "three"):
        deploy(echo_folder(tmp_path / word, word), store, "demo", Echo())
    assert rollback(store, "demo").version == "0.2.0"
    assert rollback(store, "demo").version == "0.1.0"
    with pytest.raises(StackError, match="no earlier version"):
        rollback(store, "demo")
    assert rollback(store, "demo", "0.3.0").version == "0.3.0"
    with pytest.raises(StackError, match=r"no version 7\.0\.0"):
        rollback(store, "demo", "7.0.0")
    rollback(store, "demo", "0.1.0")
    assert deploy(echo_folder(tmp_path / "four", "four"), store, "demo", Echo()).version == "0.4.0"


def test_concurrent_deployments_get_two_versions_or_an_error(store: AbstractFileSystem, tmp_path: Path) -> None:
    folders = [echo_folder(tmp_path / str(number), str(number)) for number in range(4)]
    outcomes: list[str] = []

    def ship(folder: Path) -> None:
        try:
            outcomes.append(deploy(folder, store, "demo", Echo()).version)
        except StackError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=ship, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    deployed_versions = sorted(outcome for outcome in outcomes if outcome[0].isdigit())
    assert deployed_versions == sorted(build.version for build in versions(store, "demo"))
    assert deployed_versions
    for build in versions(store, "demo"):
        assert store.isfile(f"{build.folder}/manifest.json")


@pytest.fixture
def bucket(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> AbstractFileSystem:
    """The store of a project in a bucket of the Hub."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    HfApi().create_bucket("me/store")
    return hub_store("hf://buckets/me/store/me/project")


def test_a_failed_deployment_deletes_only_its_own_files(hub: Hub, bucket: AbstractFileSystem, tmp_path: Path) -> None:
    """On the Hub, another deployment finishes during the upload of this one."""
    slow = Fault("slow", at={1}, match="/batch", seconds=2.0)
    hub.app.faults = [slow]
    with ThreadPoolExecutor(1) as threads:
        late = threads.submit(deploy, echo_folder(tmp_path / "late", "late"), bucket, "demo", Echo())
        slow.struck.wait()
        deploy(echo_folder(tmp_path / "other", "other"), bucket, "demo", Echo())
        with pytest.raises(StackError, match=r"version 0\.1\.0 of demo already exists"):
            late.result()
    [build] = versions(bucket, "demo")
    words = {path: content for path, content in hub.buckets.content("me/store").items() if path.endswith("word.txt")}
    assert words == {f"me/project/{build.folder}/word.txt": b"other"}


def test_a_version_whose_registration_is_answered_with_an_error_keeps_its_files(
    hub: Hub, bucket: AbstractFileSystem, tmp_path: Path
) -> None:
    hub.app.faults = [Fault(403, at={2}, match="/batch", after=True)]  # the first request stores the files
    with pytest.raises(HfHubHTTPError):
        deploy(echo_folder(tmp_path / "model"), bucket, "demo", Echo())
    [build] = versions(bucket, "demo")
    assert bucket.isfile(f"{build.folder}/word.txt")


def test_a_running_gateway_detects_new_versions(tmp_path: Path) -> None:
    with deployed(tmp_path) as gateway:
        client = gateway.client()
        assert client.algo("me/demo").pipe("word").result == "hello"
        deploy(echo_folder(tmp_path / "second", "again"), gateway.store, "demo", Echo())
        until(lambda: client.algo("me/demo").pipe("word").result == "again")
        assert client.algo("me/demo/0.1.0").pipe("word").result == "hello"
        assert client.algo("me/demo/0.*").pipe("word").result == "again"
        rollback(gateway.store, "demo")
        until(lambda: client.algo("me/demo").pipe("word").result == "hello")
        assert client.algo("me/demo/0.2.0").pipe("word").result == "again"


def test_a_pinned_version_is_available_immediately(tmp_path: Path) -> None:
    with deployed(tmp_path, poll_seconds=3600) as gateway:
        assert gateway.client().algo("me/demo").pipe("word").result == "hello"
        deploy(echo_folder(tmp_path / "second", "again"), gateway.store, "demo", Echo())
        assert gateway.client().algo("me/demo/0.2.0").pipe("word").result == "again"


def test_a_replaced_model_is_deleted_after_its_last_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "MAX_MODELS", 1)
    with deployed(tmp_path) as gateway:
        algo, end = gateway.client().algo("me/demo"), tmp_path / "end"
        slow = {"sleep": 0, "begun": str(tmp_path / "begun"), "end": str(end)}
        answers: list[Any] = []
        calling = threading.Thread(target=lambda: answers.append(algo.pipe(slow).result))
        assert algo.pipe("word").result == "hello"
        calling.start()
        until((tmp_path / "begun").exists)
        deploy(echo_folder(tmp_path / "second", "again"), gateway.store, "demo", Echo())
        until(lambda: algo.pipe("word").result == "again")

        def copies() -> list[str]:
            return sorted(path.read_text() for path in Path(gateway.app.models.cache).rglob("word.txt"))

        assert copies() == ["again", "hello"]
        end.touch()
        calling.join()
        assert answers == [slow]
        until(lambda: copies() == ["again"])
        assert gateway.client().algo("me/demo/0.1.0").pipe("word").result == "hello"


def test_deleted_copies_of_models_do_not_end_the_service(tmp_path: Path) -> None:
    """Services such as systemd-tmpfiles delete files that were not used for ten days."""
    with deployed(tmp_path) as gateway:
        algo = gateway.client().algo("me/demo")
        assert algo.pipe("word").result == "hello"
        shutil.rmtree(gateway.app.models.cache)
        deploy(echo_folder(tmp_path / "second", "again"), gateway.store, "demo", Echo())
        assert gateway.client().algo("me/demo/0.2.0").pipe("word").result == "again"
        shutil.rmtree(gateway.app.models.cache)
    assert [call["version"] for call in read_calls(gateway.store, "demo")] == ["0.1.0", "0.2.0"]


@pytest.mark.slow
def test_no_call_fails_while_versions_change(tmp_path: Path) -> None:
    with deployed(tmp_path) as gateway:
        stop, words, failures = threading.Event(), set(), []

        def call() -> None:
            algo = Algorithmia.client(KEY, gateway.url).algo("me/demo")
            while not stop.is_set():
                try:
                    words.add(algo.pipe("word").result)
                except Exception as error:
                    failures.append(error)

        threads = [threading.Thread(target=call) for _ in range(8)]
        for thread in threads:
            thread.start()
        try:
            for number in range(10):
                deploy(echo_folder(tmp_path / str(number), f"word {number}"), gateway.store, "demo", Echo())
                until(lambda number=number: f"word {number}" in words)
            rollback(gateway.store, "demo", "0.1.0")
            words.clear()
            until(lambda: "hello" in words)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert failures == []
