"""The notebook: generated, small, without outputs; it runs with all keys, none, and with failing ones."""

import asyncio
import base64
import importlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import baking
import forking
import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from percent import TASKS, converted, source
from projects import environment
from services.online import KEYS as SERVED
from services.online import Online, online
from skeleton.config import TrainConfig

from free_ml_stack.notebook.project import KEYS, CellFailedError, Project

USERDATA = '''"""A stand-in for Colab's secrets: answers are set by environment variables."""
import json, os
from . import errors

class SecretNotFoundError(errors.Error): pass
class NotebookAccessError(errors.Error): pass
class TimeoutException(errors.Error): pass

asked = []

def get(name):
    asked.append(name)
    value = json.loads(os.environ["SECRETS"]).get(name)
    if value is None:
        raise SecretNotFoundError(name)
    if value.startswith("!"):
        raise {"!denied": NotebookAccessError, "!timeout": TimeoutException, "!other": errors.Error}[value](name)
    return value
'''
KAGGLE = '''"""A stand-in for Kaggle's secrets."""
import json, os

class BackendError(Exception): pass

class UserSecretsClient:
    def get_secret(self, name):
        secrets = json.loads(os.environ["SECRETS"])
        if name not in secrets:
            raise BackendError(name)
        return secrets[name]
'''


@pytest.fixture(autouse=True)
def no_colab_is_left() -> Iterator[None]:
    """Remove imported stand-ins after a test, so that later tests do not find them."""
    yield
    for name in [name for name in sys.modules if name.startswith("google.colab")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return baking.bake(tmp_path_factory.mktemp("bake"), **names("octocat"))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with stand-ins for the modules of Colab and Kaggle."""
    folder = tmp_path_factory.mktemp("places")
    colab = folder / "google" / "colab"
    colab.mkdir(parents=True)
    (colab / "__init__.py").write_text("")
    (colab / "errors.py").write_text("class Error(Exception): pass\n")
    (colab / "userdata.py").write_text(USERDATA)
    (colab / "runtime.py").write_text('def unassign(): print("unassigned")\n')
    (folder / "kaggle_secrets.py").write_text(KAGGLE)
    return folder


def names(owner: str) -> dict[str, str]:
    return {
        "project_name": "Ziffern",
        "project_slug": "ziffern",
        "package_name": "ziffern",
        "github_username": owner,
    }


def cells_of(project: Path) -> list[Any]:
    return list(nbformat.read(project / "notebooks" / "train.ipynb", as_version=4).cells)


def shortened(project: Path) -> None:
    """Limit the sweep to one short trial."""
    sweep = project / "sweep.yaml"
    text = re.sub(r"run_cap: \d+", "run_cap: 1", sweep.read_text())
    sweep.write_text(text.replace("value: 10", "value: 1"))


async def execute(project: Path, folder: Path, upto: int | None = None, **environ: str) -> str:
    """Run the notebook, or its first cells, in `folder`; return the output."""
    notebook = nbformat.read(project / "notebooks" / "train.ipynb", as_version=4)
    notebook.cells = notebook.cells[:upto]
    for cell in notebook.cells:
        cell.source = cell.source.replace("epochs = 15", "epochs = 2")
    profile = folder / "ipython" / "profile_default" / "startup"
    profile.mkdir(parents=True)
    (profile / "python.py").write_text(f"import sys\nsys.executable = {str(forking.python())!r}\n")
    given = environment(folder, MPLBACKEND="agg", IPYTHONDIR=str(folder / "ipython"), **environ)
    given.pop("STACK_TRACKER")
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    await client.async_execute(env=given)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


def colab(places: Path, **secrets: str) -> dict[str, str]:
    """Return the environment of Colab with these secrets."""
    return {"PYTHONPATH": str(places), "COLAB_RELEASE_TAG": "release", "SECRETS": json.dumps(secrets)}


@pytest.mark.parametrize("github", ["", "octocat"])
@pytest.mark.parametrize("task", sorted(TASKS.glob("*-*/")), ids=lambda task: str(task.name))
def test_the_notebook_matches_its_source(tmp_path: Path, task: Path, github: str) -> None:
    chosen = {"github_username": github, "task": task.name}
    made = baking.bake(tmp_path, hooks=False, **chosen) / "notebooks" / "train.ipynb"
    rendered = baking.environment().from_string(source(task)).render(**baking.context(chosen))
    assert made.read_text("utf-8") == converted(rendered)


def test_it_is_small_and_has_no_outputs(project: Path) -> None:
    cells = cells_of(project)
    code = [cell for cell in cells if cell.cell_type == "code"]
    lines = [len(cell.source.splitlines()) for cell in code]
    assert 20 <= len(cells) <= 30
    assert sum(lines) <= 150
    assert max(lines) <= 15
    assert not any(cell.outputs or cell.execution_count for cell in code)


def test_it_requests_a_gpu_and_opens_on_colab_and_kaggle(project: Path) -> None:
    notebook = nbformat.read(project / "notebooks" / "train.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.accelerator == "GPU"
    assert notebook.metadata.colab.gpuType == "T4"
    address = "github.com/octocat/ziffern/blob/main/notebooks/train.ipynb"
    assert f"colab.research.google.com/github/{address.removeprefix('github.com/')}" in notebook.cells[0].source
    assert f"kaggle.com/kernels/welcome?src=https://{address}" in notebook.cells[0].source


def test_every_parameter_is_a_field_of_the_configuration(project: Path) -> None:
    from dataclasses import fields

    found = [line for cell in cells_of(project) for line in cell.source.splitlines() if "@param" in line]
    defaults = {field.name: field.default for field in fields(TrainConfig)} | {"release": True}
    assert found
    for line in found:
        name, value = line.split("  #")[0].split(" = ")
        assert str(defaults[name]) == value


def test_ruff_accepts_it(project: Path) -> None:
    path = project / "notebooks" / "planted.ipynb"
    content = json.loads((project / "notebooks" / "train.ipynb").read_text("utf-8"))
    code = next(cell for cell in content["cells"] if cell["cell_type"] == "code")
    content["cells"].append({**code, "id": "planted", "source": ["import this_is_unused"]})
    path.write_text(json.dumps(content), encoding="utf-8")
    check = [sys.executable, "-m", "ruff", "check", "--no-cache"]
    planted = subprocess.run([*check, str(path)], cwd=project, capture_output=True, text=True, check=False)
    path.unlink()
    assert "F401" in planted.stdout
    subprocess.run([*check, "notebooks"], cwd=project, check=True)


@pytest.mark.slow
def test_two_runs_without_keys_have_the_same_output(tmp_path: Path, places: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        shortened(baking.bake(folder, **names("")))

    async def both() -> list[str]:
        runs = [execute(f / "ziffern", f / "ziffern" / "notebooks", **colab(places)) for f in folders]
        return await asyncio.gather(*runs)

    printed = asyncio.run(both())
    plain = [normal(text, folder) for text, folder in zip(printed, folders, strict=True)]
    assert plain[0] == plain[1]
    for words in (
        "WANDB_API_KEY: not set in Colab secrets",
        "All packages are installed.",
        "GPU: none",
        "Run first-",
        "Test accuracy",
        "Best: validation_loss",
        "as version 0.1.0 of",
        '"label"',
        "Session kept: its results are stored only on this machine.",
    ):
        assert words in printed[0]


def normal(text: str, folder: Path) -> str:
    """Remove paths, ids, and measured sizes and times from an output."""
    text = text.replace(str(folder), "FOLDER")
    text = re.sub(r"sweep-[0-9a-f]{8}|offline-run-\d+_\d+|127\.0\.0\.1:\d+", "ID", text)
    return re.sub(r"\d+(\.\d+)?( of \d+(\.\d+)?)? ?(s|ms|GB|MB)\b", "N", text)


@pytest.mark.slow
def test_with_all_keys_it_uses_every_service(tmp_path: Path, places: Path) -> None:
    with online(tmp_path) as services:
        secrets = {**SERVED, "ALGORITHMIA_API": services.environment["ALGORITHMIA_API"]}
        addresses = {name: services.environment[name] for name in ("WANDB_BASE_URL", "HF_ENDPOINT")}
        shortened(services.project)
        folder = services.project / "notebooks"
        printed = asyncio.run(execute(services.project, folder, **colab(places, **secrets), **addresses))
        for name in KEYS:
            assert f"{name}: from Colab secrets" in printed
        assert not any(value in printed for value in SERVED.values())
        assert not any(
            value.encode() in path.read_bytes()
            for value in SERVED.values()
            for path in services.project.rglob("*")
            if path.is_file()
        )
        assert "Published at" in printed
        assert '"label"' in printed
        assert printed.endswith("Session ended to release the GPU; the results are in the store.\nunassigned\n")
        reached(services)


def reached(services: Online) -> None:
    """Check that the run is at W&B and the model on the Hub."""
    assert services.hub.repos
    assert services.wandb.runs


AMISS = {
    None: "not set in Colab secrets",
    "!denied": "continuing without it; enable “Notebook access” for the secret",
    "!timeout": """run `import os, getpass; os.environ["{}"] = getpass.getpass()` in a cell, then this cell again""",
    "!other": "cannot read Colab secrets (Error)",
}


@pytest.mark.parametrize("amiss", AMISS)
@pytest.mark.parametrize("name", KEYS)
def test_a_missing_secret_is_reported_in_one_line(
    project: Path,
    places: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    amiss: str | None,
) -> None:
    secrets = {key: amiss if key == name else f"value of {key}" for key in KEYS}
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(places)
    for key, value in colab(places, **{k: v for k, v in secrets.items() if v}).items():
        monkeypatch.setenv(key, value)
    environ = {key: os.environ[key] for key in ("COLAB_RELEASE_TAG", "SECRETS")}
    Project("skeleton", environ).keys()
    printed = capsys.readouterr().out
    shown = {line.split(":")[0]: line for line in printed.splitlines()}
    assert list(shown) == list(KEYS)
    assert AMISS[amiss].format(name) in shown[name]
    assert name not in environ
    assert "value of" not in printed
    later = KEYS[KEYS.index(name) + 1 :] if amiss == "!timeout" else ()  # each further timeout takes ten seconds
    for key in KEYS:
        if key != name:
            assert (environ.get(key) == f"value of {key}") is (key not in later)


def test_secrets_are_requested_by_keys_only(
    project: Path, places: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In VS Code and in Colab's client each request blocks for ten seconds."""
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(places)
    for key, value in colab(places, **dict.fromkeys(KEYS, "!timeout")).items():
        monkeypatch.setenv(key, value)
    userdata = importlib.import_module("google.colab.userdata")  # loaded in each kernel of Colab
    notebook = Project("skeleton", {"COLAB_RELEASE_TAG": "release"})
    notebook.release(wanted=False)
    assert userdata.asked == []
    notebook.keys()
    assert userdata.asked == [KEYS[0]]
    assert "Session kept" in capsys.readouterr().out


def test_kaggles_secrets_are_read_too(
    project: Path, places: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(places)
    monkeypatch.setenv("SECRETS", json.dumps({"HF_TOKEN": "hf_x"}))
    environ = {"KAGGLE_KERNEL_RUN_TYPE": "Interactive", "ALGORITHMIA_API": "http://127.0.0.1:1"}
    Project("skeleton", environ).keys()
    assert environ["HF_TOKEN"] == "hf_x"
    assert capsys.readouterr().out.splitlines() == [
        "WANDB_API_KEY: cannot read Kaggle secrets (BackendError); continuing without it (see Add-ons > Secrets)",
        "HF_TOKEN: from Kaggle secrets",
        "ALGORITHMIA_API: from the environment",
        "ALGORITHMIA_API_KEY: cannot read Kaggle secrets (BackendError); continuing without it (see Add-ons > Secrets)",
    ]


def test_a_failed_command_stops_its_cell_without_a_traceback(project: Path, tmp_path: Path) -> None:
    until = next(n for n, cell in enumerate(cells_of(project)) if "project.install()" in cell.source) + 1
    other = tmp_path / "ziffern"
    subprocess.run(["cp", "-r", str(project), str(other)], check=True)
    path = other / "notebooks" / "train.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[until] = nbformat.v4.new_code_cell('project("train", "--lr", "fast")')
    nbformat.write(notebook, path)
    with pytest.raises(CellExecutionError) as failure:
        asyncio.run(execute(other, other / "notebooks", until + 1))
    assert "error: lr: expected float" in str(failure.value)
    assert "error: train failed with exit code 1; see the output above" in str(failure.value)
    assert "Traceback" not in str(failure.value)


@pytest.mark.slow
def test_other_parameters_start_another_run_and_the_same_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = baking.bake(tmp_path, **names(""))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder / "src")  # as the notebook does
    monkeypatch.setattr(sys, "executable", str(forking.python()))
    project = Project("ziffern", environment(tmp_path))
    project("data")
    one, other = (project.train("first", epochs=1, seed=seed) for seed in (0, 1))
    assert one != other
    assert "Resuming" not in capsys.readouterr().out
    assert project.train("first", seed=1, epochs=1) == other
    assert "Resuming after step 19." in capsys.readouterr().out
    project.split("test", 8)
    assert project.model(one)
    project("data", "--seed", "1")
    with pytest.raises(CellFailedError, match="the data set differs from the model's training data; train again"):
        project.split("test", 8)
    with pytest.raises(CellFailedError, match="train again"):
        project.model(one)


@contextmanager
def github(project: Path, folder: Path, token: str) -> Iterator[str]:
    """Serve the project's repository; requests need the token, if one is given."""
    repository = folder / "octocat" / "ziffern"
    subprocess.run(["git", "update-server-info"], cwd=project, check=True)
    repository.parent.mkdir(parents=True)
    (project / ".git").rename(repository)
    wanted = "Basic " + base64.b64encode(f"x-access-token:{token}".encode()).decode()

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if token and self.headers.get("Authorization") != wanted:
                self.send_response(401)
                self.send_header("WWW-Authenticate", "Basic")
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *arguments: Handler(*arguments, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize(("token", "secret"), [("", None), ("ghp_x", "ghp_x"), ("ghp_x", None), ("ghp_x", "!denied")])
def test_it_gets_the_project_from_github(tmp_path: Path, places: Path, token: str, secret: str | None) -> None:
    (tmp_path / "made").mkdir()
    project = baking.bake(tmp_path / "made", **names("octocat"))
    until = next(n for n, cell in enumerate(cells_of(project)) if "project.install()" in cell.source) + 1
    content = tmp_path / "content"
    content.mkdir()
    secrets = {"GITHUB_TOKEN": secret} if secret else {}
    with github(project, tmp_path / "github", token) as address:
        given = colab(places, **secrets) | {"GITHUB_SERVER_URL": address}
        if token and secret != token:
            with pytest.raises(CellExecutionError, match="check the name, GITHUB_TOKEN"):
                asyncio.run(execute(project, content, until, **given))
            return
        printed = asyncio.run(execute(project, content, until, **given))
    assert "All packages are installed." in printed
    assert (content / "ziffern" / "stack.toml").exists()
    assert "ghp_x" not in (content / "ziffern" / ".git" / "config").read_text() + printed
