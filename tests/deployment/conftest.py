"""Models, stores and installations for the tests of deployment."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import digits
import pytest
from deployed import KEY, Deployed, deployed
from gitting import GitServer
from hosting import SAMPLES
from services.installation import Installation
from serving import serving
from skeleton import predict

from free_ml_stack.storage.local import local_store
from free_ml_stack.storage.manifest import write_manifest


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of the project's untrained digits model."""
    import torch
    from skeleton import model as net
    from skeleton.config import TrainConfig

    from free_ml_stack.project.science import Science
    from free_ml_stack.training.export import write_onnx

    folder = tmp_path_factory.mktemp("model") / "run"
    folder.mkdir()
    torch.manual_seed(1)
    untrained, config = net.build(TrainConfig(), digits.FACTS).eval(), TrainConfig()
    net.save(untrained, folder)
    write_onnx(Science("skeleton"), config, untrained, digits.split(SAMPLES), folder / "model.onnx")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# Digits\n\nWhat it can and cannot do.\n")
    image = SAMPLES[0]
    answer = predict.apply(image, predict.load(folder))
    (folder / "sample.json").write_text(json.dumps({"input": image, "output": answer}))
    write_manifest(folder)
    return folder


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Deployed]:
    """A gateway with a git server, which notifies it of each push."""
    git = GitServer(tmp_path / "git", "me", KEY)
    with serving(git) as git_url, deployed(tmp_path / "gateway") as gateway:
        data = local_store(tmp_path / "gateway" / "data")
        gateway.app.management = Installation(gateway.app, f"{git_url}/{{name}}.git", data)
        webhook = f"{gateway.url}/v1/algorithms/me/EchoWords/scm/webhook"
        headers = {"X-API-Key": KEY, "Content-Type": "application/json"}
        call = f"from urllib.request import *; urlopen(Request('{webhook}', b'{{}}', {headers}))"
        git.create("EchoWords", f'{sys.executable} -c "{call}" > /dev/null 2>&1 &')
        yield gateway
