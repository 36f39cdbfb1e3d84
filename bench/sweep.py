"""Overhead of a sweep, compared with W&B's agent and Optuna, and with killed workers.

    python bench/sweep.py [--quick] [--kills 1000]

The training only logs its metric, so that the sweep is measured. W&B's agent runs an equally short program with the
real client and a loopback service; its 100 trials are extrapolated from a few, as each takes seconds.
"""

import argparse
import itertools
import json
import math
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "build" / "src")]
SPACE = """
  a: {min: 0.0, max: 1.0}
  b: {distribution: log_uniform_values, min: 0.001, max: 1.0}
  c: {values: [1, 2, 3]}
  d: {min: 1, max: 9}
  e: {distribution: normal}
  f: {min: -1.0, max: 1.0}
"""
SWEEP = "method: bayes\nmetric: {name: loss}\nrun_cap: CAP\nparameters:" + SPACE
CONFIG = """
from dataclasses import dataclass
from .stack.flags import flag

@dataclass(frozen=True)
class TrainConfig:
    a: float = flag(0.0, "a")
    b: float = flag(0.0, "b")
    c: int = flag(0, "c")
    d: int = flag(0, "d")
    e: float = flag(0.0, "e")
    f: float = flag(0.0, "f")
    device: str = flag("cpu", "where")
    threads: int = flag(1, "threads")
    batch_size: int = flag(1, "rows")
    checkpoint_seconds: float = flag(1e9, "seconds")
    checkpoint_steps: int = flag(0, "steps")
"""
TRAIN = """
import os, time
import torch

def fit(config, splits, run, checkpoints, process):
    time.sleep(float(os.environ.get("BENCH_SECONDS", 0)))
    run.log(1, loss=config.a)
    return torch.nn.Linear(1, 1)

def predict(net, split):
    return torch.zeros(split.rows, 10)
"""
PROGRAM = "import wandb\nrun = wandb.init()\nrun.log({'loss': run.config['a']})\nrun.finish()\n"
FUNCTIONS: dict[str, tuple[int, float, float, Callable[[list[float]], float]]] = {
    "sphere": (2, -5.0, 5.0, lambda x: sum(v * v for v in x)),
    "rosenbrock": (
        2, -2.0, 2.0,
        lambda x: sum(100 * (b - a * a) ** 2 + (1 - a) ** 2 for a, b in itertools.pairwise(x)),
    ),
    "rastrigin": (2, -5.12, 5.12, lambda x: sum(v * v - 10 * math.cos(2 * math.pi * v) + 10 for v in x)),
    "styblinski-tang": (2, -5.0, 5.0, lambda x: sum(v**4 - 16 * v * v + 5 * v for v in x) / 2 + 78.33234),
    "ackley": (
        5, -5.0, 5.0,
        lambda x: 20 + math.e - 20 * math.exp(-0.2 * math.sqrt(sum(v * v for v in x) / len(x)))
        - math.exp(sum(math.cos(2 * math.pi * v) for v in x) / len(x)),
    ),
}  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--kills", type=int, default=1000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as scratch:
        folder = Path(scratch)
        package(folder)
        few, many = (10, 30) if args.quick else (10, 110)
        short, long = (sweep_seconds(folder / f"cap-{cap}", cap) for cap in (few, many))
        each = (long - short) / (many - few)
        ours, theirs = (
            short + (100 - few) * each,
            100 * agent_seconds(folder / "agent", 2 if args.quick else 5),
        )
        print(f"{'100 no-op trials':26}{ours:7.1f} s   W&B's agent {theirs:.0f} s: 1/{theirs / ours:.0f}, target 1/5")
        print(f"{'overhead of a trial':26}{1000 * each:7.0f} ms  target 50")
        suggestion = suggestion_seconds(folder / "suggest")
        print(f"{'suggestion at 200 trials':26}{1000 * suggestion:7.1f} ms  target 15")
        quality(3 if args.quick else 10)
        kill(folder / "kills", 30 if args.quick else args.kills)


def package(folder: Path) -> None:
    """Create a package `noop` with the project's structure and an empty training."""
    import places  # noqa: F401 - links the skeleton

    source, target = (ROOT / "build" / "src" / "skeleton").resolve(), folder / "noop"
    target.mkdir()
    for name in ("__init__.py", "__main__.py", "data.py", "model.py", "predict.py"):
        shutil.copy(source / name, target)
    (target / "stack").symlink_to(source / "stack", target_is_directory=True)
    (target / "config.py").write_text(CONFIG)
    (target / "train.py").write_text(TRAIN)


def environment(folder: Path, **extra: str) -> dict[str, str]:
    """Return the environment of a user without credentials."""
    import projects

    return projects.environment(folder, **extra) | {"PYTHONPATH": str(folder.parent)}


def project(folder: Path, cap: int) -> Path:
    """Create a project with data and a sweep file."""
    folder.mkdir()
    (folder / "stack.toml").write_text('project = "noop"\n')
    (folder / "sweep.yaml").write_text(SWEEP.replace("CAP", str(cap)))
    command = [sys.executable, "-m", "noop", "data"]
    subprocess.run(command, cwd=folder, env=environment(folder), check=True, capture_output=True)
    return folder


def start(folder: Path, agents: int, **extra: str) -> "subprocess.Popen[str]":
    """Start the sweep of a project."""
    command = [sys.executable, "-m", "noop", "sweep", "--agents", str(agents)]
    env = environment(folder, **extra)
    return subprocess.Popen(command, cwd=folder, env=env, stdout=-1, stderr=-2, text=True)


def sweep_seconds(folder: Path, cap: int) -> float:
    """Return the wall time of `sweep` with one worker."""
    project(folder, cap)
    started = time.perf_counter()
    process = start(folder, 1)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    return time.perf_counter() - started


def agent_seconds(folder: Path, count: int) -> float:
    """Return the wall time of a trial of `wandb agent`."""
    import wandb
    import yaml
    from tracking_service import account, wandb_service

    folder.mkdir()
    (folder / "program.py").write_text(PROGRAM)
    content = {
        **yaml.safe_load(SWEEP.replace("CAP", str(count))),
        "method": "random",
        "program": "program.py",
    }
    content["parameters"] = {name: content["parameters"][name] for name in "acdf"}  # supported by the service
    with wandb_service() as service:
        name = service.store.sweep(json.dumps(content), "me", "p").name
        command = [sys.executable, "-m", "wandb", "agent", f"me/p/{name}"]
        env = environment(folder, **account(folder, service))
        env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
        started = time.perf_counter()
        subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)
        took = time.perf_counter() - started
        assert len(service.store.runs) == count
        assert all(run.state == "finished" for run in service.store.runs.values())
    assert wandb.__version__
    return took / count


def suggestion_seconds(folder: Path, trials: int = 200) -> float:
    """Return the time of a suggestion after 200 trials: requested, sampled, and written to the journal."""
    from free_ml_stack.sweeps.shared import open_storage
    from free_ml_stack.sweeps.sweep_file import parse_sweep
    from free_ml_stack.sweeps.trials import Trials, open_study

    plan = parse_sweep(SWEEP.replace("CAP", "1000"), "sweep.yaml")
    known = Trials(plan, open_study(plan, open_storage(str(folder), folder, "s"), "s"))
    took = []
    for number in range(trials + 20):
        started = time.perf_counter()
        job = known.next(1000)
        took.append(time.perf_counter() - started)
        assert job
        known.end(job.trial, job.config["a"] + number % 7, stopped=False)
    return statistics.mean(took[trials:])


def quality(seeds: int) -> None:
    """Print the best of 50 trials on standard functions, and that of Optuna's default."""
    import optuna

    from free_ml_stack.sweeps.sweep_file import parse_sweep
    from free_ml_stack.sweeps.trials import sampler_of

    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def best(study: "optuna.Study", name: str) -> float:
        size, low, high, value = FUNCTIONS[name]

        def objective(trial: "optuna.Trial") -> float:
            return value([trial.suggest_float(f"x{place}", low, high) for place in range(size)])

        study.optimize(objective, n_trials=50)
        return study.best_value

    plan = parse_sweep(SWEEP.replace("CAP", "50"), "sweep.yaml")
    for name in FUNCTIONS:
        ours, theirs = [], []
        for seed in range(seeds):
            samplers = sampler_of(plan, "tpe", seed), optuna.samplers.TPESampler(seed=seed)
            mine, other = (best(optuna.create_study(sampler=sampler), name) for sampler in samplers)
            ours.append(mine)
            theirs.append(other)
        mine, other = statistics.median(ours), statistics.median(theirs)
        print(f"best of 50, {name:16}{mine:9.3f}  Optuna's default {other:.3f} (medians of {seeds})")


def kill(folder: Path, kills: int) -> None:
    """Kill workers, and sometimes the sweep; every trial must exist once, and none may be left running."""
    import projects

    from free_ml_stack.sweeps.shared import open_storage
    from free_ml_stack.sweeps.trials import RUNNING

    chance, done, sweeps, finished, begun = random.Random(kills), 0, 0, 0, time.perf_counter()
    while done < kills:
        cap = min(200, 2 * kills)
        place = project(folder if not sweeps else folder.with_name(f"kills-{sweeps}"), cap)
        sweeps += 1
        process = start(place, 2, BENCH_SECONDS="0.05")
        while process.poll() is None or process.returncode < 0:
            if process.poll() is not None:
                process.communicate()
                process = start(place, 2, BENCH_SECONDS="0.05")
            time.sleep(chance.uniform(0.02, 0.2))
            if crew := projects.workers(process.pid):
                victim = process.pid if chance.random() < 0.02 else chance.choice(crew)
                try:
                    os.kill(victim, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                done += 1
        printed, _ = process.communicate()
        assert process.returncode == 0, printed
        runs = next(place.glob("runs/sweep-*"))
        study = open_storage("", runs, runs.name)
        trials = study.get_all_trials(study.get_all_studies()[0]._study_id)
        table = json.loads((runs / "trials.json").read_text())
        good = [trial for trial in table if trial["state"] == "finished"]
        assert len(table) == cap, (len(table), cap)
        assert len({json.dumps(trial["config"]) for trial in table}) == cap
        assert all(trial["value"] == trial["config"]["a"] for trial in good)
        assert not [trial for trial in trials if trial.state == RUNNING]
        finished += len(good)
    took = time.perf_counter() - begun
    print(f"{done} kills over {sweeps} sweeps in {took:.0f} s: {finished} trials finished, each counted once; "
          f"{sweeps * cap - finished} failed after 3 kills; none lost, none left running")  # fmt: skip


if __name__ == "__main__":
    main()
