"""The InferenceService and Triton's model configuration, read by KServe's and Triton's own classes."""

import json
import subprocess
from pathlib import Path
from typing import Any

import onnx
import predictors
import pytest
import yaml
from onnx import TensorProto, helper
from places import ROOT
from services import s3_gateway

from free_ml_stack.deployment.tensors import TensorModel
from free_ml_stack.errors import StackError
from free_ml_stack.launch import kserve
from free_ml_stack.project.settings import Settings

CLIENTS = ROOT / "build" / "engines" / "clients" / "bin" / "python"
# In processes of their own: both clients register the protocol's messages.
SERVICE = """
import json, sys, yaml
import kserve.models, kubernetes.client.models
from kserve import ApiClient, V1beta1InferenceService

for name, kind in vars(kubernetes.client.models).items():  # which KServe's schema refers to
    vars(kserve.models).setdefault(name, kind)

class Answer:
    data = json.dumps(yaml.safe_load(open(sys.argv[1])))

client = ApiClient()
print(json.dumps(client.sanitize_for_serialization(client.deserialize(Answer, V1beta1InferenceService))))
"""
CONFIG = """
import sys
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

print(json_format.MessageToJson(text_format.Parse(open(sys.argv[1]).read(), ModelConfig())))
"""
DIGITS = """\
name: "Digits"
backend: "onnxruntime"
max_batch_size: 64
input {
  name: "image"
  data_type: TYPE_FP32
  dims: [ 64 ]
}
output {
  name: "p"
  data_type: TYPE_FP32
  dims: [ 10 ]
}
dynamic_batching { }
"""


def graph(folder: Path, **shapes: list[str | int]) -> TensorModel:
    """A graph with inputs of texts; its outputs are the inputs."""
    folder.mkdir(parents=True, exist_ok=True)
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in shapes]
    ends = [[helper.make_tensor_value_info(f"{name}{end}", TensorProto.STRING, shape) for name, shape in shapes.items()]
            for end in ("", "_out")]  # fmt: skip
    opset = [helper.make_opsetid("", 17)]
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "g", *ends), opset_imports=opset, ir_version=8),
        str(folder / "model.onnx"),
    )
    return TensorModel(folder)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(root=tmp_path, project="my_digits", storage="s3://models/digits", algorithm="me/Digits")


@pytest.fixture
def model(settings: Settings) -> Path:
    return predictors.digits_folder(settings.models / "first")


def test_the_configuration_describes_the_graph(model: Path, tmp_path: Path) -> None:
    assert kserve.triton_config("Digits", TensorModel(model)) == DIGITS
    fixed = kserve.triton_config("Digits", graph(tmp_path / "fixed", a=[2, "n"], b=[2]))
    assert "max_batch_size: 0" in fixed
    assert "dynamic_batching" not in fixed
    assert "data_type: TYPE_STRING\n  dims: [ 2, -1 ]" in fixed
    quoted = kserve.triton_config("Digits", graph(tmp_path / "quoted", **{'a"b\\ü': [1]}))
    assert 'name: "a\\"b\\\\ü"\n' in quoted
    for name, shapes in {"vector": {"a": ["n"]}, "two": {"a": ["n", 2], "b": ["m", 2]}}.items():
        text = kserve.triton_config("Digits", graph(tmp_path / name, **shapes))
        assert "max_batch_size: 0" in text, name
        assert "dims: [ -1" in text, name


def test_a_store_that_kserve_cannot_read_is_refused(settings: Settings, model: Path) -> None:
    with pytest.raises(
        StackError, match=r"storage: expected a bucket .* got s3://models/digits; add --uri .*triton/first"
    ):
        kserve.write(settings, model)
    with pytest.raises(StackError, match=r"--uri: expected a URL with s3://, .*, got hf://me/digits"):
        kserve.write(settings, model, "hf://me/digits")
    folder = settings.models / "second"
    predictors.echo_folder(folder)
    with pytest.raises(StackError, match=r"second: the model has no model\.onnx"):
        kserve.write(settings, folder, "pvc://models/second")
    assert not settings.private.exists()


@pytest.mark.slow
def test_the_service_names_the_model_in_the_bucket(
    settings: Settings, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_gateway.serving(s3_gateway.Gateway("me")) as url:
        for name, value in {**s3_gateway.ENVIRON, "AWS_ENDPOINT_URL": url}.items():
            monkeypatch.setenv(name, value)
        import s3fs

        files = s3fs.S3FileSystem(skip_instance_cache=True)
        files.mkdir("models")
        online = Settings(**{**vars(settings), "credentials": frozenset({"s3"})})
        service, repository = kserve.write(online, model)
        uri = yaml.safe_load(service.read_text())["spec"]["predictor"]["model"]["storageUri"]
        assert uri == repository == "s3://models/digits/triton/first"
        found = {path.removeprefix("models/digits/triton/first/") for path in files.find(uri)}
        assert found == {"Digits/config.pbtxt", "Digits/1/model.onnx"}


def read(program: str, path: Path) -> Any:
    """Read a file with a program of the clients."""
    done = subprocess.run([CLIENTS, "-c", program, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.engines
def test_kserve_and_triton_read_the_files(settings: Settings, model: Path) -> None:
    path, _ = kserve.write(settings, model, "pvc://models/first", 1, "reader")
    repository = settings.private / "s3" / "models" / "digits" / "triton" / "first"
    assert (repository / "Digits" / "1" / "model.onnx").read_bytes() == (model / "model.onnx").read_bytes()
    service = read(SERVICE, path)
    config = read(CONFIG, repository / "Digits" / "config.pbtxt")
    assert not service["spec"]["predictor"]["model"].pop("name")  # a default of the schema
    assert service == yaml.safe_load(path.read_text())  # a key that the schema lacks would be gone
    assert service["metadata"] == {"name": "my-digits"}
    assert service["spec"]["predictor"]["serviceAccountName"] == "reader"
    assert service["spec"]["predictor"]["model"]["resources"] == {"limits": {"nvidia.com/gpu": "1"}}
    tensor = {"name": "image", "dataType": "TYPE_FP32", "dims": ["64"]}
    assert (config["name"], config["maxBatchSize"], config["input"]) == ("Digits", 64, [tensor])
    assert "dynamicBatching" in config
