"""The Open Inference Protocol over HTTP, as specified; tests/engines runs the real clients."""

import gzip
import json
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import orjson
import pytest
import requests
from deployed import KEY, Deployed, deployed
from onnx import TensorProto, helper
from predictors import echo_folder

from free_ml_stack.deployment.tensors import TensorModel, TensorRequest
from free_ml_stack.gateway.algorithms.calls import Limits
from free_ml_stack.storage.manifest import write_manifest

HEADERS = {"Authorization": KEY}
LENGTH = "Inference-Header-Content-Length"
X = {"name": "x", "datatype": "FP32", "shape": [2, 3], "data": [1, 2, 3, 4, 5, 6]}
WORD = {"name": "word", "datatype": "BYTES", "shape": [1], "data": ["ü"]}


def graph(folder: Path) -> None:
    """Write a graph that doubles numbers, in an even number of rows, and repeats texts."""
    nodes = [
        helper.make_node("Reshape", ["x", "pairs"], ["paired"]),
        helper.make_node("Reshape", ["paired", "rows"], ["again"]),
        helper.make_node("Add", ["again", "again"], ["twice"]),
        helper.make_node("Identity", ["word"], ["same"]),
    ]
    shapes = {"pairs": [-1, 2, 3], "rows": [-1, 3]}
    kept = [helper.make_tensor(name, TensorProto.INT64, [len(shape)], shape) for name, shape in shapes.items()]
    x, word = (TensorProto.FLOAT, ["n", 3]), (TensorProto.STRING, ["m"])
    inputs = [helper.make_tensor_value_info(name, *kind) for name, kind in (("x", x), ("word", word))]
    outputs = [helper.make_tensor_value_info(name, *kind) for name, kind in (("twice", x), ("same", word))]
    opset = [helper.make_opsetid("", 17)]
    whole = helper.make_graph(nodes, "g", inputs, outputs, kept)
    model = helper.make_model(whole, opset_imports=opset, ir_version=8)
    onnx.save(model, str(folder / "model.onnx"))


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    root = tmp_path_factory.mktemp("gateway")
    folder = echo_folder(root / "model")
    graph(folder)
    write_manifest(folder)
    with deployed(root, model=folder) as found:
        yield found


def infer(gateway: Deployed, content: Any, tail: bytes = b"", **headers: str) -> requests.Response:
    head = content if isinstance(content, bytes) else json.dumps(content).encode()
    named = {LENGTH: str(len(head))} if tail else {}
    url = f"{gateway.url}/v2/models/demo/infer"
    return requests.post(url, data=head + tail, headers=HEADERS | named | headers, timeout=60)


def get(gateway: Deployed, path: str, headers: dict[str, str] = HEADERS) -> tuple[int, Any]:
    answer = requests.get(gateway.url + path, headers=headers, timeout=60)
    return answer.status_code, answer.json()


def test_health_needs_no_key(gateway: Deployed) -> None:
    assert get(gateway, "/v2/health/live", {}) == (200, {"live": True})
    assert get(gateway, "/v2/health/ready", {}) == (200, {"ready": True})


def test_metadata_describe_server_and_model(gateway: Deployed) -> None:
    status, server = get(gateway, "/v2")
    assert (status, server["name"], server["extensions"]) == (200, "free-ml-stack", ["binary_tensor_data"])
    for path in ("/v2/models/demo", "/v2/models/demo/versions/0.1.0"):
        assert get(gateway, path) == (
            200,
            {
                "name": "demo",
                "platform": "onnxruntime_onnx",
                "versions": ["0.1.0"],
                "inputs": [
                    {"name": "x", "datatype": "FP32", "shape": [-1, 3]},
                    {"name": "word", "datatype": "BYTES", "shape": [-1]},
                ],
                "outputs": [
                    {"name": "twice", "datatype": "FP32", "shape": [-1, 3]},
                    {"name": "same", "datatype": "BYTES", "shape": [-1]},
                ],
            },
        )
    assert get(gateway, "/v2/models/demo/ready") == (200, {"name": "demo", "ready": True})
    assert get(gateway, "/v2/models/demo/versions/0.1.0/ready")[0] == 200


def test_tensors_in_json_are_answered(gateway: Deployed) -> None:
    answer = infer(gateway, {"id": "7", "inputs": [X, WORD]})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "model_name": "demo",
        "model_version": "0.1.0",
        "id": "7",
        "outputs": [
            {"name": "twice", "datatype": "FP32", "shape": [2, 3], "data": [2, 4, 6, 8, 10, 12]},
            {"name": "same", "datatype": "BYTES", "shape": [1], "data": ["ü"]},
        ],
    }
    nested = X | {"data": [[1, 2, 3], [4, 5, 6]]}
    named = {"inputs": [nested, WORD], "outputs": [{"name": "twice"}]}
    [output] = infer(gateway, named).json()["outputs"]
    assert output["data"] == [2, 4, 6, 8, 10, 12]


def test_binary_tensors_are_answered(gateway: Deployed) -> None:
    values = np.arange(6, dtype="<f4")
    text = "a\nü".encode()
    tail = values.tobytes() + len(text).to_bytes(4, "little") + text
    inputs = [
        {"name": "x", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}},
        {"name": "word", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 4 + len(text)}},
    ]
    content = {"inputs": inputs, "parameters": {"binary_data_output": True}}
    answer = infer(gateway, content, tail)
    assert answer.status_code == 200, answer.text
    length = int(answer.headers[LENGTH])
    head, rest = orjson.loads(answer.content[:length]), answer.content[length:]
    assert [output["parameters"]["binary_data_size"] for output in head["outputs"]] == [24, 4 + len(text)]
    assert np.frombuffer(rest[:24], "<f4").tolist() == (2 * values).tolist()
    assert rest[28:] == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "not a JSON object"),
        ({"inputs": 3}, "inputs must be a list"),
        ({"inputs": [X]}, "expected the inputs x, word, got x"),
        ({"inputs": [X | {"datatype": "FP128"}, WORD]}, "unknown datatype 'FP128'"),
        ({"inputs": [X | {"datatype": "FP64"}, WORD]}, "expected the datatype FP32, got FP64"),
        ({"inputs": [X | {"shape": [3, 2]}, WORD]}, "expected the shape [-1, 3], got [3, 2]"),
        ({"inputs": [X | {"shape": [2, 4]}, WORD]}, "requires 8 values, got 6"),
        ({"inputs": [X | {"shape": [-2, -3]}, WORD]}, "shape must be a list of whole numbers"),
        ({"inputs": [X | {"shape": [10**30, 3]}, WORD]}, "whole numbers"),
        ({"inputs": [X | {"data": ["1"] * 6}, WORD]}, "not of the datatype FP32"),
        ({"inputs": [X | {"datatype": "INT8", "data": [300] * 6}, WORD]}, "out of range for INT8"),
        ({"inputs": [X | {"data": [1e300] * 6}, WORD]}, "out of range for FP32"),
        ({"inputs": [X | {"datatype": ["FP32"]}, WORD]}, "unknown datatype ['FP32']"),
        ({"inputs": [X | {"shape": [1, 3], "data": [1, 2, 3]}, WORD]}, "the graph fails on these inputs"),
        ({"inputs": [X, X, WORD]}, "given twice"),
        ({"inputs": [X | {"parameters": {"binary_data_size": 24}}, WORD]}, "0 bytes are left"),
        ({"inputs": [X, WORD], "outputs": [{"name": "z"}]}, "output z does not exist"),
        ({"inputs": [X, WORD], "parameters": 1}, "parameters must be an object"),
    ],
)
def test_a_request_that_does_not_match_the_graph_is_rejected(gateway: Deployed, content: Any, message: str) -> None:
    answer = infer(gateway, content)
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/json")
    assert message in answer.json()["error"]


def test_many_texts_and_deep_lists_are_read_in_linear_time(tmp_path: Path) -> None:
    graph(tmp_path)
    count = 300_000
    word = {"name": "word", "datatype": "BYTES", "shape": [count], "parameters": {"binary_data_size": 4 * count}}
    row = X | {"shape": [count, 3], "data": [*[1] * (3 * count - 1), json.loads("[" * 900 + "1" + "]" * 900)]}
    head = json.dumps({"inputs": [row, word], "outputs": [{"name": "twice"}]}).encode()
    began = time.process_time()
    answer = TensorModel(tmp_path).answer(TensorRequest(head + bytes(4 * count), len(head)))
    assert time.process_time() - began < 10  # in quadratic time, minutes
    assert orjson.loads(answer[4:])["outputs"][0]["data"] == [2] * (3 * count)


@pytest.mark.parametrize("length", ["-1", "x", "9" * 30, "1000000"])
def test_a_wrong_length_of_the_json_part_is_rejected(gateway: Deployed, length: str) -> None:
    answer = infer(gateway, {"inputs": [X, WORD]}, **{LENGTH: length})
    assert (answer.status_code, LENGTH.lower() in answer.json()["error"]) == (400, True)


def test_compressed_requests_are_answered(gateway: Deployed) -> None:
    whole = json.dumps({"inputs": [X, WORD]}).encode()
    for encoding, body in (("gzip", gzip.compress(whole)), ("Deflate", zlib.compress(whole))):
        answer = infer(gateway, body, **{"Content-Encoding": encoding})
        assert (answer.status_code, answer.json()["outputs"][0]["data"]) == (200, [2, 4, 6, 8, 10, 12])


@pytest.mark.parametrize(
    ("encoding", "body", "status", "message"),
    [
        ("br", b"x", 415, "expected gzip or deflate, got br"),
        ("gzip", b"xxxx", 400, "not valid gzip"),
        ("gzip", gzip.compress(b"{}")[:-1], 400, "not one complete gzip stream"),
        ("gzip", gzip.compress(b"{}") * 2, 400, "not one complete gzip stream"),
        ("gzip", gzip.compress(bytes(Limits().body_bytes + 1)), 413, "decompressed request is larger"),
    ],
    ids=["unknown", "invalid", "truncated", "followed", "large"],
)
def test_an_invalid_compressed_request_is_rejected(
    gateway: Deployed, encoding: str, body: bytes, status: int, message: str
) -> None:
    answer = infer(gateway, body, **{"Content-Encoding": encoding})
    assert (answer.status_code, message in answer.json()["error"]) == (status, True), answer.text


def test_unknown_models_and_paths_are_reported(gateway: Deployed) -> None:
    assert get(gateway, "/v2/models/other") == (404, {"error": "model other does not exist"})
    assert get(gateway, "/v2/models/demo/versions/9.9.9")[1] == {"error": "model demo 9.9.9 does not exist"}
    for name in ("x" * 5000, "a%00b", "%2e%2e", "a*"):
        status, content = get(gateway, f"/v2/models/{name}")
        assert (status, "does not exist" in content["error"]) == (404, True)
        called = requests.post(f"{gateway.url}/v1/algo/me/{name}", json=1, headers=HEADERS, timeout=60).json()
        assert called["error"]["error_type"] == "EntityNotFoundError"
    assert get(gateway, "/v2/nothing")[0] == 404
    assert get(gateway, "/v2/models/demo/infer")[0] == 405
    assert get(gateway, "/v2/models/demo", {}) == (401, {"error": "authorization required"})


def test_a_model_without_a_graph_is_reported(tmp_path: Path) -> None:
    with deployed(tmp_path) as gateway:
        status, content = get(gateway, "/v2/models/demo")
        assert (status, "has no model.onnx" in content["error"]) == (400, True)


def test_calls_of_both_kinds_are_counted(gateway: Deployed) -> None:
    before = requests.get(f"{gateway.url}/stats", headers=HEADERS, timeout=60).json()
    assert infer(gateway, {"inputs": [X, WORD]}).status_code == 200
    assert gateway.client().algo("me/demo").pipe("word").result == "hello"
    after = requests.get(f"{gateway.url}/stats", headers=HEADERS, timeout=60).json()
    assert after["calls"] == before["calls"] + 2
