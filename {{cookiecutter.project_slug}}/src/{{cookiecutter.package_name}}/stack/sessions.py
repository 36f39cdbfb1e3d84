"""Train on a free GPU elsewhere, from this terminal: through Google's client for Colab, or Kaggle's own.

The tracked sources travel, the results come back; no key does. Publishing happens here.
"""

import base64
import io
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from . import StackError, runner
from .console import say

if TYPE_CHECKING:
    from .settings import Settings

STATUS = re.compile(r'has status "(?:\w+\.)?(\w+)"')
LIMIT = 12 * 3600  # seconds that a free session lasts at most
POLL = 15.0  # seconds between two questions to Kaggle
NOTICES = {
    "colab": "Colab's terms for free accounts rule out remote control in place of the notebook. This is Google's own "
    "client; see whether your account may use it: https://research.google.com/colaboratory/faq.html",
    "kaggle": "Kaggle's terms allow this: 30 hours of GPU a week, once your phone is verified: "
    "https://www.kaggle.com/docs/notebooks",
}
CLIENTS = {"colab": "google-colab-cli", "kaggle": "kaggle"}
KEYS = ("HF_", "HUGGING", "WANDB_", "ALGORITHMIA_", "AWS_", "GITHUB_TOKEN", "STACK_")


def remote(settings: "Settings", package: str, place: str, words: Sequence[str], gpu: str, user: str) -> int:
    """Run `train` with `words` on `place` ("colab" or "kaggle"), fetch the run, and return the exit code of training.

    `gpu` is Colab's name of one, `user` the account at Kaggle. The session is stopped whatever happens. Raises
    StackError where the client is missing or refuses.
    """
    if not shutil.which(place):
        raise StackError(
            f"no {place} command: install it with `uv tool install {CLIENTS[place]}`, and log in"
        )
    say(NOTICES[place])
    name = f"{settings.project}-{secrets.token_hex(3)}"
    with tempfile.TemporaryDirectory() as scratch, terminable():
        script = Path(scratch, "runner.py")
        script.write_text(packed(settings.root, settings.project, package, words), encoding="utf-8")
        if place == "colab":
            code, results = on_colab(name, script, gpu)
        else:
            code, results = on_kaggle(name, script, user)
        if results.exists():
            unpack(results, settings.root)
    return code


def packed(root: Path, project: str, package: str, words: Sequence[str]) -> str:
    """A program that holds the tracked sources of `root`, and trains with them where it is run."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=False)
    if listed.returncode:
        raise StackError(
            "what travels is what git tracks, and this is no git repository: `git init`, add, commit"
        )
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name in filter(None, listed.stdout.split("\0")):
            if Path(name).name != ".env" and (root / name).is_file():
                archive.add(root / name, name)
    given = {"project": project, "package": package, "words": list(words)}
    sources = base64.b64encode(content.getvalue()).decode()
    body = Path(str(runner.__file__)).read_text(encoding="utf-8")
    return f"{body}\nrun({json.dumps(json.dumps(given))}, {json.dumps(sources)})\n"


def on_colab(name: str, script: Path, gpu: str) -> tuple[int, Path]:
    """Run a program in a session of Colab; its exit code and where its results are."""
    results = script.with_name(runner.RESULTS)
    accelerator = ["--gpu", gpu] if gpu else []
    with stopping(["colab", "stop", "-s", name]):
        # Its time limit does not end the program, it only makes the client wait in a busy loop: so none.
        code = call(
            "colab", "run", "--keep", "-s", name, *accelerator, "--timeout", str(2 * LIMIT), str(script)
        )
        call("colab", "download", "-s", name, f"content/{runner.RESULTS}", str(results))
    return code, results


def on_kaggle(name: str, script: Path, user: str) -> tuple[int, Path]:
    """Run a program as a private kernel of Kaggle, which ends with it; its exit code and where its results are."""
    if not user:
        raise StackError("whose account? --user NAME, as at kaggle.com")
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
            raise StackError("Kaggle did not take the kernel; its client's lines above say why")
        state = wait(kernel)
        fetched = script.with_name("output")
        call("kaggle", "kernels", "output", kernel, "-p", str(fetched))
    results = fetched / runner.RESULTS
    return exit_code(results) if results.exists() else int(state != "complete") or 1, results


def wait(kernel: str) -> str:
    """How a kernel has ended: complete, error or cancelled."""
    before = ""
    while True:
        done = subprocess.run(
            ["kaggle", "kernels", "status", kernel],
            env=keyless(),
            capture_output=True,
            text=True,
            check=False,
        )
        told = STATUS.search(done.stdout)
        state = told.group(1).lower() if told else ""
        if state != before:
            say(f"Kaggle: {state or done.stderr.strip()}")
        if state in ("complete", "error", "cancelacknowledged", "cancel_acknowledged"):
            return state
        before = state
        time.sleep(POLL)


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, so that the session is stopped then too."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stopping(command: list[str]) -> Iterator[None]:
    """Stop the session in the end, also after Ctrl-C; StackError tells how to do it by hand if that fails."""
    try:
        yield
    finally:
        if call(*command):
            raise StackError(f"the session may still run: stop it with `{' '.join(command)}`")


def call(*command: str) -> int:
    """The exit code of a client, which sees none of the keys."""
    return subprocess.run(command, env=keyless(), stdin=subprocess.DEVNULL, check=False).returncode


def keyless() -> dict[str, str]:
    """The environment without keys: a client may write what it sees into its log."""
    return {name: value for name, value in os.environ.items() if not name.startswith(KEYS)}


def exit_code(results: Path) -> int:
    """The exit code of training, as the results tell it."""
    with tarfile.open(results) as archive:
        member = archive.extractfile(runner.CODE)
        return int(member.read()) if member else 1


def unpack(results: Path, root: Path) -> None:
    """Put the runs among the results beside those that are here."""
    with tarfile.open(results) as archive:
        inside = [member for member in archive if member.name.startswith("runs/")]
        archive.extractall(root, inside, filter="data")
    names = sorted({Path(member.name).parts[1] for member in inside if len(Path(member.name).parts) > 2})
    say(f"Fetched {', '.join(names) or 'no run'}.")
