"""Publish to the Hugging Face Hub: one commit with all files of a version, then its tag."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from free_ml_stack.console import display_path
from free_ml_stack.errors import StackError
from free_ml_stack.hub.client import (
    UNKNOWN_KEY,
    check_cache_writable,
    client,
    http_error,
    offline,
    with_retries,
)
from free_ml_stack.storage.changes import change
from free_ml_stack.storage.manifest import MANIFEST, verify
from free_ml_stack.storage.repository import Repository
from free_ml_stack.storage.stores import open_store, place

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from free_ml_stack.project.settings import Settings


FOLDER, CARD = "models", "README.md"
VERSION = re.compile(r"v(\d+)\.(\d+)\.(\d+)")


class UnpublishedError(StackError):
    """The upload of a model to the Hub failed; its folder and the copy in the store are complete."""


@dataclass(frozen=True)
class Change:
    """The change of a file by an upload: "+" added, "~" replaced, "-" removed, "=" unchanged."""

    sign: str
    name: str
    size: int = 0


def publish(settings: "Settings", folder: Path, public: bool = False, trouble: str = "") -> tuple[str, str, str]:
    """Copy a model folder to the store, and commit it to the Hub if the project has a token and a repository.

    Returns the place in the store, and page and version on the Hub, "" if it was not uploaded. Raises UnpublishedError
    if the Hub fails; `trouble` is an error that occurred before.
    """
    store, target = open_store(settings.storage, settings), f"{FOLDER}/{folder.name}"
    kept = [*sorted(verify(folder)["files"]), MANIFEST]  # readers rely on the manifest, so it is last
    change(store, {f"{target}/{name}": folder / name for name in kept})
    url, version = "", ""
    if repository := repository_of(settings):
        try:
            if trouble:
                raise StackError(trouble)
            url, version = upload(client(), repository, folder, f"Publish {folder.name}", public)
        except StackError as error:
            raise UnpublishedError(
                f"{error}. Model and card are in {display_path(folder)}; run `{settings.command} publish` to resume"
            ) from None
    return place(settings.storage, target, settings), url, version


def repository_of(settings: "Settings") -> Repository | None:
    """Return the project's repository on the Hub; None without a repository or token, or in offline mode."""
    return None if why_not_published(settings) else Repository(settings.model_repo)


def why_not_published(settings: "Settings") -> str:
    """Return why models cannot be published to the Hub, with a remedy; "" if they can."""
    if "huggingface" not in settings.credentials or not settings.model_repo:
        return "needs HF_TOKEN and model_repo"
    return f"HF_HUB_OFFLINE is set; unset it and run `{settings.command} publish`" if offline() else ""


def upload(api: "HfApi", repository: Repository, folder: Path, message: str, public: bool = False) -> tuple[str, str]:
    """Upload a folder with a manifest to the Hub; create a private repository if it is missing.

    `public` makes a private repository public. Returns its page and version. Unchanged files are not uploaded. If
    interrupted, the repository has the previous or the new version, and the same call resumes. Raises StackError.
    """
    from huggingface_hub.errors import HfHubHTTPError

    from free_ml_stack.hub.card import check, read_card

    verify(folder)
    check_cache_writable()
    check(read_card(folder / CARD, CARD))
    private = not public
    try:
        with_retries(lambda: api.create_repo(repository.id, repo_type=repository.kind, private=private, exist_ok=True))
        commit = with_retries(lambda: commit_once(api, repository, folder, message))
        version = with_retries(lambda: tag_once(api, repository, commit))
        if public:
            with_retries(lambda: make_public(api, repository))
    except HfHubHTTPError as error:  # deleted during the upload
        raise http_error(error) from None
    return f"{api.endpoint}/{repository.page}", version


def make_public(api: "HfApi", repository: Repository) -> None:
    """Make a private repository public."""
    if api.repo_info(repository.id, repo_type=repository.kind).private:
        api.update_repo_settings(repository.id, private=False, repo_type=repository.kind)


def commit_once(api: "HfApi", repository: Repository, folder: Path, message: str) -> str:
    """Commit a folder to the repository unless it is unchanged; return the commit with its content.

    The parent is the compared commit: after a commit by another writer, or a lost response, the Hub rejects it and
    the next call compares again.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    head, changes = compare(api, repository, folder)
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(change.name, folder / change.name) for change in changes if change.sign in "+~"
    ]
    operations += [CommitOperationDelete(change.name) for change in changes if change.sign == "-"]
    if not operations:
        return head
    try:
        done = api.create_commit(
            repository.id, operations, commit_message=message, repo_type=repository.kind, parent_commit=head
        )
    except ValueError as error:
        if "metadata" not in str(error):
            raise
        raise StackError(f"card rejected by the Hub: {' '.join(str(error).split())}") from None
    return str(done.oid)


def compare(api: "HfApi", repository: Repository, folder: Path) -> tuple[str, list[Change]]:
    """Return the repository's latest commit, and the changes that make it equal to a folder; the manifest last.

    Only files of the previous version are removed. A missing repository is treated as empty.
    """
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    try:
        head = str(api.repo_info(repository.id, repo_type=repository.kind).sha)
    except RepositoryNotFoundError as error:
        if error.response.status_code == UNKNOWN_KEY:
            raise
        return "", [Change("+", name, (folder / name).stat().st_size) for name in names(folder)]
    tree = api.list_repo_tree(repository.id, recursive=True, revision=head, repo_type=repository.kind)
    there = {item.path: item for item in tree if isinstance(item, RepoFile)}
    changes = [difference_of(folder, name, there.get(name)) for name in names(folder)]
    before = earlier(api, repository, head) if MANIFEST in there else {}
    gone = sorted((set(before) & set(there)) - set(names(folder)))
    return head, [Change("-", name) for name in gone] + changes


def difference_of(folder: Path, name: str, there: Any) -> Change:
    """Return the change of a file; `there` is the file on the Hub or None."""
    from free_ml_stack.storage.checksums import checksum_of, git_blob_id

    path = folder / name
    size = path.stat().st_size
    if there is None or there.size != size:
        return Change("+" if there is None else "~", name, size)
    with path.open("rb") as file:
        same = (
            checksum_of(file, "sha-256").hex() == there.lfs.sha256
            if there.lfs
            else git_blob_id(file, size) == there.blob_id
        )
    return Change("=" if same else "~", name, size)


def names(folder: Path) -> list[str]:
    """Return the files in a folder's manifest, and the manifest last."""
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return [*sorted(content["files"]), MANIFEST]


def earlier(api: "HfApi", repository: Repository, head: str) -> Mapping[str, Any]:
    """Return the files in the manifest on the Hub; {} if it is not a manifest of this library."""
    path = api.hf_hub_download(repository.id, MANIFEST, revision=head, repo_type=repository.kind)
    try:
        files = json.loads(Path(path).read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError):
        return {}
    return files if isinstance(files, dict) else {}


def tag_once(api: "HfApi", repository: Repository, commit: str) -> str:
    """Return the version of a commit: its tag, or a new one above all others, starting at v0.1.0."""
    tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(repository.id, repo_type=repository.kind).tags}
    versions = {name: found for name in tags if (found := VERSION.fullmatch(name))}
    if here := [name for name in versions if tags[name] == commit]:
        return here[0]
    last = max((tuple(map(int, found.groups())) for found in versions.values()), default=(0, 0, 0))
    version = f"v{last[0]}.{last[1] + 1}.0"
    api.create_tag(repository.id, tag=version, revision=commit, repo_type=repository.kind)
    return version


def user_sections(repository: Repository | None) -> tuple[dict[str, str], str]:
    """Return the user-edited sections of the card on the Hub, and the error if it could not be read."""
    from huggingface_hub.errors import HfHubHTTPError

    from free_ml_stack.hub.card import GENERATED, edited_sections, read_card

    if not repository:
        return {}, ""
    try:
        path = with_retries(lambda: client().hf_hub_download(repository.id, CARD, repo_type=repository.kind))
        card = read_card(Path(path), f"{CARD} of {repository.id} on the Hub")
        return edited_sections(card, GENERATED if repository.kind == "model" else ()), ""
    except HfHubHTTPError:  # no card
        return {}, ""
    except StackError as error:
        return {}, str(error)


def difference(changes: Iterable[Change]) -> list[str]:
    """Return a line per change, except for the manifest."""
    words = {"+": "new", "~": "changed", "-": "removed", "=": "unchanged"}
    shown = [change for change in changes if change.name != MANIFEST]
    return [f"{change.sign} {change.name}  {change.size:,} bytes, {words[change.sign]}" for change in shown]


def preview(repository: Repository, folder: Path) -> list[str]:
    """Return lines that describe the changes of an upload."""
    api = client()
    _, changes = with_retries(lambda: compare(api, repository, folder))
    return [f"{api.endpoint}/{repository.page}:", *difference(changes)]
