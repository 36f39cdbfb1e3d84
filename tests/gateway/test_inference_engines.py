"""The real clients of the Open Inference Protocol, unmodified, against the gateway and against MLServer."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import projects
import pytest
import requests
from places import ROOT
from services.ports import listening
from waiting import until

pytestmark = pytest.mark.engines
ENGINES, SERVICES = ROOT / "build" / "engines", ROOT / "tests" / "services"
IMAGES = np.random.default_rng(0).integers(0, 17, (3, 8, 8)).astype(np.float32)
DESCRIBED = {"inputs": [["image", "FP32", [-1, 8, 8]]], "outputs": [["probabilities", "FP32", [-1, 10]]]}


class Published(NamedTuple):
    """A project with a published and deployed model, and what its graph answers for IMAGES."""

    folder: Path
    model: Path
    expected: Any


class Server(NamedTuple):
    """A running server."""

    url: str
    key: str = ""
    version: str = ""
    binary: bool = False  # whether it has the extension for binary tensor data


@pytest.fixture(scope="module")
def published(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Published:
    folder = projects.make(tmp_path_factory.mktemp("published"), data)
    projects.run(folder, "train", "--epochs", "2", "--name", "digits")
    for command in ("publish", "deploy"):
        projects.run(folder, command)
    model = folder / "models" / "digits"
    [expected] = onnxruntime.InferenceSession(model / "model.onnx").run(["probabilities"], {"image": IMAGES})
    return Published(folder, model, expected)


@pytest.fixture(scope="module")
def gateway(published: Published) -> Iterator[Server]:
    record = published.folder / ".stack" / "gateway.json"
    environ = projects.environment(published.folder)
    command = [sys.executable, "-m", "skeleton", "serve"]  # not forked: those processes end with each test
    with subprocess.Popen(command, cwd=published.folder, env=environ) as process:
        until(lambda: process.poll() is not None or record.exists())
        running = json.loads(record.read_text())
        yield Server(running["url"], running["key"], "0.1.0", binary=True)
        process.terminate()


@pytest.fixture(scope="module")
def mlserver(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("mlserver")
    with listening() as one, listening() as two, listening() as three:
        ports = [listener.getsockname()[1] for listener in (one, two, three)]
    settings = {"host": "127.0.0.1", "parallel_workers": 0, "metrics_port": ports[1], "grpc_port": ports[2]}
    (folder / "settings.json").write_text(json.dumps({**settings, "http_port": ports[0]}))
    parameters = {"uri": str(published.model), "version": "0.1.0"}
    described = {"name": "Skeleton", "implementation": "mlserver_onnx.OnnxModel", "parameters": parameters}
    (folder / "model-settings.json").write_text(json.dumps(described))
    environ = projects.environment(folder, PYTHONPATH=str(SERVICES))
    url = f"http://127.0.0.1:{ports[0]}"
    with (folder / "log").open("w") as log:
        command = [ENGINES / "mlserver" / "bin" / "mlserver", "start", folder]
        with subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log) as process:
            until(lambda: process.poll() is not None or answers(f"{url}/v2/models/Skeleton/ready"))
            assert process.poll() is None, (folder / "log").read_text()
            yield Server(url)
            process.terminate()


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.ConnectionError:
        return False


def ask(client: str, server: Server) -> dict[str, Any]:
    """Return the answers to one client."""
    task = {**server._asdict(), "model": "Skeleton", "images": IMAGES.tolist()}
    command = [ENGINES / "clients" / "bin" / "python", SERVICES / "inference_clients.py", client]
    done = subprocess.run(command, input=json.dumps(task), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_tritonclient_works_with_the_gateway(published: Published, gateway: Server) -> None:
    found = ask("triton", gateway)
    for name in ("json", "binary", "default", "mixed", "gzip", "deflate"):
        np.testing.assert_allclose(found.pop(name), published.expected, rtol=1e-6, err_msg=name)
    errors = found.pop("errors")
    assert found == {
        "live": True,
        "ready": True,
        "model ready": True,
        "version ready": True,
        "other ready": False,
        "extensions": ["binary_tensor_data"],
        "answer": ["Skeleton", "0.1.0", "7"],
        **DESCRIBED,
    }
    assert "[400] input image: expected the shape [-1, 8, 8], got [3, 3, 8]" in errors["shape"]
    assert "[404] model none does not exist" in errors["model"]
    assert "[404] model Skeleton 9.9.9 does not exist" in errors["version"]
    assert "[401]" in errors["key"]
    assert "[401] authorization required" in errors["no key"]


@pytest.mark.usefixtures("gateway")
def test_the_snippet_of_the_documents_works(published: Published) -> None:
    snippets = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "scale.md").read_text("utf-8"), re.M | re.S)
    [snippet] = [snippet for snippet in snippets if "tritonclient" in snippet]
    command = [ENGINES / "clients" / "bin" / "python", "-c", snippet.replace("MyMlProject", "Skeleton")]
    done = subprocess.run(command, cwd=published.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[[")


def test_kserve_works_with_the_gateway(published: Published, gateway: Server) -> None:
    found = ask("kserve", gateway)
    for name in ("json", "binary"):
        np.testing.assert_allclose(found.pop(name), published.expected, rtol=1e-6, err_msg=name)
    errors = found.pop("errors")
    flags = {"live": True, "ready": True, "model ready": True, "other ready": False}
    assert found == {**flags, "answer": ["Skeleton", "7"]}
    assert "expected the shape [-1, 8, 8], got [3, 3, 8], '400" in errors["shape"]
    assert "model none does not exist, '404" in errors["model"]
    assert "'401" in errors["key"]
    assert "authorization required, '401" in errors["no key"]


@pytest.mark.parametrize("client", ["triton", "kserve"])
def test_a_client_moves_between_servers_by_the_address_alone(
    client: str, published: Published, gateway: Server, mlserver: Server
) -> None:
    here = ask(client, gateway._replace(binary=False))
    there = ask(client, Server(mlserver.url, gateway.key))
    for found in (here, there):
        np.testing.assert_allclose(found.pop("json"), published.expected, rtol=1e-6)
    assert here == there
