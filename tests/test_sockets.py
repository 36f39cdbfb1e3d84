"""Sockets between processes work even if the path of the temporary folder is too long for them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TALK = """
import multiprocessing.util, tempfile
from free_ml_stack.processes import process_context
if __name__ == "__main__":
    before = tempfile.gettempdir()
    process = process_context([]).Process(target=print, args=("talked",))
    process.start()
    process.join()
    assert process.exitcode == 0 and tempfile.gettempdir() == before
    print(multiprocessing.util.get_temp_dir())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no Unix sockets")
@pytest.mark.parametrize("length", [10, 120])
def test_a_fork_server_starts_with_a_long_temporary_folder(tmp_path: Path, length: int) -> None:
    folder = tmp_path / ("x" * length)
    folder.mkdir()
    (tmp_path / "talk.py").write_text(TALK)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "talk.py")],
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    talked, place = done.stdout.split()
    assert talked == "talked"
    assert not Path(place).exists()
