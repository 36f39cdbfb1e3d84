"""The `serve` command as a user starts it."""

import os
import subprocess
import sys
from pathlib import Path

import projects
import pytest


@pytest.mark.slow
def test_serve_links_to_its_page_on_a_terminal_only(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "stack.toml").write_text('project = "p"\nstorage = "algorithmia://.my/p"\nalgorithm = "me/P"\n')
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "skeleton", "serve"]
    with subprocess.Popen(command, cwd=folder, env=projects.environment(folder), stdout=theirs) as process:
        with os.fdopen(ours, encoding="utf-8") as lines:
            link = next(line for line in lines if line.startswith("Page: ")).split()[1]
        process.terminate()
    assert link.partition("/#key=")[2].startswith("sim")
    with projects.start(folder, "serve") as process:
        printed = process.stdout.readline() + process.stdout.readline()
        process.terminate()
    assert "Serving on" in printed
    assert "key=" not in printed
