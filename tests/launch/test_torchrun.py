"""torchrun with the exit code of training."""

import os
import signal
from pathlib import Path

import forking
import projects
import pytest
from waiting import until

END = "import os, sys, time; open('started', 'w').close(); "


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("pass", 0),
        ("sys.exit(2)", 2),
        ("sys.exit(75)", 75),
        ("os.kill(os.getpid(), 9)", 137),
    ],
)
def test_the_exit_code_is_that_of_the_process(tmp_path: Path, program: str, code: int) -> None:
    process = start(tmp_path, program)
    _, complaint = process.communicate(timeout=120)
    assert process.returncode == code
    assert "Traceback" not in complaint


def test_sigterm_gives_the_code_of_a_run_that_can_be_resumed(tmp_path: Path) -> None:
    process = start(tmp_path, "time.sleep(600)")
    until((tmp_path / "started").exists)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=120) == 75
    assert "Traceback" not in process.communicate()[1]


def start(folder: Path, program: str) -> forking.Running:
    (folder / "program.py").write_text(END + program)
    words = ("-m", "free_ml_stack.launch.torchrun", "--standalone", "--nproc-per-node", "1", "program.py")
    return forking.start(words, folder, projects.environment(folder))
