"""The program run on a remote machine, as a single file: unpack, install packages, train, pack the results."""

import base64
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

RESULTS, CODE = "results.tgz", "exit_code"
INSTALL = """
import pathlib, subprocess, sys, tomllib
settings = tomllib.loads(pathlib.Path("pyproject.toml").read_text("utf-8-sig"))
wheel = settings.get("tool", {}).get("uv", {}).get("sources", {}).get("free-ml-stack", {}).get("path", "")
library = [text for text in settings["project"]["dependencies"] if text.startswith("free-ml-stack")]
if wheel:
    sys.path.insert(0, wheel)
else:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *library], check=True)
from free_ml_stack.notebook import packages
packages.install(pathlib.Path())
"""


def run(given: str, sources: str) -> None:
    """Train with `sources` (a tar file in base64) and the options `given` (JSON); exit with the code of training."""
    asked, here = json.loads(given), Path.cwd()
    folder = here / asked["project"]
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(sources))) as archive:
        archive.extractall(folder, filter="data")
    sys.path.insert(0, str(folder / "src"))
    module = ["-m", asked["package"]]
    code = 0
    for words in (["-c", INSTALL], [*module, "data"], [*module, "train", *asked["words"]]):
        code = code or shown([sys.executable, *words], folder)
    with tarfile.open(here / RESULTS, "w:gz") as archive:
        if (folder / "runs").is_dir():
            archive.add(folder / "runs", "runs")
        entry = tarfile.TarInfo(CODE)
        entry.size = len(str(code))
        archive.addfile(entry, io.BytesIO(str(code).encode()))
    raise SystemExit(code)


def shown(words: list[str], folder: Path) -> int:
    """Run a program and print its output line by line; return its exit code."""
    environ = {**os.environ, "PYTHONPATH": str(folder / "src"), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        words,
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
    return process.returncode
