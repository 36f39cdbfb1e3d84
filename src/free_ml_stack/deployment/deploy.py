"""Deployment of a model folder as a new version of the algorithm, list of versions, and rollback."""

import secrets
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from fsspec import AbstractFileSystem

from free_ml_stack.deployment.answering import check_sample
from free_ml_stack.deployment.versions import (
    FOLDER,
    Algorithm,
    Build,
    Bump,
    add_build,
    commit_hash,
    index_lock,
    now,
    read_algorithm,
    version_key,
    write_index,
)
from free_ml_stack.errors import StackError
from free_ml_stack.project.science import Predictor
from free_ml_stack.storage.changes import change
from free_ml_stack.storage.manifest import MANIFEST, verify


def deploy(model_dir: Path, store: AbstractFileSystem, name: str, predictor: Predictor, bump: Bump = "minor") -> Build:
    """Copy a model folder into the project's store and make it the algorithm's latest version.

    Before that, the checksums of the copy are verified, and its prediction for the sample is compared with the
    recorded one (tolerance 1e-5). If a check fails, the store is not changed. A running gateway detects the new
    version. Raises StackError.
    """
    verify(model_dir)
    started = now()
    algorithm = read_algorithm(store, name)
    version = algorithm.next_version(bump)
    folder = f"{FOLDER}/{name}/{version}-{secrets.token_hex(4)}"  # not that of a concurrent deployment
    files = [path for path in sorted(model_dir.rglob("*")) if path.is_file()]
    try:
        change(store, {f"{folder}/{path.relative_to(model_dir).as_posix()}": path for path in files})
        build = Build(
            hash=commit_hash(algorithm, (model_dir / MANIFEST).read_bytes()),
            folder=folder,
            version=version,
            started_at=started,
            finished_at=now(),
        )
        check_build(store, build, predictor)
        add_build(store, name, build)
    except BaseException:
        discard(store, name, folder)
        raise
    return build


def versions(store: AbstractFileSystem, name: str) -> list[Build]:
    """Return the deployed versions, newest first; the first one that is not withdrawn is live."""
    return read_algorithm(store, name).published()


def rollback(store: AbstractFileSystem, name: str, version: str = "") -> Build:
    """Make an earlier version the latest: the previous one, or `version`.

    Later versions are withdrawn; they can still be called by number. Raises StackError.
    """
    with index_lock(store, name):
        algorithm = read_algorithm(store, name)
        target = earlier(algorithm, version)
        if target is None:
            raise StackError(
                f"{name} has no {f'version {version}' if version else 'earlier version'}; see `deploy --list`"
            )
        for build in algorithm.published():
            if version_key(build) >= version_key(target) and build.callability == "public":
                algorithm = algorithm.with_build(replace(build, withdrawn=build != target))
        write_index(store, algorithm)
    return replace(target, withdrawn=False)


def earlier(algorithm: Algorithm, version: str) -> Build | None:
    """Return the public build of a version; for "", the latest one before the live version."""
    latest = algorithm.latest()
    for build in algorithm.published():
        before = latest is not None and version_key(build) < version_key(latest) and not build.withdrawn
        if build.callability == "public" and (build.version == version if version else before):
            return build
    return None


def discard(store: AbstractFileSystem, name: str, folder: str) -> None:
    """Remove the folder of a failed deployment, unless the index refers to it: the answer to its change may be lost.

    Errors are ignored.
    """
    with suppress(Exception):
        if all(build.folder != folder for build in read_algorithm(store, name).builds):
            store.rm(folder, recursive=True)


def check_build(
    store: AbstractFileSystem,
    build: Build,
    predictor: Predictor | str,
    check: Callable[[Predictor | str, Path], None] = check_sample,
) -> None:
    """Download a build as a gateway does, and compare its prediction for the sample. Raises StackError."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder = fetch(store, build, scratch)
        except StackError as error:
            raise StackError(f"{error}; rerun the command") from None
        check(predictor, folder)


def fetch(store: AbstractFileSystem, build: Build, cache: str) -> Path:
    """Download a build's folder into the empty folder `cache` and verify its checksums. Raises StackError."""
    folder = Path(cache) / build.build_id
    try:
        store.get(build.folder, str(folder), recursive=True)
        verify(folder)
    except Exception as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise StackError(f"cannot download {build.folder}: {error}") from error
    return folder
