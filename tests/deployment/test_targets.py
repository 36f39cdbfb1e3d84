"""`deploy --target` to an Algorithmia installation and to a Space, with the command line."""

import json
import shutil
import signal
from pathlib import Path

import Algorithmia
import projects
import pytest
from baking import bake
from deployed import KEY, Deployed, deployed
from hosting import SAMPLES, hub, space_files
from predictors import echo_folder
from services.ports import listening
from services.wandb_server import KEY as WANDB_KEY

from free_ml_stack.data import dataset
from free_ml_stack.deployment import targets
from free_ml_stack.deployment.answering import close
from free_ml_stack.project.science import Science
from free_ml_stack.project.settings import load
from free_ml_stack.storage.stores import open_store


@pytest.fixture
def project(tmp_path: Path, data: Path, model: Path) -> Path:
    """A project with a published model and the files of a Space."""
    root = projects.make(tmp_path / "project", data)
    space_files(root)
    shutil.copytree(model, root / "models" / "run")
    return root


def test_a_space_requires_a_token(project: Path) -> None:
    printed = projects.run(project, "deploy", "--target", "space", "--model", "run", code=1)
    assert "no token for Hugging Face; set HF_TOKEN" in printed
    assert len(printed.strip().splitlines()) == 1


def test_an_installation_must_be_configured(project: Path) -> None:
    printed = projects.run(project, "deploy", "--target", "algorithmia", "--model", "run", code=1)
    assert printed.strip() == "error: no installation configured; set ALGORITHMIA_API and ALGORITHMIA_API_KEY"


def test_an_unreachable_installation_is_reported(project: Path) -> None:
    nowhere = {"ALGORITHMIA_API": "http://127.0.0.1:9", "ALGORITHMIA_API_KEY": "simkey"}
    printed = projects.run(project, "deploy", "--target", "algorithmia", "--model", "run", code=1, **nowhere)
    assert printed.startswith("error: no answer from http://127.0.0.1:9")
    assert len(printed.strip().splitlines()) == 1


def test_a_key_without_rights_on_the_algorithm_is_reported(project: Path, tmp_path: Path) -> None:
    with deployed(tmp_path / "gateway") as gateway:
        address = {"ALGORITHMIA_API": gateway.url, "ALGORITHMIA_API_KEY": KEY, "STACK_ALGORITHM": "you/Skeleton"}
        printed = projects.run(project, "deploy", "--target", "algorithmia", "--model", "run", code=1, **address)
    [line] = printed.strip().splitlines()
    assert line.startswith(f"error: request rejected by {gateway.url}: ")
    assert line.endswith("403]>; check that the owner of ALGORITHMIA_API_KEY may change you/Skeleton")


def test_a_deployed_version_is_reported_before_its_lineage_is_tracked(project: Path) -> None:
    with listening() as wandb:  # does not answer
        wandb.settimeout(60)
        address = {"WANDB_BASE_URL": f"http://127.0.0.1:{wandb.getsockname()[1]}", "WANDB_API_KEY": WANDB_KEY}
        process = projects.start(project, "deploy", "--model", "run", STACK_TRACKER="wandb", **address)
        with wandb.accept()[0]:
            process.send_signal(signal.SIGINT)
            printed, complaint = process.communicate(timeout=60)
    assert printed.startswith("Deployed model run as version 0.1.0 of me/Skeleton; ")
    assert (process.returncode, complaint) == (130, "interrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize("stored", ["bucket", "dataset"])
def test_a_space_keeps_its_key_and_store_when_deployed_again(tmp_path: Path, project: Path, stored: str) -> None:
    """Earlier versions of the library made a data-set repository, which stays the store."""
    with hub(tmp_path / "hub", "docker") as (spaces, api):
        if stored == "dataset":
            api.create_repo("me/digits-store", repo_type="dataset", private=True)
        online = {"HF_ENDPOINT": api.endpoint, "HF_TOKEN": "hf_of_a_test"}
        online["STACK_MODEL_REPO"] = "me/digits"
        arguments = ("deploy", "--target", "space", "--model", "run")
        printed = projects.run(project, *arguments, **online)
        assert "zerogpu Space not available to this account" in printed
        record = project / ".stack" / "space.json"
        assert record.stat().st_mode & 0o777 == 0o600
        kept = json.loads(record.read_text())
        assert kept["key"] not in printed
        sample = json.loads((project / "models" / "run" / "sample.json").read_text())
        client = Algorithmia.client(kept["key"], kept["url"])
        assert close(client.algo("me/Skeleton").pipe(sample["input"]).result, sample["output"])
        record.chmod(0o644)  # as after a copy of the project
        projects.run(project, *arguments, **online)
        assert record.stat().st_mode & 0o777 == 0o600
        assert spaces.space.secrets["ALGORITHMIA_API_KEY"] == kept["key"]
        assert spaces.space.variables["STORE"] == f"hf://{stored}s/me/digits-store"
        assert spaces.space.variables["VERSION"] == "0.2.0"
        names = (
            spaces.files("dataset", "me/digits-store")
            if stored == "dataset"
            else spaces.buckets.content("me/digits-store")
        )
        models = sorted(name.rpartition("-")[0] for name in names if name.endswith("/model.onnx"))
        assert models == [f"me/skeleton/deployments/Skeleton/{number}" for number in ("0.1.0", "0.2.0")]


@pytest.mark.slow
def test_a_static_page_shows_images_of_the_test_split(tmp_path: Path, project: Path) -> None:
    with hub(tmp_path / "hub", "static") as (spaces, api):
        online = {"HF_ENDPOINT": api.endpoint, "HF_TOKEN": "hf_of_a_test", "STACK_MODEL_REPO": "me/digits"}
        projects.run(project, "deploy", "--target", "space", "--model", "run", "--space", "static", **online)
        samples = json.loads((spaces.uploaded / "samples.json").read_text())["samples"]
        assert len(samples) == 10
        assert samples[0] != SAMPLES[0]


def test_samples_of_another_data_set_are_not_used(project: Path, tmp_path: Path) -> None:
    settings, science = load({}, project, {}), Science("skeleton")
    model = shutil.copytree(project / "models" / "run", tmp_path / "model")
    _, facts = dataset.read(open_store(settings.storage, settings), settings.private / "cache", "skeleton")
    for trained_on, count in ((dataset.fingerprint(facts), 10), ("of another data set", 1)):
        (model / "result.json").write_text(json.dumps({"data": {"sha256": trained_on}}))
        assert len(targets.test_samples(science, settings, model)) == count


@pytest.mark.slow
def test_deployment_to_an_installation_with_the_command_line(tmp_path: Path, installation: Deployed) -> None:
    """The gateway acts as the installation, with the algorithm EchoWords."""
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
