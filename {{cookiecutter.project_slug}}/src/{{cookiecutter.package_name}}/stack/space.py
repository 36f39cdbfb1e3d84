"""A sweep.yaml as Weights & Biases defines it: read, checked, and turned into values.

Source of names and meanings: https://docs.wandb.ai/guides/sweeps/sweep-config-keys and the schema in W&B's `sweeps`.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import yaml

from . import StackError
from .flags import unknown

if TYPE_CHECKING:
    import optuna

ROOT = (
    "program", "entity", "project", "name", "description", "method", "metric", "metrics", "parameters",
    "early_terminate", "command", "run_cap", "controller", "scheduler", "job", "image_uri", "apiVersion", "kind",
)  # fmt: skip
METRIC = ("name", "goal", "target", "impute", "impute_while_running")
HYPERBAND = ("type", "min_iter", "max_iter", "s", "eta", "strict")
METHODS = ("grid", "random", "bayes")
NEEDS = {  # distribution: the keys it needs, and the ones it may have with their defaults
    "constant": (("value",), {}),
    "categorical": (("values",), {}),
    "categorical_w_probabilities": (("values", "probabilities"), {}),
    "int_uniform": (("min", "max"), {}),
    "uniform": (("min", "max"), {}),
    "q_uniform": (("min", "max"), {"q": 1.0}),
    "log_uniform": (("min", "max"), {}),
    "log_uniform_values": (("min", "max"), {}),
    "q_log_uniform": (("min", "max"), {"q": 1.0}),
    "q_log_uniform_values": (("min", "max"), {"q": 1.0}),
    "inv_log_uniform": (("min", "max"), {}),
    "inv_log_uniform_values": (("min", "max"), {}),
    "normal": ((), {"mu": 0.0, "sigma": 1.0}),
    "q_normal": ((), {"mu": 0.0, "sigma": 1.0, "q": 1.0}),
    "log_normal": ((), {"mu": 0.0, "sigma": 1.0}),
    "q_log_normal": ((), {"mu": 0.0, "sigma": 1.0, "q": 1.0}),
    "beta": (("a", "b"), {}),
    "q_beta": (("a", "b"), {"q": 1.0}),
}
GRID = ("constant", "categorical", "int_uniform", "q_uniform")


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

    def choices(self) -> list[Any]:
        """All values that a grid takes it through."""
        numbers = self.numbers
        if self.distribution == "constant":
            return [numbers["value"]]
        if self.distribution == "int_uniform":
            return list(range(numbers["min"], numbers["max"] + 1))
        if self.distribution == "q_uniform":
            count = math.ceil((numbers["max"] - numbers["min"]) / numbers["q"])
            return [numbers["min"] + step * numbers["q"] for step in range(count)]
        return list(numbers["values"])

    def suggest(self, trial: "optuna.Trial") -> Any:
        """The value that a trial of Optuna's takes."""
        numbers, kind = self.numbers, self.distribution
        if kind == "constant":
            return numbers["value"]
        if kind == "categorical":  # by index: Optuna takes no lists or tables as choices
            return numbers["values"][
                trial.suggest_categorical(self.name, list(range(len(numbers["values"]))))
            ]
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


def read_sweep(path: Path) -> Sweep:
    """Read and check a sweep.yaml. Raises StackError with the line, what is wrong, and how to mend it."""
    try:
        text = path.read_text(encoding="utf-8")
        content, node = yaml.safe_load(text), yaml.compose(text)
    except FileNotFoundError:
        raise StackError(f"no file {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StackError(f"{path.name}: {' '.join(str(error).split())}") from None
    try:
        return _sweep(content)
    except Fault as fault:
        raise StackError(f"{path.name}:{_line(node, fault.path)}: {fault}") from None


class Fault(Exception):  # noqa: N818 - becomes a StackError once its line is known
    """Something wrong at a place of the file."""

    def __init__(self, path: tuple[str, ...], text: str) -> None:
        super().__init__(f"{'.'.join(path)}: {text}" if path else text)
        self.path = path


def _sweep(content: Any) -> Sweep:
    if not isinstance(content, dict):
        raise Fault((), "expected a table of keys such as method and parameters")
    _known(content, ROOT, ())
    method = content.get("method")
    if method not in METHODS:
        raise Fault(("method",), f"expected one of {', '.join(METHODS)}, got {method!r}")
    metric = content.get("metric") or {}
    _known(metric, METRIC, ("metric",))
    goal = metric.get("goal", "minimize")
    if goal not in ("minimize", "maximize"):
        raise Fault(("metric", "goal"), f"expected minimize or maximize, got {goal!r}")
    if not isinstance(metric.get("name"), str):
        raise Fault(("metric",), "needs a name: the metric that is compared, such as validation_loss")
    parameters = tuple(_parameters(content.get("parameters"), ("parameters",)))
    for parameter in parameters if method == "grid" else ():
        if parameter.distribution not in GRID:
            raise Fault(
                ("parameters", *parameter.path), f"a grid can't hold {parameter.distribution}; use values"
            )
    cap = content.get("run_cap")
    if cap is not None and not (isinstance(cap, int) and cap > 0):
        raise Fault(("run_cap",), f"expected a whole number above 0, got {cap!r}")
    early = _hyperband(content["early_terminate"]) if content.get("early_terminate") else None
    command = tuple(str(word) for word in content.get("command") or ())
    return Sweep(method, metric["name"], goal, parameters, early, cap, metric.get("target"), command, content)


def _parameters(table: Any, path: tuple[str, ...]) -> Iterator[Parameter]:
    if not isinstance(table, dict) or not table:
        raise Fault(path, "expected a table of parameters")
    for name, spec in table.items():
        here = (*path, str(name))
        if not isinstance(spec, dict):
            raise Fault(here, f"expected a table such as {{value: {spec!r}}}")
        if "parameters" in spec:
            _known(spec, ["parameters"], here)
            for parameter in _parameters(spec["parameters"], (*here, "parameters")):
                yield Parameter((str(name), *parameter.path), parameter.distribution, parameter.numbers)
        else:
            yield _parameter(str(name), spec, here)


def _parameter(name: str, spec: Mapping[str, Any], path: tuple[str, ...]) -> Parameter:
    kind = spec.get("distribution") or _inferred(spec, path)
    if kind == "categorical" and "probabilities" in spec:
        kind = "categorical_w_probabilities"
    if kind not in NEEDS:
        raise Fault((*path, "distribution"), unknown(str(kind), list(NEEDS)))
    needed, optional = NEEDS[kind]
    _known(spec, ["distribution", *needed, *optional], path)
    for key in needed:
        if key not in spec:
            raise Fault(path, f"{kind} needs {key}")
    numbers = {**optional, **{key: spec[key] for key in spec if key != "distribution"}}
    _check(kind, numbers, path)
    return Parameter((name,), kind, numbers)


def _inferred(spec: Mapping[str, Any], path: tuple[str, ...]) -> str:
    if "value" in spec:
        return "constant"
    if "values" in spec:
        return "categorical"
    if "min" in spec and "max" in spec:
        kinds = {type(_number(spec[key], (*path, key))) for key in ("min", "max")}
        if len(kinds) > 1:
            raise Fault(path, "one of min and max is whole, the other not: write both as 1 or both as 1.0")
        return "int_uniform" if kinds == {int} else "uniform"
    raise Fault(path, "needs value, values, min and max, or a distribution")


def _check(kind: str, numbers: Mapping[str, Any], path: tuple[str, ...]) -> None:
    """What a schema can't say: order, sums and signs."""
    if "values" in numbers:
        if not isinstance(numbers["values"], list) or not numbers["values"]:
            raise Fault((*path, "values"), "expected a list of one value or more")
        for value in numbers["values"]:
            _refuse_text_number(value, (*path, "values"))
    _refuse_text_number(numbers.get("value"), (*path, "value"))
    for key in set(numbers) & {"min", "max", "mu", "sigma", "q", "a", "b"}:
        _number(numbers[key], (*path, key))
    if "min" in numbers and not numbers["min"] < numbers["max"]:
        raise Fault(
            (*path, "min"), f"must be less than max, but {numbers['min']} is not less than {numbers['max']}"
        )
    if kind == "int_uniform" and not all(isinstance(numbers[key], int) for key in ("min", "max")):
        raise Fault(path, "int_uniform needs whole numbers")
    if kind.endswith("_values") and numbers["min"] <= 0:
        raise Fault((*path, "min"), f"must be above 0 on a logarithmic scale, is {numbers['min']}")
    for key in set(numbers) & {"q", "a", "b"}:
        if numbers[key] <= 0:
            raise Fault((*path, key), f"must be above 0, is {numbers[key]}")
    if numbers.get("sigma", 0) < 0:
        raise Fault((*path, "sigma"), f"must not be below 0, is {numbers['sigma']}")
    if kind == "categorical_w_probabilities":
        shares = [_number(share, (*path, "probabilities")) for share in numbers["probabilities"]]
        if len(shares) != len(numbers["values"]):
            raise Fault((*path, "probabilities"), f"{len(shares)} for {len(numbers['values'])} values")
        if any(share < 0 for share in shares) or not math.isclose(sum(shares), 1, abs_tol=1e-6):
            raise Fault((*path, "probabilities"), f"must sum to 1, sum to {sum(shares):g}")


def _hyperband(table: Any) -> Hyperband:
    path = ("early_terminate",)
    if not isinstance(table, dict) or table.get("type") != "hyperband":
        raise Fault(path, "needs type: hyperband")
    _known(table, HYPERBAND, path)
    eta = _number(table.get("eta", 3), (*path, "eta"))
    if eta <= 1:
        raise Fault((*path, "eta"), f"must be above 1, is {eta}")
    strict = table.get("strict", True) is True
    if "min_iter" in table:
        first = int(_number(table["min_iter"], (*path, "min_iter")))
        if first < 1:
            raise Fault((*path, "min_iter"), f"must be 1 or more, is {first}")
        return Hyperband(tuple(int(first * eta**power) for power in range(40)), eta, strict)
    if "max_iter" not in table or "s" not in table:
        raise Fault(path, "needs min_iter, or max_iter and s")
    last, brackets = (int(_number(table[key], (*path, key))) for key in ("max_iter", "s"))
    bands = tuple(sorted({int(last / eta**power) for power in range(1, brackets + 1)} - {0}))
    if not bands:
        raise Fault(path, "gives no band: raise max_iter or s, or lower eta")
    return Hyperband(bands, eta, strict)


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


def _number(value: Any, path: tuple[str, ...]) -> float:
    _refuse_text_number(value, path)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Fault(path, f"expected a number, got {value!r}")
    return value


def _refuse_text_number(value: Any, path: tuple[str, ...]) -> None:
    """YAML reads 1e-3 as text; nobody means that."""
    if isinstance(value, str) and "e" in value.lower():
        try:
            number = float(value)
        except ValueError:
            return
        raise Fault(path, f"{value} is text to YAML: write {number!r} (or with a point, 1.0e-3)")


def _known(table: Any, names: Sequence[str], path: tuple[str, ...]) -> None:
    if not isinstance(table, dict):
        raise Fault(path, f"expected a table, got {table!r}")
    for name in table:
        if name not in names:
            raise Fault((*path, str(name)), unknown(str(name), list(names)))


def _line(node: Any, path: tuple[str, ...]) -> int:
    """The line of a place in the file, or of the nearest thing around it."""
    line = 1
    for name in path:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = next(((key, value) for key, value in pairs if key.value == name), None)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line
