"""Repositories and buckets on the Hugging Face Hub as stores: made when they are missing, changed in one request."""

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
    """A repository or a bucket on the Hub, as its client names it, or a folder in it."""

    id: str
    kind: str = "model"
    revision: str | None = None
    folder: str = ""

    @property
    def versioned(self) -> bool:
        """Whether a change is a commit, of which the Hub takes a number in an hour."""
        return self.kind != BUCKET

    @property
    def page(self) -> str:
        """Its path on the Hub's site."""
        return self.id if self.kind == "model" else f"{self.kind}s/{self.id}"

    @property
    def title(self) -> str:
        """The message of its commits; it tells the writers to a repository apart."""
        return f"Change {self.folder or 'the store'}"

    def inside(self, name: str) -> str:
        """The path in the repository of a file of this folder."""
        return f"{self.folder}/{name}".lstrip("/")


def parse(url: str) -> Repository:
    """What `hf://` and `<kind>s/<user>/<name>@<revision>/<folder>` name; models need no kind. Raises StackError."""
    try:
        found = parse_hf_uri(url)
    except ValueError as error:
        raise StackError(f"{url}: {getattr(error, 'msg', error)}".strip()) from None
    return Repository(found.id, found.type, found.revision, found.path_in_repo.strip("/"))


def make(repository: Repository) -> None:
    """Make the repository or bucket, private, where there is none."""
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

    `copy` maps names in a bucket to files elsewhere on the Hub, by their Xet hash, which the Hub copies itself.
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
    """The Hub's files; one that is read whole is read as it is now, without a look at listings that were kept.

    The client shows no bars any more: checkpoints are stored while training prints.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        disable_progress_bars()

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: object) -> bytes:
        """Return the content of a file, or a part of it."""
        if start is not None or end is not None:
            return bytes(super().cat_file(path, start, end, **options))
        try:
            with self.open(path, "rb", block_size=0) as file:
                return bytes(file.read())
        except EntryNotFoundError as error:
            raise FileNotFoundError(path) from error
