"""Hosting on a Space: each kind is uploaded with the Hub's client, started and called."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import Algorithmia
import pytest
import requests
from baking import SKELETON, TEMPLATE
from browsing import ANSWERS, browse
from deployed import KEY
from hosting import SAMPLES, hub, space_files
from huggingface_hub import HfApi
from packaging.requirements import Requirement
from services.spaces import as_json
from skeleton import predict

from free_ml_stack.deployment.answering import close
from free_ml_stack.deployment.spaces import Hosted, SpaceContent, host
from free_ml_stack.errors import StackError


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of a Space and the cache of onnxruntime-web."""
    return space_files(tmp_path_factory.mktemp("project")) / "cache"


def ship(api: HfApi, model: Path, cache: Path, kind: str = "auto") -> tuple[Hosted, list[str]]:
    said: list[str] = []
    project = SpaceContent(
        title="Digits & more",
        root=cache.parent,
        package=Path(predict.__file__).parent,
        algorithm="me/Digits",
        collection="digits",
        cache=cache,
        samples=SAMPLES,
    )
    done = host(model, project, predict, api, "me/digits", KEY, "hf_of_a_test", kind, say=said.append, seconds=90)
    return done, said


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "granted"), [("zerogpu", "zero-a10g"), ("docker", "docker")])
def test_an_uploaded_space_starts_and_answers(
    tmp_path: Path, model: Path, cache: Path, kind: str, granted: str
) -> None:
    with hub(tmp_path, granted) as (spaces, api):
        done, _ = ship(api, model, cache)
        assert (done.kind, done.version) == (kind, "0.1.0")
        assert spaces.readme()["sdk"] == ("gradio" if kind == "zerogpu" else "docker")
        assert spaces.space.secrets == {"ALGORITHMIA_API_KEY": KEY, "HF_TOKEN": "hf_of_a_test"}
        assert KEY not in "".join(spaces.space.variables.values())
        for path in spaces.uploaded.rglob("*"):
            assert not path.is_file() or KEY.encode() not in path.read_bytes()
        client = Algorithmia.client(KEY, done.url)
        expected = json.loads((model / "sample.json").read_text())
        assert close(client.algo("me/Digits").pipe(expected["input"]).result, expected["output"])
        assert Algorithmia.client("hf_other", f"{done.url}/k/{KEY}").algo("me/Digits").exists()
        client.file("data://.my/digits/note.txt").put("kept on the Hub")
        assert spaces.buckets.content("me/digits-store")["me/digits/note.txt"] == b"kept on the Hub"
        assert requests.get(f"{done.url}/v1/algorithms/me/Digits", timeout=10).status_code == 401
        assert f'Algorithmia.client("YOUR KEY", "{done.url}")' in done.calls
    assert spaces.buckets.all["me/digits-store"].private
    stored = spaces.buckets.content("me/digits-store")
    [log] = [stored[path] for path in stored if path.startswith("me/digits/logs/Digits/")]
    assert json.loads(log)["version"] == "0.1.0"


@pytest.mark.slow
@pytest.mark.parametrize("refusal", [402, 403])
def test_a_static_space_is_available_to_every_account(tmp_path: Path, model: Path, cache: Path, refusal: int) -> None:
    """The page gives the same results as predict.py, without external resources or secrets."""
    with hub(tmp_path, "static", refusal=refusal) as (spaces, api):
        done, said = ship(api, model, cache)
        assert done.kind == "static"
        assert [line.split()[0] for line in said[:2]] == ["zerogpu", "docker"]
        assert spaces.space.secrets == {}
        assert [asked.get("hardware") for asked in spaces.asked_for] == ["zero-a10g", None, None]
        page = browse(done.url, ANSWERS)
        loaded = predict.load(model)
        for found, sample in zip(as_json(page), SAMPLES, strict=True):
            expected = predict.apply(sample, loaded)
            assert found["label"] == expected["label"]
            assert found["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)
        assert "What it can and cannot do." in page
        assert (spaces.uploaded / "card.md").read_text().startswith("# ")  # and no metadata
        for file in ("index.html", "ort.wasm.min.mjs"):
            text = (spaces.uploaded / file).read_text()
            assert "https://cdn" not in text


def test_an_account_without_spaces_gets_an_error(tmp_path: Path, model: Path, cache: Path) -> None:
    with (
        hub(tmp_path) as (_, api),
        pytest.raises(StackError, match="cannot create a Space of kind docker"),
    ):
        ship(api, model, cache, "docker")


def test_an_unknown_kind_of_space_is_rejected(tmp_path: Path, model: Path, cache: Path) -> None:
    with hub(tmp_path) as (_, api), pytest.raises(StackError, match="unknown kind of Space 'kubernetes'"):
        ship(api, model, cache, "kubernetes")


def test_hadolint_accepts_the_dockerfile() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    dockerfile = SKELETON / "space" / "docker" / "Dockerfile"
    done = subprocess.run([str(linter), str(dockerfile)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout == ""


def test_a_space_installs_the_versions_that_the_library_requires() -> None:
    project = tomllib.loads((TEMPLATE / "pyproject.toml").read_text("utf-8"))["project"]
    required = {one.name: one.specifier for one in map(Requirement, project["dependencies"])}
    text = re.sub(r"\{%.*?%\}", "", (SKELETON / "space" / "requirements.txt").read_text("utf-8"))
    installed = {one.name: one.specifier for one in map(Requirement, text.split())}
    assert {"huggingface_hub", "uvicorn"} <= installed.keys() and installed.keys() - required.keys() == {"uvloop"}
    assert all(bounds == required.get(name, bounds) for name, bounds in installed.items())


def test_the_image_has_no_torch_and_no_root_user() -> None:
    dockerfile = (SKELETON / "space" / "docker" / "Dockerfile").read_text()
    assert "USER 1000" in dockerfile
    assert "--uid 1000" in dockerfile
    assert "torch" not in (SKELETON / "space" / "requirements.txt").read_text()
