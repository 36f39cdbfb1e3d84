"""Publishing of data sets to the Hub, and streaming from it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import projects
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import DatasetCardData
from services.hub_faults import Fault
from services.hub_server import Hub, serving

from free_ml_stack.data import dataset
from free_ml_stack.data.hub_dataset import license_of
from free_ml_stack.data.source import split_of
from free_ml_stack.storage.local import local_store


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    hub = Hub(tmp_path_factory.mktemp("hub"))
    with serving(hub):
        yield hub


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return projects.make(tmp_path_factory.mktemp("hub-data") / "project", data)


def run(folder: Path, hub: Hub, *arguments: str, code: int = 0) -> str:
    environ = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_write", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return projects.run(folder, *arguments, code=code, **environ)


def stored(folder: Path) -> dict[str, bytes]:
    place = folder / ".stack" / "data" / "me" / "skeleton" / "data"
    return {path.name: path.read_bytes() for path in place.glob("*.*")}


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


@pytest.mark.slow
def test_a_data_set_round_trips_through_the_hub(hub: Hub, project: Path, tmp_path: Path) -> None:
    assert f"Published at {hub.url}/datasets/me/digits as v0.1.0" in run(
        project, hub, "data", "--publish", "hf://datasets/me/digits"
    )
    files = hub.files("dataset", "me/digits")
    before = stored(project)
    for split in ("train", "validation", "test"):
        here, there = (pq.read_table(pa.BufferReader(one[f"{split}.parquet"])) for one in (before, files))
        assert np.array_equal(here["image"].combine_chunks().to_numpy_ndarray(), there["image"].to_pylist())
        assert here["label"].equals(there["label"])
    front = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert front["license"] == "cc-by-4.0"
    assert front["configs"][0]["data_files"][0] == {"split": "train", "path": "train.parquet"}
    assert front["size_categories"] == ["1K<n<10K"]
    manifest = json.loads(before["manifest.json"])
    fingerprint = dataset.fingerprint(manifest)
    store = local_store(project / ".stack" / "data" / "me" / "skeleton")
    assert dataset.published(store, fingerprint) == "hf://datasets/me/digits"
    assert dataset.published(store, "another") == ""
    assert "More Information Needed" not in files["README.md"].decode()

    other = tmp_path / "other"
    other.mkdir()
    (other / "stack.toml").write_bytes((project / "stack.toml").read_bytes())
    run(other, hub, "data", "--from", "hf://datasets/me/digits")
    found = json.loads(stored(other)["manifest.json"])
    head = hub.repo("dataset", "me/digits").head.oid
    assert found["source"] == f"hf://datasets/me/digits@{head}"
    assert (found["rows"], found["columns"]) == (manifest["rows"], manifest["columns"])
    for split in found["rows"]:
        here, there = (pq.read_table(pa.BufferReader(files[f"{split}.parquet"])) for files in (before, stored(other)))
        assert here.equals(there)

    printed = run(other, hub, "train", "--epochs", "1", "--name", "one")
    assert "Test accuracy" in printed
    projects.run(other, "publish", HF_HUB_OFFLINE="1")
    card = (other / "models" / "one" / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["datasets"] == ["me/digits"]

    calls = len(hub.calls)
    marks = {path: path.stat().st_mtime_ns for path in (other / ".stack").rglob("*.parquet")}
    run(other, hub, "data", "--from", "hf://datasets/me/digits")
    assert len(hub.calls) == calls + 1  # resolves the revision; local files are not fetched again
    assert {path: path.stat().st_mtime_ns for path in marks} == marks
    calls = len(hub.calls)
    run(other, hub, "data", "--from", "hf://datasets/me/digits", "--seed", "1")
    assert len(hub.calls) > calls + 1  # the splits could be others now


@pytest.mark.slow
def test_a_copy_keeps_the_license_and_names_its_source(hub: Hub, project: Path) -> None:
    text = "---\nlicense: other\nlicense_name: theirs\nlicense_link: LICENSE\n---\n# Theirs\n"
    commit = hub.put("dataset", "you/theirs", {**shards_of(), "README.md": text.encode()})
    run(project, hub, "data", "--from", "hf://datasets/you/theirs", "--publish", "hf://datasets/me/copy")
    front = yaml.safe_load(hub.files("dataset", "me/copy")["README.md"].decode().split("---\n")[1])
    assert (front["license"], front["license_name"]) == ("other", "theirs")
    assert front["license_link"] == f"{hub.url}/datasets/you/theirs/blob/{commit.oid}/LICENSE"
    assert front["source_datasets"] == ["you/theirs"]

    words = "\n## Data\n\nChosen by hand.\n"
    edited = hub.files("dataset", "me/copy")["README.md"] + words.encode()
    hub.put("dataset", "me/copy", {"README.md": edited})
    run(project, hub, "data", "--from", "hf://datasets/you/theirs", "--publish", "hf://datasets/me/copy")
    assert words in hub.files("dataset", "me/copy")["README.md"].decode()


@pytest.mark.slow
def test_the_stored_data_set_is_published_not_the_embedded_one(hub: Hub, project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    shutil.copytree(project, folder)
    table = pa.table({"image": [[[1.0] * 8] * 8] * 40, "label": ["a", "b"] * 20})
    pq.write_table(table, tmp_path / "mine.parquet")
    run(folder, hub, "data", "--from", str(tmp_path / "mine.parquet"))
    before = stored(folder)
    assert "Published at" in run(folder, hub, "data", "--publish", "hf://datasets/me/mine")
    assert stored(folder) == before | {dataset.PUBLISHED: stored(folder)[dataset.PUBLISHED]}
    assert json.loads(hub.files("dataset", "me/mine")["manifest.json"])["name"] == "mine"


def test_only_a_whole_repository_is_published_to(project: Path) -> None:
    for url in ("hf://datasets/me/mine@v1", "hf://datasets/me/mine/part"):
        expected = f"error: {url}: cannot publish to a revision or a folder; expected hf://datasets/USER/NAME\n"
        assert projects.run(project, "data", "--publish", url, code=1) == expected


def test_a_license_is_reduced_to_one_id() -> None:
    """A card has one license id, a list of ids, a custom license, or none."""
    for said, expected in (
        ({"license": "mit"}, {"license": "mit"}),
        ({"license": ["mit"]}, {"license": "mit"}),
        ({}, {"license": "unknown"}),
        (
            {"license": ["mit", "cc0-1.0"]},
            {
                "license": "other",
                "license_name": "mit and cc0-1.0",
                "license_link": "https://hub/you/README.md",
            },
        ),
        (
            {"license": "other", "license_name": "own", "license_link": "https://own/"},
            {"license": "other", "license_name": "own", "license_link": "https://own/"},
        ),
    ):
        assert license_of(DatasetCardData(**said), "https://hub/you/") == expected
    assert license_of(None, "") == {"license": "unknown"}


LISTS = {
    "image": pa.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], pa.list_(pa.list_(pa.uint8()))),
    "label": pa.array([0, 1], pa.int64()),
    "seen": pa.array([True, False]),
}
FETCH = """
import json, re, sys
from pathlib import Path
from free_ml_stack.hub.client import error_line
from free_ml_stack.data.hub_dataset import from_hub
from free_ml_stack.data.ingest import ingest
from free_ml_stack.storage.local import local_store
class data:
    TARGET = "label"
    def arrange(columns, target):
        return {name: (name, "number" if name == target else kind) for name, kind in columns.items()}
for number, url in enumerate(sys.argv[2:]):
    try:
        made = ingest(local_store(Path(sys.argv[1], str(number))), from_hub(url), data, "", 0, Path(sys.argv[1]))
        print(json.dumps([made["rows"], made["columns"]]))
    except Exception as error:
        print(error_line(error))
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def fetch(folder: Path, hub: Hub, *urls: str, **extra: str) -> list[str]:
    environ = projects.environment(folder, HF_ENDPOINT=hub.url, HF_HUB_DISABLE_TELEMETRY="1", **extra)
    command = [sys.executable, "-c", FETCH, str(folder), *urls]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def shards_of(**columns: Any) -> dict[str, bytes]:
    table = pa.table({**LISTS, **columns})
    return {f"data/{split}-00000-of-00001.parquet": parquet(table) for split in ("train", "val", "test")}


def test_unusable_hub_data_sets_give_one_line_errors(hub: Hub, tmp_path: Path) -> None:
    ragged, text = pa.array([[1], [1, 2]]), pa.array(["a", "b"])
    damaged = {**shards_of(), "data/test-00000-of-00001.parquet": b"PAR1 and no more"}
    twice = {**shards_of(), "more/train-0.parquet": parquet(pa.table(LISTS))}
    contents = {
        "lists": shards_of(),
        "damaged": damaged,
        "twice": twice,
        "ragged": shards_of(image=ragged),
        "text": shards_of(label=text),
        "empty": shards_of(label=pa.array([1, None])),
        "split": {name: data for name, data in shards_of().items() if "val" not in name},
        "shapes": {**shards_of(), "data/train-1.parquet": parquet(pa.table({"label": [1]}))},
    }
    for name, files in contents.items():
        hub.put("dataset", f"you/{name}", files)
    expected = {
        "hf://datasets/you/lists": '"image": {"type": "uint8", "shape": [2, 2], "least": 1, "most": 8}',
        "hf://datasets/you/ragged": "column image has lists of 2 different lengths",
        "hf://datasets/you/text": "column label must hold numbers",
        "hf://datasets/you/empty": "Dropped 3 rows without a value of label.",
        "hf://datasets/you/split": "no rows for validation; provide more rows",
        "hf://datasets/you/shapes": "lacks the column",
        "hf://datasets/you/damaged": "data/test-00000-of-00001.parquet is not a complete Parquet file",
        "hf://datasets/you/twice": "has several data sets, in data, more; append the folder of one",
        "hf://datasets/you/twice/data": '{"train": 2, "validation": 2, "test": 2}',
        "hf://datasets/you/nothing": "not found on the Hub",
        "hf://datasets/you/lists@v9": "not found on the Hub",
        "hf://you/lists": "expected hf://datasets/USER/NAME",
    }
    lines = fetch(tmp_path, hub, *expected)
    for name in ("ragged", "empty"):
        del lines[
            list(expected).index(f"hf://datasets/you/{name}") + 1
        ]  # the data set of the remaining columns or rows
    assert len(lines) == len(expected) + 1
    for line, words in zip(lines, expected.values(), strict=False):
        assert words in line


def test_a_file_belongs_to_the_split_that_its_path_names_last() -> None:
    for path, expected in {
        "/data/train-00000-of-00001.parquet": ("train", "/data"),
        "/train-test-split/test.parquet": ("test", "/train-test-split"),
        "/mnist/validation/0000.parquet": ("validation", "/mnist"),
        "/latest/trained.parquet": ("", ""),
    }.items():
        assert split_of(path) == expected


def test_a_revision_can_be_a_ref_of_the_hub(hub: Hub, tmp_path: Path) -> None:
    """The Hub stores its own Parquet conversions under refs/convert/parquet."""
    made = hub.put("dataset", "you/converted", shards_of())
    repo = hub.repo("dataset", "you/converted")
    repo.branches["refs/convert/parquet"] = made.oid
    line, _ = fetch(tmp_path, hub, "hf://datasets/you/converted@refs/convert/parquet/data")
    assert '{"train": 2, "validation": 2, "test": 2}' in line


@pytest.mark.slow
def test_a_failed_fetch_leaves_the_store_unchanged(hub: Hub, project: Path, tmp_path: Path) -> None:
    files = shards_of()
    hub.put("dataset", "you/half", {**files, "data/test-00000-of-00001.parquet": b"PAR1 and no more"})
    before = stored(project)
    printed = run(project, hub, "data", "--from", "hf://datasets/you/half", code=1)
    assert "is not a complete Parquet file" in printed
    assert "Exception ignored" not in printed
    assert stored(project) == before


@pytest.mark.slow
def test_a_key_without_read_access_is_reported(hub: Hub, tmp_path: Path) -> None:
    """A key is rejected for the data set, its listing or a file; an unknown key is reported as such."""
    hub.put("dataset", "you/gated", shards_of())
    for match in ("GET /api/datasets/you/gated", "/tree/", "/resolve/"):
        hub.app.faults = [Fault(403, match=match)]
        [line, _] = fetch(tmp_path / match.strip("/")[:4], hub, "hf://datasets/you/gated")
        assert line == "key rejected by the Hub (403): injected failure; it needs read access; run `doctor`"
    hub.app.faults = []
    [line, _] = fetch(tmp_path, hub, "hf://datasets/you/gated", HF_TOKEN="hf_unknown")
    assert line.startswith("key rejected by the Hub (401): Invalid credentials")


@pytest.mark.slow
def test_an_unusable_hf_home_is_named_in_the_error(hub: Hub, project: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.write_text("")
    hub.put("model", "you/model", {"model.safetensors": b"any"})
    run(project, hub, "data")
    for command in (
        ("data", "--publish", "hf://datasets/me/homeless"),
        ("train", "--init", "hf://you/model"),
    ):
        printed = projects.run(project, *command, code=1, HF_ENDPOINT=hub.url, HF_TOKEN="hf_write", HF_HOME=str(home))
        assert f"error: HF_HOME: cannot write to {home} (" in printed
        assert "; set HF_HOME to another folder\n" in printed
    assert ("dataset", "me/homeless") not in hub.repos


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(hub: Hub, tmp_path: Path) -> None:
    """Six times the data take the same memory (bench/hub_data.py streams 10 GB)."""
    rng, peaks = np.random.default_rng(0), []
    for name, shards in (("small", 2), ("large", 12)):
        files = {}
        for number in range(shards):
            images = rng.integers(0, 256, (4096, 64, 64), dtype=np.uint8)  # 16 MB, incompressible
            pixels = pa.FixedShapeTensorArray.from_numpy_ndarray(images)
            table = pa.table({"image": pixels, "label": pa.array(range(len(images)))})
            files[f"train-{number}.parquet"] = parquet(table)
        files |= {f"{split}-0.parquet": parquet(table.slice(0, 8)) for split in ("validation", "test")}
        hub.put("dataset", f"you/{name}", files)
        peaks.append(int(fetch(tmp_path / name, hub, f"hf://datasets/you/{name}")[-1]))
    assert peaks[1] - peaks[0] < 100_000  # kB; the data grow by 168,000, and the allocator may retain 60,000


@pytest.mark.slow
@pytest.mark.parametrize("number", [6])
def test_publishing_can_be_repeated_after_a_hub_failure(hub: Hub, project: Path, tmp_path: Path, number: int) -> None:
    name = f"hf://datasets/me/digits-{number}"
    run(project, hub, "data")
    before = stored(project)
    hub.app.faults = [Fault(403, at=range(number, 10**6))]
    try:
        printed = run(project, hub, "data", "--publish", name, code=1)
    finally:
        hub.app.faults = []
    assert len([line for line in printed.splitlines() if line.startswith("error: ")]) == 1
    assert stored(project) == before
    run(project, hub, "data", "--publish", name)
    published = hub.files("dataset", f"me/digits-{number}")
    assert pq.read_metadata(pa.BufferReader(published["train.parquet"])).num_rows == 1258
