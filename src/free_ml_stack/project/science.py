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


class Data(Protocol):
    """`data.py`: the data set."""

    NAME: str
    SOURCE: str
    LICENSE: str
    TARGET: str  # the column to predict

    def fetch(self) -> Any:
        """The embedded data set: arrays by name, a pandas data frame or an Arrow table."""

    def arrange(self, columns: Mapping[str, str], target: str) -> Mapping[str, tuple[str, str]]:
        """The columns to keep, each with its source and kind, from a source's columns and their kinds."""

    def prepare(
        self, config: Any, facts: Mapping[str, Any], columns: Mapping[str, Any], draws: "NDArray[np.float32] | None"
    ) -> Mapping[str, Any]:
        """Some rows as the model takes them; `draws` (rows, 16) are random numbers for augmentation."""

    def example(self, columns: Mapping[str, Any], row: int) -> Any:
        """What a caller sends for a row."""


class Model(Protocol):
    """`model.py`: the model, and how it is saved and exported.

    For the card it may say `LIBRARY`, the Hub's id of the library that loads the model; `USE`, the lines of Python that
    do so, with <repository> in them; and `base_model(config)`, the model on the Hub that it is made of.

    A model that is no torch module has `export(model, inputs, path)` in place of the last three: it writes the ONNX
    file and returns what the trained model answers, by output.
    """

    TASK: str  # the Hub's id

    def build(self, config: Any, facts: Mapping[str, Any]) -> Any:
        """The untrained model of a configuration, for the data set of a manifest."""

    def save(self, model: Any, folder: Path) -> None:
        """Write all that `load` and predict.py need."""

    def load(self, folder: Path) -> Any:
        """The model that was saved."""

    def inputs(self, batch: "Mapping[str, NDArray[Any]]") -> "dict[str, NDArray[Any]]":
        """What the exported model takes, by name, of what `prepare` gives."""

    def served(self, model: Any) -> "torch.nn.Module": ...

    INPUTS: dict[str, dict[int, str]]  # of the exported model, by name, each with its axes of any size
    OUTPUTS: dict[str, dict[int, str]]


class Predictor(Protocol):
    """`predict.py`: the service. A gateway does without all but `load` and `apply`, and takes `watch_batch`, too.

    `apply` raises ValueError for an input that makes no sense; `watch` names the numbers and categories (text) of a
    call that monitoring compares with the training data's.
    """

    def load(self, model_dir: Path, /) -> Any: ...

    def apply(self, input: Any, model: Any, /) -> Any: ...

    def apply_batch(self, inputs: list[Any], model: Any, /) -> list[Any]: ...

    def watch(self, input: Any, answer: Any, model: Any, /) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Science:
    """The modules of a project's package, each imported when it is first needed."""

    package: str

    @property
    def config(self) -> type:
        """The dataclass that configures training, `TrainConfig` of `config.py`."""
        found: type = self._module("config").TrainConfig
        return found

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
    def train(self) -> Any:
        """The loop's module."""
        return self._module("train")

    @property
    def predict(self) -> Predictor:
        """The service's module."""
        return cast(Predictor, self._module("predict"))

    def _module(self, name: str) -> Any:
        return import_module(f"{self.package}.{name}")
