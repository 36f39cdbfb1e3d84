"""The search space of a sweep: parameters with their distributions, and early stopping.

Source: https://docs.wandb.ai/guides/sweeps/sweep-config-keys and the schema in W&B's `sweeps`.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Parameter:
    """A parameter: its path in the configuration, its distribution, and the distribution's arguments."""

    path: tuple[str, ...]
    distribution: str
    numbers: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Return the path as dotted text."""
        return ".".join(self.path)

    def size(self) -> float:
        """Return the number of its values in a grid; infinity on overflow."""
        numbers = self.numbers
        if self.distribution == "int_uniform":
            return float(numbers["max"] - numbers["min"] + 1)
        if self.distribution == "q_uniform":
            count = float((numbers["max"] - numbers["min"]) / numbers["q"])
            return math.ceil(count) if math.isfinite(count) else count
        return 1 if self.distribution == "constant" else len(numbers["values"])

    def choices(self) -> Iterable[Any]:
        """Return its values in a grid."""
        numbers = self.numbers
        if self.distribution == "constant":
            return [numbers["value"]]
        if self.distribution == "int_uniform":
            return range(numbers["min"], numbers["max"] + 1)
        if self.distribution == "q_uniform":
            return [numbers["min"] + step * numbers["q"] for step in range(int(self.size()))]
        return list(numbers["values"])

    def suggest(self, trial: "optuna.Trial") -> Any:
        """Sample a value for a trial of Optuna."""
        numbers, kind = self.numbers, self.distribution
        if kind == "constant":
            return numbers["value"]
        if kind == "categorical":  # by index, because Optuna does not accept lists or dicts as choices
            return numbers["values"][trial.suggest_categorical(self.name, list(range(len(numbers["values"]))))]
        if kind == "int_uniform":
            return trial.suggest_int(self.name, numbers["min"], numbers["max"])
        low, high, transform = _scale(kind, numbers)
        value = transform(trial.suggest_float(self.name, low, high))
        return _quantized(value, numbers["q"]) if kind.startswith("q_") else value


@dataclass(frozen=True)
class Hyperband:
    """Hyperband early stopping: at each of `bands` (numbers of metric values), only the best 1/eta continue."""

    bands: tuple[int, ...]
    eta: float
    strict: bool

    def stops(self, history: list[float], others: list[list[float]]) -> bool:
        """Return whether a trial stops, given its values (lower is better) and those of all trials, itself included."""
        passed = [band for band in self.bands if band <= len(history)]
        if not passed:
            return False
        band = passed[-1]
        values = sorted(other[band - 1] for other in others if len(other) >= band)
        own = history[band - 1] if self.strict else min(history)
        return own > values[min(int(len(values) / self.eta), len(values) - 1)]


@dataclass(frozen=True)
class Sweep:
    """The content of a sweep.yaml."""

    method: str
    metric: str
    goal: str
    parameters: tuple[Parameter, ...]
    early: Hyperband | None = None
    run_cap: int | None = None
    target: float | None = None
    command: tuple[str, ...] = ()
    program: str = ""
    whole: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def grid(self) -> Iterator[dict[str, Any]]:
        """Yield all configurations of a grid, in a fixed order."""
        for values in itertools.product(*(parameter.choices() for parameter in self.parameters)):
            yield nest(dict(zip([p.path for p in self.parameters], values, strict=True)))

    def suggest(self, trial: "optuna.Trial") -> dict[str, Any]:
        """Sample the configuration of a trial."""
        return nest({parameter.path: parameter.suggest(trial) for parameter in self.parameters})


def nest(flat: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Build a nested configuration from values by path."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        branch = tree
        for name in path[:-1]:
            branch = branch.setdefault(name, {})
        branch[path[-1]] = value
    return tree


def lookup(table: Any, path: Iterable[str]) -> Any:
    """Return the value at a path of nested dicts, or None."""
    for name in path:
        try:
            table = table[name]
        except (KeyError, TypeError, IndexError):
            return None
    return table


def metric_value(table: Mapping[str, Any], metric: str) -> Any:
    """Return the metric from logged values, by its name or, if nested, by its dotted path; None if missing."""
    return table[metric] if metric in table else lookup(table, metric.split("."))


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number; W&B ignores other values of a metric."""
    return isinstance(value, int | float) and math.isfinite(value)


def _scale(kind: str, numbers: Mapping[str, Any]) -> tuple[float, float, Callable[[float], Any]]:
    """Return the interval to sample from, and the function that maps it to the parameter's values."""
    kind = kind.removeprefix("q_")
    if kind == "uniform":
        return numbers["min"], numbers["max"], float
    if kind == "log_uniform":
        return numbers["min"], numbers["max"], math.exp
    if kind == "inv_log_uniform":
        return -numbers["max"], -numbers["min"], math.exp
    if kind in ("log_uniform_values", "inv_log_uniform_values"):
        return math.log(numbers["min"]), math.log(numbers["max"]), math.exp
    if kind == "categorical_w_probabilities":
        ends = list(itertools.accumulate(numbers["probabilities"]))
        return 0.0, 1.0, lambda u: numbers["values"][next((i for i, end in enumerate(ends) if u < end), -1)]
    if kind == "beta":
        from scipy.stats import beta

        return 0.0, 1.0, lambda u: float(beta.ppf(u, numbers["a"], numbers["b"]))
    normal = NormalDist(numbers["mu"], numbers["sigma"] or 1e-300)
    tail = 1e-9  # cuts off the infinite tails of the normal distribution
    if kind == "log_normal":
        return tail, 1 - tail, lambda u: math.exp(normal.inv_cdf(u))
    return tail, 1 - tail, normal.inv_cdf


def _quantized(value: float, q: float) -> float:
    result = round(value / q) * q
    return int(result) if isinstance(q, int) else result
