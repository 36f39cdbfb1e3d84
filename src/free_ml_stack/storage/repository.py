"""Repositories on the Hugging Face Hub as stores: made when they are missing, changed by commits of many files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi


@dataclass(frozen=True)
class Place:
    """A folder in a repository: `hf://<kind>s/<user>/<name>@<revision>/<folder>`, models without their kind."""

    kind: str
    repo_id: str
    revision: str | None
    folder: str


def place_of(path: str) -> Place:
    """The place that a path names, without `hf://`."""
    segments = path.split("/")
    kind = segments.pop(0)[:-1] if segments[0] in ("datasets", "spaces", "models") else "model"
    repo_id, _, revision = "/".join(segments[:2]).partition("@")
    return Place(kind, repo_id, revision or None, "/".join(segments[2:]))


def make(place: Place) -> None:
    """Make the repository, private, where there is none."""
    HfApi().create_repo(place.repo_id, repo_type=place.kind, private=True, exist_ok=True)


def commit(place: Place, files: Mapping[str, Path]) -> None:
    """Store local files under these names in one commit."""
    operations = [
        CommitOperationAdd(f"{place.folder}/{name}".lstrip("/"), path) for name, path in files.items()
    ]
    HfApi().create_commit(
        place.repo_id,
        operations,
        commit_message=f"Store {len(files)} files",
        repo_type=place.kind,
        revision=place.revision,
    )
