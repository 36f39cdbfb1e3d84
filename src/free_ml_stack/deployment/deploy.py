"""Ship a model folder as a new version of the algorithm; list the versions; go back to an earlier one."""

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
    changing,
    commit_hash,
    now,
    order,
    read_index,
    write_index,
)
from free_ml_stack.errors import StackError
from free_ml_stack.project.science import Predictor
from free_ml_stack.storage.manifest import MANIFEST, verify


def deploy(
    model_dir: Path,
    store: AbstractFileSystem,
    name: str,
    predictor: Predictor,
    bump: Bump = "minor",
    notes: str = "",
) -> Build:
    """Copy a model folder into the project's store and make it the algorithm's latest version.

    It becomes the latest only once the copy's sums are right, it loads, and it answers the folder's sample
    as recorded, to 1e-5; else the store is as it was. A running gateway takes it up by itself.
    Raises StackError.
    """
    verify(model_dir)
    started = now()
    algorithm = read_index(store, name) or Algorithm(name=name)
    version = algorithm.next_version(bump)
    folder = claim(model_dir, store, f"{FOLDER}/{name}/{version}")
    try:
        upload(model_dir, store, folder)
        build = Build(
            hash=commit_hash(algorithm, (model_dir / MANIFEST).read_bytes()),
            folder=folder,
            version=version,
            started_at=started,
            finished_at=now(),
            release_notes=notes,
        )
        try_out(store, build, predictor)
        add_build(store, name, build)
    except BaseException:
        with suppress(OSError):  # a store that fails keeps a folder that no version names; why is what counts
            store.rm(folder, recursive=True)
        raise
    return build


def versions(store: AbstractFileSystem, name: str) -> list[Build]:
    """The deployed versions, newest first; the latest is the first that is not withdrawn."""
    algorithm = read_index(store, name)
    return algorithm.published() if algorithm else []


def rollback(store: AbstractFileSystem, name: str, version: str = "") -> Build:
    """Make an earlier version the latest: the one before the present one, or `version`.

    Later ones are withdrawn: they answer when they are asked for by number only. Raises StackError.
    """
    with changing(store, name):
        algorithm = read_index(store, name) or Algorithm(name=name)
        target = earlier(algorithm, version)
        if target is None:
            raise StackError(f"{name} has no version {version or 'to go back to'}; see `deploy --list`")
        for build in algorithm.published():
            if order(build) >= order(target) and build.callability == "public":
                algorithm = algorithm.with_build(replace(build, withdrawn=build != target))
        write_index(store, algorithm)
    return replace(target, withdrawn=False)


def earlier(algorithm: Algorithm, version: str) -> Build | None:
    """The public build of a version; for "" the newest in force before the latest."""
    latest = algorithm.latest()
    for build in algorithm.published():
        before = latest is not None and order(build) < order(latest) and not build.withdrawn
        if build.callability == "public" and (build.version == version if version else before):
            return build
    return None


def claim(model_dir: Path, store: AbstractFileSystem, folder: str) -> str:
    """Put the manifest at a name in the store that nobody has: `folder` or one of its own. Returns the name."""
    try:
        with store.open(f"{folder}/{MANIFEST}", "xb") as file:
            file.write((model_dir / MANIFEST).read_bytes())
    except FileExistsError:
        return claim(model_dir, store, f"{folder}-{secrets.token_hex(4)}")
    return folder


def upload(model_dir: Path, store: AbstractFileSystem, folder: str) -> None:
    """Copy a model folder, whose manifest is there already."""
    for path in sorted(model_dir.rglob("*")):
        if path.is_file() and path != model_dir / MANIFEST:
            store.put_file(str(path), f"{folder}/{path.relative_to(model_dir).as_posix()}")


def try_out(
    store: AbstractFileSystem,
    build: Build,
    predictor: Predictor | str,
    check: Callable[[Predictor | str, Path], None] = check_sample,
) -> None:
    """Fetch a build as a gateway will, and check that it answers its sample as recorded. Raises StackError."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder = fetch(store, build, scratch)
        except StackError as error:
            raise StackError(f"{error}; run the same command again") from None
        check(predictor, folder)


def fetch(store: AbstractFileSystem, build: Build, cache: str) -> Path:
    """Copy a build's folder from the store into `cache` and verify its sums. Raises StackError."""
    folder = Path(cache) / build.build_id
    try:
        if not folder.exists():
            store.get(build.folder, str(folder), recursive=True)
        verify(folder)
    except Exception as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise StackError(f"{build.folder} can't be fetched: {error}") from error
    return folder
