"""The program of a Hugging Face Job, as a file of its own: unpack the project, install it, run its command."""

import base64
import io
import json
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import NoReturn


def run(given: str, sources: str) -> NoReturn:
    """Run the command of `given` (JSON) with the `sources` (base64 of a tar file), in place of this process."""
    job = json.loads(given)
    folder = Path(tempfile.mkdtemp())
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(sources))) as archive:
        archive.extractall(folder, filter="data")
    os.chdir(folder)
    os.environ.pop("VIRTUAL_ENV", None)  # that of this script
    extras = [word for extra in job["extras"] for word in ("--extra", extra)]
    subprocess.run(["uv", "sync", "--no-dev", *extras], check=True)
    python = str(Path(".venv", "bin", "python").absolute())
    os.execv(python, [python, *job["words"]])  # noqa: S606 - signals and the exit code are those of the command
