"""Console output when standard input, output or error is closed."""

import subprocess
import sys
from pathlib import Path

import pytest

from free_ml_stack import console

PROGRAM = """
import os, subprocess, sys
from free_ml_stack import console
console.open_streams()
made = open("made", "w")
assert made.fileno() > 2, made.fileno()
assert not console.is_terminal() and sys.stdin.read() == ""
progress = console.Progress(10, "steps", seconds=-1.0)
progress.at(5)
progress.close()
console.say("said")
print("wrong", file=sys.stderr)
os.write(2, b"of a library")
subprocess.run(["sh", "-c", "echo of a child; echo of a child >&2"], check=True)
made.write("whole")
"""


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "1>&- 2>&-", "0<&- 1>&- 2>&-"])
def test_closed_standard_streams_are_replaced_by_the_null_device(tmp_path: Path, closed: str) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        ["sh", "-c", f'exec "{sys.executable}" program.py {closed}'],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "made").read_text() == "whole"
    assert "1>" in closed or done.stdout.startswith(("said\n", "5 of 10 steps"))


def test_progress_prints_nothing_without_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    progress = console.Progress(10, "steps", seconds=-1.0)
    progress.at(5)
    progress.close()
    assert progress.bar is None


def test_output_to_a_pipe_that_is_closed_ends_the_program(tmp_path: Path) -> None:
    """As SIGPIPE does for other programs."""
    loop = "from free_ml_stack import console\nwhile True: console.say('line')"
    with subprocess.Popen(
        ["sh", "-c", f'"{sys.executable}" -c "{loop}"; echo $? >code'], cwd=tmp_path, stdout=-1, stderr=-1
    ) as one:
        assert one.stdout and one.stderr
        one.stdout.close()
        assert one.stderr.read() == b""
    assert (tmp_path / "code").read_text() == "141\n"


def test_long_lines_are_wrapped_at_the_width_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    assert console.wrapped("one two three four five six") == "one two three four\n  five six"
    assert console.wrapped("a https://example.org/a/very/long/address b") == (
        "a\n  https://example.org/a/very/long/address\n  b"
    )
    assert console.wrapped("a row  of a table  is left as it is") == "a row  of a table  is left as it is"
    assert console.wrapped("short\n\nlines") == "short\n\nlines"


def test_a_row_of_a_table_is_one_line() -> None:
    lines = console.table([("two\nlines", 1), ("one", 22)], ("name", "count")).splitlines()
    assert lines == ["name       count", "---------  -----", "two lines      1", "one           22"]
