"""What a project hands to the wiring: its modules, imported only when a command needs them."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from free_ml_stack.training.checkpoint import Checkpoints
    from free_ml_stack.data.dataset import Split
    from free_ml_stack.training.process import Process
    from free_ml_stack.tracking.run import Run


class Data(Protocol):
    """`data.py`: the data set."""

    NAME: str
    SOURCE: str
    LICENSE: str
    LABELS: list[Any]

    def fetch(self) -> "dict[str, NDArray[np.uint8]]": ...

    def split(
        self, arrays: "dict[str, NDArray[np.uint8]]", seed: int
    ) -> "dict[str, dict[str, NDArray[np.uint8]]]": ...


class Model(Protocol):
    """`model.py`: the network."""

    TASK: str

    def build(self, config: Any) -> "torch.nn.Module": ...


class Train(Protocol):
    """`train.py`: the loop."""

    def fit(
        self,
        config: Any,
        splits: "Mapping[str, Split]",
        run: "Run",
        checkpoints: "Checkpoints",
        process: "Process",
    ) -> "torch.nn.Module": ...

    def predict(self, net: "torch.nn.Module", split: "Split") -> "torch.Tensor": ...


class Predict(Protocol):
    """`predict.py`: the service."""

    def load(self, model_dir: Path) -> Any: ...

    def apply(self, input: Any, model: Any) -> Any: ...

    def apply_batch(self, inputs: list[Any], model: Any) -> list[Any]: ...

    def summary(self, input: Any) -> dict[str, float]: ...


@dataclass(frozen=True)
class Science:
    """The project's modules, and the dataclass that configures its training."""

    package: str
    config: type

    @property
    def folder(self) -> Path:
        """Where the modules are."""
        return Path(str(import_module(self.package).__file__)).parent

    @property
    def data(self) -> Data:
        """The data set's module."""
        return cast(Data, self._module("data"))

    @property
    def model(self) -> Model:
        """The network's module."""
        return cast(Model, self._module("model"))

    @property
    def train(self) -> Train:
        """The loop's module."""
        return cast(Train, self._module("train"))

    @property
    def predict(self) -> Predict:
        """The service's module."""
        return cast(Predict, self._module("predict"))

    def _module(self, name: str) -> Any:
        return import_module(f"{self.package}.{name}")
