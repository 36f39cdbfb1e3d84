"""Run a model folder's ONNX graph on tensors in the form of the Open Inference Protocol.

Source: the protocol's REST description (version 2) and its extension for binary tensor data, as Triton, KServe and
MLServer serve it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from free_ml_stack.errors import first_line

if TYPE_CHECKING:  # the gateway's process does without NumPy
    from numpy.typing import NDArray

ONNX = "model.onnx"
NUMPY = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
    "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16",
    "FP32": "float32", "FP64": "float64", "BYTES": "object",
}  # fmt: skip
OTHER_NAMES = {"float": "FP32", "double": "FP64", "float16": "FP16", "string": "BYTES"}  # of ONNX; the rest is the same
BINARY_SIZE = "binary_data_size"
FATAL = 4  # log level of onnxruntime
REFUSED = ("Fail", "InvalidArgument", "RuntimeException")  # onnxruntime's errors for inputs that fit no node


@dataclass(frozen=True)
class TensorRequest:
    """The body of an inference request, and the length of its JSON part; None requests the metadata."""

    body: bytes
    json_length: int | None


class TensorModel:
    """The ONNX graph of a model folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / ONNX

    @cached_property
    def session(self) -> Any:
        """The graph, loaded at first use. Raises ValueError if the folder has none."""
        if not self.path.is_file():
            raise ValueError(f"the model has no {ONNX}, which the Open Inference Protocol requires")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = FATAL  # other errors are in the answer
        return onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])

    def answer(self, request: TensorRequest) -> bytes:
        """Answer a request: 4 bytes with the length of the JSON part, that part, then binary tensors.

        Raises ValueError for a request that the graph cannot take.
        """
        if request.json_length is None:
            return _joined(self.metadata, [])
        content = _json_part(request)
        given = _read_inputs(content, request.body[request.json_length :])
        self._check(given)
        wanted = {output["name"]: _parameters(output) for output in _objects(content, "outputs")}
        names = [output.name for output in self.session.get_outputs()]
        if unknown := sorted(set(wanted) - set(names)):
            raise ValueError(f"output {unknown[0]} does not exist; the outputs are {', '.join(names)}")
        values = self._run(list(wanted) or names, given)
        default = _parameters(content).get("binary_data_output", False)
        outputs, tail = [], []
        for name, value in zip(wanted or names, values, strict=True):
            described = {"name": name, "datatype": _datatype(value), "shape": list(value.shape)}
            if wanted.get(name, {}).get("binary_data", default):
                tail.append(_to_bytes(value))
                described["parameters"] = {BINARY_SIZE: len(tail[-1])}
            else:
                described["data"] = value.ravel().tolist()
            outputs.append(described)
        identity = {"id": content["id"]} if isinstance(content.get("id"), str) else {}
        return _joined({**identity, "outputs": outputs}, tail)

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """Return names, datatypes and shapes of inputs and outputs; -1 is a dimension of any size."""
        nodes = {"inputs": self.session.get_inputs(), "outputs": self.session.get_outputs()}
        return {kind: [_described(node) for node in nodes[kind] if "tensor(" in node.type] for kind in nodes}

    def _run(self, names: list[str], given: Mapping[str, "NDArray[Any]"]) -> "list[NDArray[Any]]":
        """Return the outputs. Raises ValueError for inputs on which the graph fails, such as an empty batch."""
        try:
            found: list[NDArray[Any]] = self.session.run(names, given)
        except Exception as error:
            if type(error).__name__ not in REFUSED:
                raise
            raise ValueError(f"the graph fails on these inputs: {first_line(error)}") from None
        return found

    def _check(self, given: Mapping[str, "NDArray[Any]"]) -> None:
        """Raise ValueError unless the inputs are those of the graph."""
        expected = {one["name"]: one for one in self.metadata["inputs"]}
        if expected.keys() != given.keys():
            raise ValueError(f"expected the inputs {', '.join(expected)}, got {', '.join(given) or 'none'}")
        for name, values in given.items():
            datatype, shape = expected[name]["datatype"], expected[name]["shape"]
            if _datatype(values) != datatype:
                raise ValueError(f"input {name}: expected the datatype {datatype}, got {_datatype(values)}")
            if len(shape) != values.ndim or any(
                size not in (-1, real) for size, real in zip(shape, values.shape, strict=True)
            ):
                raise ValueError(f"input {name}: expected the shape {shape}, got {list(values.shape)}")


def _described(node: Any) -> dict[str, Any]:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    shape = [size if isinstance(size, int) else -1 for size in node.shape]
    return {"name": node.name, "datatype": OTHER_NAMES.get(kind, kind.upper()), "shape": shape}


def _datatype(values: "NDArray[Any]") -> str:
    if values.dtype.kind in "OUS":
        return "BYTES"
    return next(name for name, kind in NUMPY.items() if values.dtype == kind)


def _json_part(request: TensorRequest) -> dict[str, Any]:
    try:
        content = orjson.loads(request.body[: request.json_length])
    except ValueError as error:
        raise ValueError(f"the request is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError("the request is not a JSON object")
    return content


def _objects(content: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return a list of named objects in the request. Raises ValueError for anything else."""
    found = content.get(name) or []
    if not isinstance(found, list) or any(
        not isinstance(one, dict) or not isinstance(one.get("name"), str) for one in found
    ):
        raise ValueError(f"{name} must be a list of objects with a name")
    return found


def _parameters(content: Mapping[str, Any]) -> dict[str, Any]:
    found = content.get("parameters") or {}
    if not isinstance(found, dict):
        raise ValueError("parameters must be an object")
    return found


def _read_inputs(content: Mapping[str, Any], tail: bytes) -> dict[str, "NDArray[Any]"]:
    """Return the inputs by name. Raises ValueError where shape, datatype and data do not fit together."""
    found: dict[str, NDArray[Any]] = {}
    start = 0
    for one in _objects(content, "inputs"):
        name, shape, datatype = one["name"], one.get("shape"), one.get("datatype")
        if not isinstance(datatype, str) or datatype not in NUMPY:
            raise ValueError(f"input {name}: unknown datatype {datatype!r}; known are {', '.join(NUMPY)}")
        if not isinstance(shape, list) or any(type(size) is not int or size < 0 for size in shape):
            raise ValueError(f"input {name}: the shape must be a list of whole numbers")
        if name in found:
            raise ValueError(f"input {name} is given twice")
        size = _parameters(one).get(BINARY_SIZE)
        if size is None:
            values = _from_json(one, datatype)
        elif type(size) is int and 0 <= size <= len(tail) - start:
            values = _from_bytes(tail[start : start + size], datatype, name)
            start += size
        else:
            raise ValueError(f"input {name}: {BINARY_SIZE} is {size!r}; {len(tail) - start} bytes are left")
        if values.size != math.prod(shape):
            raise ValueError(f"input {name}: the shape {shape} requires {math.prod(shape)} values, got {values.size}")
        found[name] = values.reshape(shape)
    if start != len(tail):
        raise ValueError(f"{len(tail) - start} bytes after the last tensor")
    return found


def _from_json(one: Mapping[str, Any], datatype: str) -> "NDArray[Any]":
    """Return the values in `data`, which may be nested."""
    import numpy as np

    data, name = one.get("data"), one["name"]
    if not isinstance(data, list):
        raise ValueError(f"input {name} has no data")
    flat = _flat(data)
    if datatype == "BYTES" and all(isinstance(value, str) for value in flat):
        return np.array(flat, dtype=object)
    numbers = (bool,) if datatype == "BOOL" else (int, float) if datatype.startswith("FP") else (int,)
    if datatype == "BYTES" or any(type(value) not in numbers for value in flat):
        raise ValueError(f"input {name}: the data are not of the datatype {datatype}")
    try:
        with np.errstate(over="raise"):
            return np.array(flat, dtype=NUMPY[datatype])
    except (OverflowError, FloatingPointError):
        raise ValueError(f"input {name}: the data are out of range for {datatype}") from None


def _flat(data: list[Any]) -> list[Any]:
    """Return the values of nested lists in row-major order, in linear time at any depth."""
    values, open_lists = [], [iter(data)]
    while open_lists:
        for value in open_lists[-1]:
            if isinstance(value, list):
                open_lists.append(iter(value))
                break
            values.append(value)
        else:
            open_lists.pop()
    return values


def _from_bytes(data: bytes, datatype: str, name: str) -> "NDArray[Any]":
    import numpy as np

    if datatype != "BYTES":
        kind = np.dtype(NUMPY[datatype]).newbyteorder("<")
        if len(data) % kind.itemsize:
            raise ValueError(f"input {name}: {len(data)} bytes are no whole number of {datatype} values")
        return np.frombuffer(data, kind).astype(NUMPY[datatype])
    texts, start = [], 0
    while start < len(data):
        end = start + 4 + int.from_bytes(data[start : start + 4], "little")
        if end > len(data):
            raise ValueError(f"input {name}: a text is longer than the data")
        try:
            texts.append(data[start + 4 : end].decode())
        except UnicodeDecodeError:
            raise ValueError(f"input {name}: a text is not UTF-8") from None
        start = end
    return np.array(texts, dtype=object)


def _to_bytes(values: "NDArray[Any]") -> bytes:
    if values.dtype.kind not in "OUS":
        return values.astype(values.dtype.newbyteorder("<")).tobytes()
    texts = [str(value).encode() for value in values.ravel()]
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def _joined(content: dict[str, Any], tail: list[bytes]) -> bytes:
    """Return an answer as bytes; NaN and infinity, which JSON cannot hold, become null."""
    head = orjson.dumps(content)
    return b"".join((len(head).to_bytes(4, "little"), head, *tail))
