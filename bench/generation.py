"""Wall time of generating a project, hooks included, relative to a one-file template with the same cookiecutter.

    python bench/generation.py [ROUNDS]

Both run as subprocesses of a cookiecutter in a separate environment, as with uvx or pipx, and alternate, so that other
load of the machine affects both.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from baking import TEMPLATE, template

HOME = TEMPLATE / "build" / "cookiecutter"
COMMAND = HOME / "bin" / "cookiecutter"
LIMIT = 1.3


def install() -> None:
    """Create the environment of cookiecutter once, with the installed version."""
    if COMMAND.exists():
        return
    path = f"{TEMPLATE / 'build' / 'tools' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    uv = shutil.which("uv", path=path) or "uv"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(HOME)], check=True)
    wanted = [f"cookiecutter=={version('cookiecutter')}"]
    subprocess.run(
        [
            uv,
            "pip",
            "install",
            "--quiet",
            "--compile-bytecode",
            "--python",
            str(HOME / "bin" / "python"),
            *wanted,
        ],
        check=True,
    )


def one_file_template(folder: Path) -> Path:
    """Create a minimal template."""
    template = folder / "one"
    project = template / "{{cookiecutter.project_slug}}"
    project.mkdir(parents=True)
    (project / "README.md").write_text("# {{ cookiecutter.project_slug }}\n", encoding="utf-8")
    (template / "cookiecutter.json").write_text(json.dumps({"project_slug": "one"}), encoding="utf-8")
    return template


def cpu() -> float:
    """Return the CPU seconds of finished child processes."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def generate(template: Path, folder: Path, *answers: str) -> tuple[float, float, int]:
    """Generate once; return the wall seconds, the CPU seconds, and the number of files."""
    out = Path(tempfile.mkdtemp(dir=folder))
    began, spent = time.perf_counter(), cpu()
    subprocess.run(
        [str(COMMAND), str(template), "--no-input", "--output-dir", str(out), *answers],
        check=True,
        stdout=subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
    )
    took, spent = time.perf_counter() - began, cpu() - spent
    files = sum(path.is_file() and ".git" not in path.parts for path in out.rglob("*"))
    shutil.rmtree(out)
    return took, spent, files


def main() -> None:
    """Time both alternately, print the table, and fail if the ratio of the best exceeds the limit."""
    install()
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one = one_file_template(folder)
        pairs = [
            (generate(template(), folder, "check_credentials=skip"), generate(one, folder)) for _ in range(rounds + 1)
        ]
    pairs = pairs[1:]  # the first run warms the file system's cache
    ours, smallest = ([min(figures) for figures in zip(*column, strict=True)] for column in zip(*pairs, strict=True))
    ratio = ours[0] / smallest[0]
    print("| template | files | seconds (best) | ratio | CPU (best) | ratio |\n|" + " --- |" * 6)
    for name, (seconds, spent, files) in (("free-ml-stack, hook included", ours), ("one file, no hook", smallest)):
        ratios = (seconds / smallest[0], spent / smallest[1])
        print(f"| {name} | {files} | {seconds:.3f} | {ratios[0]:.2f} | {spent:.3f} | {ratios[1]:.2f} |")
    if ratio > LIMIT:
        sys.exit(f"generation takes {ratio:.2f} times as long as for a one-file template (limit {LIMIT})")


if __name__ == "__main__":
    main()
