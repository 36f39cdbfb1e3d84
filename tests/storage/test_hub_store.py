"""A project with its store on the Hub, from data to monitoring: number of requests and commits."""

import shutil
from pathlib import Path

import projects
import pytest
from services.hub_faults import Fault
from services.hub_server import Hub

COMMANDS = (
    ("data",),
    ("train", "--name", "first", "--epochs", "2", "--checkpoint-steps", "20"),
    ("publish",),
    ("deploy",),
    ("predict",),
    ("monitor",),
)


def loop(folder: Path, hub: Hub, storage: str, *commands: tuple[str, ...]) -> dict[str, tuple[int, str]]:
    """Run commands; return the number of Hub API calls and the output of each."""
    environ = {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "hf_write",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "STACK_STORAGE": storage,
    }
    results = {}
    for command in commands:
        before = len(hub.calls)
        printed = projects.run(folder, *command, **environ)
        results[command[0]] = (len([call for call in hub.calls[before:] if " /api/" in call]), printed)
    return results


@pytest.fixture
def project(tmp_path: Path, data: Path) -> Path:
    folder = projects.make(tmp_path / "project", data)
    shutil.rmtree(folder / ".stack")
    return folder


@pytest.mark.slow
def test_in_a_bucket_each_step_is_one_batch(hub: Hub, project: Path) -> None:
    results = loop(project, hub, "hf://buckets/me/things", *COMMANDS)
    batches = [{line.split("/")[0] for line in batch} for batch in hub.buckets.all["me/things"].batches]
    written = [place for number, place in enumerate(batches) if place not in batches[:number]]
    assert written == [{"+data"}, {"+checkpoints"}, {"+models"}, {"+deployments"}, {"+logs"}]
    counts = [batches.count({place}) for place in ("+data", "+models", "+deployments", "+logs")]
    assert counts == [1, 1, 2, 1]  # the index is changed after the check of the version's folder
    assert max(calls for calls, _ in results.values()) < 20
    assert "%|" not in "".join(printed for _, printed in results.values())  # no progress bars of the client
    assert "Resuming after step" not in results["train"][1]
    shutil.rmtree(project / "runs")
    [(_, again)] = loop(project, hub, "hf://buckets/me/things", COMMANDS[1]).values()
    assert "Resuming after step" in again  # from the bucket, as another session does


@pytest.mark.slow
def test_in_a_repository_each_step_is_one_commit_and_a_bucket_can_replace_it(hub: Hub, project: Path) -> None:
    results = loop(project, hub, "hf://datasets/me/things", *COMMANDS)
    commits = hub.repo("dataset", "me/things").commits[1:]
    written = [{path.split("/")[0] for path in commit.changed} for commit in commits]
    counts = [written.count({place}) for place in ("data", "models", "deployments", "logs")]
    assert counts == [1, 1, 2, 1]
    assert 1 <= written.count({"checkpoints"}) <= 2
    assert len(written) == sum(counts) + written.count({"checkpoints"})
    assert max(calls for calls, _ in results.values()) < 20
    held = {path: data for path, data in hub.files("dataset", "me/things").items() if path != ".gitattributes"}
    move = ("storage", "push", "hf://buckets/me/moved")
    [(_, printed)] = loop(project, hub, "hf://datasets/me/things", move).values()
    assert f"{len(held)} files copied, 0 unchanged" in printed
    assert hub.buckets.content("me/moved") == held
    assert len(hub.buckets.all["me/moved"].batches) == 1
    [(_, printed)] = loop(project, hub, "hf://datasets/me/things", move).values()
    assert f"0 files copied, {len(held)} unchanged" in printed
    moved = loop(project, hub, "hf://buckets/me/moved", ("info",), ("predict",))
    assert "Skeleton 0.1.0" in moved["info"][1]


FULL = "Private repository storage limit reached, please upgrade your plan"  # huggingface_hub#3049


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(403, match="/batch", text=FULL), f"storage full on the Hub (403): {FULL}; delete files there; "),
        (Fault(403, match="/batch"), "key rejected by the Hub (403): injected failure; it needs write access; "),
        (Fault(404, match="/batch"), "error from the Hub (404): injected failure"),
        (Fault(403, match="/v1/xorbs"), "error from the Hub's file storage: 403 Forbidden at "),
    ],
)
def test_an_error_of_the_store_is_one_line(hub: Hub, project: Path, fault: Fault, words: str) -> None:
    """Training continues without the store."""
    loop(project, hub, "hf://buckets/me/things", ("data",))
    hub.app.faults = [fault]
    environ = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_write", "STACK_STORAGE": "hf://buckets/me/things"}
    printed = projects.run(project, *COMMANDS[1], **environ).splitlines()
    assert [line.startswith("Uploading a checkpoint failed (" + words) for line in printed].count(True) == 1
    assert [line.startswith("Upload of the last checkpoint failed (" + words) for line in printed].count(True) == 1
    printed = projects.run(project, "publish", code=1, **environ).splitlines()
    assert [line.startswith(f"error: {words}") for line in printed].count(True) == 1


@pytest.mark.slow
def test_an_error_of_a_listing_does_not_mean_that_nothing_is_stored(hub: Hub, project: Path) -> None:
    loop(project, hub, "hf://buckets/me/things", *COMMANDS[:2])
    shutil.rmtree(project / "runs")
    environ = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_write", "STACK_STORAGE": "hf://buckets/me/things"}
    for place in ("/tree/data", "/tree/checkpoints"):
        hub.app.faults = [Fault(403, match=place)]
        printed = projects.run(project, *COMMANDS[1], code=1, **environ)
        assert "error: key rejected by the Hub (403): injected failure; it needs read access; run `doctor`" in printed
