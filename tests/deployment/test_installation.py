"""The algorithm with the real ADK, and its deployment to an installation: create, push, build, publish."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from baking import bake
from deployed import KEY, Deployed, deployed
from predictors import echo_folder

from free_ml_stack.deployment.deploy import versions
from free_ml_stack.deployment.installation import assemble, deploy_to_installation, upload
from free_ml_stack.errors import StackError
from free_ml_stack.storage.manifest import write_manifest

PREDICT = """
def load(model_dir):
    return (model_dir / "word.txt").read_text()


def apply(input, model):
    if input == "fail":
        raise RuntimeError("broken")
    if not isinstance(input, str):
        raise ValueError("only words")
    return model if input == "word" else [input, 0.5]
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    with deployed(tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def tree(gateway: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pushed tree: the generated project's `algorithm/` with predict.py and the manifest of an uploaded model."""
    root = tmp_path_factory.mktemp("algorithm")
    project = bake(root, project_name="Echo Words")
    model = echo_folder(root / "model")
    (root / "predict.py").write_text(PREDICT)
    assemble(
        root / "tree",
        project / "algorithm",
        root / "predict.py",
        json.loads((model / "sample.json").read_text()),
    )
    upload(gateway.client(), model, "me/EchoWords", root / "tree")
    return root / "tree"


def run(tree: Path, gateway: Deployed, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"ALGORITHMIA_API": gateway.url, "ALGORITHMIA_API_KEY": KEY}
    return subprocess.run(
        command,
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def test_the_tree_has_algorithmias_layout(tree: Path) -> None:
    names = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    top = {".adk", "algorithmia.conf", "requirements.txt", "TEST_CASES.json", "model_manifest.json"}
    source = {"src/__init__.py", "src/EchoWords.py", "src/EchoWords_test.py", "src/predict.py"}
    assert names == top | source | {"model_manifest.json.freeze"}
    assert json.loads((tree / "algorithmia.conf").read_text())["algoname"] == "EchoWords"
    frozen = json.loads((tree / "model_manifest.json.freeze").read_text())
    assert {file["name"] for file in frozen["required_files"]} == {"word.txt", "sample.json"}
    assert all(len(file["md5_checksum"]) == 32 and file["fail_on_tamper"] for file in frozen["required_files"])


def test_each_model_has_a_collection_of_its_own(gateway: Deployed, tmp_path: Path) -> None:
    """A model folder has a license, which is the first file by name and the same in all versions."""
    client = gateway.client()
    for word in ("old", "new"):
        model = echo_folder(tmp_path / word, word)
        (model / "LICENSE").write_text("MIT")
        write_manifest(model)
        (tmp_path / f"{word}-tree").mkdir()
        upload(client, model, "me/EchoWords", tmp_path / f"{word}-tree")
    frozen = json.loads((tmp_path / "old-tree" / "model_manifest.json.freeze").read_text())
    stored = {file["name"]: client.file(file["source_uri"]).getString() for file in frozen["required_files"]}
    assert stored["word.txt"] == "old"


@pytest.mark.slow
def test_the_algorithm_runs_with_the_adk_in_local_mode(tree: Path, gateway: Deployed) -> None:
    done = run(tree, gateway, sys.executable, "-m", "src.EchoWords")
    assert done.returncode == 0, done.stderr
    loaded, answer = done.stdout.splitlines()
    assert loaded == "loading complete"
    assert json.loads(answer) == {"result": "hello", "metadata": {"content_type": "text"}}


@pytest.mark.slow
def test_the_test_of_the_algorithm_passes(tree: Path, gateway: Deployed) -> None:
    done = run(tree, gateway, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "src")
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


WORKER = """
import sys
import Algorithmia
adk = sys.modules["adk.ADK"].ADK
begin = adk.__init__
def init(self, *arguments, **options):
    begin(self, *arguments, **options)
    self.FIFO_PATH, self.is_local = sys.argv[1], False
adk.__init__ = init
import src.EchoWords
"""  # replaces the fixed path of the ADK's pipe; otherwise as Algorithmia's runner


@pytest.mark.slow
def test_the_algorithm_uses_the_workers_protocol(tree: Path, gateway: Deployed, tmp_path: Path) -> None:
    pipe = tmp_path / "algoout"
    os.mkfifo(pipe)
    environment = os.environ | {"ALGORITHMIA_API": gateway.url, "ALGORITHMIA_API_KEY": KEY, "PYTHONPATH": "."}
    command = [sys.executable, "-c", WORKER, str(pipe)]
    with subprocess.Popen(
        command, cwd=tree, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as worker:
        assert worker.stdin
        assert worker.stdout
        assert worker.stdout.readline() == "PIPE_INIT_COMPLETE\n"

        def ask(kind: str, data: Any) -> Any:
            worker.stdin.write(json.dumps({"content_type": kind, "data": data}) + "\n")
            worker.stdin.flush()
            return json.loads(pipe.read_text())

        assert ask("text", "word")["result"] == "hello"
        assert ask("json", "x") == {"result": ["x", 0.5], "metadata": {"content_type": "json"}}
        refused = ask("json", [1])["error"]
        assert (refused["message"], refused["error_type"]) == ("only words", "InputError")
        failed = ask("text", "fail")["error"]
        assert (failed["message"], failed["error_type"]) == ("broken", "AlgorithmError")
        assert "RuntimeError" in failed["stacktrace"]
        assert ask("text", "word")["result"] == "hello"
        worker.stdin.close()
        assert worker.wait(timeout=20) == 0


@pytest.mark.slow
def test_a_modified_model_is_not_loaded(tree: Path, gateway: Deployed, tmp_path: Path) -> None:
    copied = shutil.copytree(tree, tmp_path / "tree")
    frozen = json.loads((copied / "model_manifest.json.freeze").read_text())
    word = next(file for file in frozen["required_files"] if file["name"] == "word.txt")
    client = gateway.client()
    client.file(word["source_uri"]).put("hacked")
    try:
        done = run(copied, gateway, sys.executable, "-m", "src.EchoWords")
    finally:
        client.file(word["source_uri"]).put("hello")
    assert "Model File Mismatch for word.txt" in done.stdout
    assert "LoadingError" in done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    baked = bake(root, project_name="Echo Words")
    (baked / "predict.py").write_text(PREDICT)
    return baked


def ship(project: Path, gateway: Deployed, model: Path, **options: Any) -> str:
    said: list[str] = []
    return deploy_to_installation(
        model,
        project / "algorithm",
        project / "predict.py",
        gateway.client(),
        "me/EchoWords",
        say=said.append,
        **options,
    )


@pytest.mark.slow
def test_deployment_to_an_installation(project: Path, installation: Deployed, tmp_path: Path) -> None:
    assert ship(project, installation, echo_folder(tmp_path / "one", "one")) == "0.1.0"
    client = installation.client()
    assert client.algo("me/EchoWords").pipe("word").result == "one"
    assert ship(project, installation, echo_folder(tmp_path / "two", "two"), bump="major") == "1.0.0"
    assert client.algo("me/EchoWords").pipe("word").result == "two"
    assert client.algo("me/EchoWords/0.1.0").pipe("word").result == "one"
    newest = client.algo("me/EchoWords").info()["results"][0]
    assert newest["source"]["repository_https_url"].endswith("/EchoWords.git")
    assert client.algo("me/EchoWords").get_builds()["results"][0]["commit_sha"] == newest["version_info"]["git_hash"]
    assert [build.version for build in versions(installation.store, "EchoWords")] == ["1.0.0", "0.1.0"]


@pytest.mark.slow
def test_a_failed_build_is_not_published(project: Path, installation: Deployed, tmp_path: Path) -> None:
    folder = echo_folder(tmp_path / "bad")
    (folder / "sample.json").write_text(json.dumps({"input": "word", "output": "another word"}))
    write_manifest(folder)
    with pytest.raises(StackError, match="expected 'another word'"):
        ship(project, installation, folder)
    assert versions(installation.store, "EchoWords") == []


@pytest.mark.slow
def test_a_build_that_fails_on_the_sample_is_not_published(
    project: Path, installation: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Algorithmia itself does not call a build, which may lack a package or memory."""
    monkeypatch.setattr("services.installation.check_build", lambda *_: None)
    folder = echo_folder(tmp_path / "bad")
    (folder / "sample.json").write_text(json.dumps({"input": "refuse", "output": "word"}))
    write_manifest(folder)
    with pytest.raises(StackError, match=r"^build [0-9a-f]{10} fails on the sample: that makes no sense$"):
        ship(project, installation, folder)
    assert versions(installation.store, "EchoWords") == []


@pytest.mark.slow
def test_a_rejected_push_gives_a_one_line_error_without_the_key(
    project: Path, installation: Deployed, tmp_path: Path
) -> None:
    client = installation.client("revocable")
    folder = echo_folder(tmp_path / "one", "one")
    with pytest.raises(StackError, match=r"git push http.*EchoWords.git: ") as raised:
        deploy_to_installation(folder, project / "algorithm", project / "predict.py", client, "me/EchoWords", say=print)
    assert "revocable" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_wait_for_a_build_is_limited(project: Path, installation: Deployed, tmp_path: Path) -> None:
    hooks = next((tmp_path / "git").glob("*.git")) / "hooks" / "post-receive"
    hooks.unlink()
    with pytest.raises(StackError, match="did not finish within 0.2 seconds"):
        ship(project, installation, echo_folder(tmp_path / "one", "one"), build_seconds=0.2)
