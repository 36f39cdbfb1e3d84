"""Deployment to an Algorithmia installation: create the algorithm, upload, push, wait for the build, publish."""

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from free_ml_stack import git
from free_ml_stack.deployment.answering import SAMPLE, close
from free_ml_stack.deployment.versions import Bump
from free_ml_stack.errors import StackError
from free_ml_stack.storage.documents import as_json
from free_ml_stack.storage.manifest import verify

MANIFEST = "model_manifest.json"
UNNEEDED = (".png", ".md", ".safetensors")  # files of a model folder that are not needed for predictions
BUILD_SECONDS = 1800.0


def deploy_to_installation(
    model_dir: Path,
    sources: Path,
    predict: Path,
    client: Any,
    algorithm: str,
    bump: Bump = "minor",
    say: Callable[[str], None] = print,
    build_seconds: float = BUILD_SECONDS,
) -> str:
    """Publish a model folder as a new version of `algorithm` ("owner/name"); return the version.

    `sources` is the project's `algorithm/` folder, `predict` its predict.py, and `client` Algorithmia's client. Before
    publishing, the build's result for the sample is compared with the recorded one. Raises StackError.
    """
    from Algorithmia.errors import AlgorithmException

    verify(model_dir)
    sample = json.loads((model_dir / SAMPLE).read_bytes())
    algo = client.algo(algorithm)
    address = repository(client, algo, algorithm)
    with tempfile.TemporaryDirectory() as scratch:
        clone = Git(Path(scratch), address, algorithm.partition("/")[0], client.apiKey or "")
        clone.clone()
        assemble(clone.tree, sources, predict, sample)
        say(f"Uploading {model_dir.name}")
        upload(client, model_dir, algorithm, clone.tree)
        commit = clone.push(f"Deploy {model_dir.name}")
    say(f"Pushed {commit[:10]} to {address}; waiting for the build")
    wait_for_build(algo, commit, build_seconds)
    try:
        answer = client.algo(f"{algorithm}/{commit}").pipe(sample["input"]).result
    except AlgorithmException as error:
        raise StackError(f"build {commit[:10]} fails on the sample: {error.message}") from None
    if not close(answer, sample["output"]):
        raise StackError(f"build {commit[:10]} returned {answer!r} for the sample, expected {sample['output']!r}")
    published = algo.publish(version_info={"version_type": bump})
    return str(published["version_info"]["semantic_version"])


def repository(client: Any, algo: Any, algorithm: str) -> str:
    """Return the git URL of an algorithm; create the algorithm if it does not exist."""
    if not algo.exists():
        environments = client.get_environment("python3").get("environments", [])
        chosen = next((item["id"] for item in environments if item.get("machine_type") == "CPU"), None)
        details = {"label": algo.algoname, "summary": "", "tagline": ""}
        settings = {
            "source_visibility": "closed",
            "license": "apl",
            "network_access": "full",
            "pipeline_enabled": False,
        }
        algo.create(details=details, settings=settings | ({"algorithm_environment": chosen} if chosen else {}))
    source = client.getJsonHelper(f"/v1/algorithms/{algorithm}").get("source", {})
    derived = f"{client.apiAddress.replace('//api.', '//git.', 1)}/git/{algorithm}.git"
    return str(source.get("repository_https_url") or derived)


def assemble(tree: Path, sources: Path, predict: Path, sample: dict[str, Any]) -> None:
    """Copy the algorithm's sources and predict.py into a working tree, and write the sample as a test case."""
    shutil.copytree(sources, tree, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(predict, tree / "src" / "predict.py")
    case = {
        "case_name": "sample",
        "input": sample["input"],
        "expected_output": sample["output"],
        "type": "NO_EXCEPTION",
    }
    (tree / "TEST_CASES.json").write_bytes(as_json([case]))


def upload(client: Any, model_dir: Path, algorithm: str, tree: Path) -> None:
    """Upload a model folder to a collection of its own; write its manifest and the frozen manifest."""
    owner, _, name = algorithm.partition("/")
    manifest = (model_dir / "manifest.json").read_bytes()
    files = sorted(file for file in json.loads(manifest)["files"] if not file.endswith(UNNEEDED) and "/" not in file)
    collection = f"data://{owner}/{name}_{hashlib.sha256(manifest).hexdigest()[:12]}"
    if not client.dir(collection).exists():
        client.dir(collection).create()
    for file in files:
        client.file(f"{collection}/{file}").putFile(str(model_dir / file))
    required = [
        {"name": file, "source_uri": f"{collection}/{file}", "fail_on_tamper": True, "metadata": {}} for file in files
    ]
    (tree / MANIFEST).write_text(
        json.dumps({"required_files": required, "optional_files": []}, indent=1), encoding="utf-8"
    )
    client.freeze(str(tree / MANIFEST), str(tree))


def wait_for_build(algo: Any, commit: str, seconds: float) -> None:
    """Wait until the build of a commit has succeeded. Raises StackError, with the last line of its log, if it fails."""
    end = time.monotonic() + seconds
    pause = 0.1
    while time.monotonic() < end:
        for build in algo.get_builds(limit=10)["results"]:
            if build["commit_sha"] == commit and build["status"] == "succeeded":
                return
            if build["commit_sha"] == commit and build["status"] == "failed":
                lines = algo.get_build_logs(build["build_id"])["logs"].strip().splitlines()
                raise StackError(f"the build of {commit[:10]} failed: {lines[-1] if lines else 'no log'}")
        time.sleep(pause)
        pause = min(pause * 2, 10.0)
    raise StackError(f"the build of {commit[:10]} did not finish within {seconds:g} seconds")


class Git:
    """A clone in a temporary folder; the key is passed in a file, not on command lines."""

    def __init__(self, scratch: Path, address: str, user: str, key: str) -> None:
        self.address, self.tree, self.credentials = address, scratch / "tree", scratch / "credentials"
        url = urlsplit(address)
        line = f"{url.scheme}://{quote(user, safe='')}:{quote(key, safe='')}@{url.netloc}\n"
        self.credentials.touch(0o600)
        self.credentials.write_text(line, encoding="utf-8")

    def clone(self) -> None:
        """Clone the repository."""
        self._run("clone", "--quiet", self.address, str(self.tree), within=False)

    def push(self, message: str) -> str:
        """Commit all changes and push them to the current branch; return the commit's hash."""
        self._run("add", "--all", "--force")
        self._run("commit", "--quiet", "--allow-empty", "--message", message)
        self._run("push", "--quiet", "origin", "HEAD")
        return self._run("rev-parse", "HEAD").strip()

    def _run(self, *arguments: str, within: bool = True) -> str:
        settings = (
            "credential.helper=", f"credential.helper=store --file={self.credentials}", "core.askPass=true",
            "core.autocrlf=false", "user.name=free-ml-stack", "user.email=deploy@localhost",
        )  # fmt: skip
        options = [word for setting in settings for word in ("-c", setting)]
        done = git.run(self.tree if within else None, [*options, *arguments])
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or ["git failed"]
            raise StackError(f"git {arguments[0]} {self.address}: {lines[-1]}")
        return done.stdout.decode()
