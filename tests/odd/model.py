"""A matrix."""

import json
from pathlib import Path
from typing import Any

import numpy as np

TASK = "tabular-regression"


class Matrix:
    """Features @ weights."""

    def __init__(self, weights: Any) -> None:
        self.weights = np.asarray(weights, np.float64)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weights = np.asarray(state["weights"])


def build(config: Any, facts: Any) -> Matrix:
    """Zeros."""
    return Matrix(np.zeros((8, facts["columns"][facts["target"]]["shape"][0])))


def save(model: Matrix, folder: Path) -> None:
    """Write the weights."""
    (folder / "weights.json").write_text(json.dumps(model.weights.tolist()))


def load(folder: Path) -> Matrix:
    """Read the weights."""
    return Matrix(json.loads((folder / "weights.json").read_text()))


def inputs(batch: Any) -> dict[str, Any]:
    """The features."""
    return {"features": batch["features"]}


def export(model: Matrix, given: Any, path: Path) -> dict[str, Any]:
    """One MatMul."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(model.weights.astype(np.float32), "weights")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", None]) for name in ("features", "mood")]
    node = helper.make_node("MatMul", ["features", "weights"], ["mood"])
    graph = helper.make_graph([node], "odd", ends[:1], ends[1:], [weights])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, path)
    return {"mood": given["features"] @ model.weights}
