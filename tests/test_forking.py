"""A program that is forked behaves as one that Python starts."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import forking
import pytest
from waiting import until

PYTHONS: dict[str, Callable[[], object]] = {"started": lambda: sys.executable, "forked": forking.python}
WAITS = """
import os, select, signal, sys
arrived, arrives = os.pipe()  # pause() is not interrupted by a signal that arrives before it
os.set_blocking(arrives, False)
signal.set_wakeup_fd(arrives)
try:
    print(os.getpid(), flush=True)
    select.select([arrived], [], [])
except KeyboardInterrupt:
    print("interrupted")
    sys.exit(3)
"""


@pytest.fixture(params=PYTHONS)
def python(request: pytest.FixtureRequest) -> str:
    return str(PYTHONS[request.param]())


def run(*command: str, **options: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | options
    return subprocess.run(command, env=environ, input="given\n", capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("code", "status", "printed", "complaint"),
    [
        ("print(input(), end='')", 0, "given", ""),
        ("import sys; print(1); sys.exit(7)", 7, "1\n", ""),
        ("raise SystemExit('wrong')", 1, "", "wrong\n"),
        ("import os; os.kill(os.getpid(), 15)", -15, "", ""),
        ("import os; os.kill(os.getpid(), 9)", -9, "", ""),
        ("import os, sys; sys.stdout.write('x'); os._exit(4)", 4, "", ""),
        ("import atexit; atexit.register(print, 'end')", 0, "end\n", ""),
        ("import sys; print(sys.argv, __name__)", 0, "['-c', 'word'] __main__\n", ""),
    ],
)
def test_streams_and_exit_code(python: str, code: str, status: int, printed: str, complaint: str) -> None:
    done = run(python, "-c", code, "word")
    assert (done.returncode, done.stdout, done.stderr) == (status, printed, complaint)


def test_an_unbuffered_program_writes_immediately(python: str) -> None:
    code = "import os, sys; sys.stdout.write('x'); os._exit(4)"
    assert run(python, "-c", code, PYTHONUNBUFFERED="1").stdout == "x"


def test_the_number_of_threads_is_that_of_the_environment(python: str) -> None:
    assert run(python, "-c", "import torch; print(torch.get_num_threads())", OMP_NUM_THREADS="1").stdout == "1\n"


def test_a_file_is_run_in_its_folder(python: str, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("word = 'found'")
    (tmp_path / "program.py").write_text("import sys, beside; print(beside.word, sys.argv[1:], __name__)")
    assert run(python, str(tmp_path / "program.py"), "one").stdout == "found ['one'] __main__\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_arrives_once(python: str, number: signal.Signals) -> None:
    with subprocess.Popen([python, "-c", WAITS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        program = int(process.stdout.readline())
        process.send_signal(number)
        printed = process.stdout.read()
    expected = (3, "interrupted\n") if number == signal.SIGINT else (-number, "")
    assert (process.returncode, printed) == expected
    until(lambda: not alive(program))


def alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def test_open_files_are_passed_on(python: str) -> None:
    reading, writing = os.pipe()
    code = f"import os; os.write({writing}, b'text')"
    with subprocess.Popen([python, "-c", code], pass_fds=[writing]):
        os.close(writing)
        with os.fdopen(reading) as file:
            assert file.read() == "text"  # and the end of the file: no other process has it open


def test_other_versions_of_packages_are_imported(python: str, tmp_path: Path) -> None:
    (tmp_path / "requests.py").write_text("word = 'other'")
    assert run(python, "-c", "import requests; print(requests.word)", PYTHONPATH=str(tmp_path)).stdout == "other\n"


@pytest.mark.parametrize(
    ("options", "code"),
    [({"PYTHONOPTIMIZE": "1"}, "sys.flags.optimize"), ({"PYTHONIOENCODING": "iso8859-1"}, "sys.stdout.encoding")],
)
def test_variables_that_python_reads_at_startup_apply(python: str, options: dict[str, str], code: str) -> None:
    assert run(python, "-c", f"import sys; print({code})", **options).stdout.strip() in options.values()


def test_programs_of_a_program_are_forked() -> None:
    code = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import sys; print(\"torch\" in sys.modules)'])"
    )
    assert run(str(forking.python()), "-c", code).stdout == "True\n"
    assert run(sys.executable, "-c", code).stdout == "False\n"
