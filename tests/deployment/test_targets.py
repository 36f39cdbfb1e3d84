"""`deploy --target`: to an installation of Algorithmia and to a Space, by the command line a user types."""

import json
import shutil
from pathlib import Path

import Algorithmia
import projects
import pytest
from baking import bake
from deployed import KEY, Deployed
from hosting import SAMPLES, hub, space_files
from predictors import echo_folder

from free_ml_stack.data import dataset
from free_ml_stack.deployment import targets
from free_ml_stack.deployment.answering import close
from free_ml_stack.project.science import Science
from free_ml_stack.project.settings import load
from free_ml_stack.storage.stores import open_store


@pytest.fixture
def project(tmp_path: Path, data: Path, model: Path) -> Path:
    """A project with one published model and what a Space is made of."""
    root = projects.make(tmp_path / "project", data)
    space_files(root)
    shutil.copytree(model, root / "models" / "run")
    return root


def test_a_space_needs_a_key(project: Path) -> None:
    printed = projects.run(project, "deploy", "--target", "space", "--model", "run", code=1)
    assert "no key for Hugging Face: set HF_TOKEN" in printed
    assert len(printed.strip().splitlines()) == 1


def test_an_installation_must_be_named(project: Path) -> None:
    printed = projects.run(project, "deploy", "--target", "algorithmia", "--model", "run", code=1)
    assert printed.strip() == "error: no installation is named: set ALGORITHMIA_API and ALGORITHMIA_API_KEY"


def test_an_installation_that_does_not_answer_is_told(project: Path) -> None:
    nowhere = {"ALGORITHMIA_API": "http://127.0.0.1:9", "ALGORITHMIA_API_KEY": "simkey"}
    printed = projects.run(project, "deploy", "--target", "algorithmia", "--model", "run", code=1, **nowhere)
    assert printed.startswith("error: http://127.0.0.1:9 does not answer")
    assert len(printed.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_space_is_made_called_and_made_again_with_the_same_key(tmp_path: Path, project: Path) -> None:
    with hub(tmp_path / "hub", "docker") as (spaces, api):
        online = {"HF_ENDPOINT": api.endpoint, "HF_TOKEN": "hf_of_a_test", "HF_HUB_DISABLE_XET": "1"}
        online["STACK_MODEL_REPO"] = "me/digits"
        arguments = ("deploy", "--target", "space", "--model", "run")
        printed = projects.run(project, *arguments, **online)
        assert "No zerogpu Space for this account" in printed
        record = project / ".stack" / "space.json"
        assert record.stat().st_mode & 0o777 == 0o600
        kept = json.loads(record.read_text())
        assert kept["key"] not in printed
        sample = json.loads((project / "models" / "run" / "sample.json").read_text())
        client = Algorithmia.client(kept["key"], kept["url"])
        assert close(client.algo("me/Skeleton").pipe(sample["input"]).result, sample["output"])
        projects.run(project, *arguments, **online)
        assert spaces.space.secrets["ALGORITHMIA_API_KEY"] == kept["key"]


@pytest.mark.slow
def test_a_static_page_gets_images_of_the_test_split(tmp_path: Path, project: Path) -> None:
    with hub(tmp_path / "hub", "static") as (spaces, api):
        online = {"HF_ENDPOINT": api.endpoint, "HF_TOKEN": "hf_of_a_test", "STACK_MODEL_REPO": "me/digits"}
        projects.run(project, "deploy", "--target", "space", "--model", "run", "--space", "static", **online)
        samples = json.loads((spaces.uploaded / "samples.json").read_text())["samples"]
        assert len(samples) == 10
        assert samples[0] != SAMPLES[0]


def test_samples_of_other_data_are_not_shown_with_a_model(project: Path, tmp_path: Path) -> None:
    settings, science = load({}, project, {}), Science("skeleton")
    model = shutil.copytree(project / "models" / "run", tmp_path / "model")
    _, facts = dataset.read(open_store(settings.storage, settings), settings.private / "cache", "skeleton")
    for trained_on, count in ((dataset.fingerprint(facts), 10), ("of another data set", 1)):
        (model / "result.json").write_text(json.dumps({"data": {"sha256": trained_on}}))
        assert len(targets.test_samples(science, settings, model)) == count


@pytest.mark.slow
def test_the_official_way_from_the_command_line(tmp_path: Path, installation: Deployed) -> None:
    """The gateway stands for the installation; it knows the algorithm EchoWords."""
    project = bake(tmp_path, project_name="Echo Words", package_name="skeleton")
    echo_folder(project / "models" / "run", "hello")
    address = {
        "ALGORITHMIA_API": installation.url,
        "ALGORITHMIA_API_KEY": KEY,
        "STACK_ALGORITHM": "me/EchoWords",
    }
    arguments = ("deploy", "--target", "algorithmia", "--model", "run", "--bump", "major")
    source = str(project / "src")
    printed = projects.run(project, *arguments, **address, PYTHONPATH=source)
    assert "Deployed version 1.0.0 of me/EchoWords" in printed
    assert KEY not in printed
