"""Data sets on the Hugging Face Hub: read as a stream of Parquet, published with a card."""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem, filesystem
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from free_ml_stack.data import dataset
from free_ml_stack.errors import StackError, first_line
from free_ml_stack.hub import client as hub_client
from free_ml_stack.hub import publish as hub
from free_ml_stack.hub.card import ID, check, custom_sections, escape_markdown, marked_section, repository_id
from free_ml_stack.storage.manifest import MANIFEST, DamagedError, verify, write_manifest
from free_ml_stack.storage.repository import Repository

SCHEME = "hf://datasets/"
# The Hub's own words for splits (huggingface.co/docs/hub/datasets-file-names-and-splits).
WORDS = {
    "train": "train|training",
    "validation": "validation|valid|val|dev",
    "test": "test|testing|eval|evaluation",
}
ROWS = 1024  # in memory at once
BUFFER = 4 << 20  # bytes read ahead in a column
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def fetch(url: str, store: AbstractFileSystem, labels: list[Any]) -> dict[str, Any]:
    """Copy a data set, `hf://datasets/user/name[@revision][/folder]`, into the store; returns its manifest.

    Its Parquet files must name their split. They pass through as a stream, so memory does not grow with them. The
    revision is pinned; what is in the store already is left alone. Raises StackError.
    """
    repository, revision, folder = parts(url)
    api = hub_client.client()
    info = hub_client.with_retries(
        lambda: known(url, lambda: api.dataset_info(repository.id, revision=revision or None))
    )
    pinned = f"{SCHEME}{repository.id}@{info.sha}{f'/{folder}' if folder else ''}"
    target = dataset.in_store(store)
    if present := whole(target, pinned):
        return present
    source = filesystem("hf", endpoint=api.endpoint, skip_instance_cache=True)
    shards = hub_client.with_retries(lambda: by_split(pinned, source))
    content: dict[str, Any] = {
        "name": repository.id,
        "source": pinned,
        "labels": labels,
        "rows": {},
        "files": {},
    }
    content["license"] = licensed(info.card_data, f"{api.endpoint}/datasets/{repository.id}/blob/{info.sha}/")
    with innermost(target).transaction:  # until all are there, the data set before stays as it is
        for split, paths in shards.items():
            rows, columns, summed = copy(source, paths, target, f"{split}.parquet", url)
            content["rows"][split] = rows
            content["columns"] = columns
            content["files"][f"{split}.parquet"] = summed
    target.pipe_file(MANIFEST, json.dumps(content, indent=1).encode())
    return content


def parts(url: str) -> tuple[Repository, str, str]:
    """The repository, revision and folder of a URL; StackError for one that names no data set on the Hub."""
    found = re.fullmatch(
        r"hf://datasets/([\w.-]+/[\w.-]+)(?:@(refs/(?:convert|pr)/[\w.-]+|[\w.-]+))?(?:/(.+?))?/?", url
    )
    if not found:
        raise StackError(f"expected hf://datasets/USER/NAME, with @REVISION and a folder if need be; got {url!r}")
    return Repository(found[1], "dataset"), found[2] or "", found[3] or ""


def known(url: str, work: Any) -> Any:
    """What the Hub answers; StackError where it does not know the data set."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return work()
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise StackError(f"{url} is not on the Hub, or this account may not read it") from None


def licensed(front: Any, page: str) -> dict[str, str]:
    """What a card says of its data's license, as another's card says it; a link that is relative is so to `page`."""
    said = front.to_dict() if front else {}
    named = said.get("license") or "unknown"
    ids = [str(one) for one in named] if isinstance(named, list) else [str(named)]
    if len(ids) == 1 and ids != ["other"]:
        return {"license": ids[0]}
    link = urljoin(page, str(said.get("license_link") or hub.CARD))
    name = str(said.get("license_name") or " and ".join(ids))
    return {"license": "other", "license_name": name, "license_link": link}


def whole(target: AbstractFileSystem, pinned: str) -> dict[str, Any] | None:
    """The manifest of what is in the store, if that is all of this data set."""
    try:
        content = verify(target)
    except DamagedError:
        return None
    return content if content.get("source") == pinned else None


def by_split(pinned: str, source: AbstractFileSystem) -> dict[str, list[str]]:
    """The Parquet files of each split, in order; StackError where one has none, or those of several data sets."""
    root = pinned.removeprefix("hf://")
    found: dict[str, list[str]] = {split: [] for split in WORDS}
    folders: dict[str, set[str]] = {split: set() for split in WORDS}
    for path in sorted(source.find(root)):
        split, folder = split_of(path.removeprefix(root))
        if path.endswith(".parquet") and split:
            found[split].append(path)
            folders[split].add(folder)
    if missing := [split for split, paths in found.items() if not paths]:
        raise StackError(f"{pinned} has no Parquet files of its {' and '.join(missing)} split")
    if several := next((places for places in folders.values() if len(places) > 1), None):
        names = ", ".join(place.strip("/") or "its root" for place in sorted(several))
        raise StackError(f"{pinned} has several data sets, in {names}; name the folder of one at its end")
    return found


def split_of(path: str) -> tuple[str, str]:
    """The split that a path names last, and the folder in which it does; empty where it names none."""
    named = [
        (match.start(), split)
        for split, words in WORDS.items()
        for match in re.finditer(rf"(?<![a-z0-9])({words})(?![a-z])", path)
    ]
    start, split = max(named, default=(0, ""))
    return split, path[:start].rpartition("/")[0]


def innermost(store: AbstractFileSystem) -> AbstractFileSystem:
    """The file system of which a store is a folder: the one that knows transactions."""
    return innermost(store.fs) if isinstance(store, DirFileSystem) else store


def copy(
    source: AbstractFileSystem, paths: list[str], target: AbstractFileSystem, name: str, url: str
) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Write many Parquet files as one; returns its rows, its columns, and its checksum and size."""
    writer, rows, columns = None, 0, {}
    with target.open(name, "wb") as file, ExitStack() as ends:
        summed = Summed(file)
        for arrays in batches(source, paths, url):
            table = pa.table({key: dataset.as_column(values) for key, values in arrays.items()})
            if writer is None:
                columns = {key: dataset.described(values) for key, values in arrays.items()}
                writer = ends.enter_context(pq.ParquetWriter(summed, table.schema, compression="zstd"))
            if table.schema != writer.schema:
                raise StackError(f"{url}: the files of {name} differ in their columns or shapes")
            writer.write_table(table)
            rows += table.num_rows
        if writer is None:
            raise StackError(f"{url}: {name} would have no rows")
    return rows, columns, {"sha256": summed.total.hexdigest(), "size": summed.size}


def batches(source: AbstractFileSystem, paths: list[str], url: str) -> Iterator[dict[str, NDArray[Any]]]:
    """The rows of many files, some at a time, as arrays (rows, …)."""
    from huggingface_hub.errors import HfHubHTTPError

    for path in paths:
        try:
            with (
                source.open(path, "rb", block_size=2 * BUFFER) as file,
                closing(pq.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False)) as parquet,
            ):
                for batch in parquet.iter_batches(ROWS):
                    yield {key: dense(batch.column(key), f"{url}: column {key}") for key in batch.schema.names}
        except pa.ArrowException as error:
            raise StackError(f"{path} is no whole file of Parquet ({first_line(error)})") from None
        except HfHubHTTPError as error:  # the client has tried again; and rows of it have gone on
            raise hub_client.http_error(error) from None


def dense(column: pa.Array, name: str) -> NDArray[Any]:
    """A column as an array (rows, …); StackError for anything but numbers and lists of them of one length."""
    if column.null_count:
        raise StackError(f"{name} has empty values")
    if isinstance(column, pa.FixedShapeTensorArray):
        values: NDArray[Any] = column.to_numpy_ndarray()
        return values
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type):
        lengths = pc.unique(pc.list_value_length(column)).to_pylist()
        if len(lengths) != 1:
            raise StackError(f"{name} has lists of {len(lengths)} lengths; they must be equal")
        inner = dense(column.flatten(), name)
        return inner.reshape(len(column), lengths[0], *inner.shape[1:])
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type)):
        raise StackError(f"{name} is {column.type}; only numbers and lists of numbers can be trained on")
    values = column.to_numpy(zero_copy_only=False)
    return values.astype(np.uint8) if values.dtype == bool else values


class Summed:
    """A file that is written through, and summed up on the way."""

    def __init__(self, file: Any) -> None:
        self.file, self.total, self.size, self.closed = file, hashlib.sha256(), 0, False

    def write(self, data: Any) -> int:
        """Write bytes."""
        self.total.update(data)
        self.size += len(data)
        self.file.write(data)
        return len(data)

    def flush(self) -> None:
        """Leave it to the file."""

    def close(self) -> None:
        """Leave the file open: another closes it."""
        self.closed = True


def publish(url: str, store: AbstractFileSystem, task: str, title: str, public: bool = False) -> tuple[str, str]:
    """Bring the store's data set to the Hub in one commit, with a card; returns its page and version.

    Raises StackError. `task` is the Hub's id of what it is for.
    """
    repository, source = repository_of(url), dataset.in_store(store)
    facts = verify(source)
    kept, trouble = hub.user_sections(repository)
    if trouble:
        raise StackError(trouble)
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch)
        for name in facts["files"]:
            link(source, name, made / name)
        (made / hub.CARD).write_text(card(facts, task, title, kept), encoding="utf-8")
        content = {**facts, **write_manifest(made)}
        (made / MANIFEST).write_text(json.dumps(content, indent=1), encoding="utf-8")
        return hub.upload(hub_client.client(), repository, made, f"Publish {facts['name']}", public)


def repository_of(url: str) -> Repository:
    """The repository that a data set is published as. Raises StackError."""
    repository, _, folder = parts(url)
    if folder:
        raise StackError(f"{url}: a data set is published as a whole repository, hf://datasets/USER/NAME")
    return repository


def link(source: AbstractFileSystem, name: str, path: Path) -> None:
    """A file of the store as a local one, without a copy where it is local already."""
    if isinstance(source.fs, DirFileSystem) and isinstance(source.fs.fs, LocalFileSystem):
        try:
            os.link(source.fs.fs._strip_protocol(source.fs._join(source._join(name))), path)
            return
        except OSError:  # another disk
            pass
    source.get_file(name, str(path))


def card(facts: Mapping[str, Any], task: str, title: str, kept: Mapping[str, str]) -> str:
    """The card of a data set, from its manifest."""
    from huggingface_hub import DatasetCard, DatasetCardData

    terms = facts.get("license", {"license": ""})
    total = sum(facts["rows"].values())
    parts = [{"split": split, "path": f"{split}.parquet"} for split in facts["rows"]]
    front = DatasetCardData(
        pretty_name=title,
        **(terms if ID.fullmatch(terms["license"]) else {"license": "unknown"}),
        source_datasets=list(filter(None, [repository_id(facts["source"], "datasets/")])) or None,
        task_categories=[task],
        size_categories=[next((word for limit, word in SIZES if total < limit), "n>1M")],
        tags=["free-ml-stack"],
        configs=[{"config_name": "default", "data_files": parts}],
    )
    classes = escape_markdown(", ".join(map(str, facts["labels"])))
    intended = f"{task.replace('-', ' ').capitalize()} with the classes {classes}."
    limits = "What the source says of how the examples were chosen and labelled holds here too; nothing was added."
    made = DatasetCard.from_template(
        front,
        template_str=files(__package__).joinpath("dataset_card.md").read_text(encoding="utf-8"),
        **facts,
        escape=escape_markdown,
        title=title,
        fingerprint=dataset.fingerprint(facts),
        intended_use=marked_section(kept.get("Intended use"), intended),
        limits=marked_section(kept.get("Limits"), limits),
        custom_sections=custom_sections(kept),
    )
    check(str(made))
    return str(made)
