"""What a sweep searches: its parameters with their distributions, and when its trials stop early.

Source of names and meanings: https://docs.wandb.ai/guides/sweeps/sweep-config-keys and the schema in W&B's `sweeps`.
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
    """One parameter: its place in the configuration, its distribution, and that distribution's numbers."""

    path: tuple[str, ...]
    distribution: str
    numbers: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The place as text."""
        return ".".join(self.path)

    def size(self) -> float:
        """How many values a grid takes it through; infinity where no number is large enough."""
        numbers = self.numbers
        if self.distribution == "int_uniform":
            return float(numbers["max"] - numbers["min"] + 1)
        if self.distribution == "q_uniform":
            count = float((numbers["max"] - numbers["min"]) / numbers["q"])
            return math.ceil(count) if math.isfinite(count) else count
        return 1 if self.distribution == "constant" else len(numbers["values"])

    def choices(self) -> Iterable[Any]:
        """All values that a grid takes it through."""
        numbers = self.numbers
        if self.distribution == "constant":
            return [numbers["value"]]
        if self.distribution == "int_uniform":
            return range(numbers["min"], numbers["max"] + 1)
        if self.distribution == "q_uniform":
            return [numbers["min"] + step * numbers["q"] for step in range(int(self.size()))]
        return list(numbers["values"])

    def suggest(self, trial: "optuna.Trial") -> Any:
        """The value that a trial of Optuna's takes."""
        numbers, kind = self.numbers, self.distribution
        if kind == "constant":
            return numbers["value"]
        if kind == "categorical":  # by index: Optuna takes no lists or tables as choices
            return numbers["values"][trial.suggest_categorical(self.name, list(range(len(numbers["values"]))))]
        if kind == "int_uniform":
            return trial.suggest_int(self.name, numbers["min"], numbers["max"])
        low, high, transform = _scale(kind, numbers)
        value = transform(trial.suggest_float(self.name, low, high))
        return _quantized(value, numbers["q"]) if kind.startswith("q_") else value


@dataclass(frozen=True)
class Hyperband:
    """When trials stop early: at `bands` (counts of values of the metric), unless in the best 1/eta."""

    bands: tuple[int, ...]
    eta: float
    strict: bool

    def stops(self, history: list[float], others: list[list[float]]) -> bool:
        """Whether a trial with these values so far (lower is better) stops; `others` are all trials', it included."""
        passed = [band for band in self.bands if band <= len(history)]
        if not passed:
            return False
        band = passed[-1]
        values = sorted(other[band - 1] for other in others if len(other) >= band)
        own = history[band - 1] if self.strict else min(history)
        return own > values[min(int(len(values) / self.eta), len(values) - 1)]


@dataclass(frozen=True)
class Sweep:
    """What a sweep.yaml asks for."""

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
        """All configurations of a grid, in a fixed order."""
        for values in itertools.product(*(parameter.choices() for parameter in self.parameters)):
            yield nested(dict(zip([p.path for p in self.parameters], values, strict=True)))

    def suggest(self, trial: "optuna.Trial") -> dict[str, Any]:
        """The configuration of a trial."""
        return nested({parameter.path: parameter.suggest(trial) for parameter in self.parameters})


def nested(flat: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """A configuration from values by their places."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        branch = tree
        for name in path[:-1]:
            branch = branch.setdefault(name, {})
        branch[path[-1]] = value
    return tree


def looked_up(table: Any, path: Iterable[str]) -> Any:
    """What stands at a place of nested tables; None for nothing."""
    for name in path:
        try:
            table = table[name]
        except (KeyError, TypeError, IndexError):
            return None
    return table


def measured(table: Mapping[str, Any], metric: str) -> Any:
    """The metric of a table of what was logged, by its name or, nested, by its place; None for nothing."""
    return table[metric] if metric in table else looked_up(table, metric.split("."))


def is_number(value: Any) -> bool:
    """Whether a value counts as one of a metric: W&B leaves out what does not."""
    return isinstance(value, int | float) and math.isfinite(value)


def _scale(kind: str, numbers: Mapping[str, Any]) -> tuple[float, float, Callable[[float], Any]]:
    """The interval that is searched, and the function from it to the parameter's values."""
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
    tail = 1e-9  # the ends of the normal distribution are at infinity
    if kind == "log_normal":
        return tail, 1 - tail, lambda u: math.exp(normal.inv_cdf(u))
    return tail, 1 - tail, normal.inv_cdf


def _quantized(value: float, q: float) -> float:
    result = round(value / q) * q
    return int(result) if isinstance(q, int) else result
