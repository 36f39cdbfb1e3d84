"""The model: gradient-boosted trees of LightGBM. Edit me."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray

from .config import TrainConfig
from .data import fields

TASK = "tabular-regression"
OUTPUT = "variable"  # name given by onnxmltools
FILE, FACTS = "trees.txt", "config.json"


class Trees:
    """Boosted trees and the fields of the table."""

    def __init__(self, fields: list[dict[str, Any]], text: str = "") -> None:
        self.fields = fields
        self.booster = lightgbm.Booster(model_str=text) if text else None

    def predict(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Compute values (n, 1) from features (n, fields)."""
        assert self.booster is not None
        return np.asarray(self.booster.predict(features)).reshape(-1, 1)

    def text(self, rounds: int = -1) -> str:
        """Return the first trees in LightGBM's format, without the parameters, which depend on interruptions."""
        whole = self.booster.model_to_string(num_iteration=rounds) if self.booster else ""
        return whole.partition("\nparameters:")[0]

    def state_dict(self) -> dict[str, str]:
        """Return the state for a checkpoint."""
        return {"text": self.text()}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Restore the state of a checkpoint."""
        self.booster = lightgbm.Booster(model_str=state["text"])


def parameters(config: TrainConfig) -> dict[str, Any]:
    """Return the parameters of LightGBM: configuration, loss, and settings for reproducibility."""
    return {"objective": "regression", "metric": "rmse", **settings(config)}


def settings(config: TrainConfig) -> dict[str, Any]:
    """Convert the configuration to parameters of LightGBM."""
    return {
        "learning_rate": config.lr,
        "num_leaves": config.leaves,
        "max_depth": config.depth,
        "min_data_in_leaf": config.min_rows,
        "min_data_per_group": config.min_rows,
        "feature_fraction": 1 - config.column_dropout,
        "lambda_l1": config.l1,
        "lambda_l2": config.l2,
        "max_bin": config.bins,
        "seed": config.seed,
        "num_threads": config.threads,
        "deterministic": True,
        "force_col_wise": True,
        "verbosity": -1,
    }


def build(config: TrainConfig, facts: Mapping[str, Any]) -> Trees:
    """Create the model without trees, for the data set of this manifest."""
    return Trees(fields(facts))


def inputs(batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the inputs of the exported model, by name, from a batch."""
    return {"features": batch["features"]}


def export(model: Trees, inputs: Mapping[str, NDArray[Any]], path: Path) -> dict[str, NDArray[Any]]:
    """Write the ONNX file, and return the trees' outputs for the given inputs by name."""
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    shape = [("features", FloatTensorType([None, len(model.fields)]))]
    booster = lightgbm.Booster(model_str=float32_thresholds(model.text()))
    made = convert_lightgbm(booster, None, shape, target_opset=15, zipmap=False)
    path.write_bytes(made.SerializeToString())
    return {OUTPUT: model.predict(inputs["features"])}


def float32_thresholds(text: str) -> str:
    """Round thresholds down to float32 for ONNX; float32 features are split in the same way."""

    def rounded(line: re.Match[str]) -> str:
        exact = np.array(line[1].split(), np.float64)
        near = exact.astype(np.float32)
        below = np.where(near > exact, np.nextafter(near, np.float32(-np.inf)), near)
        return "threshold=" + " ".join(map(repr, below.astype(np.float64).tolist()))

    without_sizes = re.sub(r"^tree_sizes=.*\n", "", text, flags=re.MULTILINE)
    return re.sub(r"^threshold=(.+)$", rounded, without_sizes, flags=re.MULTILINE)


def save(model: Trees, folder: Path) -> None:
    """Write the trees and the metadata to the model folder."""
    (folder / FILE).write_text(model.text(), encoding="utf-8")
    content = {"fields": model.fields}
    (folder / FACTS).write_text(json.dumps(content, indent=1), encoding="utf-8")


def load(folder: Path) -> Trees:
    """Load a model from its folder."""
    config = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    return Trees(**config, text=(folder / FILE).read_text(encoding="utf-8"))
