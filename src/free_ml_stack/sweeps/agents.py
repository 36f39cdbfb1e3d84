"""A sweep at Weights & Biases: made through its own client, run by its own agents, and what they found fetched back."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from filelock import FileLock

from free_ml_stack.console import say
from free_ml_stack.errors import StackError, first_line
from free_ml_stack.storage.atomic import replace
from free_ml_stack.sweeps.command import default
from free_ml_stack.sweeps.search_space import Sweep, is_number, looked_up, measured, nested
from free_ml_stack.tracking.opening import answers
from free_ml_stack.tracking.sync import LOCK, Kept, runs, send_each
from free_ml_stack.tracking.wandb_tracker import LAST, end_service

if TYPE_CHECKING:
    from free_ml_stack.project.settings import Settings

RECORD = "wandb.json"
UNDER_WAY = ("running", "pending", "preempting", "preempted")
NOISE = re.compile(r"wandb: (?!ERROR)|\t|.* - wandb\.wandb_agent - INFO - ")  # of an agent, about itself
NUMBER = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
PATH = re.compile(r"[^/\s]+/[^/]+/[^/\s]+")  # of a sweep
OVER = ("FINISHED", "CANCELED", "CANCELLED", "STOPPED")
PATIENCE = 60  # seconds that a trial gets to write its checkpoint when the sweep is stopped
FIRST_FAILURES = 3  # trials that may all fail in the beginning before an agent gives up
STARTS, ENDS = "INFO - Agent starting run", "INFO - Cleaning up finished run"  # what an agent says of a trial
GONE = 60  # seconds, times `patience`, without an answer while no trial runs, after which W&B is given up
LOOK = 10  # seconds, times `patience`, between two looks


class Place(NamedTuple):
    """A sweep at W&B: its `entity/project/id`, and its page."""

    path: str
    url: str


def make(settings: "Settings", plan: Sweep, package: str, folder: Path, wanted: int, cap: int) -> Place:
    """The sweep of this file at W&B: as it was made before, unless it is over; else a new one.

    That has as many trials as are `wanted`, else as the file says, else `cap`; 0 is no number.

    Raises ConnectionError where W&B does not make it.
    """
    record = folder / RECORD
    with asking_wandb() as wandb:
        path = str(json.loads(record.read_text(encoding="utf-8"))["path"]) if record.exists() else ""
        found = at_wandb(wandb, path) if path else None
        if not found or found.state in OVER:
            content = dict(plan.whole)
            content.setdefault("command", list(default(plan.program, package)))
            if wanted or cap:
                content["run_cap"] = wanted or cap
            entity = plan.whole.get("entity") or settings.wandb_entity
            entity = entity or wandb.Api(timeout=LAST).default_entity
            project = plan.whole.get("project") or settings.wandb_project or settings.project
            with redirect_stdout(StringIO()):  # it would name the address, which is told in a moment
                path = f"{entity}/{project}/{wandb.sweep(content, entity=entity, project=project)}"
            replace(record, json.dumps({"path": path}).encode())
            found = wandb.Api(timeout=LAST).sweep(path)
        elif wanted and found.config.get("run_cap") != wanted:
            say(f"--trials {wanted}: the sweep at W&B goes on with the number that it was made with.")
        return Place(path, str(found.url))


def at_wandb(wandb: Any, path: str) -> Any:
    """A sweep, as W&B's public interface gives it; None where there is none that the key may see."""
    try:
        return wandb.Api(timeout=LAST).sweep(path)
    except (ValueError, wandb.Error) as error:
        if "could not find" not in str(error).lower():
            raise
        return None


def definition(path: str) -> tuple[Place, str]:
    """A sweep at W&B, and its sweep file. Raises StackError where there is none, ConnectionError."""
    if not PATH.fullmatch(path):
        raise StackError(f"--join {path}: name the sweep as ENTITY/PROJECT/ID")
    with asking_wandb() as wandb:
        found = at_wandb(wandb, path)
        if not found:
            raise StackError(f"W&B has no sweep {path} that this key may see; name it as ENTITY/PROJECT/ID")
        text = yaml.safe_dump(_with_numbers(dict(found.config)))
        return Place(path, str(found.url)), text


def _with_numbers(tree: Any) -> Any:
    """A sweep file as it was meant: the client reads JSON as YAML, to which 1e-05 is text."""
    if isinstance(tree, dict):
        return {name: _with_numbers(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_with_numbers(value) for value in tree]
    return float(tree) if isinstance(tree, str) and NUMBER.fullmatch(tree) else tree


@contextmanager
def asking_wandb() -> Iterator[Any]:
    """W&B's client, silent; what goes wrong there is a ConnectionError, and its service process is ended."""
    import wandb

    try:
        wandb.setup(wandb.Settings(silent=True))
        yield wandb
    except StackError:
        raise
    except Exception as error:  # of many kinds, few of them its own Error
        raise ConnectionError(first_line(error)) from error
    finally:
        end_service()


class Agent:
    """One of W&B's agents, in a process of its own."""

    def __init__(self, settings: "Settings", path: str, folder: Path, mark: str) -> None:
        self.mark = mark
        self.busy = False  # with a trial
        self.ending = False  # as it was told to
        words = ("agent", "--forward-signals", "--term-timeout", str(PATIENCE), path)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "wandb", *words],
            cwd=settings.root,
            env=_environment(settings, folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C is ours to hand on, once
        )
        Thread(target=self._show, daemon=True).start()

    def _show(self) -> None:
        """Print what it and its trials print, marked, lest a trial's error be taken for the sweep's."""
        for line in self.process.stdout or ():
            if STARTS in line or ENDS in line:
                self.busy = STARTS in line
            silent = self.ending and not self.busy  # how its client takes the end is nothing to who sweeps
            if line.strip() and not silent and not NOISE.match(line):
                say(self.mark + line.rstrip())

    def end(self) -> None:
        """Wait for its trial to write a checkpoint, having told it to."""
        try:
            self.process.wait(PATIENCE + LAST)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _environment(settings: "Settings", folder: Path) -> dict[str, str]:
    """What an agent and its trials find in their environment."""
    kept = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    own = str(Path(sys.executable).parent)  # its `python`
    return kept | {
        "PATH": os.pathsep.join((own, os.environ.get("PATH", ""))),
        "PYTHONUNBUFFERED": "1",
        "WANDB_DIR": str(folder),
        "STACK_STORAGE": settings.storage,  # whatever it was set by
        "WANDB_AGENT_DISABLE_FLAPPING": "true",  # else three early failures would end it without a word
        "WANDB_AGENT_MAX_INITIAL_FAILURES": str(FIRST_FAILURES),
    }


def run_agents(settings: "Settings", path: str, folder: Path, count: int) -> list[int]:
    """Run `count` of W&B's agents until the sweep is over; returns their exit codes. Stopped, it stops the trials.

    Raises ConnectionError where W&B is gone while none has a trial: its agents would wait for it without end.
    """
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    agents: list[Agent] = []
    try:
        for number in range(count):
            agents.append(Agent(settings, path, folder, f"[{number + 1}] "))
        _attend(settings, agents)
        return [agent.process.wait() for agent in agents]
    finally:
        _stop([agent for agent in agents if agent.process.poll() is None])
        signal.signal(signal.SIGTERM, before)


def _stop(agents: Sequence[Agent]) -> None:
    """End agents with their trials, which write a checkpoint; a second Ctrl-C, which would leave both, is not heard."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    heard = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    if any(agent.busy for agent in agents):
        say("Stopping: each trial writes its checkpoint first, which may take a minute.")
    for agent in agents:
        agent.ending = True
        agent.process.terminate()
    for agent in agents:
        agent.end()
    for number, handler in heard.items():
        signal.signal(number, handler)


def _attend(settings: "Settings", agents: Sequence[Agent]) -> None:
    """Return when all agents have ended. Raises ConnectionError if W&B does not answer while none has a trial."""
    idle = answered = time.monotonic()
    gone = GONE * settings.patience
    told = False
    for agent in agents:
        while True:
            try:
                agent.process.wait(LOOK * settings.patience)
                break
            except subprocess.TimeoutExpired:
                now = time.monotonic()
                if any(one.busy and one.process.poll() is None for one in agents):
                    idle = answered = now
                elif answers(settings):
                    answered = now
                    if now - idle > gone and not told:
                        say("W&B gives the agents no trial; the sweep may be paused. Ctrl-C ends the wait.")
                        told = True
                elif now - answered > gone:
                    raise ConnectionError("does not answer any more") from None


def send_rest(settings: "Settings", place: Place) -> None:
    """Send the trials that are whole here alone, for W&B failed on the way. Raises ConnectionError if it still does."""
    with FileLock(settings.runs / LOCK):
        unsent = [trial for trial in _kept(settings, place.path) if not (trial.sent or trial.running)]
        for name, seen in send_each(settings, unsent):
            say(f"{name}: {seen}")


def _kept(settings: "Settings", path: str) -> list[Kept]:
    """The trials of a sweep that were run on this machine."""
    return [run for run in runs(settings.runs) if run.opened["sweep"] == path.rpartition("/")[2]]


class Tried(NamedTuple):
    """A trial that has ended well under an agent on this machine, as its own record tells."""

    run: str
    config: dict[str, Any]
    history: list[float]  # all values of the metric
    value: float  # that counts


def tried(settings: "Settings", plan: Sweep, folder: Path) -> Iterator[Tried]:
    """The trials with which a sweep goes on that W&B's agents have begun."""
    record = folder / RECORD
    if not record.exists():
        return
    for trial in _kept(settings, str(json.loads(record.read_text(encoding="utf-8"))["path"])):
        value = measured(trial.summary, plan.metric)
        if not trial.exit_code and is_number(value):
            seen = [measured(row, plan.metric) for row in trial.rows]
            config = _config(plan, trial.opened["config"])
            yield Tried(trial.folder.name, config, [one for one in seen if is_number(one)], float(value))


def _config(plan: Sweep, whole: Any) -> dict[str, Any]:
    """What a sweep chose of a run's configuration."""
    return nested({one.path: looked_up(whole, one.path) for one in plan.parameters})


def results(path: str, plan: Sweep) -> tuple[str, list[dict[str, Any]]]:
    """The state of a sweep, and its trials that have ended. Raises ConnectionError."""
    with asking_wandb() as wandb:
        found = at_wandb(wandb, path)
        if not found:
            raise ConnectionError(f"the sweep {path} is there no more")
        ordered = sorted(found.runs, key=lambda run: str(run.created_at))
        ended = [run for run in ordered if run.state not in UNDER_WAY]
        return str(found.state), [entry(number, run, plan) for number, run in enumerate(ended)]


def entry(number: int, run: Any, plan: Sweep) -> dict[str, Any]:
    """A run of a sweep, for the table."""
    value = measured(run.summary, plan.metric)
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


def sweep_at_wandb(settings: "Settings", plan: Sweep, place: Place, folder: Path, agents: int) -> list[dict[str, Any]]:
    """Run agents on a sweep at W&B, and return its trials. Raises ConnectionError where W&B is lost on the way."""
    say(
        f"Sweep: {place.url}",
        f"Another agent, on any machine with this project: `{settings.command} sweep --join {place.path}`",
    )
    codes = run_agents(settings, place.path, folder, agents)
    send_rest(settings, place)
    last, trials = results(place.path, plan)
    if not trials and any(codes):
        raise ConnectionError("the agents ended before a trial did")
    if last not in OVER:
        say(f"The agents have ended, the sweep has not: `{settings.command} sweep` goes on with it.")
    return trials
