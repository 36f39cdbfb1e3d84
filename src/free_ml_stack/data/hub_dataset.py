"""Data sets on the Hugging Face Hub: streaming of their files, and publishing with a card."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from fsspec import AbstractFileSystem, filesystem
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from free_ml_stack.data import dataset
from free_ml_stack.data.hub_card import card, features, viewable
from free_ml_stack.data.source import TABLES, Rows, Source, by_split, from_files, split_of, table_suffix
from free_ml_stack.errors import StackError
from free_ml_stack.hub import client as hub_client
from free_ml_stack.hub import publish as hub
from free_ml_stack.storage.manifest import MANIFEST, verify, write_manifest
from free_ml_stack.storage.repository import Repository, parse

SCHEME = "hf://datasets/"


def from_hub(url: str) -> Source:
    """Open a data set on the Hub, `hf://datasets/USER/NAME[@REVISION][/FOLDER]`, pinned to its current commit.

    Its Parquet files, or else its CSV or JSON Lines files, are streamed, so that memory does not grow with their size.
    Raises StackError.
    """
    repository, api = data_set(url), hub_client.client()
    info = hub_client.found_on_hub(url, lambda: api.dataset_info(repository.id, revision=repository.revision))
    pinned = f"{SCHEME}{repository.id}@{info.sha}/{repository.folder}".rstrip("/")
    terms = license_of(info.card_data, f"{api.endpoint}/datasets/{repository.id}/blob/{info.sha}/")
    facts = {"name": repository.id, "source": pinned, "license": terms}

    def opened() -> dict[str, Rows]:
        files = filesystem("hf", endpoint=api.endpoint, skip_instance_cache=True)
        shards = hub_client.with_retries(lambda: shards_of(pinned, files))
        return {split: from_files(files, paths) for split, paths in shards.items()}

    return Source(opened, facts, immutable=True)


def data_set(url: str) -> Repository:
    """Parse the URL of a data set on the Hub. Raises StackError for any other text."""
    try:
        found = parse(url)
    except StackError:
        found = None
    if not found or found.kind != "dataset":
        raise StackError(f"expected hf://datasets/USER/NAME, optionally with @REVISION and /FOLDER, got {url!r}")
    return found


def license_of(front: Any, page: str) -> dict[str, str]:
    """Return the license entries for a copy's card, from the original's front matter. Links are relative to `page`."""
    entries = front.to_dict() if front else {}
    named = entries.get("license") or "unknown"
    ids = [str(one) for one in named] if isinstance(named, list) else [str(named)]
    if len(ids) == 1 and ids != ["other"]:
        return {"license": ids[0]}
    link = urljoin(page, str(entries.get("license_link") or hub.CARD))
    name = str(entries.get("license_name") or " and ".join(ids))
    return {"license": "other", "license_name": name, "license_link": link}


def shards_of(pinned: str, files: AbstractFileSystem) -> dict[str, list[str]]:
    """List the files of each split, sorted. Raises StackError if there are none, or if they form several data sets."""
    root = pinned.removeprefix("hf://")
    paths = sorted(files.find(root))
    kinds = [suffix for suffix in TABLES if any(table_suffix(path) == suffix for path in paths)]
    if not kinds:
        raise StackError(f"{pinned} has no files with the suffix {', '.join(TABLES)}")
    names = {path: path.removeprefix(root).strip("/") for path in paths if table_suffix(path) == kinds[0]}
    found = by_split(names)
    for shards in found.values():
        places = {split_of(f"/{names[path]}")[1].strip("/") for path in shards}
        if len(places) > 1:
            several = ", ".join(sorted(place or "its root" for place in places))
            raise StackError(f"{pinned} has several data sets, in {several}; append the folder of one to the URL")
    return found


def publish(url: str, store: AbstractFileSystem, task: str, title: str, public: bool = False) -> tuple[str, str]:
    """Publish the store's data set on the Hub in one commit, with a card; return the page's URL and the version.

    `task` is the Hub's task id. Raises StackError.
    """
    repository, source = repository_of(url), dataset.data_folder(store)
    facts = verify(source)
    kept, trouble = hub.user_sections(repository)
    if trouble:
        raise StackError(trouble)
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch)
        for name in facts["files"]:
            link(source, name, made / name)
            viewable(made / name)
        (made / hub.CARD).write_text(card(facts, features(facts, made), task, title, kept), encoding="utf-8")
        content = {**facts, **write_manifest(made)}
        (made / MANIFEST).write_text(json.dumps(content, indent=1), encoding="utf-8")
        page = hub.upload(hub_client.client(), repository, made, f"Publish {facts['name']}", public)
    dataset.remember_published(store, dataset.fingerprint(facts), url)
    return page


def repository_of(url: str) -> Repository:
    """Return the repository to publish a data set to. Raises StackError for a URL with a revision or a folder."""
    repository = data_set(url)
    if repository.revision or repository.folder:
        raise StackError(f"{url}: cannot publish to a revision or a folder; expected hf://datasets/USER/NAME")
    return repository


def link(source: AbstractFileSystem, name: str, path: Path) -> None:
    """Create a local file with the content of one in the store, as a hard link if both are on the same disk."""
    if isinstance(source.fs, DirFileSystem) and isinstance(source.fs.fs, LocalFileSystem):
        try:
            os.link(source.fs.fs._strip_protocol(source.fs._join(source._join(name))), path)
            return
        except OSError:  # another disk
            pass
    source.get_file(name, str(path))
