"""Repositories and buckets on the Hugging Face Hub as stores: created on first use, changed in one request."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem, parse_hf_uri
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils.tqdm import disable_progress_bars

from free_ml_stack.errors import StackError

SCHEME, BUCKET = "hf://", "bucket"


@dataclass(frozen=True)
class Repository:
    """A repository or bucket on the Hub, or a folder in it, in the terms of the client."""

    id: str
    kind: str = "model"
    revision: str | None = None
    folder: str = ""

    @property
    def versioned(self) -> bool:
        """Return whether a change is a commit, which the Hub limits per hour."""
        return self.kind != BUCKET

    @property
    def page(self) -> str:
        """Return its path on the website of the Hub."""
        return self.id if self.kind == "model" else f"{self.kind}s/{self.id}"

    @property
    def title(self) -> str:
        """Return the message of its commits, which identifies concurrent writers."""
        return f"Change {self.folder or 'the store'}"

    def inside(self, name: str) -> str:
        """Return the path in the repository of a file of this folder."""
        return f"{self.folder}/{name}".lstrip("/")


def parse(url: str) -> Repository:
    """Parse `hf://<kind>s/<user>/<name>@<revision>/<folder>`; the kind of a model is optional. Raises StackError."""
    try:
        found = parse_hf_uri(url)
    except ValueError as error:
        raise StackError(f"{url}: {getattr(error, 'msg', error)}".strip()) from None
    return Repository(found.id, found.type, found.revision, found.path_in_repo.strip("/"))


def make(repository: Repository) -> None:
    """Create the repository or bucket, private, unless it exists."""
    if repository.versioned:
        HfApi().create_repo(repository.id, repo_type=repository.kind, private=True, exist_ok=True)
    else:
        HfApi().create_bucket(repository.id, private=True, exist_ok=True)


def change(
    repository: Repository,
    add: Mapping[str, Path | bytes],
    remove: Iterable[str] = (),
    copy: Mapping[str, tuple[Repository, str]] = MappingProxyType({}),
) -> None:
    """Add and remove files of the folder in one commit, or those of a bucket in one batch.

    `copy` maps names in a bucket to files elsewhere on the Hub, by Xet hash; the Hub copies them itself.
    """
    gone = [repository.inside(name) for name in remove]
    if not repository.versioned:
        added: list[tuple[str | Path | bytes, str]] = [
            (content, repository.inside(name)) for name, content in add.items()
        ]
        copied = [(source.kind, source.id, xet, repository.inside(name)) for name, (source, xet) in copy.items()]
        HfApi().batch_bucket_files(repository.id, add=added, copy=copied, delete=gone)
        return
    HfApi().create_commit(
        repository.id,
        [
            *(CommitOperationAdd(repository.inside(name), content) for name, content in add.items()),
            *(CommitOperationDelete(path, is_folder=False) for path in gone),
        ],
        commit_message=repository.title,
        repo_type=repository.kind,
        revision=repository.revision,
    )


class HubFileSystem(HfFileSystem):
    """The files of the Hub; a whole file is read without cached listings, so that changes by others are seen.

    A path is absent only if the Hub replies so; its client treats a rate limit or an outage like that, too. Progress
    bars of the client are disabled: they would mix with the output of training.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        disable_progress_bars()

    def exists(self, path: str, **options: object) -> bool:
        """Return whether a path exists. Raises the error of a failed request."""
        return bool(self._kind(path))

    def isfile(self, path: str) -> bool:
        """Return whether a path is a file. Raises the error of a failed request."""
        return self._kind(path) == "file"

    def isdir(self, path: str) -> bool:
        """Return whether a path is a folder. Raises the error of a failed request."""
        return self._kind(path) == "directory"

    def _kind(self, path: str) -> str:
        try:
            return str(self.info(path, expand_info=False)["type"])
        except (FileNotFoundError, EntryNotFoundError):
            return ""

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: object) -> bytes:
        """Return the content of a file or of a range of it."""
        if start is not None or end is not None:
            return bytes(super().cat_file(path, start, end, **options))
        try:
            with self.open(path, "rb", block_size=0) as file:
                return bytes(file.read())
        except EntryNotFoundError as error:
            raise FileNotFoundError(path) from error
