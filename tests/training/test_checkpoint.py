"""Checkpoints on a disk that fails or loses power at any call, and in a store that fails, is slow or is full."""

import errno
import json
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from safetensors.torch import load_file, save_file
from sick_disk import PowerCut, SickDisk, chance

from free_ml_stack.errors import PreemptedError, StackError
from free_ml_stack.storage.atomic import replace
from free_ml_stack.storage.local import local_store
from free_ml_stack.training import checkpoint
from free_ml_stack.training.checkpoint import Checkpoints
from free_ml_stack.training.snapshot import parse, read_files, serialize
from free_ml_stack.training.state import generator_states, restore_generators

CONFIG = {"lr": 0.1, "epochs": 3}
SURVIVES = {"nothing": (lambda: False, lambda: False), "names": (lambda: True, lambda: False)} | {
    f"chance {seed}": (chance(seed), chance(seed + 100)) for seed in range(4)
}


class Weights:
    """A part whose state is the step at which it was saved."""

    def __init__(self) -> None:
        self.tensor = torch.zeros(1000)

    def state_dict(self) -> dict[str, Any]:
        return {"tensor": self.tensor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tensor.copy_(state["tensor"])


class Lines:
    """A metrics record in memory, of the completed steps."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def content(self) -> bytes:
        return json.dumps(self.steps).encode()

    def restore(self, content: bytes) -> None:
        self.steps = json.loads(content or b"[]")


class Run:
    """A run in `folder` that can save checkpoints."""

    def __init__(self, folder: Path, store: Any = None, **options: Any) -> None:
        self.record = Lines()
        self.weights = Weights()
        self.checkpoints = Checkpoints(
            folder / "checkpoints", self.record, options.pop("config", CONFIG), store=store, **options
        )
        self.at = self.checkpoints.resume(weights=self.weights)
        assert set(self.weights.tensor.tolist()) == {float(self.at.step)}
        assert self.record.steps == list(range(1, self.at.step + 1))

    def save(self, step: int) -> None:
        """Train up to `step`, save, and wait until the checkpoint is on disk."""
        self.record.steps += range(self.at.step + 1, step + 1)
        self.at.step = step
        self.weights.tensor.fill_(step)
        self.checkpoints.save()
        assert self.checkpoints.writing is not None
        self.checkpoints.writing.result()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a run with checkpoints of steps 1 and 2."""
    run = Run(tmp_path / "disk" / "run")
    run.save(1)
    run.save(2)
    return tmp_path / "disk" / "run"


def calls(folder: Path) -> int:
    """The number of system calls of one save."""
    with pytest.MonkeyPatch.context() as patch:
        run = Run(folder)
        disk = SickDisk(folder, patch)
        run.save(run.at.step + 1)
        assert not disk.elsewhere, "a save writes to its own folder alone, whatever TMPDIR is"
        assert any(call.startswith("rename") for call in disk.calls)
        return len(disk.calls)


def fresh(folder: Path) -> Path:
    """The folder of the run before the save."""
    copy = folder.with_name(f"{folder.name}-copy")
    shutil.rmtree(copy, ignore_errors=True)
    return Path(shutil.copytree(folder, copy))


def test_training_seconds_are_summed_over_restarts(folder: Path) -> None:
    run = Run(folder)
    run.checkpoints.spent = 100.0
    run.save(3)
    again = Run(folder)
    assert again.checkpoints.spent >= 100
    assert again.checkpoints.elapsed() > again.checkpoints.spent


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_disk_failure_at_any_call_leaves_a_complete_checkpoint(
    folder: Path, capsys: pytest.CaptureFixture[str], error: int
) -> None:
    count = calls(fresh(folder))
    assert count > 15
    for at in range(count):
        sick = fresh(folder)
        run = Run(sick)
        with pytest.MonkeyPatch.context() as patch:
            SickDisk(sick, patch, at, OSError(error, os.strerror(error)))
            run.save(3)
        assert Run(fresh(sick)).at.step in (2, 3)
        run.save(4)  # the disk works again, and the run has continued
        run.checkpoints.finish()
        assert Run(sick).at.step == 4
        assert not list((sick / "checkpoints").glob(".*"))
    assert capsys.readouterr().out.count("training continues") > 10


@pytest.mark.parametrize("survives", SURVIVES)
def test_a_power_failure_at_any_call_leaves_a_complete_checkpoint(folder: Path, tmp_path: Path, survives: str) -> None:
    seen = set()
    for at in range(calls(fresh(folder))):
        sick = fresh(folder)
        run = Run(sick)
        with pytest.MonkeyPatch.context() as patch:
            disk = SickDisk(sick, patch, at, PowerCut())
            with pytest.raises(PowerCut):
                run.save(3)
        after = tmp_path / f"after-{at}"
        disk.after(after, *SURVIVES[survives])
        found = Run(after)
        assert found.at.step in (2, 3)
        seen.add(found.at.step)
        found.save(4)
        assert Run(after).at.step == 4
    assert seen == {2, 3}


def test_a_saved_checkpoint_survives_a_power_failure(tmp_path: Path) -> None:
    """This includes the first checkpoint, whose folders are new too."""
    root = tmp_path / "project"
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        disk = SickDisk(root, patch)
        Run(root / "runs" / "one").save(1)
    disk.after(tmp_path / "after", *SURVIVES["nothing"])
    assert Run(tmp_path / "after" / "runs" / "one").at.step == 1


def test_a_file_is_replaced_atomically(tmp_path: Path) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    replace(root / "file", b"old")
    for at in range(5):
        with pytest.MonkeyPatch.context() as patch:
            disk = SickDisk(root, patch, at, PowerCut())
            with pytest.raises(PowerCut):
                replace(root / "file", b"new")
        disk.after(tmp_path / str(at), *SURVIVES["names"])
        assert (tmp_path / str(at) / "file").read_bytes() in (b"old", b"new")
        (root / "file").write_bytes(b"old")


def test_checkpoints_do_not_depend_on_the_temporary_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Colab, for example, /tmp is a local disk while the project may be on Drive."""
    other = Path("/dev/shm")
    monkeypatch.setenv("TMPDIR", str(other))
    monkeypatch.setattr(tempfile, "tempdir", None)
    if other.is_dir():
        assert other.stat().st_dev != folder.stat().st_dev
    assert calls(folder) > 15
    assert Run(folder).at.step == 3


class Store(LocalFileSystem):  # type: ignore[misc]
    """A store in a folder whose uploads wait for `open_again`, and fail with `error` while it is set."""

    cachable = False

    def __init__(self) -> None:
        super().__init__(auto_mkdir=True)
        self.open_again = threading.Event()
        self.open_again.set()
        self.error: Exception | None = None

    def put_file(self, source: str, target: str, **options: Any) -> None:
        assert self.open_again.wait(30)
        if self.error:
            raise self.error
        super().put_file(source, target, **options)


def stored(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("step-*"))


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), StackError("no"), RuntimeError("of a client\n\nin lines")]
)
def test_a_store_failure_is_reported_once_and_the_next_upload_is_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    store = Store()
    run = Run(tmp_path / "run", DirFileSystem(str(tmp_path / "store"), fs=store))
    store.error = error
    for step in (1, 2, 3):
        run.save(step)
        assert run.checkpoints.sending is not None
        run.checkpoints.sending.result()
    store.error = None
    run.checkpoints.finish()
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("Uploading a checkpoint failed (") and line.endswith(
        "; training continues, and the next checkpoint is tried."
    )
    assert stored(tmp_path / "store") == ["step-000000003"]


def test_a_failed_upload_of_the_last_checkpoint_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store()
    run = Run(tmp_path / "run", DirFileSystem(str(tmp_path / "store"), fs=store))
    store.error = StackError("bucket deleted")
    run.save(1)
    run.checkpoints.finish()
    [*_, line] = capsys.readouterr().out.splitlines()
    assert (
        line
        == f"Upload of the last checkpoint failed (bucket deleted); it is on disk in {tmp_path / 'run' / 'checkpoints'}."
    )


def test_checkpoints_may_be_removed_from_the_store_during_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path / "run", local_store(tmp_path / "store"))
    for step in range(1, 6):
        run.save(step)
        assert run.checkpoints.sending is not None
        run.checkpoints.sending.result()
        if step == 2:
            shutil.rmtree(tmp_path / "store" / "step-000000001")
    run.checkpoints.finish()
    assert stored(tmp_path / "store") == ["step-000000004", "step-000000005"]
    assert "Upload of the last checkpoint failed" not in capsys.readouterr().out


def test_a_slow_store_delays_neither_steps_nor_saves(tmp_path: Path) -> None:
    store = Store()
    run = Run(tmp_path / "run", DirFileSystem(str(tmp_path / "store"), fs=store))
    store.open_again.clear()
    for step in (1, 2, 3, 4):
        run.save(step)
    assert stored(tmp_path / "run" / "checkpoints")[-2:] == ["step-000000003", "step-000000004"]
    assert not stored(tmp_path / "store")
    store.open_again.set()
    run.checkpoints.finish()
    assert stored(tmp_path / "store")[-1] == "step-000000004"


def test_a_stop_signal_limits_the_wait_for_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkpoint, "GRACE", 0.2)
    store = Store()
    run = Run(tmp_path / "run", DirFileSystem(str(tmp_path / "store"), fs=store))
    store.open_again.clear()
    run.at.step = 1
    run.record.steps = [1]
    run.checkpoints.stopping = True
    with pytest.raises(PreemptedError, match="stopped after step 1$"):
        run.checkpoints.step()
    assert stored(tmp_path / "run" / "checkpoints") == ["step-000000001"]
    assert "Upload of the last checkpoint timed out" in capsys.readouterr().out
    store.open_again.set()
    assert run.checkpoints.sending is not None
    run.checkpoints.sending.result()


def test_stopping_without_a_checkpoint_is_reported(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").touch()  # a file in place of the folder
    run = Run(tmp_path)
    run.at.step = 1
    run.checkpoints.stopping = True
    with pytest.raises(PreemptedError, match="without a checkpoint"):
        run.checkpoints.step()


def test_training_resumes_from_disk_if_the_store_fails(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Gone(Store):
        def exists(self, path: str, **options: Any) -> bool:
            raise OSError("no answer")

    run = Run(folder, DirFileSystem(str(tmp_path / "store"), fs=Gone()))
    assert run.at.step == 2
    assert "Cannot read checkpoints from the store (OSError: no answer)" in capsys.readouterr().out
    with pytest.raises(OSError, match="no answer"):  # it may have checkpoints, so the run must not start again
        Run(tmp_path / "elsewhere", DirFileSystem(str(tmp_path / "store"), fs=Gone()))


def test_training_resumes_from_the_store_if_the_disk_is_full(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "checkpoints").touch()  # a file in place of the folder
    store = DirFileSystem(str(folder / "checkpoints"), fs=Store())
    assert Run(elsewhere, store).at.step == 2


def test_a_changed_configuration_names_the_field(folder: Path) -> None:
    with pytest.raises(StackError, match=r"this run was started with lr 0\.1, not 0\.2; restore"):
        Run(folder, config={**CONFIG, "lr": 0.2})
    with pytest.raises(StackError, match=r"momentum null, not 0\.9"):
        Run(folder, config={**CONFIG, "momentum": 0.9})
    with pytest.raises(StackError, match="x0 null, not 0 and x1 null, not 1 and x2 null, not 2 and 7 more; restore"):
        Run(folder, config={**CONFIG, **{f"x{number}": number for number in range(10)}})


def test_tensors_are_written_in_the_safetensors_format(tmp_path: Path) -> None:
    tensors = {
        "half": torch.arange(3, dtype=torch.bfloat16),
        "scalar": torch.tensor(1.5, dtype=torch.float64),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "none": torch.zeros(0, 4),
        "flag": torch.tensor([True, False]),
        "ints": torch.arange(6).reshape(2, 3),
    }
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.write_bytes(b"".join(bytes(piece) for piece in serialize(tensors)))
    save_file(tensors, theirs)
    assert ours.read_bytes() == theirs.read_bytes()
    assert {name: value.tolist() for name, value in load_file(ours).items()} == {
        name: value.tolist() for name, value in tensors.items()
    }


def test_the_latest_checkpoints_are_kept(folder: Path) -> None:
    run = Run(folder)
    for step in (3, 4, 5):
        run.save(step)
    assert stored(folder / "checkpoints") == ["step-000000004", "step-000000005"]
    state, tensors, record = parse(read_files(folder / "checkpoints" / "step-000000004"))
    assert state["at"]["step"] == 4
    assert set(tensors["weights/tensor"].tolist()) == {4.0}
    assert json.loads(record) == [1, 2, 3, 4]


def test_generators_are_restored_on_a_machine_with_fewer_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    states, restored = generator_states(), []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda value, device=0: restored.append((device, int(value))))
    restore_generators({**states, "cuda": [torch.tensor(10), torch.tensor(11)]})
    assert restored == [(0, 10)]
