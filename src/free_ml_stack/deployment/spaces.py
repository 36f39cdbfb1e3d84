"""Hosting of the gateway on a Hugging Face Space, of the best kind that the account can create."""

import hashlib
import json
import shutil
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from free_ml_stack.deployment.answering import SAMPLE
from free_ml_stack.deployment.deploy import deploy
from free_ml_stack.deployment.versions import Bump
from free_ml_stack.errors import StackError
from free_ml_stack.hub.card import FRONT, read_card
from free_ml_stack.storage.documents import as_json
from free_ml_stack.storage.manifest import verify
from free_ml_stack.storage.repository import BUCKET, SCHEME, Repository, make
from free_ml_stack.storage.stores import hub_store

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from free_ml_stack.project.science import Predictor

WEB = "1.30.0"  # version of onnxruntime-web, verified with the checksum below
WEB_URL = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{WEB}.tgz"
WEB_SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"  # pragma: allowlist secret
WEB_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
# Files of a model folder that a static page does not need.
LEFT_OUT = (".safetensors", ".ipynb", ".png", ".md", ".txt", ".toml", "LICENSE")
GRADIO = "6.31.0"
WAIT_SECONDS = 900.0


@dataclass(frozen=True)
class SpaceKind:
    """A kind of Space: options for its creation, description and front matter."""

    name: str
    options: dict[str, str]
    about: str
    front: dict[str, Any]


SPACE_KINDS = (
    SpaceKind(
        "zerogpu",
        {"space_sdk": "gradio", "space_hardware": "zero-a10g"},
        "free: two per account that is a month old and has a verified e-mail address",
        {"sdk": "gradio", "sdk_version": GRADIO, "app_file": "app.py", "python_version": "3.12"},
    ),
    SpaceKind("docker", {"space_sdk": "docker"}, "for accounts with PRO", {"sdk": "docker", "app_port": 7860}),
    SpaceKind(
        "static",
        {"space_sdk": "static"},
        "free for everyone: the model runs in the visitor's browser",
        {"sdk": "static"},
    ),
)


@dataclass(frozen=True)
class SpaceContent:
    """The parts of a project that are uploaded to a Space."""

    title: str
    root: Path  # with `space/`
    package: Path  # the folder with predict.py
    algorithm: str  # "owner/name"
    collection: str
    cache: Path
    samples: Sequence[Any] = ()  # examples on a static page; default: the model folder's sample


@dataclass(frozen=True)
class Hosted:
    """A running Space; `calls` are Python lines that call it, empty for a static one."""

    kind: str
    page: str
    url: str
    version: str
    calls: str


def host(
    model_dir: Path,
    project: SpaceContent,
    predictor: "Predictor",
    api: "HfApi",
    space: str,
    key: str,
    token: str,
    kind: str = "auto",
    bump: Bump = "minor",
    say: Callable[[str], None] = print,
    seconds: float = WAIT_SECONDS,
) -> Hosted:
    """Host a model folder on the Space `space` ("user/name") and wait until it answers.

    `kind` is zerogpu, docker, static, or auto: the first of these that the account can create. The gateway on the
    Space stores its data in the private bucket `<space>-store`, which it reads with `token`, and serves the model to
    callers with `key`. Raises StackError.
    """
    verify(model_dir)
    permitted = [step for step in SPACE_KINDS if kind in ("auto", step.name)]
    if not permitted:
        raise StackError(f"unknown kind of Space {kind!r}; expected auto, zerogpu, docker or static")
    step = create_space(api, space, permitted, say)
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "tree"
        assemble(tree, step, model_dir, project)
        version = ""
        if step.name != "static":
            store = space_store(api, f"{space}-store")
            version = store_model(model_dir, project, predictor, store, bump)
            variables = {"ALGORITHM": project.algorithm, "COLLECTION": project.collection, "STORE": store}
            variables["VERSION"] = version  # a changed variable restarts the Space, which then serves this version
            for name, value in variables.items():
                api.add_space_variable(space, name, value)
            for name, value in {"ALGORITHMIA_API_KEY": key, "HF_TOKEN": token}.items():
                api.add_space_secret(space, name, value)
        api.upload_folder(repo_id=space, repo_type="space", folder_path=tree, commit_message=f"Host {model_dir.name}")
    url = str(api.space_info(space).host or f"https://{space.replace('/', '-').lower()}.hf.space")
    say(f"Uploaded; waiting for {url}")
    wait(api, space, f"{url}/{'' if step.name == 'static' else 'readyz'}", seconds)
    calls = f'client = Algorithmia.client("YOUR KEY", "{url}")\nclient.algo("{project.algorithm}").pipe(…).result'
    return Hosted(step.name, f"{api.endpoint}/spaces/{space}", url, version, calls if version else "")


def create_space(api: "HfApi", space: str, kinds: list[SpaceKind], say: Callable[[str], None]) -> SpaceKind:
    """Create the Space with the first kind that the Hub permits. Raises StackError if it permits none."""
    from huggingface_hub.errors import HfHubHTTPError

    for kind in kinds:
        options: dict[str, Any] = dict(kind.options)
        try:
            api.create_repo(space, repo_type="space", exist_ok=True, private=False, **options)
            return kind
        except HfHubHTTPError as error:
            if error.response.status_code not in (402, 403):
                raise StackError(f"cannot create the Space {space}: {error.server_message or error}") from None
            say(f"{kind.name} Space not available to this account ({kind.about}): {error.server_message or 'denied'}")
    raise StackError(f"the account cannot create a Space of kind {' or '.join(kind.name for kind in kinds)}")


def assemble(tree: Path, kind: SpaceKind, model_dir: Path, project: SpaceContent) -> None:
    """Create the folder to upload: the files for the kind of Space, and the code or the model."""
    shutil.copytree(project.root / "space" / kind.name, tree)
    front = {"title": project.title, "emoji": "🧪", "colorFrom": "blue", "colorTo": "gray", **kind.front}
    text = yaml.safe_dump(front, allow_unicode=True, sort_keys=False)
    (tree / "README.md").write_text(f"---\n{text}---\n\n{project.title}: {kind.about}.\n", encoding="utf-8")
    if kind.name == "static":
        web_page(tree, model_dir, project)
        return
    shutil.copy(project.root / "space" / "requirements.txt", tree)
    package = tree / "src" / project.package.name
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(library(), tree / "src" / "free_ml_stack", ignore=ignored)
    package.mkdir()
    for name in ("__init__.py", "predict.py"):
        shutil.copy(project.package / name, package / name)


def library() -> Path:
    """Return the folder of this library, which is copied because a Space cannot install a wheel from the repository."""
    return Path(__file__).parents[1]


def web_page(tree: Path, model_dir: Path, project: SpaceContent) -> None:
    """Write the files of a page that runs the model in the browser: model, samples, card and runtime."""
    for path in model_dir.iterdir():
        if path.is_file() and not path.name.endswith(LEFT_OUT):
            shutil.copy(path, tree)
    card = read_card(model_dir / "README.md", "README.md")
    front = FRONT.match(card)
    (tree / "card.md").write_text(card[front.end() if front else 0 :].lstrip(), encoding="utf-8")
    samples = project.samples or [json.loads((model_dir / SAMPLE).read_text(encoding="utf-8"))["input"]]
    content = {"title": project.title, "samples": samples}
    (tree / "samples.json").write_bytes(as_json(content))
    archive = fetch_runtime(project.cache)
    with tarfile.open(archive) as tar:
        for name in WEB_FILES:
            member = tar.extractfile(f"package/dist/{name}")
            if member is None:
                raise StackError(f"{archive} lacks {name}")
            (tree / name).write_bytes(member.read())


def fetch_runtime(cache: Path) -> Path:
    """Download onnxruntime-web from npm's registry, verify it and cache it. Raises StackError."""
    archive = cache / f"onnxruntime-web-{WEB}.tgz"
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        try:
            with urllib.request.urlopen(WEB_URL, timeout=60) as answer:
                content = answer.read()
        except OSError as error:
            raise StackError(f"cannot download {WEB_URL}: {error}") from None
        archive.write_bytes(content)
    if hashlib.sha256(archive.read_bytes()).hexdigest() != WEB_SHA256:
        archive.unlink()
        raise StackError(f"checksum mismatch for {WEB_URL}; rerun the command")
    return archive


def space_store(api: "HfApi", name: str) -> str:
    """Create the bucket of a Space unless it exists; return its URL, or that of an earlier version's repository."""
    earlier = Repository(name, "dataset")
    found = earlier if api.repo_exists(name, repo_type=earlier.kind) else Repository(name, BUCKET)
    make(found)
    return f"{SCHEME}{found.page}"


def store_model(model_dir: Path, project: SpaceContent, predictor: "Predictor", store: str, bump: Bump) -> str:
    """Deploy a model folder to the store of a Space; return the version."""
    owner, _, name = project.algorithm.partition("/")
    return deploy(model_dir, hub_store(f"{store}/{owner}/{project.collection}"), name, predictor, bump).version


def wait(api: "HfApi", space: str, url: str, seconds: float) -> None:
    """Wait until a Space answers. Raises StackError if it fails or takes too long."""
    end = time.monotonic() + seconds
    pause = 0.2
    while time.monotonic() < end:
        stage = api.get_space_runtime(space).stage
        if stage in ("BUILD_ERROR", "CONFIG_ERROR", "RUNTIME_ERROR", "NO_APP_FILE"):
            raise StackError(f"the Space {space} failed ({stage}); see its log at {api.endpoint}/spaces/{space}")
        if stage == "RUNNING" and answers(url):
            return
        time.sleep(pause)
        pause = min(pause * 1.5, 5.0)
    raise StackError(f"no answer from the Space {space} within {seconds:g} s; see {api.endpoint}/spaces/{space}")


def answers(url: str) -> bool:
    """Return whether a URL answers with status 200."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - URL of the Space
            return bool(answer.status == 200)
    except OSError:
        return False
