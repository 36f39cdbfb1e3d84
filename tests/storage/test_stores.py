"""Stores by URL, atomic writes, manifests, and transfers between stores."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import places
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry
from huggingface_hub import constants
from services import hub_server, s3_gateway
from serving import serving
from storing import data_app

from free_ml_stack.errors import StackError
from free_ml_stack.project.settings import Settings
from free_ml_stack.storage import atomic, retry
from free_ml_stack.storage.atomic import open_whole
from free_ml_stack.storage.changes import change
from free_ml_stack.storage.local import local_store
from free_ml_stack.storage.manifest import DamagedError, verify, write_manifest
from free_ml_stack.storage.repository import Repository, parse
from free_ml_stack.storage.stores import open_store
from free_ml_stack.storage.transfer import _kind, transfer


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(root=tmp_path / "project")


def test_a_file_that_cannot_be_replaced_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        atomic.replace(tmp_path / "folder", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(("found", "kind"), [(True, "xet"), (False, "sha-256")])
def test_the_hubs_checksum_is_used_where_its_package_exists(
    monkeypatch: pytest.MonkeyPatch, found: bool, kind: str
) -> None:
    if not found:  # as on systems without a wheel of hf_xet
        monkeypatch.setitem(sys.modules, "hf_xet", None)
    assert _kind({}, {"xet": "0" * 64}, local=True) == kind


FILES = {"a.bin": b"a" * 5000, "deep/er/b.txt": "ä".encode(), "empty": b""}


def fill(store) -> None:
    for name, content in FILES.items():
        store.pipe_file(name, content)


def content(store) -> dict[str, bytes]:
    store.invalidate_cache()
    return {name: store.cat_file(name) for name in store.find("")}


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("algorithmia://.my/things", ".stack/data/me/things"),
        ("data://.my/things/", ".stack/data/me/things"),
        ("algorithmia://ann/things/of/hers", ".stack/data/ann/things/of/hers"),
        ("hf://datasets/ann/things", ".stack/hf/datasets/ann/things"),
        ("s3://bucket/things", ".stack/s3/bucket/things"),
        ("./store", "store"),
    ],
)
def test_without_credentials_every_url_is_a_folder_of_the_project(settings: Settings, url: str, folder: str):
    store = open_store(url, settings)
    fill(store)
    assert {name: (settings.root / folder / name).read_bytes() for name in FILES} == FILES
    assert content(store) == FILES


def test_a_file_url_is_a_local_folder(settings: Settings, tmp_path: Path):
    fill(open_store(f"file://{tmp_path}/elsewhere", settings))
    assert (tmp_path / "elsewhere" / "a.bin").exists()


@pytest.mark.parametrize(
    "url",
    ["ftp://host/x", "algorithmia://.my", "algorithmia://", "hf://gpt2", "s3://", "algorithmia://.my/../you"],
)
def test_an_invalid_storage_url_is_rejected_in_one_line(settings: Settings, url: str):
    with pytest.raises(StackError, match=r"^[^\n]*use algorithmia|^[^\n]*expected a storage URL") as refusal:
        open_store(url, settings)
    assert url in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("hf://datasets/things", "Repository id must be 'namespace/name'"),
        ("hf://buckets/me/things@v1", "Bucket URIs do not support a revision"),
        ("hf://datasets/me/things@", "Empty revision"),
        ("hf://me/th..ings", "Cannot have -- or .."),
    ],
)
def test_a_hub_url_is_parsed_by_the_hubs_client(settings: Settings, url: str, words: str):
    with pytest.raises(StackError, match=r"^[^\n]*$") as refusal:
        open_store(url, settings)
    assert str(refusal.value).startswith(f"{url}: ") and words in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("hf://buckets/me/things", Repository("me/things", "bucket")),
        ("hf://buckets/me/things/in/side/", Repository("me/things", "bucket", None, "in/side")),
        ("hf://datasets/me/x@refs/convert/parquet/in", Repository("me/x", "dataset", "refs/convert/parquet", "in")),
        ("hf://datasets/me/x@a%2Fb/in@2", Repository("me/x", "dataset", "a/b", "in@2")),
        ("hf://models/me/x@v1", Repository("me/x", "model", "v1")),
        ("hf://me/x", Repository("me/x")),
    ],
)
def test_a_hub_url_is_a_repository_or_a_bucket(url: str, place: Repository):
    assert parse(url) == place


def test_files_stored_offline_are_served_by_the_gateway(settings: Settings):
    fill(open_store("algorithmia://.my/things", settings))
    with serving(data_app(settings.root / ".stack" / "data"), lifespan="off") as url:
        online = Settings(root=settings.root, algorithmia_api=url, algorithmia_api_key="key-of-me")
        assert content(open_store("algorithmia://.my/things", online)) == FILES


def test_a_failed_write_leaves_the_old_file_only(tmp_path: Path):
    store = local_store(tmp_path / "store")
    store.pipe_file("a", b"old")
    with pytest.raises(ZeroDivisionError), store.open("a", "wb") as file:
        file.write(b"new" * 10**6)
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), store.open("b", "w") as file:
        file.write("new")
        raise ZeroDivisionError
    assert content(store) == {"a": b"old"}
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "store" / "a"]


def test_files_are_copied_from_a_store_to_another_disk(tmp_path: Path, other_disk: Path):
    store = local_store(tmp_path / "store")
    fill(store)
    store.get("", str(other_disk / "copy"), recursive=True)
    assert content(local_store(other_disk / "copy")) == FILES
    with (other_disk / "opened").open("wb") as file:
        store.get_file("a.bin", file)
    assert (other_disk / "opened").read_bytes() == FILES["a.bin"]
    with pytest.raises(FileNotFoundError):
        store.get_file("missing", str(other_disk / "missing"))


def test_a_file_is_written_while_another_error_is_handled(tmp_path: Path):
    """An emergency checkpoint is written inside an `except` block."""
    store = local_store(tmp_path)
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with store.open("checkpoint", "wb") as file:
            file.write(b"whole")
    assert content(store) == {"checkpoint": b"whole"}


def test_an_exclusive_file_is_rejected_if_the_path_exists(tmp_path: Path):
    store = local_store(tmp_path)
    with store.open("a", "xb") as first, store.open("a", "xb") as second:
        first.write(b"first")
        second.write(b"second")
        first.close()
        with pytest.raises(FileExistsError):
            second.close()
    assert content(store) == {"a": b"first"}


def test_a_transaction_commits_all_files_at_its_end(tmp_path: Path):
    store = local_store(tmp_path)
    with store.fs.transaction:
        store.fs.pipe_file(f"{tmp_path}/a", b"1")
        assert content(store) == {}
    assert content(store) == {"a": b"1"}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda store: store.pipe_file("a.bin", b"a" * 4999 + b"b"),
            "a.bin is damaged: checksum mismatch with manifest.json",
        ),
        (lambda store: store.pipe_file("a.bin", b"a" * 4999), "a.bin is damaged: expected 5000 bytes, got 4999"),
        (lambda store: store.rm("deep/er/b.txt"), "deep/er/b.txt is missing"),
        (lambda store: store.rm("manifest.json"), "manifest.json not found"),
        (lambda store: store.pipe_file("manifest.json", b"{"), "manifest.json is not a valid manifest"),
        (lambda store: store.pipe_file("manifest.json", b"[]"), "manifest.json is not a valid manifest"),
    ],
)
def test_a_damaged_file_is_reported_by_name(tmp_path: Path, damage, words: str):
    store = local_store(tmp_path)
    fill(store)
    assert write_manifest(store) == verify(tmp_path)
    damage(store)
    with pytest.raises(DamagedError, match=words):
        verify(store)


def test_a_transfer_copies_changed_files_only(tmp_path: Path):
    here, there = local_store(tmp_path / "here"), local_store(tmp_path / "there")
    fill(here)
    assert (transfer(here, there).copied, transfer(here, there).same) == (3, 3)
    here.pipe_file("a.bin", b"b" * 5000)
    there.pipe_file("theirs", b"stays")
    moved = transfer(here, there)
    assert (moved.copied, moved.same, moved.size) == (1, 2, 5000)
    assert content(there) == {**FILES, "a.bin": b"b" * 5000, "theirs": b"stays"}


def test_a_transfer_to_and_from_the_gateway(tmp_path: Path, settings: Settings):
    with serving(data_app(tmp_path / "gateway"), lifespan="off") as url:
        online = Settings(root=settings.root, algorithmia_api=url, algorithmia_api_key="key-of-me")
        here, there = open_store("./here", settings), open_store("algorithmia://.my/things", online)
        back, other = open_store("./back", settings), open_store("algorithmia://.my/copy", online)
        fill(here)
        here.pipe_file("large", os.urandom(5 << 20))
        assert [transfer(here, there).copied, transfer(here, there).same] == [4, 4]
        assert [transfer(there, other).copied, transfer(there, other).same] == [4, 4]
        assert [transfer(other, back).copied, transfer(other, back).same] == [4, 4]
        assert content(back) == content(here)


WORK = """
import sys
from pathlib import Path
from free_ml_stack.project.settings import Settings
from free_ml_stack.storage import atomic, retry
from free_ml_stack.storage.stores import open_store
from free_ml_stack.storage.transfer import _kind, transfer
from free_ml_stack.storage.manifest import verify
from free_ml_stack.storage.manifest import write_manifest
url, service = sys.argv[1:]
offline = Settings(root=Path(), storage=url)
online = Settings(root=Path(), storage=url, credentials=frozenset({service}))
here, there, back = open_store(url, offline), open_store(url, online), open_store("./back", offline)
for name, content in {"a/b.txt": b"hello", "big": bytes(3_000_000), "empty": b""}.items():
    here.pipe_file(name, content)
print(transfer(here, there).copied, transfer(here, there).same)
here.pipe_file("a/b.txt", b"hellO")
print(transfer(here, there).copied)
print(transfer(there, back).copied, transfer(there, back).same, back.cat_file("a/b.txt"))
write_manifest(here)
transfer(here, there)
print(len(verify(there)["files"]))
"""


def work(folder: Path, url: str, service: str, **environ: str) -> None:
    """Transfer data to and from a service in a separate process, as SDKs read their settings on import."""
    command = [sys.executable, "-c", WORK, url, service]
    environ = {
        **os.environ,
        **environ,
        "PYTHONPATH": str(places.SOURCE),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)
    assert (done.stdout.splitlines(), done.stderr) == (["3 3", "1", "3 3 b'hellO'", "3"], "")


def test_a_repository_on_the_hub_is_a_store(tmp_path: Path):
    hub = hub_server.Hub(tmp_path / "hub")
    with hub_server.serving(hub) as url:
        home = str(tmp_path / "home")
        work(
            tmp_path,
            "hf://datasets/me/things/sub",
            "huggingface",
            HF_ENDPOINT=url,
            HF_TOKEN="hf_write",
            HF_HOME=home,
        )
    commits = [len(commit.changed) for commit in hub.repo("dataset", "me/things").commits]
    assert commits == [1, 3, 1, 1]  # .gitattributes, then all missing files in one commit per transfer


def test_a_bucket_on_the_hub_is_a_store(tmp_path: Path):
    hub = hub_server.Hub(tmp_path / "hub")
    environ = {"HF_TOKEN": "hf_write", "HF_HOME": str(tmp_path / "home")}
    with hub_server.serving(hub) as url:
        work(tmp_path, "hf://buckets/me/things/sub", "huggingface", HF_ENDPOINT=url, **environ)
    assert [len(batch) for batch in hub.buckets.all["me/things"].batches] == [3, 1, 1]
    # unchanged files are recognized by checksum: only copied files and those read by `verify` are downloaded
    assert len([call for call in hub.calls if "/resolve/" in call]) <= 7


def test_a_transfer_between_hub_locations_is_done_by_the_hub(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    hub = hub_server.Hub(tmp_path / "hub")
    with hub_server.serving(hub) as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setenv("HF_TOKEN", "hf_write")
        online = replace(settings, credentials=frozenset({"huggingface"}))
        here = open_store("hf://buckets/me/here/in", replace(online, storage="hf://buckets/me/here/in"))
        change(here, FILES)
        sent, calls = hub.sent, len(hub.calls)
        there = open_store("hf://buckets/me/there", online)
        assert [transfer(here, there).copied, transfer(here, there).same] == [3, 3]
        assert hub.buckets.content("me/there") == FILES
        assert hub.sent == sent
        assert not [call for call in hub.calls[calls:] if "/resolve/" in call]
        assert [len(batch) for batch in hub.buckets.all["me/there"].batches] == [3]


MAKE = "import s3fs; s3fs.S3FileSystem().mkdir('bucket')"


def make_bucket(**environ: str) -> str:
    """Create the bucket; return the error message."""
    done = subprocess.run([sys.executable, "-c", MAKE], env={**os.environ, **environ}, capture_output=True, text=True)
    return done.stderr


@pytest.mark.slow
def test_a_bucket_behind_the_hubs_s3_gateway_is_a_store(tmp_path: Path):
    gateway = s3_gateway.Gateway("me")
    with s3_gateway.serving(gateway) as url:
        environ = {**s3_gateway.ENVIRON, "AWS_ENDPOINT_URL": url}
        assert make_bucket(**environ) == ""
        work(tmp_path, "s3://bucket/things", "s3", **environ)
        assert gateway.refused == []
        other = tmp_path / "other"
        other.mkdir()
        del environ["AWS_REQUEST_CHECKSUM_CALCULATION"]
        with pytest.raises(AssertionError, match="index 0"):
            work(other, "s3://bucket/others", "s3", **environ)
        assert "checksums in trailers are not parsed" in gateway.refused[0]  # reported by `doctor`


@pytest.mark.parametrize("other", ["memory", "local"])
def test_any_fsspec_store_is_supported(tmp_path: Path, settings: Settings, other: str):
    store = DirFileSystem("/things", fs=MemoryFileSystem()) if other == "memory" else local_store(tmp_path / "other")
    with serving(data_app(tmp_path / "gateway"), lifespan="off") as url:
        online = Settings(root=settings.root, algorithmia_api=url, algorithmia_api_key="key-of-me")
        there, here = open_store("algorithmia://.my/things", online), open_store("./here", settings)
        fill(store)
        assert [transfer(store, there).copied, transfer(store, there).same] == [3, 3]
        store.rm("", recursive=True)
        assert [transfer(there, store).copied, transfer(there, store).same] == [3, 3]
        assert [transfer(store, here).copied, content(here)] == [3, FILES]


def test_a_store_that_needs_an_extra_names_it(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3", raising=False)
    with pytest.raises(
        StackError, match="s3 storage: s3fs is not installed; run `uv sync --extra s3`, or `pip install"
    ):
        open_store("s3://bucket", replace(settings, credentials=frozenset({"s3"})))


def test_a_failed_transfer_is_one_line(settings: Settings, monkeypatch):
    monkeypatch.setattr(retry, "SCALE", 0.01)
    online = Settings(root=settings.root, algorithmia_api="http://127.0.0.1:1", algorithmia_api_key="k")
    here = open_store("./here", settings)
    fill(here)
    with pytest.raises(StackError, match="run it again") as failure:
        transfer(here, open_store("algorithmia://.my/things", online))
    assert "\n" not in str(failure.value)


def test_a_transfer_of_an_empty_folder_fails(tmp_path: Path):
    with pytest.raises(StackError, match="nowhere contains no files to copy"):
        transfer(local_store(tmp_path / "nowhere"), local_store(tmp_path / "there"))
    assert not (tmp_path / "there").exists()


def test_a_folder_created_by_another_writer_at_the_same_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.replace

    def rename_first(self: Path, target: Path) -> Path:
        try:
            return rename(self, target)
        except FileNotFoundError:
            target.parent.mkdir()  # by the other
            raise

    monkeypatch.setattr(Path, "replace", rename_first)
    with open_whole(tmp_path / "new" / "file", tmp_path / "scratch") as file:
        file.write(b"content")
    assert (tmp_path / "new" / "file").read_bytes() == b"content"
