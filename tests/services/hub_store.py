"""The storage of a loopback Hub: contents by SHA-256, and repositories with commits, branches and tags."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CREATED = "2026-01-01T00:00:00.000Z"
ATTRIBUTES = "".join(
    f"*.{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in ("bin", "onnx", "parquet", "safetensors")
)


@dataclass(frozen=True)
class Entry:
    """A file in a commit. `lfs` files are stored outside git, which has a pointer."""

    sha256: str
    size: int
    oid: str
    lfs: bool

    @property
    def remote(self) -> str:
        """Return the id that the client compares before an upload."""
        return self.sha256 if self.lfs else self.oid

    def described(self, path: str) -> dict[str, Any]:
        """Return the JSON object in a listing."""
        about = {"type": "file", "path": path, "oid": self.oid, "size": self.size}
        return about | ({"lfs": {"oid": self.sha256, "size": self.size, "pointerSize": 134}} if self.lfs else {})


@dataclass(frozen=True)
class Commit:
    """A commit of a repository."""

    oid: str
    title: str
    tree: dict[str, Entry]
    changed: tuple[str, ...] = ()


@dataclass
class Repo:
    """A repository of one of the three kinds; a Space also has hardware, secrets and variables."""

    kind: str
    id: str
    private: bool
    commits: list[Commit] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    space: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> Commit:
        """The commit of `main`."""
        return self.at("main") or self.commits[0]

    def at(self, revision: str) -> Commit | None:
        """Return the commit of a branch, a tag or a (shortened) id."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        found = [commit for commit in self.commits if commit.oid.startswith(oid)] if len(oid) >= 7 else []
        return found[0] if found else None

    def history(self, revision: str) -> Iterator[Commit]:
        """Return the commits up to a revision, newest first."""
        last = self.at(revision)
        for commit in reversed(self.commits):
            if last and self.commits.index(commit) <= self.commits.index(last):
                yield commit

    def commit(self, title: str, changes: dict[str, Entry | None], branch: str = "main") -> Commit:
        """Add a commit to a branch; None deletes a file or a folder."""
        before = self.at(branch)
        tree = dict(before.tree) if before else {}
        for path, entry in changes.items():
            if entry is not None:
                tree[path] = entry
                continue
            for name in [name for name in tree if name == path or name.startswith(path.rstrip("/") + "/")]:
                del tree[name]
        facts = [before and before.oid, title, sorted((path, entry.oid) for path, entry in tree.items())]
        oid = hashlib.sha1(json.dumps([*facts, len(self.commits)]).encode(), usedforsecurity=False).hexdigest()
        made = Commit(oid, title, tree, tuple(changes))
        self.commits.append(made)
        self.branches[branch] = oid
        return made


class Contents:
    """Files by SHA-256 in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Return the path of a content."""
        return self.folder / sha256

    def keep(self, content: bytes, lfs: bool) -> Entry:
        """Store a content; return its entry."""
        sha256 = hashlib.sha256(content).hexdigest()
        if not self.path(sha256).exists():
            part = self.path(f"{sha256}.part")
            part.write_bytes(content)
            part.replace(self.path(sha256))
        return self.entry(sha256, lfs)

    def entry(self, sha256: str, lfs: bool) -> Entry:
        """Return the entry of a stored content."""
        size = self.path(sha256).stat().st_size
        stored = pointer(sha256, size) if lfs else self.path(sha256).read_bytes()
        return Entry(sha256, size, blob_id(stored), lfs)


def pointer(sha256: str, size: int) -> bytes:
    """Return the git-lfs pointer of a file (git-lfs/docs/spec.md)."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def blob_id(content: bytes) -> str:
    """Return git's blob id of a content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
