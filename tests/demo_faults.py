"""The demo, one step at a time, with a service that fails at a given call, and the conditions that must hold afterwards.

Each step starts from the state after successful earlier steps, so that a failure affects one step and its repair only.
"""

import copy
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

from services.hub_faults import Fault, Faulty
from services.online import SLUG, Online, online, serve
from services.relay import Relay

STEPS: dict[str, tuple[str, ...]] = {
    "doctor": (),
    "data": (),
    "train": ("--epochs", "1"),
    "sweep": ("--agents", "1"),
    "publish": (),
    "deploy": (),
    "predict": (),
    "monitor": (),
}
MADE = {  # the local results of a step
    "train": ("runs/2*/result.json", "runs/2*/model/model.safetensors"),
    "sweep": ("runs/sweep-*/best.json", "runs/sweep-*/sweep.png"),
    "publish": ("models/2*/manifest.json", "models/2*/README.md", "models/2*/model.onnx"),
    "monitor": ("runs/monitor-*/monitor.json",),
}
NAMES = {"hub": r"\bHub\b|Hugging Face", "algorithmia": r"Algorithmia|127\.0\.0\.1:\d+"}
REMEDY = r"`digits-online |run the same command again|rerun the command|run it again|try again later|new one at "
SENT = re.compile(r"`digits-online sync` (later )?to upload")
SENDS = re.compile(rf"{SENT.pattern}|run `digits-online publish` to resume|Run `digits-online data`")
CALLS = 270  # of a demo, up to the deployed model
ONCE: tuple[int | str, ...] = (500, "reset", 403, 429, "slow")
FOREVER: tuple[int | str, ...] = (500, "reset", 401)
PATIENCE = 240  # maximum seconds of a step with any fault
HASTE = {  # limits of the clients, so that an unreachable service does not take minutes
    "WANDB_INIT_TIMEOUT": "5",
    "WANDB_FINISH_TIMEOUT": "5",
    "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2",
}
UNSERVED = "otel"  # telemetry, which the loopback W&B rejects


@dataclass(frozen=True)
class Case:
    """A failure of the `number`-th request of a step to a service, or of that and all later ones."""

    service: str
    step: str
    number: int
    operation: str
    kind: int | str
    dies: bool

    def __str__(self) -> str:
        how = f"{self.kind}, and all after it" if self.dies else str(self.kind)
        return f"{self.service} {self.step} {self.number} ({self.operation}): {how}"


class World:
    """The services, the project, and the states of both before each step of a successful demo."""

    def __init__(self, folder: Path, services: Online, relay: Relay, gateway: ExitStack) -> None:
        self.folder, self.services, self.relay, self.gateway = folder, services, relay, gateway
        self.calls: dict[tuple[str, str], list[str]] = {}
        self.kept: dict[str, Any] = {}
        self.stored: dict[str, set[str]] = {}
        self.faulty: dict[str, Faulty] = {
            "wandb": services.wandb.faulty,
            "hub": services.hub.app,
            "algorithmia": relay,
        }

    def record(self) -> None:
        """Run the demo once; record the requests of each step and the state before it."""
        for step in STEPS:
            self._keep(step)
            code, printed = self.run(step)
            assert not code, printed
            for service, faulty in self.faulty.items():
                self.calls[service, step] = list(faulty.calls)
            assert wrong_at_services(self, step) == []
            self.stored[step] = set(self.in_store())

    def cases(self, each: bool = True) -> Iterator[Case]:
        """Failures of each request, or of the first request of each operation of a step."""
        seen = set()
        for (service, step), calls in self.calls.items():
            for number, call in enumerate(calls, 1):
                name = operation(call)
                if UNSERVED in call or (not each and (service, step, name) in seen):
                    continue
                seen.add((service, step, name))
                dies = number % 2 == 0
                kinds = FOREVER if dies else ONCE
                yield Case(service, step, number, name, kinds[number // 2 % len(kinds)], dies)

    def run(self, step: str, *arguments: str) -> tuple[int, str]:
        """Run a command, with requests counted from its start; return its exit code and output."""
        for faulty in self.faulty.values():
            faulty.calls.clear()
        process = self.services.start(step, *(arguments or STEPS.get(step, ())))
        try:
            printed, _ = process.communicate(timeout=PATIENCE)
        except TimeoutExpired:
            process.kill()
            return -1, process.communicate()[0] + "\ntimeout"
        return process.returncode, printed

    def suffer(self, case: Case) -> list[str]:
        """Run a case; return the violated conditions with the output, or nothing."""
        self._restore(case.step)
        at = range(case.number, 10**9) if case.dies else (case.number,)
        self.faulty[case.service].faults[:] = [Fault(case.kind, at, seconds=3)]
        code, printed = self.run(case.step)
        self.faulty[case.service].faults.clear()
        wrong = [*wrong_in(self, case, code, printed)]
        lacking = wrong_at_services(self, case.step)
        if not code and lacking and not SENT.search(printed):
            wrong.append(f"missing results not reported: {lacking}")
        wrong += self._repair(*([case.step] if code else []), *(["sync"] if code or lacking else []))
        wrong += [f"after the repair: {lack}" for lack in wrong_at_services(self, case.step)]
        if lost := self.stored[case.step] ^ set(self.in_store()):
            wrong.append(f"the store differs in {sorted(lost)}")
        return [*wrong, printed] if wrong else []

    def demo(self, case: Case) -> list[str]:
        """The same with the demo as one command, which always succeeds and reports missing uploads."""
        self._restore("doctor")
        before = sum(len(self.calls[case.service, step]) for step in [*STEPS][: [*STEPS].index(case.step)])
        first = before + case.number
        at = range(first, 10**9) if case.dies else (first,)
        self.faulty[case.service].faults[:] = [Fault(case.kind, at, seconds=3)]
        code, printed = self.run("demo")
        self.faulty[case.service].faults.clear()
        wrong = [*wrong_in(self, case, code and 1, printed)]
        if code or not (self.services.project / "report.html").exists():
            wrong.append(f"ends with {code}")
        else:
            found = json.loads((self.services.project / "runs" / "demo.json").read_text())
            wrong += [] if found["test"]["accuracy"] > 0.95 and found["calls"] >= CALLS else [f"found {found}"]
        if (lacking := self._lacking()) and not SENDS.search(printed):
            wrong.append(f"missing results not reported: {lacking}")
        wrong += self._repair("data", "publish", "deploy", "sync") if lacking else []
        wrong += [f"after the repair: {lack}" for lack in self._lacking()]
        return [*wrong, printed] if wrong else []

    def _lacking(self) -> list[str]:
        """The results of a complete demo that the services lack."""
        lost = self.stored["monitor"] - set(self.in_store())
        return wrong_at_services(self, "monitor") + [f"the store has no {name}" for name in sorted(lost)]

    def _repair(self, *commands: str) -> Iterator[str]:
        """Run the commands that repair the state once the service works again; yield problems."""
        for command in commands:
            code, printed = self.run(command)
            if code or "Traceback" in printed:
                yield f"`{command}` ends with {code}, and nothing fails any more:\n{printed}"

    def done(self, step: str) -> bool:
        """Whether all local results of a step exist."""
        return all(list((self.services.project).glob(name)) for name in MADE.get(step, ()))

    def in_store(self) -> list[str]:
        """Return the files in Algorithmia's store, those of a deployment by version, with random names normalized.

        Logs, checkpoints and files without a version are omitted: failed attempts leave such files.
        """
        root = self.store()
        found = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
        names = [name for name in found if name.startswith(("data/", "models/"))]
        for index in root.glob("deployments/*/index.json"):
            for build in json.loads(index.read_text())["builds"]:
                inside = [name for name in found if name.startswith(f"{build['folder']}/")]
                names += [name.replace(build["folder"], build["version"]) for name in inside]
        return [re.sub(r"\d{8}-\d{6}-[0-9a-f]{4}", "RUN", name) for name in names]

    def store(self) -> Path:
        """The folder with Algorithmia's data."""
        return next((self.folder / "elsewhere" / SLUG / ".stack" / "data").glob("*/*"), self.folder / "none")

    def _keep(self, step: str) -> None:
        for sweep in self.services.wandb.store.sweeps.values():
            sweep.points = iter(())  # all points are assigned; a generator cannot be copied
        state = (self.services.hub.repos, self.services.wandb.store)
        self.kept[step] = copy.deepcopy(state)
        shutil.copytree(self.folder, self._beside(step), symlinks=True)

    def _restore(self, step: str) -> None:
        self.gateway.close()
        shutil.rmtree(self.folder)
        shutil.copytree(self._beside(step), self.folder, symlinks=True)
        self.services.hub.repos, self.services.wandb.store = copy.deepcopy(self.kept[step])
        self._serve()

    def _serve(self) -> None:
        """Restart the Algorithmia installation."""
        kept = ("ALGORITHMIA", "WANDB", "HF_", "PYTHONPATH")
        own = {name: value for name, value in self.services.environment.items() if not name.startswith(kept)}
        self.relay.target = self.gateway.enter_context(serve(self.folder / "elsewhere" / SLUG, own))

    def _beside(self, step: str) -> Path:
        return self.folder.with_name(f"before-{step}")


@contextmanager
def recorded(folder: Path) -> Iterator[World]:
    """The services after a successful demo with few and short trials."""
    relay = Relay()
    with online(folder / "now", relay) as services, ExitStack() as gateway:
        file = services.project / "sweep.yaml"
        text = file.read_text().replace("run_cap: 8", "run_cap: 1").replace("value: 10", "value: 2")
        file.write_text(text)
        services.environment |= HASTE
        world = World(folder / "now", services, relay, gateway)
        world.record()
        yield world


def operation(call: str) -> str:
    """The operation of a request, without names of resources."""
    method, path = call.split()
    path = re.sub(r"me/digits-online(/[^/]+)?(?=/|$)", "*", path)
    parts = [part for part in path.strip("/").split("/") if not re.search(r"[0-9a-f]{16}|\d{4}", part)]
    kept = {"v1": 2 if len(parts) > 1 and parts[1] in ("data", "algo") else 9, "storage": 2}
    return f"{method} /{'/'.join(parts[: kept.get(parts[0] if parts else '', 9)])}"


def wrong_in(world: World, case: Case, code: int, printed: str) -> Iterator[str]:
    """Problems with the end of a step."""
    if "Traceback" in printed:
        yield "a traceback"
    if code == -1:
        yield "it hangs"
    errors = [line for line in printed.splitlines() if line.startswith("error:")]
    if code and len(errors) != 1:
        yield f"exit code {code} with {len(errors)} error lines"
    named = "\n".join(line for line in printed.splitlines() if "error:" in line)  # the run of a trial has a mark
    if errors and not re.search(NAMES.get(case.service, "W&B"), named):
        yield f"no line names the service: {named}"
    if errors and not re.search(REMEDY, printed):
        yield "no line with the next step"
    if code and case.service == "wandb":
        yield f"W&B's failure ends the step with {code}"
    if not world.done(case.step) and not (code and case.service == "algorithmia"):  # the data set exists
        yield f"not made here: {MADE[case.step]}"


def wrong_at_services(world: World, step: str) -> list[str]:
    """Results of a step and all earlier ones that exist locally but not at the services."""
    return [
        *missing_at_wandb(world.services),
        *(missing_at_hub(world.services) if passed(step, "publish") else ()),
        *(missing_in_store(world) if passed(step, "publish") else ()),
    ]


def passed(step: str, other: str) -> bool:
    """Whether a step is the same as another or a later one."""
    return [*STEPS].index(step) >= [*STEPS].index(other)


def missing_at_wandb(services: Online) -> Iterator[str]:
    """Local runs that are incomplete at W&B: rows, end and artifacts."""
    store = services.wandb.store
    here = {one.name: one for one in store.runs.values()}
    committed = {
        (one.collection, alias) for one in store.artifacts.values() for alias in one.aliases if one.state == "COMMITTED"
    }
    for path in sorted((services.project / "runs").glob("*/tracked.jsonl")):
        events = [json.loads(line) for line in path.read_text().splitlines()]
        name = next(line["id"] for line in events if line["call"] == "open")
        rows = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
        if name not in here:
            yield f"W&B has no run {name}"
            continue
        run = here[name]
        ends = [line["exit_code"] for line in events if line["call"] == "finish"]
        if run.state != ("finished" if ends and not ends[-1] else "failed"):
            yield f"run {name} is {run.state} at W&B"
        sent = {row["step"]: row["loss"] for row in run.history if "loss" in row}
        if sent != {row["step"]: row["loss"] for row in rows if "loss" in row}:
            yield f"run {name} has {len(run.history)} rows at W&B, {len(rows)} here"
        for line in events:
            if line["call"] == "made" and (line["name"], line["alias"]) not in committed:
                yield f"W&B has no {line['name']}:{line['alias']}"
            if line["call"] in ("summary",) and not line["values"].keys() <= run.summary.keys():
                yield f"run {name} lacks numbers in its summary at W&B"


def missing_at_hub(services: Online) -> Iterator[str]:
    """The files of the model folder that the Hub lacks in one version."""
    try:
        shown = services.hub.files("model", "me/digits-online")
    except (KeyError, AssertionError):
        yield "the Hub has no model"
        return
    if {name: data for name, data in shown.items() if name != ".gitattributes"} != model(services.project):
        yield "the Hub shows another model"
    if len(services.hub.repo("model", "me/digits-online").tags) < 1:
        yield "the Hub has no version"


def missing_in_store(world: World) -> Iterator[str]:
    """The files of the model folder that Algorithmia's store lacks."""
    root = world.store()
    if model(root) != model(world.services.project):
        yield "the store has another model"


def model(root: Path) -> dict[str, bytes]:
    """The files of the latest model in a project or in its store."""
    folder = max(root.glob("models/*"), default=root / "none")
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
