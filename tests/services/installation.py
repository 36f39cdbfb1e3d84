"""The part of an Algorithmia installation that a gateway lacks: builds of pushed git repositories.

The model is that of the algorithm's frozen manifest. The pushed code is not run: calls are answered by the
gateway's predictor.
"""

import hashlib
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
from fsspec import AbstractFileSystem
from fsspec.implementations.dirfs import DirFileSystem

from free_ml_stack.deployment.deploy import check_build
from free_ml_stack.deployment.versions import FOLDER, Algorithm, Build, add_build, now, read_index
from free_ml_stack.errors import StackError
from free_ml_stack.gateway.algorithms.management import Management
from free_ml_stack.gateway.app import Gateway
from free_ml_stack.gateway.http import HTTPError, Request
from free_ml_stack.project.science import Predictor
from free_ml_stack.storage.manifest import write_manifest

FROZEN = "model_manifest.json.freeze"


class Installation(Management):
    """A replacement of a gateway's management: `url` is the push URL of algorithms, with `{name}`."""

    def __init__(self, gateway: Gateway, url: str, data: AbstractFileSystem) -> None:
        super().__init__(gateway.user, gateway.name, gateway.models)
        self.url, self.data = url, data

    def build(self, algorithm: Algorithm) -> Build:
        """Build the newest commit."""
        url, predictor = self.url.format(name=algorithm.name), self.models.predictor
        try:
            return build_from_git(url, algorithm.name, self.owner, self.data, self.store, predictor)
        except StackError as error:
            raise HTTPError(400, str(error), 4009) from None

    def describe(self, algorithm: Algorithm, request: Request, build: Build | None) -> dict[str, Any]:
        """Return the algorithm object, with the push URL."""
        content = super().describe(algorithm, request, build)
        content["source"] |= {
            "repository_name": algorithm.name,
            "repository_owner": self.owner,
            "repository_https_url": self.url.format(name=algorithm.name),
        }
        return content


def build_from_git(
    url: str, name: str, user: str, data: AbstractFileSystem, store: AbstractFileSystem, predictor: Predictor
) -> Build:
    """Build the newest commit: copy the model's files from the Data API's tree, verify and check them.

    `data` is that tree, `store` the project's; the result is written to the index. Returns the build, also if it
    failed; a commit is built only once.
    """
    with tempfile.TemporaryDirectory() as scratch:
        commit = clone(url, Path(scratch))
        algorithm = read_index(store, name)
        for known in algorithm.builds if algorithm else ():
            if known.hash == commit and known.status == "succeeded":
                return known
        build = Build(hash=commit, folder=f"{FOLDER}/{name}/{commit}", status="in-progress", started_at=now())
        add_build(store, name, build)
        try:
            gather(Path(scratch) / FROZEN, user, data, DirFileSystem(build.folder, fs=store))
            check_build(store, build, predictor)
            build = replace(build, status="succeeded", logs=f"{url} at {commit} answers its sample")
        except (StackError, OSError) as error:
            build = replace(build, status="failed", logs=str(error))
        build = replace(build, finished_at=now())
        add_build(store, name, build)
        return build


def clone(url: str, folder: Path) -> str:
    """Fetch the newest commit into an empty folder; return its hash. Raises StackError."""
    for arguments in (
        ("clone", "--quiet", "--depth", "1", url, str(folder)),
        ("-C", str(folder), "rev-parse", "HEAD"),
    ):
        done = subprocess.run(
            ["git", "-c", "core.askPass=true", *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode:
            raise StackError(f"cannot fetch {url}: {(done.stderr.strip().splitlines() or ['git failed'])[-1]}")
    return done.stdout.strip()


def gather(manifest: Path, user: str, data: AbstractFileSystem, target: AbstractFileSystem) -> None:
    """Copy the files of a frozen manifest, and compare their checksums. Raises StackError."""
    try:
        required: list[dict[str, Any]] = orjson.loads(manifest.read_bytes())["required_files"]
        files = {file["name"]: (file["source_uri"], file["md5_checksum"]) for file in required}
    except (OSError, ValueError, KeyError, TypeError):
        raise StackError(f"{manifest.name} is missing in the repository or invalid; run `algo freeze`") from None
    for name, (uri, expected) in files.items():
        path = uri.removeprefix("data://").replace(".my/", f"{user}/", 1)
        if "/" in name or ".." in path.split("/") or not path.startswith(f"{user}/"):
            raise StackError(f"{uri} is not a file of {user}")
        content = data.cat_file(path)
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != expected:
            raise StackError(f"checksum mismatch for {uri}")
        target.pipe_file(name, content)
    write_manifest(target)
