"""Damaged manifests and local copies of the data set, and concurrent decoding."""

import json
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import fsspec
import numpy as np
import polars
import projects
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from places import SOURCE
from services import s3_gateway
from serving import serving
from storing import data_app

from free_ml_stack.data import dataset
from free_ml_stack.data.ingest import ingest
from free_ml_stack.data.source import Source, from_columns
from free_ml_stack.errors import StackError
from free_ml_stack.storage.local import DiskFileSystem, local_store
from free_ml_stack.storage.manifest import DamagedError

SWEEP = """
method: random
metric: {name: validation_loss, goal: minimize}
parameters: {lr: {min: 0.001, max: 0.1}}
"""


class Science:
    """A project whose target is a number."""

    TARGET = "label"

    def arrange(self, columns, target):
        return {name: (name, kind) for name, kind in columns.items()}


def write(store, folder: Path, names=("train", "validation", "test"), **columns):
    columns = columns or {"label": np.arange(4)}
    source = Source(lambda: dict.fromkeys(names, from_columns(columns)), {"name": "four"})
    return ingest(store, source, Science(), "", 0, folder)


@pytest.fixture
def store(tmp_path: Path):
    made = local_store(tmp_path / "store")
    write(made, tmp_path)
    return made


def entry(**changed):
    return {"sha256": "0" * 64, "size": 1, **changed}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "\xff",
        '{"files": []}',
        json.dumps({"files": {"../../train.parquet": entry()}}),
        json.dumps({"files": {"/train.parquet": entry()}}),
        json.dumps({"files": {"..\\train.parquet": entry()}}),
        json.dumps({"files": {"train.parquet": entry(sha256="../../elsewhere")}}),
        json.dumps({"files": {"train.parquet": entry(size="1")}}),
        json.dumps({"files": {"train.parquet": None}}),
    ],
)
def test_an_invalid_manifest_is_reported_and_replaced_by_a_new_ingest(store, tmp_path, text):
    store.pipe_file("data/manifest.json", text.encode("latin-1"))
    with pytest.raises(DamagedError, match=r"data: manifest\.json is not a valid manifest; fetch or create it again"):
        dataset.read(store, tmp_path / "cache", "digits")
    write(store, tmp_path)
    splits, _ = dataset.read(store, tmp_path / "cache", "digits")
    assert splits["train"]["label"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("size", [0, 3, 5])
def test_a_truncated_local_copy_of_texts_is_decoded_again(tmp_path, size):
    store, label = local_store(tmp_path / "store"), ["ab", "cd", None, "ef"]
    write(store, tmp_path, note=label, label=range(4))
    dataset.read(store, tmp_path / "cache", "digits")
    for path in (tmp_path / "cache").rglob("0.cells"):
        path.write_bytes(path.read_bytes()[:size])
    splits, _ = dataset.read(store, tmp_path / "cache", "digits")
    assert list(splits["train"]["note"]) == label


def test_a_full_disk_is_an_error_while_the_data_set_is_decoded(tmp_path):
    write(local_store(tmp_path / "store"), tmp_path, label=np.arange(500_000))
    (tmp_path / "cache").mkdir()
    code = (
        "import sys; from pathlib import Path; from free_ml_stack.data import dataset;"
        "from free_ml_stack.storage.local import local_store;"
        "dataset.read(local_store(Path('store')), Path('cache'), 'digits')"
    )
    own, command = ["unshare", "--user", "--map-root-user", "--mount"], '"$@"; code=$?; ls -A cache; exit $code'
    if shutil.which("unshare") and not subprocess.run([*own, "true"], capture_output=True, check=False).returncode:
        words = [*own, "sh", "-c", f"mount -t tmpfs -o size=1m tmpfs cache; {command}"]
    else:  # no small disk may be mounted
        words = ["sh", "-c", f"ulimit -f 1000; {command}"]
    words += ["sh", sys.executable, "-c", code]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(r"OSError: \[Errno \d+\] (No space left on device|File too large)", done.stderr)


def test_a_missing_split_is_reported(store, tmp_path):
    content = json.loads(store.cat_file("data/manifest.json"))
    for split in ("test", "validation"):
        del content["files"][f"{split}.parquet"]
    store.pipe_file("data/manifest.json", json.dumps(content).encode())
    with pytest.raises(StackError, match="the data set lacks the split test, validation; run `digits data`"):
        dataset.read(store, tmp_path / "cache", "digits")


@pytest.mark.parametrize("size", [None, 0, 10, 130])
def test_a_damaged_local_copy_is_decoded_again(store, tmp_path, size):
    dataset.read(store, tmp_path / "cache", "digits")
    for path in (tmp_path / "cache").rglob("0.npy"):
        path.write_bytes(path.read_bytes()[:size]) if size is not None else path.unlink()
    splits, _ = dataset.read(store, tmp_path / "cache", "digits")
    assert splits["train"]["label"].tolist() == [0, 1, 2, 3]


class Interrupted(DiskFileSystem):
    """A disk on which train.parquet is damaged when test.parquet, the last file, is verified."""

    def _open(self, path: str, mode: str = "rb", *rest, **options):
        damaged = Path(path).with_name("train.parquet")
        whole = damaged.read_bytes()
        if mode == "rb" and Path(path).name == "test.parquet" and whole[:1] != b"X":
            damaged.write_bytes(b"X" + whole[1:])
        return super()._open(path, mode, *rest, **options)


def test_a_file_that_is_damaged_during_the_verification_is_found_by_the_next_reader(tmp_path):
    write(local_store(tmp_path / "store"), tmp_path, label=np.arange(4), word=list("abcd"))
    damaging = DirFileSystem(str(tmp_path / "store"), fs=Interrupted(root=str(tmp_path / "store")))
    dataset.read(damaging, tmp_path / "cache", "digits", limit=1)
    with pytest.raises(DamagedError, match=r"train\.parquet is damaged: checksum mismatch"):
        dataset.read(local_store(tmp_path / "store"), tmp_path / "cache", "digits", limit=1)


def test_concurrent_readers_share_one_local_copy(tmp_path):
    labels = np.arange(50_000)
    store = local_store(tmp_path / "store")
    write(store, tmp_path, label=labels, image=np.ones((50_000, 8)))
    together = threading.Barrier(4)

    def read(cache: Path) -> bool:
        together.wait()
        splits, _ = dataset.read(store, cache, "digits")
        return bool((splits["train"]["label"] == labels).all())

    with ThreadPoolExecutor(4) as pool:
        for number in range(10):
            cache = tmp_path / f"cache-{number}"
            assert all(pool.map(read, [cache] * 4))
            assert not [path.name for path in cache.glob(".*")]


def test_duckdb_and_polars_read_the_files_of_the_store(tmp_path):
    days = np.array(["2026-01-01", "2026-01-02", "NaT", "2026-01-04"], "datetime64[us]")
    columns = {
        "label": np.arange(4),
        "word": ["a", "b", None, "ü"],
        "file": [b"\x00", b"", None, b"\xff"],
        "day": days,
        "image": np.arange(16, dtype=np.uint8).reshape(4, 2, 2),
    }
    store = local_store(tmp_path / "me" / "notes", tmp_path)
    write(store, tmp_path, **columns)
    expected = [columns[name][3] for name in ("label", "word", "file")]
    columns = "label, word, file, day, image"
    with serving(data_app(tmp_path)) as url:
        remote = fsspec.filesystem("algorithmia", api_address=url, api_key="key-of-me")
        with duckdb.connect() as connection:
            connection.register_filesystem(remote)
            for place in (f"{tmp_path}/me/notes/data", "algorithmia://.my/notes/data"):
                [count] = connection.sql(f"SELECT count(*), count(word) FROM '{place}/*.parquet'").fetchall()
                [row] = connection.sql(f"SELECT {columns} FROM '{place}/train.parquet' WHERE label = 3").fetchall()
                assert count == (12, 9)
                assert list(row[:3]) == expected
                assert (np.datetime64(row[3]), list(row[4])) == (days[3], [12, 13, 14, 15])
        with remote.open(".my/notes/data/train.parquet") as file:
            for place in (tmp_path / "me" / "notes" / "data" / "train.parquet", file):
                [row] = polars.scan_parquet(place).filter(polars.col("label") == 3).collect().rows(named=True)
                assert [row[name] for name in ("label", "word", "file")] == expected
                assert (np.datetime64(row["day"]), list(row["image"])) == (days[3], [12, 13, 14, 15])


def test_a_changed_selection_of_columns_is_reported(data: Path, tmp_path: Path) -> None:
    shutil.copytree(SOURCE / "skeleton", tmp_path / "src" / "skeleton")
    code = tmp_path / "src" / "skeleton" / "data.py"
    project, path = projects.make(tmp_path / "project", data), {"PYTHONPATH": str(tmp_path / "src")}
    (project / "sweep.yaml").write_text(SWEEP)
    before = code.read_text() + "\n# other changes\n"
    after = before.replace('"label": (target, "category")', '"label": (target, "number")')
    code.write_text(before)
    projects.run(project, "train", "--epochs", "1", **path)
    code.write_text(after)
    expected = "`arrange` in data.py selects other columns than those of the stored data set; run `skeleton data` again"
    for command in ("train", "sweep", "publish"):
        assert expected in projects.run(project, command, code=1, **path)
    assert len(list(project.glob("runs/2*"))) == 1


def test_reading_creates_nothing(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "stack.toml").write_text('project = "skeleton"\nalgorithm = "me/Skeleton"\n')
    gateway = s3_gateway.Gateway("me")
    with s3_gateway.serving(gateway) as url:
        places = {"./store": {}, "s3://bucket/things": {**s3_gateway.ENVIRON, "AWS_ENDPOINT_URL": url}}
        for place, environ in places.items():
            told = projects.run(project, "train", code=1, STACK_STORAGE=place, **environ)
            assert "error: no data set in the store; run `skeleton data`\n" in told
        assert {path.name for path in project.iterdir()} <= {"stack.toml", "runs"}
        assert not [call for call in gateway.calls if call.startswith(("PUT", "POST"))]
        for place, environ in places.items():
            projects.run(project, "data", STACK_STORAGE=place, **environ)
        assert any(call.startswith("PUT /me/bucket/things/data/train.parquet") for call in gateway.calls)
    assert (project / "store" / "data" / "train.parquet").exists()
