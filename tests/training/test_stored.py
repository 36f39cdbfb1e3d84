"""Checkpoints in a store on the Hub: one request each, never more than it takes, and the last one always."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars
from services import hub_limits
from services.hub_faults import Fault
from services.hub_server import Hub, serving

from free_ml_stack.project.settings import Settings
from free_ml_stack.storage.rooted import RootedFileSystem
from free_ml_stack.storage.stores import open_store
from free_ml_stack.training.snapshot import FILES, SUMS
from free_ml_stack.training.stored import FEWER, StoredCheckpoints


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub(tmp_path / "hub")
    disable_progress_bars()
    with serving(hub):
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "hf_write")
        yield hub


Begin = Callable[[str, str], StoredCheckpoints]


@pytest.fixture
def begin(hub: Hub, tmp_path: Path) -> Begin:
    """Begin the checkpoints of a run in the store at a URL."""

    def made(url: str, run: str) -> StoredCheckpoints:
        settings = Settings(root=tmp_path, storage=url, credentials=frozenset({"huggingface"}))
        place = RootedFileSystem(f"checkpoints/{run}", fs=open_store(url, settings))
        return StoredCheckpoints(tmp_path / run, place, 2)

    return made


def save(stored: StoredCheckpoints, step: int, last: bool = False) -> bool:
    """Write a checkpoint to disk and copy it to the store."""
    name = f"step-{step:09d}"
    (stored.folder / name).mkdir(parents=True)
    files = {file: f"{file} {step}".encode() for file in FILES[:-1]}
    sums = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
    for file, content in {**files, SUMS: json.dumps(sums).encode()}.items():
        (stored.folder / name / file).write_bytes(content)
    return stored.put(name, last)


def test_a_bucket_takes_each_checkpoint_in_one_batch(hub: Hub, begin: Begin) -> None:
    stored = begin("hf://buckets/me/things", "run")
    for step in range(1, 5):
        assert save(stored, step)
    batches = hub.buckets.all["me/things"].batches
    assert [(len(batch), sum(line[0] == "-" for line in batch)) for batch in batches] == [
        (4, 0),
        (4, 0),
        (8, 4),
        (8, 4),
    ]
    again = begin("hf://buckets/me/things", "run")
    assert again.names() == ["step-000000003", "step-000000004"]
    assert again.fetch("step-000000004")["state.json"] == b"state.json 4"
    calls = [call for call in hub.calls if "/api/" in call]
    assert len(calls) < 4 * 5
    assert hub.buckets.all["me/things"].private


def test_a_repository_takes_each_in_one_commit(hub: Hub, begin: Begin) -> None:
    stored = begin("hf://datasets/me/things/in/side", "run")
    for step in range(1, 4):
        assert save(stored, step, last=True)
    assert [len(commit.changed) for commit in hub.repo("dataset", "me/things").commits] == [1, 4, 4, 8]
    held = set(hub.files("dataset", "me/things")) - {".gitattributes"}
    places = [f"in/side/checkpoints/run/step-00000000{step}/{file}" for step in (2, 3) for file in FILES]
    assert held == set(places)


def test_the_last_checkpoint_of_a_run_is_tried_again(hub: Hub, begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("free_ml_stack.storage.retry.SCALE", 0.01)
    stored = begin("hf://datasets/me/things", "run")
    fault = Fault(500, at=[1, 2, 3, 5, 6, 7], match="/commit/")
    hub.app.faults = [fault]
    with pytest.raises(OSError, match="500"):
        save(stored, 1)
    assert save(stored, 2, last=True)
    with pytest.raises(OSError, match="500"):
        save(stored, 3, last=True)
    assert fault.seen == 1 + 3 + 3
    assert begin("hf://datasets/me/things", "run").names() == ["step-000000002"]


def train(hub: Hub, runs: list[StoredCheckpoints], hours: float, share: int = 0, first: int = 0) -> list[list[float]]:
    """Offer a checkpoint every ten seconds, and the last ones at the end; the times at which each run stored one."""
    now = hub.limits.clock()
    hub.limits.clock = lambda: now
    times: list[list[float]] = [[now] for _ in runs]
    for stored in runs:
        assert stored.quota
        stored.quota.clock = lambda: now
        stored.quota.share = share or stored.quota.share
    for step in range(first, first + int(hours * 360)):
        now += 10
        for number, stored in enumerate(runs):
            if save(stored, step):
                times[number].append(now)
    for stored in runs:
        assert save(stored, 10**6 + first, last=True)  # it goes whatever has gone before
    return times


@pytest.mark.slow
def test_an_hour_of_training_makes_no_more_commits_than_a_repository_takes(hub: Hub, begin: Begin) -> None:
    said: list[str] = []
    stored = begin("hf://datasets/me/things", "run")
    stored.say = said.append
    [times] = train(hub, [stored], 1.1)
    assert said == [FEWER]
    assert max(after - before for before, after in itertools.pairwise(times)) <= 60
    assert 90 < len(hub.limits.commits["dataset me/things"]) < hub_limits.COMMITS
    assert len([call for call in hub.calls if "/commits/" in call]) < 2 * len(times)


def test_concurrent_runs_share_the_limit_of_a_repository(hub: Hub, begin: Begin) -> None:
    """The numbers are an eighth of the real ones; the loopback Hub fails a test that has more."""
    hub.limits.hourly = 16
    runs = [begin("hf://datasets/me/things", f"run{number}") for number in range(3)]
    for times in train(hub, runs, 2.5, share=12):
        assert 4 <= len(times) <= 16
        assert max(after - before for before, after in itertools.pairwise(times)) <= 2400


def test_a_resumed_session_counts_earlier_commits(hub: Hub, begin: Begin) -> None:
    hub.limits.hourly = 16
    for number in range(4):
        train(hub, [begin("hf://datasets/me/things", "run")], 0.25, share=12, first=number * 1000)
    assert len(hub.limits.commits["dataset me/things"]) <= 16
