"""Training on Colab and Kaggle from a terminal, with their real clients against loopback services."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from baking import bake
from places import ROOT
from projects import environment
from services.sessions import Sessions, clients, serving

from free_ml_stack.errors import StackError
from free_ml_stack.notebook import sessions
from free_ml_stack.project.settings import load

SECRET = "hf_this_must_not_travel_0123456789abcdef"
ACCOUNT = {"KAGGLE_API_ENVIRONMENT": "LOCALHOST", "KAGGLE_USERNAME": "me", "KAGGLE_KEY": "k"}
TRAIN = ("--epochs", "1", "--name", "far")


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sessions]:
    python = clients(ROOT / "build" / "clients", ROOT / "build" / "tools" / "bin")
    with serving(tmp_path_factory.mktemp("sessions"), python) as found:
        yield found


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bake(tmp_path_factory.mktemp("bake"), project_slug="ziffern", package_name="ziffern")


def start(services: Sessions, project: Path, *words: str) -> subprocess.Popen[str]:
    """Start `remote` with keys in the environment and in .env."""
    home = services.folder / "home"
    home.mkdir(exist_ok=True)
    (project / ".env").write_text(f"HF_TOKEN={SECRET}\n")
    given = environment(home, HF_TOKEN=SECRET, WANDB_API_KEY=SECRET, PYTHONPATH=str(project / "src"))
    given |= {"PATH": f"{services.folder / 'bin'}:{given['PATH']}", **ACCOUNT}
    command = [sys.executable, "-m", "ziffern", "remote", *words]
    return subprocess.Popen(
        command, cwd=project, env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(services: Sessions, project: Path, *words: str) -> tuple[int, str]:
    process = start(services, project, *words)
    printed, _ = process.communicate(timeout=300)
    return process.returncode, printed


def no_secret_has_travelled(services: Sessions) -> None:
    for folder, _, names in os.walk(services.folder):
        for name in names:
            path = Path(folder, name)
            assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_colab_trains_and_the_run_is_downloaded(services: Sessions, project: Path) -> None:
    code, printed = run(services, project, "colab", "--train", *TRAIN)
    assert code == 0, printed
    assert "Colab's terms" in printed
    assert "Test accuracy" in printed
    assert "Downloaded far." in printed
    assert (project / "runs" / "far" / "model" / "model.safetensors").exists()
    assert not services.open
    no_secret_has_travelled(services)


@pytest.mark.slow
def test_colab_returns_the_exit_code(services: Sessions, project: Path) -> None:
    code, printed = run(services, project, "colab", "--train", "--lr", "-1")
    assert code == 1, printed
    assert "lr: must be more than 0" in printed
    assert not services.open


@pytest.mark.slow
def test_colab_is_stopped_on_sigterm(services: Sessions, project: Path) -> None:
    process = start(services, project, "colab", "--train", "--epochs", "100000", "--patience", "0")
    assert process.stdout
    assert any("1 process on cpu" in line for line in process.stdout)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode
    assert not services.open


@pytest.mark.slow
def test_a_rejected_session_is_reported(services: Sessions, project: Path) -> None:
    services.refuses = 400
    try:
        code, printed = run(services, project, "colab", "--train", *TRAIN)
    finally:
        services.refuses = 0
    assert code == 1
    assert "You may not have quota" in printed
    assert "may still be running" not in printed
    assert not services.open


@pytest.mark.slow
def test_kaggle_trains_and_the_run_is_downloaded(services: Sessions, project: Path) -> None:
    began = time.monotonic()
    code, printed = run(services, project, "kaggle", "--user", "me", "--train", "--epochs", "1", "--name", "farther")
    assert code == 0, printed
    assert "Kaggle's terms" in printed
    assert "Downloaded farther." in printed
    assert (project / "runs" / "farther" / "model" / "model.safetensors").exists()
    assert not services.kernels
    assert time.monotonic() - began < 120
    no_secret_has_travelled(services)


@pytest.mark.slow
def test_kaggle_returns_the_exit_code(services: Sessions, project: Path) -> None:
    code, printed = run(services, project, "kaggle", "--user", "me", "--train", "--lr", "-1")
    assert code == 1, printed
    assert not services.kernels


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "answer", "words", "left"),
    [
        ("SaveKernel", 403, "error: Kaggle rejected the kernel", 0),
        ("ListKernelSessionOutput", 403, "error: results not downloaded; download them with", 1),
        ("/output/", b"torn", "error: results not downloaded; download them with", 1),
        ("DeleteKernel", 500, "The session may still be running; stop it with `kaggle kernels delete", 1),
    ],
)
def test_a_kaggle_error_at_any_step_is_reported_and_no_result_is_lost(
    services: Sessions, project: Path, path: str, answer: int | bytes, words: str, left: int
) -> None:
    services.refused = {path: answer}
    name = f"far-{path.strip('/')}"
    train = ("--train", "--epochs", "1", "--name", name)
    try:
        code, printed = run(services, project, "kaggle", "--user", "me", *train)
    finally:
        services.refused = {}
    assert words in printed
    assert "Traceback" not in printed
    assert len(services.kernels) == left
    services.kernels.clear()
    fetched = path == "DeleteKernel"  # training succeeded and is downloaded
    assert code == int(not fetched), printed
    assert (project / "runs" / name).exists() is fetched


@pytest.mark.slow
@pytest.mark.parametrize("results", [b"", b"complete"])
def test_an_outage_of_kaggle_deletes_no_kernel_without_its_results(
    services: Sessions,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    results: bytes,
) -> None:
    """The kernel is at Kaggle and may be running; only its status cannot be read."""
    services.refused = {"GetKernelSessionStatus": 503, **({} if results else {"/output/": b"torn"})}
    monkeypatch.setattr(sessions, "POLL", 0.0)
    monkeypatch.setattr(sessions, "SILENT", 2)
    (project / ".env").unlink(missing_ok=True)
    for name, value in environment(services.folder / "home", **ACCOUNT).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{services.folder / 'bin'}:{os.environ['PATH']}")
    settings = load({}, project, {})
    words = ["--epochs", "1", "--name", f"unseen-{bool(results)}"]
    failure = ""
    try:
        code = sessions.remote(settings, "ziffern", "kaggle", words, "", "me")
    except StackError as error:
        failure, code = str(error), 1
    finally:
        services.refused = {}
    assert capfd.readouterr().out.count("503") == 1  # the client's line, once
    assert code == int(not results)
    assert (project / "runs" / words[-1]).exists() is bool(results)
    assert len(services.kernels) == int(not results)
    if not results:
        [kernel] = services.kernels
        assert f"`kaggle kernels status {kernel}`" in failure
        assert f"`kaggle kernels output {kernel}`" in failure
    services.kernels.clear()


@pytest.mark.slow
def test_a_lost_session_of_colab_is_reported(services: Sessions, project: Path) -> None:
    often = ("--set", "patience=0.03")  # the session is checked every two seconds
    process = start(services, project, "colab", *often, "--train", "--epochs", "100000", "--patience", "0")
    assert process.stdout
    assert any("1 process on cpu" in line for line in process.stdout)
    [(name, machine)] = services.open.items()
    stop_all(machine.pid)
    del services.open[name]
    machine.wait(60)
    printed, _ = process.communicate(timeout=120)
    assert "Colab stopped the session" in printed
    assert process.returncode == 1, printed
    assert "Traceback" not in printed
    assert name not in services.open


def stop_all(pid: int) -> None:
    """Kill a process and its descendants."""
    below = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout
    os.kill(pid, signal.SIGKILL)
    for child in below.split():
        stop_all(int(child))


def test_variables_that_may_contain_keys_are_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "HF_TOKEN",
        "WANDB_API_KEY",
        "GH_TOKEN",
        "OPENAI_API_KEY",
        "DB_PASSWORD",
        "KAGGLE_KEY",
        "LANG",
    ):
        monkeypatch.setenv(name, SECRET)
    assert {name for name, value in sessions.keyless().items() if value == SECRET} == {"KAGGLE_KEY", "LANG"}


def test_a_missing_client_is_reported_with_its_installation(project: Path, tmp_path: Path) -> None:
    given = environment(tmp_path, PYTHONPATH=str(project / "src"), PATH="/nowhere")
    for place, package in (("colab", "google-colab-cli"), ("kaggle", "kaggle")):
        done = subprocess.run(
            [sys.executable, "-m", "ziffern", "remote", place],
            cwd=project,
            env=given,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert f"uv tool install {package}" in done.stderr
