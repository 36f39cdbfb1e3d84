"""Builds and versions of a deployed algorithm, stored in one index file."""

import hashlib
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

import orjson
from fsspec import AbstractFileSystem

from free_ml_stack.errors import StackError
from free_ml_stack.storage.changes import change, on_hub

Bump = Literal["major", "minor", "revision"]
FOLDER = "deployments"
LOCK_SECONDS = 10  # age at which a lock on an index is considered stale; a change takes milliseconds
HASH = re.compile(r"[0-9a-f]{40}")
NAME = re.compile(r"[A-Za-z][\w-]{0,63}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Build:
    """A model folder in the store; it is published if it has a `version`."""

    hash: str  # 40 hexadecimal digits: commit, or SHA-1 of the folder's manifest
    folder: str  # in the store
    build_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    status: str = "succeeded"  # or "in-progress" or "failed"
    started_at: str = ""
    finished_at: str = ""
    logs: str = ""
    version: str = ""
    callability: str = "public"
    withdrawn: bool = False  # rolled back: can be called by number only
    release_notes: str = ""
    sample_input: str = ""
    sample_output: str = ""
    request: str = ""  # digest of the request that published it


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """An algorithm's description and its builds, oldest first."""

    name: str
    details: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    builds: tuple[Build, ...] = ()

    def published(self) -> list[Build]:
        """Return the builds with a version, newest version first."""
        return sorted((build for build in self.builds if build.version), key=version_key, reverse=True)

    def latest(self) -> Build | None:
        """Return the version that is called by default."""
        return self.resolve("latest")

    def resolve(self, reference: str) -> Build | None:
        """Return the build of a reference: `1.2.3`, `1.2`, `1.*`, `latest`, `latestPrivate` or a commit's hash."""
        published = self.published()
        if HASH.fullmatch(reference):
            return next((b for b in reversed(self.builds) if (b.hash, b.status) == (reference, "succeeded")), None)
        if exact := next((build for build in published if build.version == reference), None):
            return exact
        wanted = "private" if reference == "latestPrivate" else "public"
        offered = [build for build in published if build.callability == wanted and not build.withdrawn]
        prefix = "" if reference in ("", "*", "latest", "latestPrivate") else _prefix(reference)
        return next((build for build in offered if f"{build.version}.".startswith(prefix)), None)

    def next_version(self, bump: Bump) -> str:
        """Return the version that follows the highest one; the first minor version is 0.1.0."""
        major, minor, revision = version_key(max(self.builds, key=version_key)) if self.published() else (0, 0, 0)
        following = {
            "major": (major + 1, 0, 0),
            "minor": (major, minor + 1, 0),
            "revision": (major, minor, revision + 1),
        }
        return ".".join(map(str, following[bump]))

    def with_build(self, build: Build) -> "Algorithm":
        """Return a copy with a build added, or replaced if its id exists."""
        others = tuple(other for other in self.builds if other.build_id != build.build_id)
        return replace(self, builds=(*others, build))


def version_key(build: Build) -> tuple[int, int, int]:
    """Return the sort key by semantic version; unpublished builds come first."""
    major, minor, revision = map(int, (build.version or "-1.0.0").split("."))
    return major, minor, revision


def _prefix(reference: str) -> str:
    """Return the version prefix of a reference: `1.2.` for `1.2`, `1.2.*` and `1.2.x`; otherwise `?`."""
    stem = re.sub(r"(\.[*x]){1,2}$", "", reference)
    return f"{stem}." if re.fullmatch(r"\d+(\.\d+)?", stem) else "?"


def now() -> str:
    """Return the current UTC time in Algorithmia's format."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def index_path(name: str) -> str:
    """Return the path of an algorithm's index in the store."""
    return f"{FOLDER}/{name}/index.json"


def read_index(store: AbstractFileSystem, name: str) -> Algorithm | None:
    """Read an algorithm from the store, or return None. Raises StackError for an invalid index."""
    try:
        content = orjson.loads(store.cat_file(index_path(name)))
        builds = tuple(Build(**build) for build in content.pop("builds"))
        return Algorithm(builds=builds, **content)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StackError(f"{index_path(name)} in the store is damaged: {error}") from None


def read_algorithm(store: AbstractFileSystem, name: str) -> Algorithm:
    """Read an algorithm from the store; one that does not exist has no builds. Raises StackError."""
    return read_index(store, name) or Algorithm(name=name)


def deployed_build(store: AbstractFileSystem, name: str, command: str) -> Build:
    """Return the version that is called by default. Raises StackError without one."""
    if build := read_algorithm(store, name).latest():
        return build
    raise StackError(f"no deployed version; run `{command} deploy`")


def write_index(store: AbstractFileSystem, algorithm: Algorithm) -> None:
    """Replace the index atomically."""
    change(store, {index_path(algorithm.name): orjson.dumps(algorithm, option=orjson.OPT_INDENT_2)})


def add_build(store: AbstractFileSystem, name: str, build: Build) -> None:
    """Add a build to the index, or replace it. Raises StackError if another build has its version."""
    with index_lock(store, name):
        algorithm = read_algorithm(store, name)
        others = {other.version for other in algorithm.builds if other.build_id != build.build_id}
        if build.version and build.version in others:
            raise StackError(
                f"version {build.version} of {name} already exists (deployed concurrently); run deploy again"
            )
        write_index(store, algorithm.with_build(build))


def remove(store: AbstractFileSystem, name: str) -> None:
    """Remove an algorithm, its log, and the model folders that no other algorithm uses.

    The log is removed because a later algorithm of the same name would be compared with its calls.
    """
    others = [read_index(store, other) for other in names(store) if other != name]
    used = {build.folder for other in others if other for build in other.builds}
    with index_lock(store, name):
        algorithm = read_index(store, name)
        own = {build.folder for build in algorithm.builds} if algorithm else set()
        folders = [folder for folder in sorted(own - used) if folder.startswith(f"{FOLDER}/{name}/")]
        rest = [place for place in (f"logs/{name}", *folders) if store.exists(place)]
        change(store, {}, remove=[index_path(name), *rest])


def names(store: AbstractFileSystem) -> list[str]:
    """Return the names of all algorithms, including removed ones."""
    known = store.ls(FOLDER, detail=False) if store.isdir(FOLDER) else []
    return [path.rstrip("/").rpartition("/")[2] for path in known]


@contextmanager
def index_lock(store: AbstractFileSystem, name: str) -> Iterator[None]:
    """Lock an index for a block; a stale lock is broken after LOCK_SECONDS.

    A store on the Hub has no locks: of two concurrent changes the later one wins.
    """
    if on_hub(store):  # no exclusive creation there
        yield
        return
    lock = f"{FOLDER}/{name}/.lock"
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            store.open(lock, "xb").close()
            break
        except FileExistsError:
            if time.monotonic() > end:
                break
            time.sleep(0.02)
    try:
        yield
    finally:
        with suppress(OSError):  # the change is complete, and a remaining lock becomes stale
            store.rm_file(lock)


def commit_hash(algorithm: Algorithm, content: bytes) -> str:
    """Compute the hash of a new build from its content and the previous hash, like a commit's."""
    parent = algorithm.builds[-1].hash if algorithm.builds else algorithm.name
    return hashlib.sha1(parent.encode() + content, usedforsecurity=False).hexdigest()
