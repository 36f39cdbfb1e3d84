"""Batch files for Slurm, and jobs on a real cluster on this machine."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import projects
import pytest
from services import slurm
from waiting import until

TRAIN = ("--", "train", "--epochs", "12", "--checkpoint-steps", "10", "--name")
ACTIVE = ("PENDING", "RUNNING", "COMPLETING", "REQUEUED")
STEPS = 12 * 19
SWEEP = """
method: grid
metric: {name: validation_loss}
parameters: {epochs: {value: 1}, seed: {values: [0, 1, 2, 3]}}
"""


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A new project without data."""
    (tmp_path / "stack.toml").write_text('project = "skeleton"\nstorage = "algorithmia://.my/skeleton"\n')
    return tmp_path


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ((), "expected `-- train …` or `-- sweep --study URL …`"),
        (("--", "publish"), "expected `-- train …` or `-- sweep --study URL …`"),
        (("--", "train", "--lr", "fast"), "lr: expected float, got 'fast'"),
        (("train", "--epoch", "3"), "unrecognized arguments: --epoch 3"),
        (("--", "train", "--name", ""), "run '': expected A-Z, a-z, 0-9, -, _ and . only"),
        (("--", "train", "--name", "../a"), "run '../a': expected A-Z, a-z, 0-9, -, _ and . only"),
        (("--", "train", "--config", "no.json"), "no.json: no such file"),
        (("--time", "4 hours", "--", "train"), "--time: expected minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS"),
        (("--partition", "a b", "--", "train"), "--partition: expected a name, got 'a b'"),
        (("--", "sweep"), "expected `sweep --study URL` or `sweep --join ID`"),
        (("--", "sweep", "--study", "postgresql://a:b@h/d"), "the URL holds a password"),
        (("--", "sweep", "--study", "postgresql://h/d?user=a&password=b"), "omit it and set PGPASSWORD"),
        (("--", "sweep", "--study", "postgresql://h/d"), "--file: expected a path of a file from the project's folder"),
    ],
)
def test_invalid_jobs_give_one_line_errors(empty: Path, words: tuple[str, ...], error: str) -> None:
    printed = projects.run(empty, "launch", "slurm", *words, code=1)
    assert printed.startswith("error: ") and printed.count("\n") == 1
    assert error in printed
    assert not (empty / "runs").exists()


def test_a_percent_sign_in_the_path_of_the_log_is_no_pattern(tmp_path: Path, empty: Path) -> None:
    folder = tmp_path / "100%j"
    folder.mkdir()
    (empty / "stack.toml").rename(folder / "stack.toml")
    projects.run(folder, "launch", "slurm", "--", "train", "--name", "one")
    assert f"#SBATCH --output={tmp_path}/100%%j/runs/one.log\n" in (folder / "runs/one.sbatch").read_text()


def test_the_file_holds_every_setting_and_is_valid_bash(empty: Path) -> None:
    (empty / "best.json").write_text('{"lr": 0.01}')
    words = (
        "--nodes",
        "3",
        "--gpus",
        "8",
        "--time",
        "1-12",
        "--partition",
        "a,b",
        "--",
        "train",
        "--config",
        "best.json",
    )
    printed = projects.run(empty, "launch", "--set", "title=It's", "slurm", *words, "--epochs=7")
    [path] = empty.glob("runs/*.sbatch")
    assert printed.strip() == f"Next: `sbatch runs/{path.name}`"
    text = path.read_text()
    for line in ("nodes=3", "gpus-per-node=8", "time=1-12", "partition=a,b", "requeue", f"chdir={empty}"):
        assert f"#SBATCH --{line}\n" in text
    assert f"-m skeleton train --name {path.stem} --lr=0.01 --epochs=7 &\n" in text
    assert "--nproc-per-node 8" in text
    done = subprocess.run(["bash", "-c", f"set -n; . {path}; true"], capture_output=True, text=True)
    assert not done.stderr
    export = next(line for line in text.splitlines() if line.startswith("export STACK_TITLE="))
    assert subprocess.check_output(["bash", "-c", f"{export}; echo $STACK_TITLE"], text=True).strip() == "It's"


@pytest.fixture(scope="module")
def cluster() -> Iterator[slurm.Cluster]:
    """A cluster as Slurm is by default: without RequeueExit, and a preemption signals the steps of a job only."""
    with slurm.cluster() as running:
        yield running


def submit(cluster: slurm.Cluster, project: Path, name: str, *options: str) -> str:
    printed = projects.run(project, "launch", "slurm", *options, *TRAIN, name)
    assert printed.strip() == f"Next: `sbatch runs/{name}.sbatch`"
    return cluster.submit(project / "runs" / f"{name}.sbatch", **projects.environment(project))


def finish(cluster: slurm.Cluster, project: Path, number: str, name: str) -> bytes:
    """The weights of a run, once its job has ended well."""
    until(lambda: cluster.state(number) not in ACTIVE, 240)
    log = (project / "runs" / f"{name}.log").read_text()
    assert cluster.state(number) == "COMPLETED", log
    assert f"{STEPS} steps in" in log
    return (project / "runs" / name / "model" / "model.safetensors").read_bytes()


def progress(project: Path, name: str) -> str:
    """The latest checkpoint of a run."""
    return max((path.name for path in project.glob(f"runs/{name}/checkpoints/step-*[0-9]")), default="")


@pytest.mark.engines
def test_a_job_preempted_three_times_and_stopped_once_ends_with_the_same_bytes(
    data: Path, cluster: slurm.Cluster, tmp_path: Path
) -> None:
    project = projects.make(tmp_path / "project", data)
    preemptor = tmp_path / "preemptor.sh"
    preemptor.write_text("#!/bin/bash\n#SBATCH -p high -N 2 --exclusive -o /dev/null\ntrue\n")
    number = submit(cluster, project, "preempted", "--nodes", "2")
    for restarts in range(4):
        seen = progress(project, "preempted")

        def under_way(restarts: int = restarts, seen: str = seen) -> bool:
            job = cluster.job(number)
            assert job["JobState"] in ACTIVE, (project / "runs/preempted.log").read_text()
            return int(job["Restarts"]) == restarts and progress(project, "preempted") > seen

        until(under_way)
        if restarts == 3:  # as --signal=B:TERM does before the time limit: the script only
            cluster.run("scancel", "--batch", "--signal=TERM", number)
        else:
            high = cluster.submit(preemptor)
            until(lambda high=high: cluster.state(high) == "COMPLETED")
    weights = finish(cluster, project, number, "preempted")
    assert (project / "runs/preempted.log").read_text().count("Resuming after step") == 4
    undisturbed = submit(cluster, project, "undisturbed", "--nodes", "2")
    assert finish(cluster, project, undisturbed, "undisturbed") == weights


@pytest.mark.engines
def test_a_cancelled_job_is_not_requeued(data: Path, cluster: slurm.Cluster, tmp_path: Path) -> None:
    project = projects.make(tmp_path / "project", data)
    number = submit(cluster, project, "cancelled")
    until(lambda: progress(project, "cancelled"))
    cluster.run("scancel", number)
    until(lambda: cluster.job(number)["JobState"] not in ("RUNNING", "COMPLETING"))
    until(
        lambda: (
            not cluster.run("squeue", "--noheader", "--states=all", "--jobs", number, "-o", "%T").startswith("COMPL")
        )
    )
    log = (project / "runs/cancelled.log").read_text()
    assert "stopped after step" in log and "requeueing" not in log
    assert cluster.state(number) == "CANCELLED"


@pytest.mark.engines
def test_two_nodes_share_a_sweep_and_an_error_ends_the_job(data: Path, cluster: slurm.Cluster, tmp_path: Path) -> None:
    project = projects.make(tmp_path / "project", data)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "stack.toml").write_text((project / "stack.toml").read_text())
    logs = []
    for folder in (bare, project):
        (folder / "sweep.yaml").write_text(SWEEP)
        words = ("launch", "slurm", "--nodes", "2", "--", "sweep", "--study", "shared", "--agents", "1")
        script = folder / projects.run(folder, *words).split("`")[1].removeprefix("sbatch ")
        number = cluster.submit(script, **projects.environment(folder))
        until(lambda number=number: cluster.state(number) not in ACTIVE)
        logs.append((cluster.job(number)["ExitCode"], script.with_suffix(".log").read_text()))
    assert logs[0][0] == "1:0" and "no data set in the store; run `skeleton data`" in logs[0][1]
    assert "requeueing" not in logs[0][1]
    assert logs[1][0] == "0:0", logs[1][1]
    table = json.loads(next(project.glob("runs/sweep-*/trials.json")).read_text())
    assert sorted(trial["config"]["seed"] for trial in table) == list(range(4))
