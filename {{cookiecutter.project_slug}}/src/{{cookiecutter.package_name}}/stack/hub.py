"""Publishing: the model folder to the store, and to the Hub where there is a token."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .storage import open_store

if TYPE_CHECKING:
    from .settings import Settings

FOLDER = "models"


@dataclass(frozen=True)
class Published:
    """Where a model folder has gone: a path in the store, and its page on the Hub or an empty text."""

    folder: Path
    stored: str
    url: str


def publish(settings: "Settings", folder: Path, public: bool = False) -> Published:
    """Copy a model folder to the store, and commit it to the Hub if the project has a token and a repository."""
    store = open_store(settings.storage, settings)
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        store.put_file(str(path), f"{FOLDER}/{folder.name}/{path.name}")
    url = (
        upload(settings, folder, public)
        if "huggingface" in settings.credentials and settings.model_repo
        else ""
    )
    return Published(folder, f"{settings.storage}/{FOLDER}/{folder.name}", url)


def upload(settings: "Settings", folder: Path, public: bool) -> str:
    """Commit a model folder to the Hub, in a new private repository if there is none; returns its page."""
    from huggingface_hub import HfApi

    api = HfApi()
    repo = api.create_repo(settings.model_repo, private=not public, exist_ok=True)
    api.upload_folder(
        repo_id=settings.model_repo, folder_path=folder, commit_message=f"Publish {folder.name}"
    )
    return str(repo)
