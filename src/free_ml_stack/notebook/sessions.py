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
LIMIT = 12 * 3600  # seconds that a free session lasts at most
POLL = 15.0  # seconds between two questions to Kaggle
TWICE = 2  # looks that miss a session until it is gone
WATCH = 60.0  # seconds, times `patience`, between two looks whether Colab's session is still there
TORN = (tarfile.TarError, OSError, EOFError, zlib.error, KeyError)
SILENT = 40  # questions without an answer after which it is not asked again
NOTICES = {
    "colab": "Colab's terms for free accounts rule out remote control in place of the notebook. This is Google's own "
    "client; see whether your account may use it: https://research.google.com/colaboratory/faq.html",
    "kaggle": "Kaggle's terms allow this: 30 hours of GPU a week, once your phone is verified: "
    "https://www.kaggle.com/docs/notebooks",
}
CLIENTS = {"colab": "google-colab-cli", "kaggle": "kaggle"}
KEYS = ("HF_", "HUGGING", "WANDB_", "ALGORITHMIA_", "AWS_", "STACK_")
KEY = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL")  # in the name of what may be one
OWN = ("KAGGLE_", "GOOGLE_", "CLOUDSDK_", "SSL_")  # a client's own


def remote(settings: "Settings", package: str, place: str, words: Sequence[str], gpu: str, user: str) -> int:
    """Run `train` with `words` on `place` ("colab" or "kaggle"), fetch the run, and return the exit code of training.

    `gpu` is Colab's name of one, `user` the account at Kaggle. The session is stopped whatever happens. Raises
    StackError where the client is missing or refuses.
    """
    if not shutil.which(place):
        raise StackError(f"no {place} command: install it with `uv tool install {CLIENTS[place]}`, and log in")
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
            raise StackError("training ended well, but its results did not come; the lines above say why")
    return code


def packed(root: Path, project: str, package: str, words: Sequence[str]) -> str:
    """A program that holds the tracked sources of `root`, and trains with them where it is run."""
    listed = git.run(root, ["ls-files", "-z"])
    if listed.returncode:
        raise StackError("what travels is what git tracks, and this is no git repository: `git init`, add, commit")
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name in filter(None, os.fsdecode(listed.stdout).split("\0")):
            if Path(name).name != ".env" and (root / name).is_file():
                archive.add(root / name, name)
    given = {"project": project, "package": package, "words": list(words)}
    sources = base64.b64encode(content.getvalue()).decode()
    body = Path(str(runner.__file__)).read_text(encoding="utf-8")
    return f"{body}\nrun({json.dumps(json.dumps(given))}, {json.dumps(sources)})\n"


def on_colab(name: str, script: Path, gpu: str, look: float) -> tuple[int, Path]:
    """Run a program in a session of Colab; its exit code and where its results are."""
    results = script.with_name(runner.RESULTS)
    accelerator = ["--gpu", gpu] if gpu else []
    with stopping(["colab", "stop", "-s", name]):
        # Its time limit does not end the program, it only makes the client wait in a busy loop: so none.
        options = ["--keep", "-s", name, *accelerator, "--timeout", str(2 * LIMIT)]
        code = watched(name, look, "colab", "run", *options, str(script))
        if code is None:
            say("Colab has ended the session, and the run with it. The notebook's checkpoints outlive that.")
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
    """The exit code of a client that waits for a session, for ever if that is gone: None then."""
    missed = 0
    with subprocess.Popen(command, env=keyless(), stdin=subprocess.DEVNULL) as process:
        try:
            while missed < TWICE:
                try:
                    return process.wait(look)
                except subprocess.TimeoutExpired:
                    status = subprocess.run(
                        ["colab", "status", "-s", name],
                        env=keyless(),
                        capture_output=True,
                        encoding="utf-8",
                        errors="replace",
                        check=False,
                    )
                    missed = missed + 1 if "not found" in status.stdout else 0
        finally:
            process.kill()
    return None


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
        results = script.with_name("output") / runner.RESULTS
        got = fetch("kaggle", "kernels", "output", kernel, "-p", str(results.parent))
        code = exit_code(results) if got else None
        if state == "complete" and code is None:
            raise StackError(
                f"the results did not come, and stay there: `kaggle kernels output {kernel}` fetches them, "
                f"`kaggle kernels delete {kernel}` removes them"
            )
    return 1 if code is None else code, results


def wait(kernel: str) -> str:
    """How a kernel has ended: complete, error or cancelled; empty where nobody tells for ten minutes."""
    before, unanswered = "", 0
    while unanswered < SILENT:
        done = subprocess.run(
            ["kaggle", "kernels", "status", kernel],
            env=keyless(),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        told = STATUS.search(done.stdout)
        state = told.group(1).lower() if told else ""
        shown = state or (done.stderr or done.stdout).strip()
        if shown != before:
            say(f"Kaggle: {shown}")
        if state in ("complete", "error", "cancelacknowledged", "cancel_acknowledged"):
            return state
        before, unanswered = shown, 0 if state else unanswered + 1
        time.sleep(POLL)
    return ""


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
    """Stop the session in the end, also after Ctrl-C; a line tells how to do it by hand if that fails.

    A StackError is raised where there is none to stop.
    """
    running = True
    try:
        yield
    except StackError:
        running = False
        raise
    finally:
        if running and call(*command):
            say(f"The session may still run: stop it with `{' '.join(command)}`.")


def fetch(*command: str, attempts: int = 3) -> bool:
    """Whether a client has fetched the results, in a few attempts: they are worth hours."""
    return any(not call(*command) for _ in range(attempts))


def call(*command: str) -> int:
    """The exit code of a client, which sees none of the keys."""
    return subprocess.run(command, env=keyless(), stdin=subprocess.DEVNULL, check=False).returncode


def keyless() -> dict[str, str]:
    """The environment without keys: a client may write what it sees into its log."""

    def key(name: str) -> bool:
        return name.startswith(KEYS) or (bool(KEY.search(name)) and not name.startswith(OWN))

    return {name: value for name, value in os.environ.items() if not key(name.upper())}


def exit_code(results: Path) -> int | None:
    """The exit code of training, as the results tell it; None where they did not come, or torn."""
    try:
        with tarfile.open(results) as archive:
            member = archive.extractfile(runner.CODE)
            return int(member.read()) if member else None
    except TORN:
        return None


def unpack(results: Path, root: Path) -> None:
    """Put the runs among the results beside those that are here."""
    with tarfile.open(results) as archive:
        inside = [member for member in archive if member.name.startswith("runs/")]
        archive.extractall(root, inside, filter="data")
    names = sorted({Path(member.name).parts[1] for member in inside if len(Path(member.name).parts) > 2})
    say(f"Fetched {', '.join(names) or 'no run'}.")
