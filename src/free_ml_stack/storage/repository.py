"""Repositories on the Hugging Face Hub as stores: made when they are missing, changed by commits of many files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi


@dataclass(frozen=True)
class Repository:
    """A repository on the Hub, as its client names it, or a folder in it."""

    id: str
    kind: str = "model"
    revision: str | None = None
    folder: str = ""

    @property
    def page(self) -> str:
        """Its path on the Hub's site."""
        return self.id if self.kind == "model" else f"{self.kind}s/{self.id}"


def parse(path: str) -> Repository:
    """What `<kind>s/<user>/<name>@<revision>/<folder>`, a path without `hf://`, names; models need no kind."""
    segments = path.split("/")
    kind = segments.pop(0)[:-1] if segments[0] in ("datasets", "spaces", "models") else "model"
    name, _, revision = "/".join(segments[:2]).partition("@")
    return Repository(name, kind, revision or None, "/".join(segments[2:]))


def make(repository: Repository) -> None:
    """Make the repository, private, where there is none."""
    HfApi().create_repo(repository.id, repo_type=repository.kind, private=True, exist_ok=True)


def commit(repository: Repository, files: Mapping[str, Path]) -> None:
    """Store local files under these names in one commit."""
    operations = [CommitOperationAdd(f"{repository.folder}/{name}".lstrip("/"), path) for name, path in files.items()]
    HfApi().create_commit(
        repository.id,
        operations,
        commit_message=f"Store {len(files)} files",
        repo_type=repository.kind,
        revision=repository.revision,
    )
