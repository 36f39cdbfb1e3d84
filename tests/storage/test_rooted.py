"""A store below a folder whose name contains glob characters."""

import re
from pathlib import Path

import pytest
from fsspec.implementations.dirfs import DirFileSystem

from free_ml_stack.deployment.deploy import fetch
from free_ml_stack.deployment.monitor import LOGS, read_calls
from free_ml_stack.deployment.versions import Build
from free_ml_stack.errors import StackError
from free_ml_stack.project.settings import Settings
from free_ml_stack.storage.local import local_store
from free_ml_stack.storage.manifest import write_manifest
from free_ml_stack.training.run import STATE, saved_config

ODD = ["a[1]", "[a-c]*", "what?", "{x,y}", "**", "100% #1 ü"]


@pytest.fixture(params=ODD)
def root(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    (tmp_path / "a1" / "logs").mkdir(parents=True)  # matched by the name as a pattern
    return tmp_path / request.param / "store"


def test_files_are_found(root: Path, tmp_path: Path) -> None:
    store = local_store(root)
    for name in ("runs/one/a.json", "runs/two/a.json", "runs/two/b.bin"):
        store.pipe_file(name, name.encode())
    assert sorted(store.glob("runs/*/a.json")) == ["runs/one/a.json", "runs/two/a.json"]
    inner = DirFileSystem("runs", fs=store)
    assert sorted(inner.glob("*/a.json")) == ["one/a.json", "two/a.json"]
    assert sorted(store.expand_path("runs/two", recursive=True)) == [
        "runs/two",
        "runs/two/a.json",
        "runs/two/b.bin",
    ]
    store.get("runs", str(tmp_path / "copy"), recursive=True)
    assert (tmp_path / "copy/two/b.bin").read_bytes() == b"runs/two/b.bin"
    assert store.glob("nothing/*") == []
    store.rm("runs/two", recursive=True)
    assert store.find("runs") == ["runs/one/a.json"]


@pytest.mark.parametrize("name", ["*", "one[1]", "o?e"])
def test_the_id_of_a_run_is_not_a_pattern(tmp_path: Path, name: str) -> None:
    settings = Settings(project="digits", root=tmp_path, storage=f"file://{tmp_path}/store")
    store = local_store(tmp_path / "store")
    for run in ("one", "one1"):
        store.pipe_file(f"checkpoints/{run}/step-00000001/{STATE}", b'{"config": {"seed": 1}}')
    assert saved_config(settings, "one") == {"seed": 1}
    with pytest.raises(StackError, match=re.escape(f"no run {name} on disk")):
        saved_config(settings, name)
    store.pipe_file(f"checkpoints/{name}/step-00000002/{STATE}", b'{"config": {"seed": 2}}')
    assert saved_config(settings, name) == {"seed": 2}


def test_monitoring_and_deployment_read_from_it(root: Path, tmp_path: Path) -> None:
    store = local_store(root)
    store.pipe_file(f"{LOGS}/Model/1.jsonl", b'{"id": 1}\n')
    assert read_calls(store, "Model") == [{"id": 1}]
    model = root / "deploys/Model/x"
    model.mkdir(parents=True)
    (model / "weights").write_bytes(b"w")
    write_manifest(model)
    build = Build.__new__(Build)
    for name, value in (("folder", "deploys/Model/x"), ("build_id", "b1")):
        object.__setattr__(build, name, value)
    assert (fetch(store, build, str(tmp_path / "cache")) / "weights").read_bytes() == b"w"
