"""Train on a free remote GPU from a terminal, with Google's client for Colab or Kaggle's client.

The tracked sources are uploaded and the results are downloaded; keys are not sent. Publishing is done locally.
"""

import base64
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from free_ml_stack import git
from free_ml_stack.console import say
from free_ml_stack.errors import StackError
from free_ml_stack.notebook import runner

if TYPE_CHECKING:
    from free_ml_stack.project.settings import Settings

STATUS = re.compile(r'has status "(?:\w+\.)?(\w+)"')
LIMIT = 12 * 3600  # maximum seconds of a free session
POLL = 15.0  # seconds between two status requests to Kaggle
MISSED_CHECKS = 2  # failed checks after which a session is considered lost
WATCH = 60.0  # seconds, times `patience`, between two checks of Colab's session
INCOMPLETE = (tarfile.TarError, OSError, EOFError, zlib.error, KeyError)
SILENT = 40  # failed status requests after which polling stops
NOTICES = {
    "colab": "Colab's terms for free accounts rule out remote control in place of the notebook. This is Google's own "
    "client; check whether your account may use it: https://research.google.com/colaboratory/faq.html",
    "kaggle": "Kaggle's terms allow this: 30 hours of GPU a week, once your phone is verified: "
    "https://www.kaggle.com/docs/notebooks",
}
CLIENTS = {"colab": "google-colab-cli", "kaggle": "kaggle"}
KEYS = ("HF_", "HUGGING", "WANDB_", "ALGORITHMIA_", "AWS_", "STACK_")
KEY = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL")  # in names of variables that may contain keys
OWN = ("KAGGLE_", "GOOGLE_", "CLOUDSDK_", "SSL_")  # variables of the clients


def remote(settings: "Settings", package: str, place: str, words: Sequence[str], gpu: str, user: str) -> int:
    """Run `train` with `words` on `place` ("colab" or "kaggle"), fetch the run, and return the exit code of training.

    `gpu` is a GPU type of Colab, `user` the account at Kaggle. The session is stopped, unless the error names the
    results that only Kaggle has. Raises StackError if the client is missing or fails.
    """
    if not shutil.which(place):
        raise StackError(f"command {place} not found; install it with `uv tool install {CLIENTS[place]}`, and log in")
    say(NOTICES[place])
    name = f"{settings.project}-{secrets.token_hex(3)}"
    with tempfile.TemporaryDirectory() as scratch, terminable():
        script = Path(scratch, "runner.py")
        script.write_text(packed(settings.root, settings.project, package, words), encoding="utf-8")
        if place == "colab":
            code, results = on_colab(name, script, gpu, WATCH * settings.patience)
        else:
            code, results = on_kaggle(name, script, user)
        if exit_code(results) is not None:
            unpack(results, settings.root)
        elif not code:
            raise StackError("training succeeded, but the results were not downloaded; see the output above")
    return code


def packed(root: Path, project: str, package: str, words: Sequence[str]) -> str:
    """Return a program that contains the tracked sources of `root` and trains with them."""
    given = {"project": project, "package": package, "words": list(words)}
    sources = base64.b64encode(git.archive(root)).decode()
    body = Path(str(runner.__file__)).read_text(encoding="utf-8")
    return f"{body}\nrun({json.dumps(json.dumps(given))}, {json.dumps(sources)})\n"


def on_colab(name: str, script: Path, gpu: str, look: float) -> tuple[int, Path]:
    """Run a program in a session of Colab; return its exit code and the path of its results."""
    results = script.with_name(runner.RESULTS)
    accelerator = ["--gpu", gpu] if gpu else []
    with stopping(["colab", "stop", "-s", name]):
        # The client's timeout does not stop the program but causes a busy loop in the client, so it is not used.
        options = ["--keep", "-s", name, *accelerator, "--timeout", str(2 * LIMIT)]
        code = watched(name, look, "colab", "run", *options, str(script))
        if code is None:
            say("Colab stopped the session and the run. Train in the notebook to keep checkpoints across sessions.")
            return 1, results
        fetch(
            "colab",
            "download",
            "-s",
            name,
            f"content/{runner.RESULTS}",
            str(results),
            attempts=1 if code else 3,
        )
    return code, results


def watched(name: str, look: float, *command: str) -> int | None:
    """Return the exit code of a client that waits for a session; None if the session is lost."""
    missed = 0
    with subprocess.Popen(command, env=keyless(), stdin=subprocess.DEVNULL) as process:
        try:
            while missed < MISSED_CHECKS:
                try:
                    return process.wait(look)
                except subprocess.TimeoutExpired:
                    missed = missed + 1 if "not found" in asked("colab", "status", "-s", name)[0] else 0
        finally:
            process.kill()
    return None


def on_kaggle(name: str, script: Path, user: str) -> tuple[int, Path]:
    """Run a program as a private kernel of Kaggle; return its exit code and the path of its results."""
    if not user:
        raise StackError("missing --user: your Kaggle user name")
    kernel = f"{user}/{name}"
    about = {
        "id": kernel,
        "title": name,
        "code_file": script.name,
        "language": "python",
        "kernel_type": "script",
        "is_private": True,
        "enable_gpu": True,
        "enable_internet": True,
    }
    script.with_name("kernel-metadata.json").write_text(json.dumps(about), encoding="utf-8")
    with stopping(["kaggle", "kernels", "delete", "--yes", kernel]):
        if call("kaggle", "kernels", "push", "-p", str(script.parent), "--timeout", str(LIMIT)):
            raise StackError("Kaggle rejected the kernel; see the client's output above")
        state = wait(kernel)
        results = script.with_name("output") / runner.RESULTS
        got = fetch("kaggle", "kernels", "output", kernel, "-p", str(results.parent))
        code = exit_code(results) if got else None
        if state in ("complete", "") and code is None:
            first = "" if state else f"wait until `kaggle kernels status {kernel}` shows that the kernel has ended, "
            raise StackError(
                f"results not downloaded; {first}download them with `kaggle kernels output {kernel}`, "
                f"then delete the kernel with `kaggle kernels delete {kernel}`"
            )
    return 1 if code is None else code, results


def wait(kernel: str) -> str:
    """Wait for a kernel; return its final state (complete, error, cancelled), "" after ten minutes without a status."""
    before, unanswered = "", 0
    while unanswered < SILENT:
        printed, errors = asked("kaggle", "kernels", "status", kernel)
        found = STATUS.search(printed)
        state = found.group(1).lower() if found else ""
        shown = state or (errors or printed).strip()
        if shown != before:
            say(f"Kaggle: {shown}")
        if state in ("complete", "error", "cancelacknowledged", "cancel_acknowledged"):
            return state
        before, unanswered = shown, 0 if state else unanswered + 1
        time.sleep(POLL)
    return ""


@contextmanager
def terminable() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C, so that the session is stopped."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stopping(command: list[str]) -> Iterator[None]:
    """Stop the session at the end, also after Ctrl-C; if that fails, print the command.

    After a StackError there is no session to stop, or its results would be lost.
    """
    running = True
    try:
        yield
    except StackError:
        running = False
        raise
    finally:
        if running and call(*command):
            say(f"The session may still be running; stop it with `{' '.join(command)}`.")


def fetch(*command: str, attempts: int = 3) -> bool:
    """Download the results with several attempts; return whether one succeeded."""
    return any(not call(*command) for _ in range(attempts))


def call(*command: str) -> int:
    """Run a client without keys in its environment; return its exit code."""
    return subprocess.run(command, env=keyless(), stdin=subprocess.DEVNULL, check=False).returncode


def asked(*command: str) -> tuple[str, str]:
    """Run a client like `call`; return its output and its errors."""
    done = subprocess.run(command, env=keyless(), capture_output=True, encoding="utf-8", errors="replace", check=False)
    return done.stdout, done.stderr


def keyless() -> dict[str, str]:
    """Return the environment without keys, as a client may write it to its log."""

    def key(name: str) -> bool:
        return name.startswith(KEYS) or (bool(KEY.search(name)) and not name.startswith(OWN))

    return {name: value for name, value in os.environ.items() if not key(name.upper())}


def exit_code(results: Path) -> int | None:
    """Return the exit code of training in the results; None if they are missing or incomplete."""
    try:
        with tarfile.open(results) as archive:
            member = archive.extractfile(runner.CODE)
            return int(member.read()) if member else None
    except INCOMPLETE:
        return None


def unpack(results: Path, root: Path) -> None:
    """Extract the runs of the results to the project."""
    with tarfile.open(results) as archive:
        inside = [member for member in archive if member.name.startswith("runs/")]
        archive.extractall(root, inside, filter="data")
    names = sorted({Path(member.name).parts[1] for member in inside if len(Path(member.name).parts) > 2})
    say(f"Downloaded {', '.join(names) or 'no run'}.")
