"""Distributed training: the same curve as one process, one writer, and recovery from killed processes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import forking
import projects
import pytest
import torch
from killing import Blow, Training

from free_ml_stack.training.process import PORT, Process

NAME = "one"
# At the default learning rate, some processors' rounding errors grow from 1e-7 to 1e-3 in the second epoch.
SMALL_STEPS = ("--lr", "0.002", "--dropout", "0")
CURVE = ("--epochs", "4", "--log-every", "1", *SMALL_STEPS, "--checkpoint-steps", "7", "--name", NAME)
TRAIN = ("train", *CURVE)
WHOLE_RUN = 4 * 19  # steps


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a run trained by one process."""
    folder = projects.make(tmp_path_factory.mktemp("alone"))
    assert Training(folder, *TRAIN).end() == 0
    return folder


@pytest.fixture(scope="module")
def pair(alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a run trained by two processes."""
    folder = new(alone, tmp_path_factory.mktemp("pair") / "project")
    assert [training.end() for training in together(folder, *TRAIN)] == [0, 0]
    return folder


@pytest.fixture
def project(alone: Path, tmp_path: Path) -> Path:
    return new(alone, tmp_path / "project")


def new(alone: Path, folder: Path) -> Path:
    projects.make(folder, alone)
    shutil.rmtree(next((folder / ".stack" / "data").glob("*/*/checkpoints")))
    return folder


def together(folder: Path, *arguments: str, size: int = 2, blows: Mapping[int, Blow] | None = None) -> list[Training]:
    """Processes of one run, started with the environment variables that torchrun sets.

    Those in `blows`, by rank, are killed.
    """
    blows = blows or {}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free.getsockname()[1]),
            "WORLD_SIZE": str(size),
        }
    return [
        Training(folder, *arguments, blow=blows.get(rank), **place, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank in range(size)
    ]


def curve(folder: Path) -> list[dict[str, float]]:
    """The metrics record of a run; the test fails with the run's output if there is none."""
    assert (folder / "runs" / NAME / "result.json").exists(), (folder / "printed.txt").read_text()
    return [json.loads(line) for line in (folder / "runs" / NAME / "metrics.jsonl").read_text().splitlines()]


def same(one: Path, other: Path) -> bool:
    """Whether two runs have the same curve, within 1e-5 at every step."""
    pairs = list(zip(curve(one), curve(other), strict=True))
    return all(a.keys() == b.keys() and all(abs(a[key] - b[key]) < 1e-5 for key in a) for a, b in pairs)


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("rows", [1, 64, 181])
def test_each_row_belongs_to_one_process(size: int, rows: int) -> None:
    shares = [Process(torch.device("cpu"), rank, size).mine(torch.arange(rows)) for rank in range(size)]
    assert sorted(torch.cat(shares).tolist()) == list(range(rows))


def test_two_processes_give_the_curve_of_one(alone: Path, pair: Path) -> None:
    assert same(alone, pair)
    assert [line["step"] for line in curve(pair) if "loss" in line] == list(range(1, WHOLE_RUN + 1))


def test_only_the_first_process_writes_and_reports(pair: Path) -> None:
    printed = (pair / "printed.txt").read_text()
    assert printed.count(f"Run {NAME}: 2 processes on cpu.") == 1
    assert printed.count("Test accuracy") == 1
    assert [path.name for path in (pair / "runs").iterdir() if path.is_dir()] == [NAME]
    result = json.loads((pair / "runs" / NAME / "result.json").read_text())
    assert result["processes"] == 2


@pytest.mark.slow
def test_a_run_resumes_with_another_number_of_processes(alone: Path, project: Path) -> None:
    for size, ends in ((2, [-signal.SIGKILL, 1]), (1, [-signal.SIGKILL])):
        trainings = together(project, *TRAIN, size=size, blows={0: Blow("checkpoint", nth=4)})
        assert [training.end() for training in trainings] == ends
    assert [training.end() for training in together(project, *TRAIN)] == [0, 0]
    assert (project / "printed.txt").read_text().count("Resuming after step") == 2
    assert same(alone, project)


@pytest.mark.slow
def test_all_processes_stop_at_the_same_step(pair: Path, project: Path) -> None:
    one = {1: Blow("step", nth=30, number=signal.SIGTERM)}
    trainings = together(project, *TRAIN, blows=one)
    assert [training.end() for training in trainings] == [75, 75]
    assert trainings[0].printed().count("train --run one") == 1
    assert [training.end() for training in together(project, *TRAIN)] == [0, 0]
    assert (project / "runs" / NAME / "model" / "model.safetensors").read_bytes() == (
        pair / "runs" / NAME / "model" / "model.safetensors"
    ).read_bytes()


def test_a_batch_size_must_be_a_multiple_of_the_processes(project: Path) -> None:
    trainings = together(project, "train", "--batch-size", "63")
    assert [training.end() for training in trainings] == [1, 1]
    assert "batch_size: expected a multiple of the 2 processes, got 63" in trainings[0].printed()


def test_a_missing_device_is_reported_in_one_line(project: Path) -> None:
    device = "mps" if torch.cuda.is_available() else "cuda"  # no machine has both
    printed = projects.run(project, "train", "--device", device, "--name", "other", code=1)
    assert f"error: device {device} is not available on this machine; use --device cpu or auto\n" in printed


@pytest.mark.slow
def test_addresses_of_killed_processes_are_not_used(pair: Path, project: Path) -> None:
    """torchrun's store survives a restart, so a process that starts early finds the address of a killed one."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with socket.create_server(("127.0.0.1", 0)) as dead:
        store.set(PORT, str(dead.getsockname()[1]))
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2"}
    place |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "1"}
    early = Training(project, *TRAIN, **place, RANK="1", LOCAL_RANK="1")
    with pytest.raises(subprocess.TimeoutExpired):  # it starts long before the other, and keeps trying
        early.process.wait(5)
    first = Training(project, *TRAIN, **place, RANK="0", LOCAL_RANK="0")
    assert [first.end(), early.end()] == [0, 0], first.printed()
    assert same(pair, project)


@pytest.mark.slow
def test_the_death_of_another_process_is_reported_in_one_line(project: Path) -> None:
    trainings = together(project, *TRAIN, blows={1: Blow("step", nth=30)})
    assert [training.end() for training in trainings] == [1, -signal.SIGKILL]
    printed = trainings[0].printed()
    assert "another process of this run died; start all of them again" in printed
    assert "Traceback" not in printed


@pytest.mark.slow
def test_torchrun_restarts_a_killed_process_with_the_same_weights(pair: Path, project: Path) -> None:
    command = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1")
    words = ("-m", *command, "-m", "skeleton", "train", *CURVE[:-2])  # the run has no --name
    process = forking.start(words, project, projects.environment(project))
    wait_until(lambda: any(project.glob("runs/*/checkpoints/step-*")))
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(forking.server().launched(int(workers[-1])), signal.SIGKILL)
    printed, complaint = process.communicate(timeout=120)
    assert process.returncode == 0, complaint
    assert "Resuming after step" in printed
    [result] = project.glob("runs/*/result.json")
    assert (result.parent / "model" / "model.safetensors").read_bytes() == (
        pair / "runs" / NAME / "model" / "model.safetensors"
    ).read_bytes()
