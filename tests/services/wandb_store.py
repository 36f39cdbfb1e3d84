"""The storage of the loopback W&B server: runs, sweeps with their agents, and artifacts."""

import itertools
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

CREATED = "2026-01-01T00:00:00Z"


def read(text: str) -> Any:
    """Parse the client's JSON, in which NaN is allowed; NaN becomes a string."""
    return json.loads(text, parse_constant=str)


@dataclass
class Run:
    """A run with its files by name and the lines of its streams."""

    name: str
    entity: str
    project: str
    facts: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    streams: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)
    state: str = "running"
    started: bool = False
    preempting: bool = False
    stopped: bool = False
    exit_code: int | None = None

    @property
    def id(self) -> str:
        """The server's id of the run."""
        return f"run:{self.entity}/{self.project}/{self.name}"

    @property
    def history(self) -> list[dict[str, Any]]:
        """The logged rows in order."""
        return [read(line) for line in self.streams.get("wandb-history.jsonl", [])]

    @property
    def values(self) -> dict[str, Any]:
        """The user's configuration."""
        return {key: entry["value"] for key, entry in self.config.items() if key != "_wandb"}

    def stream(self, body: dict[str, Any]) -> None:
        """Process a request of the file stream: lines at offsets, and the state of the run."""
        for name, chunk in (body.get("files") or {}).items():
            lines = self.streams.setdefault(name, [])
            offset = chunk.get("offset", 0)
            lines[offset : offset + len(chunk["content"])] = chunk["content"]
            if name == "wandb-summary.json":
                self.summary = read(chunk["content"][-1])
        self.preempting |= bool(body.get("preempting"))
        if body.get("complete"):
            self.exit_code = body.get("exitcode", 0)
            ended = "preempted" if self.preempting else "failed"
            self.state = ended if self.exit_code else "finished"


@dataclass
class Sweep:
    """A sweep and the runs assigned to its agents."""

    name: str
    entity: str
    project: str
    config: dict[str, Any]
    state: str = "RUNNING"
    runs: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)  # preempted, to be assigned again
    points: Iterator[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        cap = self.config.get("run_cap")
        found = grid(self.config["parameters"]) if self.config["method"] == "grid" else draws(self.config)
        self.points = itertools.islice(found, cap) if cap else found


def grid(parameters: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every point of a grid; nested parameters are nested values."""
    choices = [
        list(grid(spec["parameters"])) if "parameters" in spec else choices_of(spec) for spec in parameters.values()
    ]
    for point in itertools.product(*choices):
        yield dict(zip(parameters, point, strict=True))


def choices_of(spec: dict[str, Any]) -> list[Any]:
    """Return all values of a parameter of a grid (sweeps: grid_search.py)."""
    if "min" not in spec:
        return list(spec.get("values", [spec.get("value")]))
    if "q" not in spec:
        return list(range(spec["min"], spec["max"] + 1))
    return [spec["min"] + step * spec["q"] for step in range(math.ceil((spec["max"] - spec["min"]) / spec["q"]))]


def draws(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield random points, also for bayes, whose model only the real server has."""
    chance = random.Random(0)
    while True:
        yield drawn(config["parameters"], chance)


def drawn(parameters: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """Return a random point."""
    point: dict[str, Any] = {}
    for name, spec in parameters.items():
        if "parameters" in spec:
            point[name] = drawn(spec["parameters"], chance)
        else:
            point[name] = drawn_value(spec, chance)
    return point


def drawn_value(spec: dict[str, Any], chance: random.Random) -> Any:
    """Return a random value of a parameter (sweeps: params.py, and its schema for the defaults)."""
    if "value" in spec:
        return spec["value"]
    if "values" in spec:
        return chance.choices(spec["values"], spec.get("probabilities"))[0]
    whole = all(isinstance(spec.get(end), int) for end in ("min", "max"))
    kind = spec.get("distribution") or ("int_uniform" if whole else "uniform")
    if kind == "int_uniform":
        return chance.randint(spec["min"], spec["max"])
    plain = kind.removeprefix("q_").removeprefix("inv_")
    if plain == "beta":
        value = chance.betavariate(spec.get("a", 1), spec.get("b", 1))
    elif plain == "normal":
        value = chance.gauss(spec.get("mu", 0), spec.get("sigma", 1))
    elif plain == "log_normal":
        value = chance.lognormvariate(spec.get("mu", 0), spec.get("sigma", 1))
    elif plain == "uniform":
        value = chance.uniform(spec["min"], spec["max"])
    else:
        ends = [spec["min"], spec["max"]]
        low, high = map(math.log, ends) if plain.endswith("_values") else ends
        sign = -1 if kind == "inv_log_uniform" else 1
        value = math.exp(sign * chance.uniform(low, high))
    q = spec.get("q", 1.0)
    return round(value / q) * q if kind.startswith("q_") else value


@dataclass
class Artifact:
    """A version of an artifact, with the locations of its files."""

    id: str
    collection: str
    kind: str
    entity: str
    project: str
    digest: str
    run: str
    metadata: str | None = None
    description: str | None = None
    aliases: set[str] = field(default_factory=set)
    state: str = "PENDING"
    index: int | None = None
    manifest: str = ""
    files: dict[str, str] = field(default_factory=dict)


@dataclass
class Store:
    """All received data."""

    runs: dict[tuple[str, str, str], Run] = field(default_factory=dict)
    sweeps: dict[str, Sweep] = field(default_factory=dict)
    agents: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)

    def run(self, name: str) -> Run:
        """Return the run of this name. Raises KeyError if there is none."""
        return {run.name: run for run in self.runs.values()}[name]

    def sweep(self, config: str, entity: str, project: str) -> Sweep:
        """Create a sweep from its YAML."""
        name = f"sweep{len(self.sweeps)}"
        self.sweeps[name] = Sweep(name, entity, project, yaml.safe_load(config))
        return self.sweeps[name]

    def next_command(self, sweep: Sweep) -> dict[str, Any]:
        """Return the command for an idle agent: a preempted run, the next point, or exit."""
        if sweep.state != "RUNNING":
            return {"type": "exit"}
        if sweep.waiting:
            run = self.runs[sweep.entity, sweep.project, sweep.waiting.pop(0)]
            return {"type": "resume", "run_id": run.name, "args": run.config, **program(sweep)}
        point = next(sweep.points, None)
        if point is None:
            sweep.state = "FINISHED"
            return {"type": "exit"}
        name = f"{sweep.name}-run{len(sweep.runs)}"
        args = {key: {"value": value} for key, value in point.items()}
        run = Run(name, sweep.entity, sweep.project, {"sweep": sweep.name}, args)
        self.runs[sweep.entity, sweep.project, name] = run
        sweep.runs.append(name)
        return {"type": "run", "run_id": name, "args": args, **program(sweep)}

    def ended(self, run: Run) -> None:
        """Queue a preempted run of a sweep again (W&B: guides/runs/resuming, "preemptible sweeps")."""
        sweep = self.sweeps.get(run.facts.get("sweep") or "")
        if sweep and run.state == "preempted":
            sweep.waiting.append(run.name)
            run.preempting = False

    def versions(self, entity: str, project: str, collection: str) -> list[Artifact]:
        """Return the committed versions of an artifact, oldest first."""
        return [
            one
            for one in self.artifacts.values()
            if (one.entity, one.project, one.collection) == (entity, project, collection) and one.state == "COMMITTED"
        ]

    def commit(self, id: str) -> Artifact:
        """Commit a version; its aliases are removed from other versions."""
        artifact = self.artifacts[id]
        if artifact.state == "PENDING":
            others = self.versions(artifact.entity, artifact.project, artifact.collection)
            artifact.state, artifact.index = "COMMITTED", len(others)
            artifact.aliases |= {"latest"}
            for other in others:
                other.aliases -= artifact.aliases
        return artifact

    def version(self, entity: str, project: str, name: str) -> Artifact | None:
        """Return the version of `collection:alias` or `collection:v3`."""
        collection, _, alias = name.partition(":")
        found = self.versions(entity, project, collection)
        return next((one for one in found if alias in (*one.aliases, f"v{one.index}", one.digest)), None)


def program(sweep: Sweep) -> dict[str, Any]:
    """Return the fields of the program in a command."""
    return {"program": sweep.config.get("program", ""), "logs": []}
