"""A project folder for tests, with settings and data, used through the command line."""

import os
import shutil
import subprocess
from pathlib import Path

import forking
from places import SOURCE

SERVICES = ("WANDB", "HF_", "HUGGING", "ALGORITHMIA", "AWS", "STACK_")


def environment(home: Path, **extra: str) -> dict[str, str]:
    """The environment of a user without credentials and with the home `home`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(SERVICES)}
    own = {
        "HOME": str(home),
        "PYTHONPATH": str(SOURCE),
        "STACK_TRACKER": "none",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return {**kept, **own, **extra}


def start(folder: Path, *arguments: str, **extra: str) -> forking.Running:
    """Start a command of the project in `folder`."""
    return forking.start(["-m", "skeleton", *arguments], folder, environment(folder, **extra))


def run(folder: Path, *arguments: str, code: int = 0, **extra: str) -> str:
    """Run a command; check its exit code and return its output."""
    process = start(folder, *arguments, **extra)
    printed, complaint = process.communicate(timeout=300)
    assert process.returncode == code, printed + complaint
    assert "Traceback" not in complaint
    return printed + complaint


def make(folder: Path, template: Path | None = None) -> Path:
    """Create a project in `folder` with settings and data, copied from `template` if given."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stack.toml").write_text(
        'project = "skeleton"\nstorage = "algorithmia://.my/skeleton"\nalgorithm = "me/Skeleton"\n'
    )
    if template:
        shutil.copytree(template / ".stack", folder / ".stack")
    else:
        run(folder, "data")
    return folder


def workers(parent: int) -> list[int]:
    """The worker processes of a sweep: the children of its fork server."""
    table = subprocess.run(["ps", "-eww", "-o", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in table.splitlines()[1:]]
    found = [int(pid) for pid, above, args in rows if int(above) == parent and "multiprocessing.forkserver" in args]
    servers = {str(forking.server().launched(pid)) for pid in found}
    return [int(pid) for pid, above, _ in rows if above in servers]
