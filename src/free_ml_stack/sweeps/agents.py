"""Sweeps at Weights & Biases: created with its client, run by its agents, and their results fetched."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from filelock import FileLock
from packaging.version import Version

from free_ml_stack.console import say
from free_ml_stack.errors import StackError, first_line
from free_ml_stack.storage.atomic import replace
from free_ml_stack.sweeps.command import default_command
from free_ml_stack.sweeps.search_space import Sweep, is_number, lookup, metric_value, nest
from free_ml_stack.tracking.opening import check_key
from free_ml_stack.tracking.sync import LOCK, StoredRun, runs, send_each
from free_ml_stack.tracking.wandb_tracker import LAST, end_service

if TYPE_CHECKING:
    from free_ml_stack.project.settings import Settings

RECORD = "wandb.json"
ACTIVE_STATES = ("running", "pending", "preempting", "preempted")
AGENT_LOG = re.compile(r"wandb: (?!ERROR)|\t|.* - wandb\.wandb_agent - INFO - ")  # log lines of the agent itself
NUMBER = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
PATH = re.compile(r"[^/\s]+/[^/]+/[^/\s]+")  # ENTITY/PROJECT/ID of a sweep
FINAL_STATES = ("FINISHED", "CANCELED", "CANCELLED", "STOPPED")
TIMEOUT_SINCE = Version("0.29")
PATIENCE = 60  # seconds for a trial to write its checkpoint when the sweep is stopped
FIRST_FAILURES = 3  # failed trials at the beginning after which an agent gives up
STARTS, ENDS = "INFO - Agent starting run", "INFO - Cleaning up finished run"  # log lines of an agent
GONE = 60  # seconds, times `patience`, without an answer while no trial runs, before falling back to a local sweep
POLL = 10  # seconds, times `patience`, between two checks


class WandbSweep(NamedTuple):
    """A sweep at W&B: its `entity/project/id` and the URL of its page."""

    path: str
    url: str


def find_or_create(settings: "Settings", plan: Sweep, package: str, folder: Path, wanted: int, cap: int) -> WandbSweep:
    """Return the sweep of this file at W&B: the existing one unless it is finished, otherwise a new one.

    A new sweep has `wanted` trials, else the file's run_cap, else `cap`; 0 means unset.

    Raises ConnectionError if W&B does not create it.
    """
    record = folder / RECORD
    with wandb_client() as wandb:
        path = str(json.loads(record.read_text(encoding="utf-8"))["path"]) if record.exists() else ""
        found = get_sweep(wandb, path) if path else None
        if not found or found.state in FINAL_STATES:
            content = dict(plan.whole)
            content.setdefault("command", list(default_command(plan.program, package)))
            if wanted or cap:
                content["run_cap"] = wanted or cap
            entity = plan.whole.get("entity") or settings.wandb_entity
            entity = entity or wandb.Api(timeout=LAST).default_entity
            project = plan.whole.get("project") or settings.wandb_project or settings.project
            with redirect_stdout(StringIO()):  # suppress the URL, which is printed later
                path = f"{entity}/{project}/{wandb.sweep(content, entity=entity, project=project)}"
            replace(record, json.dumps({"path": path}).encode())
            found = wandb.Api(timeout=LAST).sweep(path)
        elif wanted and found.config.get("run_cap") != wanted:
            say(f"--trials {wanted} ignored: the number of trials of an existing sweep at W&B is fixed.")
        return WandbSweep(path, str(found.url))


def get_sweep(wandb: Any, path: str) -> Any:
    """Return a sweep from W&B's public API; None if there is no such sweep or the key may not see it."""
    try:
        return wandb.Api(timeout=LAST).sweep(path)
    except (ValueError, wandb.Error) as error:
        if "could not find" not in str(error).lower():
            raise
        return None


def read_definition(path: str) -> tuple[WandbSweep, str]:
    """Return a sweep at W&B and its sweep file. Raises StackError if it is not found, and ConnectionError."""
    if not PATH.fullmatch(path):
        raise StackError(f"--join {path}: expected ENTITY/PROJECT/ID of a sweep")
    with wandb_client() as wandb:
        found = get_sweep(wandb, path)
        if not found:
            raise StackError(f"sweep {path} not found at W&B with this key; expected ENTITY/PROJECT/ID")
        text = yaml.safe_dump(_with_numbers(dict(found.config)))
        return WandbSweep(path, str(found.url)), text


def _with_numbers(tree: Any) -> Any:
    """Restore the numbers of a sweep file: the client parses JSON as YAML, in which 1e-05 is a string."""
    if isinstance(tree, dict):
        return {name: _with_numbers(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_with_numbers(value) for value in tree]
    return float(tree) if isinstance(tree, str) and NUMBER.fullmatch(tree) else tree


@contextmanager
def wandb_client() -> Iterator[Any]:
    """Provide W&B's client, silenced; convert its errors to ConnectionError and end its service process."""
    import wandb

    try:
        wandb.setup(wandb.Settings(silent=True))
        yield wandb
    except StackError:
        raise
    except Exception as error:  # the client raises many types besides its own Error
        raise ConnectionError(first_line(error)) from error
    finally:
        end_service()


class Agent:
    """One of W&B's agents, as a subprocess."""

    def __init__(self, settings: "Settings", path: str, folder: Path, mark: str) -> None:
        self.mark = mark
        self.busy = False  # runs a trial
        self.ending = False  # is being terminated
        words = ("agent", "--forward-signals", *agent_timeout(settings, path), path)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "wandb", *words],
            cwd=settings.root,
            env=_environment(settings, folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C is forwarded by this process, once
        )
        Thread(target=self._print_output, daemon=True).start()

    def _print_output(self) -> None:
        """Print its output and that of its trials, with a prefix that distinguishes it from the sweep's own."""
        for line in self.process.stdout or ():
            if STARTS in line or ENDS in line:
                self.busy = STARTS in line
            silent = self.ending and not self.busy  # the client's traceback at termination
            if line.strip() and not silent and not AGENT_LOG.match(line):
                say(self.mark + line.rstrip())

    def end(self) -> None:
        """Wait for the terminated agent, whose trial writes a checkpoint; kill it after PATIENCE seconds."""
        try:
            self.process.wait(PATIENCE + LAST)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def agent_timeout(settings: "Settings", path: str) -> tuple[str, ...]:
    """Return the options that limit an agent's wait for its trial.

    Agents before 0.29 are killed by `Agent.end` instead, and write a file to `wandb/` here, whatever WANDB_DIR is.
    """
    if Version(version("wandb")) >= TIMEOUT_SINCE:
        return "--term-timeout", str(PATIENCE)
    (settings.root / "wandb" / f"sweep-{path.rpartition('/')[2]}").mkdir(parents=True, exist_ok=True)
    return ()


def _environment(settings: "Settings", folder: Path) -> dict[str, str]:
    """Return the environment of an agent and its trials."""
    kept = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    own = str(Path(sys.executable).parent)  # so that `python` is this interpreter
    return kept | {
        "PATH": os.pathsep.join((own, os.environ.get("PATH", ""))),
        "PYTHONUNBUFFERED": "1",
        "WANDB_DIR": str(folder),
        "STACK_STORAGE": settings.storage,  # also if it was set by a flag
        "WANDB_AGENT_DISABLE_FLAPPING": "true",  # otherwise three early failures end the agent silently
        "WANDB_AGENT_MAX_INITIAL_FAILURES": str(FIRST_FAILURES),
    }


def run_agents(settings: "Settings", path: str, folder: Path, count: int) -> list[int]:
    """Run `count` of W&B's agents until the sweep is finished; return their exit codes. Interrupts stop the trials.

    Raises ConnectionError if W&B is unreachable while no trial runs; its agents would retry forever.
    """
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    agents: list[Agent] = []
    try:
        for number in range(count):
            agents.append(Agent(settings, path, folder, f"[{number + 1}] "))
        _wait_for_agents(settings, agents)
        return [agent.process.wait() for agent in agents]
    finally:
        _stop([agent for agent in agents if agent.process.poll() is None])
        signal.signal(signal.SIGTERM, before)


def _stop(agents: Sequence[Agent]) -> None:
    """Terminate agents and their trials, which save a checkpoint; ignore a second Ctrl-C, which would orphan them."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    if any(agent.busy for agent in agents):
        say("Stopping: waiting up to a minute for the trials to write their checkpoints.")
    for agent in agents:
        agent.ending = True
        agent.process.terminate()
    for agent in agents:
        agent.end()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _wait_for_agents(settings: "Settings", agents: Sequence[Agent]) -> None:
    """Wait until all agents have ended. Raises ConnectionError if W&B does not answer while no trial runs."""
    idle = answered = time.monotonic()
    gone = GONE * settings.patience
    warned = False
    for agent in agents:
        while True:
            try:
                agent.process.wait(POLL * settings.patience)
                break
            except subprocess.TimeoutExpired:
                now = time.monotonic()
                if any(one.busy and one.process.poll() is None for one in agents):
                    idle = answered = now
                elif check_key(settings).usable:
                    answered = now
                    if now - idle > gone and not warned:
                        say("Waiting for W&B to assign a trial; the sweep may be paused. Press Ctrl-C to stop.")
                        warned = True
                elif now - answered > gone:
                    raise ConnectionError("no longer reachable") from None


def upload_unsent(settings: "Settings", place: WandbSweep) -> None:
    """Upload the trials that are complete only on this machine. Raises ConnectionError if W&B still fails."""
    with FileLock(settings.runs / LOCK):
        unsent = [trial for trial in _local_runs(settings, place.path) if not (trial.sent or trial.running)]
        for name, seen in send_each(settings, unsent):
            say(f"{name}: {seen}")


def _local_runs(settings: "Settings", path: str) -> list[StoredRun]:
    """Return the trials of a sweep that were run on this machine."""
    return [run for run in runs(settings.runs) if run.opened["sweep"] == path.rpartition("/")[2]]


def local_trials(
    settings: "Settings", plan: Sweep, folder: Path
) -> Iterator[tuple[str, dict[str, Any], list[float], float]]:
    """Yield the successful trials of W&B's agents on this machine, for a sweep that continues without W&B.

    Of each the run, the configuration, all values of the metric and the final one, from its own record.
    """
    record = folder / RECORD
    if not record.exists():
        return
    for trial in _local_runs(settings, str(json.loads(record.read_text(encoding="utf-8"))["path"])):
        value = metric_value(trial.summary, plan.metric)
        if not trial.exit_code and is_number(value):
            seen = [metric_value(row, plan.metric) for row in trial.rows]
            config = _config(plan, trial.opened["config"])
            yield trial.folder.name, config, [one for one in seen if is_number(one)], float(value)


def _config(plan: Sweep, whole: Any) -> dict[str, Any]:
    """Return the part of a run's configuration that the sweep chose."""
    return nest({one.path: lookup(whole, one.path) for one in plan.parameters})


def fetch_trials(path: str, plan: Sweep) -> tuple[str, list[dict[str, Any]]]:
    """Return the state of a sweep and its ended trials. Raises ConnectionError."""
    with wandb_client() as wandb:
        found = get_sweep(wandb, path)
        if not found:
            raise ConnectionError(f"sweep {path} was deleted")
        ordered = sorted(found.runs, key=lambda run: str(run.created_at))
        ended = [run for run in ordered if run.state not in ACTIVE_STATES]
        return str(found.state), [table_row(number, run, plan) for number, run in enumerate(ended)]


def table_row(number: int, run: Any, plan: Sweep) -> dict[str, Any]:
    """Return a run of a sweep as an entry of the table."""
    value = metric_value(run.summary, plan.metric)
    good = run.state == "finished" and is_number(value)
    error = "" if good else f"{run.state} at W&B" + ("" if run.state != "finished" else f", without {plan.metric}")
    return {
        "trial": number,
        "state": "finished" if good else "failed",
        "value": float(value) if good else None,
        "config": _config(plan, run.config),
        "error": error,
        "run": run.id,
    }


def run_at_wandb(
    settings: "Settings", plan: Sweep, place: WandbSweep, folder: Path, agents: int
) -> list[dict[str, Any]]:
    """Run agents on a sweep at W&B and return its trials. Raises ConnectionError if W&B becomes unreachable."""
    say(
        f"Sweep: {place.url}",
        f"To add agents on another machine with this project: `{settings.command} sweep --join {place.path}`",
    )
    codes = run_agents(settings, place.path, folder, agents)
    upload_unsent(settings, place)
    last, trials = fetch_trials(place.path, plan)
    if not trials and any(codes):
        raise ConnectionError("the agents exited before the first trial finished")
    if last not in FINAL_STATES:
        say(f"The agents exited before the sweep finished; run `{settings.command} sweep` to continue.")
    return trials
