"""Tracking with the real client: online, offline, and with a service that fails."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import forking
import projects
import pytest
from filelock import FileLock
from services.hub_faults import Fault
from services.wandb_server import KEY, Wandb
from services.wandb_store import Run
from tracking_service import account, wandb_service

from free_ml_stack.project.settings import Settings
from free_ml_stack.sweeps.agents import WandbSweep, upload_unsent
from free_ml_stack.tracking.sync import LOCK

PROGRAM = """
import os, sys, time
from pathlib import Path
from free_ml_stack.project.settings import load
from free_ml_stack.tracking.opening import open_run
settings = load({}, Path.cwd())
print("opening", os.getpid(), flush=True)
started = time.perf_counter()
run = open_run(settings, "one", "train", settings.runs / "one", {"lr": 0.1})
print("opened", time.perf_counter() - started, flush=True)
"""
STEPS = "for step in range(5): run.log(10 * step, loss=1 / (step + 1))\n"
END = "run.summary(accuracy=0.5)\nprint(run.finish())\n"


@pytest.fixture
def service() -> Iterator[Wandb]:
    with wandb_service() as served:
        yield served


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "stack.toml").write_text('project = "p"\n')
    return tmp_path


def start(project: Path, text: str, service: Wandb, **extra: str) -> forking.Running:
    """Start a program that tracks a run."""
    environment = projects.environment(project, **account(project, service, **extra))
    given = {name: value for name, value in environment.items() if value}
    return forking.start(["-c", PROGRAM + text], project, given, merged=True)


def track(project: Path, text: str, service: Wandb, **extra: str) -> str:
    """Run a program that tracks a run; return its output, and check that no process of the client is left."""
    process = start(project, text, service, **extra)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    assert not services_of(process.pid)
    return printed


def services_of(pid: int) -> list[str]:
    """The client's service processes started by a process."""
    table = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in table.splitlines() if "wandb-core" in line and f"--pid {pid}" in line]


def record(project: Path) -> list[dict[str, float]]:
    """The rows of the run on disk."""
    return [json.loads(line) for line in (project / "runs/one/metrics.jsonl").read_text().splitlines()]


def history(run: Run) -> list[dict[str, float]]:
    """The rows of the run at W&B, without the fields that W&B adds."""
    return [
        {name: value for name, value in row.items() if not name.startswith("_")} for row in run.history if "loss" in row
    ]


def sync(project: Path, service: Wandb, code: int = 0) -> str:
    """Run `sync` and return its output."""
    return projects.run(project, "sync", code=code, **account(project, service))


def test_a_run_is_the_same_at_wandb_and_on_disk(project: Path, service: Wandb) -> None:
    printed = track(project, STEPS + END, service)
    run = service.store.run("one")
    assert history(run) == record(project)
    assert [row["_step"] for row in run.history] == [0, 1, 2, 3, 4]
    assert (run.state, run.summary["accuracy"], run.values["lr"]) == ("finished", 0.5, 0.1)
    assert run.values["environment"]["python"]
    assert f"W&B: {service.url}/me/p/runs/one" in printed
    assert "Nothing to upload" in sync(project, service)


def test_tracking_is_offline_without_a_key(project: Path, service: Wandb) -> None:
    printed = track(project, STEPS + END, service, WANDB_API_KEY="")
    assert not service.calls
    assert printed.count("W&B: offline. Run `p sync` to upload it") == 1
    assert len(record(project)) == 5
    assert list(project.glob("runs/one/wandb/offline-run-*/*.wandb"))


def test_a_rejected_key_is_reported_once(project: Path, service: Wandb) -> None:
    service.refused.add(KEY)
    printed = track(project, STEPS + END, service)
    assert printed.count("Tracking offline.") == 1
    assert not service.store.runs
    assert "no valid W&B key" in sync(project, service, code=1)


def test_the_mode_dryrun_means_offline(project: Path, service: Wandb) -> None:
    assert "W&B: offline." in track(project, STEPS + END, service, WANDB_MODE="dryrun")
    assert not service.calls


def test_settings_of_the_client_override_the_file(project: Path, service: Wandb) -> None:
    track(project, STEPS + END, service, WANDB_PROJECT="other", WANDB_ENTITY="team")
    [run] = service.store.runs.values()
    assert (run.entity, run.project) == ("team", "other")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"WANDB_PROJECT": "a/b"}, "Invalid project name 'a/b'"),
        ({"WANDB_INIT_TIMEOUT": "long"}, "init_timeout: Input should be a valid number"),
    ],
)
def test_an_invalid_client_setting_does_not_stop_a_run(
    project: Path, service: Wandb, wrong: dict[str, str], words: str
) -> None:
    printed = track(project, STEPS + END, service, **wrong)
    assert printed.count(words) == 1
    assert len(record(project)) == 5
    refused = projects.run(project, "sync", code=1, **account(project, service, **wrong))
    assert "upload of one failed" in refused and words in refused
    sync(project, service)
    assert history(service.store.run("one")) == record(project)


def test_the_wait_for_an_unresponsive_service_is_limited(project: Path, service: Wandb) -> None:
    service.faults.append(Fault("slow", None, "Viewer", seconds=300))
    printed = track(project, STEPS + END, service)
    assert "Tracking offline." in printed
    seconds = float(next(line for line in printed.splitlines() if line.startswith("opened")).split()[1])
    assert seconds < 100  # the timeout, plus the client's start on a busy machine; the service takes 300
    service.faults.clear()
    sync(project, service)
    assert history(service.store.run("one")) == record(project)


def test_sync_uploads_offline_runs_once(project: Path, service: Wandb) -> None:
    track(project, STEPS + END, service, WANDB_API_KEY="")
    assert f"one: {service.url}/me/p/runs/one" in sync(project, service)
    run = service.store.run("one")
    assert history(run) == record(project)
    assert (run.state, run.summary["accuracy"], run.values["lr"]) == ("finished", 0.5, 0.1)
    calls = len(service.calls)
    assert "Nothing to upload" in sync(project, service)
    assert len(service.calls) == calls


def test_sync_uploads_runs_of_a_moved_project(tmp_path: Path, service: Wandb) -> None:
    before, after = tmp_path / "before", tmp_path / "elsewhere/after"
    (before / "models/one").mkdir(parents=True)
    (before / "models/one/card.md").write_text("card")
    (before / "stack.toml").write_text('project = "p"\n')
    keep = 'run.made("card", "card", [settings.root / "models/one/card.md"], "one")\n'
    track(before, STEPS + keep + END, service, WANDB_API_KEY="")
    assert str(before) not in (before / "runs/one/tracked.jsonl").read_text()
    after.parent.mkdir()
    before.rename(after)
    assert f"one: {service.url}/me/p/runs/one" in sync(after, service)
    assert history(service.store.run("one")) == record(after)
    assert [one.collection for one in service.store.artifacts.values()] == ["card"]
    assert "Nothing to upload" in sync(after, service)


PICTURE = """
from PIL import Image
Image.new("RGB", (8, 8)).save(run.folder / "shown.png")
rows = [["see logo.png", run.folder / "shown.png"], ["x" * 5000 + ".png", run.folder / "shown.png"]]
run.table("worst", ["text", "image"], rows)
run.table("mixed", ["value"], [["a"], [7], [None]])
"""


@pytest.mark.parametrize("key", [KEY, ""])
def test_a_table_can_have_any_cells(project: Path, service: Wandb, key: str) -> None:
    printed = track(project, STEPS + PICTURE + END, service, WANDB_API_KEY=key)
    assert ("W&B: offline." in printed) is (not key)
    if not key:
        sync(project, service)
    assert "Nothing to upload" in sync(project, service)
    blobs = {
        name: service.store.blobs[path] for one in service.store.artifacts.values() for name, path in one.files.items()
    }
    worst, mixed = (json.loads(blobs[f"{name}.table.json"])["data"] for name in ("worst", "mixed"))
    assert [text for text, _ in worst] == ["see logo.png", "x" * 5000 + ".png"]
    assert [image["_type"] for _, image in worst] == ["image-file", "image-file"]
    assert mixed == [["a"], [7], [None]]


def test_sync_skips_files_that_have_changed(project: Path, service: Wandb) -> None:
    (project / "card.md").write_text("first")
    (project / "other.md").write_text("same")
    keep = "".join(f"run.made('{name}', 'card', [settings.root / '{name}.md'], 'one')\n" for name in ("card", "other"))
    track(project, STEPS + keep + END, service, WANDB_API_KEY="")
    (project / "card.md").write_text("second")
    printed = sync(project, service)
    assert "skipped files that have changed: ../../card.md" in printed
    assert [one.collection for one in service.store.artifacts.values()] == ["other"]
    assert history(service.store.run("one")) == record(project)
    assert "Nothing to upload" in sync(project, service)


FAULTS = [  # the call that fails, how, and from which call on
    ("graphql/UpsertBucket", 403, 1),
    ("graphql/UpsertBucket", 500, 1),
    ("graphql/RunResumeStatus", "html", 1),
    ("file_stream", 403, 1),
    ("file_stream", "reset", 1),
    ("file_stream", 500, 2),
    ("graphql/RunHistoryKeys", 500, 1),
    ("graphql/ArtifactType", 500, 1),
    ("graphql/CommitArtifact", 500, 1),
]


@pytest.mark.parametrize(("call", "kind", "first"), FAULTS)
def test_a_service_failure_does_not_stop_a_run(
    project: Path, service: Wandb, call: str, kind: int | str, first: int
) -> None:
    service.faults += [Fault(kind, range(first, 10**6), call), Fault(500, None, "otel")]
    table = "run.table('worst', ['image'], [[1]])\n"
    printed = track(project, STEPS + table + END, service, WANDB_FINISH_TIMEOUT="3", WANDB_INIT_TIMEOUT="3")
    assert "export" not in printed  # errors of the client's telemetry
    assert len(record(project)) == 5
    assert 1 <= printed.count("un `p sync` ") <= 2
    service.faults.clear()
    sync(project, service)
    assert history(service.store.run("one")) == record(project)
    assert service.store.run("one").summary["accuracy"] == 0.5
    assert "Nothing to upload" in sync(project, service)


def test_a_failed_run_leaves_no_thread_of_the_client(project: Path, service: Wandb) -> None:
    """Such a thread polls the service process, which has exited, and prints a traceback."""
    text = STEPS + "run.uses('nothing', 'latest')\n" + END
    printed = track(project, text + "import threading\nprint('threads', threading.enumerate())\n", service)
    assert "not found in" in printed
    assert "NetStatThr" not in printed.partition("threads")[2]


def test_an_upload_timeout_is_reported(project: Path, service: Wandb) -> None:
    service.faults.append(Fault("reset", None, "file_stream"))
    printed = track(project, STEPS + END, service, WANDB_FINISH_TIMEOUT="3")
    assert "W&B: Timed out finishing run; the run is kept on disk." in printed


def test_logging_does_not_wait_for_the_service(project: Path, service: Wandb) -> None:
    text = "started = time.perf_counter()\nfor step in range(300): run.log(step, loss=0.5)\n"
    text += "print('logged', time.perf_counter() - started)\n"
    service.faults.append(Fault("slow", None, "file_stream", seconds=20))
    printed = track(project, text + END, service, WANDB_FINISH_TIMEOUT="2")
    assert float(next(line for line in printed.splitlines() if line.startswith("logged")).split()[1]) < 5
    service.faults.clear()
    sync(project, service)
    assert history(service.store.run("one")) == record(project)


def test_a_sweep_waits_for_a_sync_that_is_sending(tmp_path: Path) -> None:
    settings = Settings(root=tmp_path)
    settings.runs.mkdir()
    sweep = Thread(target=upload_unsent, args=(settings, WandbSweep("me/project/sweep", "")))
    with FileLock(settings.runs / LOCK):
        sweep.start()
        sweep.join(0.2)
        assert sweep.is_alive()
    sweep.join(10)
    assert not sweep.is_alive()


def test_concurrent_syncs_upload_each_run_once(project: Path, service: Wandb) -> None:
    track(project, STEPS + END, service, WANDB_API_KEY="")
    both = [projects.start(project, "sync", **account(project, service)) for _ in range(2)]
    printed = "".join(text for process in both for text in process.communicate(timeout=120))
    assert printed.count("/runs/one") == 1
    assert any(words in printed for words in ("another `sync` is running", "Nothing to upload"))
    lines = (project / "runs/one/tracked.jsonl").read_text().splitlines()
    assert sum('"sent"' in line for line in lines) == 1


def test_a_failed_upload_does_not_block_other_runs(project: Path, service: Wandb) -> None:
    (project / "picture.png").write_bytes(b"")
    text = "run.picture('p', Path('picture.png').resolve())\n"
    track(project, STEPS + text + END, service, WANDB_API_KEY="")
    (project / "picture.png").unlink()
    (project / "runs/one").rename(project / "runs/another")
    events = project / "runs/another/tracked.jsonl"
    events.write_text(events.read_text().replace('"id": "one"', '"id": "another"'))
    track(project, STEPS + END, service, WANDB_API_KEY="")
    printed = sync(project, service, code=1)
    assert "another: upload incomplete" in printed
    assert "1 of 2 uploads incomplete" in printed
    assert history(service.store.run("one")) == record(project)


def test_nan_metrics_are_uploaded_unchanged(project: Path, service: Wandb) -> None:
    track(project, "run.log(1, loss=float('nan'))\n" + END, service, WANDB_API_KEY="")
    sync(project, service)
    assert history(service.store.run("one")) == [{"step": 1, "loss": "NaN"}]
    assert "Nothing to upload" in sync(project, service)


def test_an_incomplete_last_line_is_removed(project: Path, service: Wandb) -> None:
    track(project, STEPS, service, WANDB_API_KEY="")
    for name in ("metrics", "tracked"):
        with (project / f"runs/one/{name}.jsonl").open("a") as file:
            file.write('{"call": "summ')
    track(project, "run.log(50, loss=0.1)\n" + END, service, WANDB_API_KEY="")
    sync(project, service)
    assert [row["step"] for row in history(service.store.run("one"))] == [0, 10, 20, 30, 40, 50]
    assert service.store.run("one").summary["accuracy"] == 0.5


def test_zeroed_lines_after_a_power_failure_are_skipped(project: Path, service: Wandb) -> None:
    """Blocks that had not been written are read as zeros."""
    track(project, STEPS + END, service, WANDB_API_KEY="")
    for name in ("metrics", "tracked"):
        with (project / f"runs/one/{name}.jsonl").open("ab") as file:
            file.write(bytes(100) + b"\n")
    (project / "runs/other").mkdir()
    (project / "runs/other/tracked.jsonl").write_text('\0\0\n{"call": "finish", "exit_code": 0}\n')
    sync(project, service)
    assert [row["step"] for row in history(service.store.run("one"))] == [0, 10, 20, 30, 40]
    assert "Nothing to upload" in sync(project, service)


def test_the_client_prints_no_traceback_on_a_full_disk(project: Path, service: Wandb) -> None:
    """Otherwise each line of the client's log gives a traceback."""
    full = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))\n"
    assert "Traceback" not in track(project, STEPS + full + "run.tracker.finish(0)\n", service)


@pytest.mark.slow
def test_a_full_disk_gives_a_one_line_error_for_the_model(data: Path, tmp_path: Path) -> None:
    folder = projects.make(tmp_path / "project", data)
    (folder / "runs/one/model/model.safetensors/taken").mkdir(parents=True)
    printed = projects.run(folder, "train", "--epochs", "1", "--name", "one", code=1)
    assert "error: SafetensorError: " in printed


def test_the_patch_of_a_run_can_be_applied_by_git(project: Path, service: Wandb) -> None:
    """This includes a file that is not UTF-8."""

    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=me", "-c", "user.email=me@x", *words], cwd=project, check=True)

    notes = project / "notes.txt"
    notes.write_bytes(b"caf\xe9\n\n\n")
    git("init", "-q")
    git("add", "notes.txt")
    git("commit", "-qm", "one")
    notes.write_bytes(b"th\xe9\n\n\n")
    track(project, STEPS + END, service)
    git("checkout", "-q", "notes.txt")
    git("apply", "runs/one/changes.patch")
    assert notes.read_bytes() == b"th\xe9\n\n\n"
    assert service.store.run("one").files["changes.patch"] == (project / "runs/one/changes.patch").read_bytes()


@pytest.mark.parametrize("key", ["", KEY])
def test_sync_completes_a_killed_run(project: Path, service: Wandb, key: str) -> None:
    process = start(project, STEPS + "print('logged', flush=True)\ntime.sleep(60)\n", service, WANDB_API_KEY=key)
    assert process.stdout
    next(line for line in process.stdout if line.startswith("logged"))
    assert not key or "still running" in sync(project, service)
    process.kill()
    process.communicate()
    left_alone(process.pid)
    sync(project, service)
    run = service.store.run("one")
    assert history(run) == record(project)
    assert len(record(project)) == 5
    assert run.state == "failed"
    assert "Nothing to upload" in sync(project, service)


def test_sync_uploads_a_killed_run_whose_pid_is_reused(project: Path, service: Wandb) -> None:
    process = start(project, STEPS + "print('logged', flush=True)\ntime.sleep(60)\n", service, WANDB_API_KEY="")
    assert process.stdout
    next(line for line in process.stdout if line.startswith("logged"))
    record = project / "runs" / "one" / "tracked.jsonl"
    text = record.read_text().replace(f'"pid": {process.pid}', f'"pid": {os.getpid()}')
    process.kill()
    process.communicate()
    record.write_text(text)
    assert "/runs/one" in sync(project, service)


def left_alone(pid: int) -> None:
    """Wait until the client's service has noticed that its program has died."""
    deadline = time.monotonic() + 30
    while services_of(pid):
        assert time.monotonic() < deadline
        os.sched_yield()


def test_a_resumed_run_has_each_row_once(project: Path, service: Wandb) -> None:
    track(project, STEPS + "print(run.finish(75))\n", service)
    assert service.store.run("one").state == "preempted"
    lines = (project / "runs/one/metrics.jsonl").read_bytes().splitlines(keepends=True)
    back = f"run.record.restore({b''.join(lines[:3])!r})\n"  # the checkpoint is older than the last row
    more = "for step in range(3, 8): run.log(10 * step, loss=1 / (step + 1))\n"
    track(project, back + more + END, service)
    run = service.store.run("one")
    assert [row["step"] for row in run.history] == [0, 10, 20, 30, 40, 50, 60, 70]
    assert history(run) == record(project)
    assert run.state == "finished"


@pytest.mark.slow
def test_the_complete_workflow_records_its_lineage(tmp_path: Path, data: Path, service: Wandb) -> None:
    folder = projects.make(tmp_path / "project", data)
    for command in (("train", "--epochs", "1"), ("publish",), ("deploy",)):
        projects.run(folder, *command, **account(tmp_path, service))
    store = service.store
    run = (folder / "runs/latest").read_text()
    made = {artifact.kind: artifact for artifact in store.artifacts.values() if artifact.run}
    [data] = [artifact for artifact in store.artifacts.values() if artifact.kind == "data"]
    assert store.run(run).used == [data.id]
    assert made["model"].run == run
    assert run in made["model"].aliases
    assert store.run(f"publish-{run}").used == [made["model"].id]
    assert made["model-card"].run == f"publish-{run}"
    deployed = store.run(f"deploy-0.1.0-{run}")
    assert deployed.used == [made["model"].id, made["model-card"].id]
    assert made["deployment"].run == deployed.name
    weights = store.blobs[made["model"].files["model/model.safetensors"]]
    assert weights == (folder / "runs" / run / "model" / "model.safetensors").read_bytes()
    tables = [name for name in store.run(run).files if name.startswith("media/table/")]
    assert sorted(name.split("/")[2].split("_")[0] for name in tables) == ["per", "worst"]
    assert (
        store.run(run).summary["test_accuracy"]
        == json.loads((folder / "runs" / run / "result.json").read_text())["test"]["accuracy"]
    )


@pytest.mark.slow
def test_a_stopped_training_is_marked_preempted_and_resumes(tmp_path: Path, data: Path, service: Wandb) -> None:
    folder = projects.make(tmp_path / "project", data)
    process = projects.start(folder, "train", "--epochs", "25", **account(tmp_path, service))
    while not (rows := [path for path in folder.glob("runs/*/metrics.jsonl") if path.stat().st_size > 2000]):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    run = rows[0].parent.name
    assert process.returncode == 75
    assert service.store.run(run).state == "preempted"
    projects.run(folder, "train", "--run", run, **account(tmp_path, service))
    assert service.store.run(run).state == "finished"
    steps = [json.loads(line)["step"] for line in rows[0].read_text().splitlines()]
    assert [row["step"] for row in service.store.run(run).history if "worst_mistakes" not in row] == steps


@pytest.mark.slow
def test_an_interrupt_of_the_wait_for_wandb_keeps_the_model(tmp_path: Path, data: Path, service: Wandb) -> None:
    folder = projects.make(tmp_path / "project", data)
    service.faults.append(Fault("slow", match="file_stream", seconds=300))
    process = projects.start(folder, "train", "--epochs", "1", "--name", "one", **account(tmp_path, service))
    latest, end = folder / "runs/latest", time.monotonic() + 50  # the wait for W&B is longer
    while not latest.exists():
        assert process.poll() is None
        assert time.monotonic() < end
    process.terminate()
    process.communicate(timeout=60)
    assert "Model and card are in" in projects.run(folder, "publish")
    service.faults.clear()
    assert "runs/one" in sync(folder, service)
