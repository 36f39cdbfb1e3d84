"""The command line: fast --help, and one-line errors."""

import contextlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
from pathlib import Path

import forking
import places
import projects
import pytest

EARLY = {
    "train": "no data set in the store; run `skeleton data`",
    "publish": "no trained model; run `skeleton train`",
    "deploy": "no trained model; run `skeleton train`",
    "predict": "no trained model; run `skeleton train`",
    "monitor": "no deployed version; run `skeleton deploy`",
}


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A new project without data."""
    (tmp_path / "stack.toml").write_text('project = "skeleton"\nstorage = "algorithmia://.my/skeleton"\n')
    return tmp_path


def test_file_names_are_printed_to_pipes_of_any_encoding(empty: Path) -> None:
    stdout = projects.run(empty, "data", "--set", "storage=./\u05e9\u05dc\u05d5\u05dd", PYTHONIOENCODING="cp1252")
    assert "Data set digits written to ./\\u05e9\\u05dc\\u05d5\\u05dd/data." in stdout


@pytest.mark.parametrize("command", EARLY)
def test_a_missing_earlier_step_is_reported_with_its_command(empty: Path, command: str) -> None:
    assert projects.run(empty, command, code=1).strip() == f"error: {EARLY[command]}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "--lr", "fast"), "lr: expected float, got 'fast'"),
        (("train", "--dropout", "1.5"), "dropout: must be less than 1, got 1.5"),
        (("train", "--name", ""), "run '': expected A-Z, a-z, 0-9, -, _ and . only"),
        (("train", "--run", ""), "run '': expected A-Z, a-z, 0-9, -, _ and . only"),
        (("train", "--config", "nowhere.json"), "nowhere.json: no such file"),
        (("train", "--set", "storrage=x"), "unknown setting 'storrage'; did you mean 'storage'?"),
        (("train", "--set", "storage"), "expected NAME=VALUE"),
        (("data", "--set", "storage=ftp://x/y"), "unknown storage"),
        (("sweep",), "no such file"),
        (("sweep", "--file", "."), ".: Is a directory"),
        (("serve", "--port", "99999"), "expected a port from 0 to 65535"),
        (("serve", "--host", "no.such.host.invalid"), "cannot open no.such.host.invalid"),
    ],
)
def test_invalid_arguments_give_one_line_errors(empty: Path, arguments: tuple[str, ...], words: str) -> None:
    printed = projects.run(empty, *arguments, code=1)
    assert printed.startswith("error: ")
    assert words in printed
    assert len(printed.strip().splitlines()) == 1


@pytest.mark.parametrize("arguments", [("sweep", "--trials"), ("sweep", "--agents"), ("serve", "--workers")])
def test_counts_of_zero_are_refused(empty: Path, arguments: tuple[str, ...]) -> None:
    printed = projects.run(empty, *arguments, "0", code=2)
    assert f"error: argument {arguments[1]}: expected an integer of at least 1, got '0'" in printed


def test_a_network_failure_gives_a_one_line_error() -> None:
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    from free_ml_stack.errors import is_external

    assert is_external(httpx.ReadError("cut off"))
    assert not is_external(ValueError("a mistake of ours"))


@pytest.mark.parametrize("arguments", [[], ["train"], ["serve"], ["deploy"]])
def test_help_imports_no_heavy_package(arguments: list[str]) -> None:
    probe = (
        "import sys, skeleton.__main__ as main\n"
        f"sys.argv = ['skeleton', *{arguments!r}, '--help']\n"
        "try: main.main()\n"
        "except SystemExit: pass\n"
        "print('loaded:', sorted({'torch', 'wandb', 'numpy', 'fsspec', 'pyarrow', 'secrets'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe],
        env=projects.environment(Path.home()),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.rstrip().endswith("loaded: []")


def test_every_field_of_the_configuration_is_a_documented_flag(empty: Path) -> None:
    from dataclasses import fields

    from skeleton.config import TrainConfig

    printed = projects.run(empty, "train", "--help")
    for field in fields(TrainConfig):
        assert f"--{field.name.replace('_', '-')}" in printed
        assert f"--{field.name}" in printed


@pytest.mark.slow
def test_a_damaged_data_set_is_reported_and_repaired(empty: Path) -> None:
    projects.run(empty, "data")
    file = empty / ".stack" / "data" / "me" / "skeleton" / "data" / "train.parquet"
    whole = file.read_bytes()
    before = file.stat().st_mtime_ns
    projects.run(empty, "data")
    assert file.stat().st_mtime_ns == before  # valid files are not written again
    projects.run(empty, "train", "--epochs", "1")

    for damaged in (whole[:-10], whole[:200] + b"x" + whole[201:]):
        file.write_bytes(damaged)
        printed = projects.run(empty, "train", "--epochs", "1", code=1)
        assert "train.parquet" in printed
        projects.run(empty, "data")
        assert file.read_bytes() == whole


@pytest.mark.slow
def test_progress_is_shown_on_terminals_only(empty: Path) -> None:
    projects.run(empty, "data")
    assert "steps" not in projects.run(empty, "train", "--epochs", "1").replace("19 steps in", "")
    terminal, its_end = pty.openpty()
    termios.tcsetwinsize(its_end, (24, 120))
    command = [str(forking.python()), "-m", "skeleton", "train", "--epochs", "30", "--patience", "0"]
    with subprocess.Popen(
        command, cwd=empty, env=projects.environment(empty), stdout=subprocess.PIPE, stderr=its_end, text=True
    ) as process:
        os.close(its_end)
        seen = b""
        with contextlib.suppress(OSError):  # raised by Linux when the other end is closed
            while piece := os.read(terminal, 4096):
                seen += piece
        printed, _ = process.communicate()
    os.close(terminal)
    assert "Test accuracy" in printed
    assert re.search(rb"[1-9]\d*/570 ", seen)
    assert b"loss 0." in seen


@pytest.mark.slow
def test_train_accepts_the_arguments_of_a_sweep(empty: Path) -> None:
    projects.run(empty, "data")
    (empty / "given.json").write_text(json.dumps({"epochs": 1, "lr": 0.001, "width": 8}))
    projects.run(empty, "train", "--config=given.json", "--batch_size=32", "--lr=0.002")
    config = json.loads(next(empty.glob("runs/*/result.json")).read_text())["config"]
    assert (config["epochs"], config["width"], config["batch_size"], config["lr"]) == (1, 8, 32, 0.002)


def test_fields_of_the_configuration_without_flag_are_flags_too(empty: Path, tmp_path: Path) -> None:
    shutil.copytree(places.SOURCE / "skeleton", package := tmp_path / "source" / "skeleton")
    config = (package / "config.py").read_text()
    own = {"PYTHONPATH": str(package.parent)}
    (package / "config.py").write_text(config + '    tag: str = "none"\n')
    assert re.search(r'--tag STR +\(default: "none"\)', projects.run(empty, "train", "--help", **own))
    projects.run(empty, "data", **own)
    projects.run(empty, "train", "--epochs", "1", "--name", "one", "--tag", "first", **own)
    assert json.loads((empty / "runs" / "one" / "config.json").read_text())["tag"] == "first"
    (package / "config.py").write_text(config + "    tag: str | None = None\n")
    printed = projects.run(empty, "train", code=1, **own)
    assert printed == "error: TrainConfig.tag: expected the type int, float, str or bool, got str | None\n"
    for name in ("name", "run", "set", "help"):
        (package / "config.py").write_text(config + f'    {name}: str = "none"\n')
        printed = projects.run(empty, "train", code=1, **own)
        assert printed == f"error: TrainConfig.{name}: the command has a flag of this name; rename the field\n"
    (package / "config.py").write_text(config + '    command: str = "none"\n')
    assert "`command`" not in projects.run(empty, "train", "--help", **own)
    (package / "config.py").write_text(config)
    printed = projects.run(empty, "publish", code=1, **own)
    assert printed.startswith("error: run one was trained with another config.py: unknown setting 'tag'; ")
