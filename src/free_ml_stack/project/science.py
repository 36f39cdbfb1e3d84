"""Interfaces of a project's modules, which are imported only when a command needs them."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


class Data(Protocol):
    """`data.py`: the data set.

    Optional: `check(columns)` raises ValueError if a row cannot be used; `split(columns, seed)` returns the row numbers
    of each split that the source lacks, such as the latest rows, instead of random ones. `columns` maps the names that
    `arrange` returns to arrays, or to lists of other values than numbers.
    """

    NAME: str
    SOURCE: str
    LICENSE: str
    TARGET: str  # the column to predict

    def fetch(self) -> Any:
        """Return the embedded data set: arrays by name, a pandas data frame or an Arrow table."""

    def arrange(self, columns: Mapping[str, str], target: str) -> Mapping[str, tuple[str, str]]:
        """Map each column to keep to (source column, kind), given the kinds of the source's columns."""

    def prepare(
        self, config: Any, facts: Mapping[str, Any], columns: Mapping[str, Any], draws: "NDArray[np.float32] | None"
    ) -> Mapping[str, Any]:
        """Convert rows to model inputs; `draws` (rows, 16) are random numbers for augmentation."""

    def example(self, columns: Mapping[str, Any], row: int) -> Any:
        """Return the input that a caller sends for a row."""


class Model(Protocol):
    """`model.py`: the model, with functions to save and export it.

    Optional, for the card, each a function of a configuration that may return an empty text: `library`, the Hub's id of
    the library that loads the model; `use`, Python lines that load it, with <repository> as placeholder; `base_model`,
    the model on the Hub that it is based on.

    If the model is not a torch module, `export(model, inputs, path)` replaces `served`, `INPUTS` and `OUTPUTS`: it
    writes the ONNX file and returns the outputs of the trained model by name.
    """

    TASK: str  # the Hub's id

    def build(self, config: Any, facts: Mapping[str, Any]) -> Any:
        """Create the untrained model of a configuration, for the data set of a manifest."""

    def save(self, model: Any, folder: Path) -> None:
        """Write the files that `load` and predict.py need."""

    def load(self, folder: Path) -> Any:
        """Load a saved model."""

    def inputs(self, batch: "Mapping[str, NDArray[Any]]") -> "dict[str, NDArray[Any]]":
        """Select the inputs of the exported model, by name, from the result of `prepare`."""

    def served(self, model: Any) -> "torch.nn.Module": ...

    INPUTS: dict[str, dict[int, str]]  # of the exported model: name to dynamic axes
    OUTPUTS: dict[str, dict[int, str]]


class Predictor(Protocol):
    """`predict.py`: the service. The gateway requires only `load` and `apply`, and also supports `watch_batch`.

    `apply` raises ValueError for an invalid input. `watch` returns the numbers and categories (text) of a call that
    monitoring compares with those of the training data.
    """

    def load(self, model_dir: Path, /) -> Any: ...

    def apply(self, input: Any, model: Any, /) -> Any: ...

    def apply_batch(self, inputs: list[Any], model: Any, /) -> list[Any]: ...

    def watch(self, input: Any, answer: Any, model: Any, /) -> Mapping[str, Any]: ...


class Science:
    """The modules of a project's package, each imported on first access."""

    def __init__(self, package: str) -> None:
        self.package = package

    @property
    def config(self) -> type:
        """Return the dataclass that configures training, `TrainConfig` of `config.py`."""
        found: type = self._module("config").TrainConfig
        return found

    @property
    def folder(self) -> Path:
        """Return the folder of the package."""
        return Path(str(import_module(self.package).__file__)).parent

    @property
    def data(self) -> Data:
        """Return the module data.py."""
        return cast(Data, self._module("data"))

    @property
    def model(self) -> Model:
        """Return the module model.py."""
        return cast(Model, self._module("model"))

    @property
    def train(self) -> Any:
        """Return the module train.py."""
        return self._module("train")

    @property
    def predict(self) -> Predictor:
        """Return the module predict.py."""
        return cast(Predictor, self._module("predict"))

    def _module(self, name: str) -> Any:
        return import_module(f"{self.package}.{name}")
