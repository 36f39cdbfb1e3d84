"""Installation of the library from the wheel in vendor/, with uv and with pip, on a clean machine."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest
from baking import TEMPLATE, bake

TOOLS = TEMPLATE / "build" / "tools" / "bin"  # where `make` puts uv if there is none
PATH = os.pathsep.join([str(TOOLS), os.environ["PATH"]])
UV = shutil.which("uv", path=PATH) or "uv"
KEPT = ("PATH", "LANG", "PIP_", "UV_", "SSL_", "REQUESTS_", "NODE_")  # how packages are reached from here
SLUG = "ferry-times"
WHERE = "import free_ml_stack; print(free_ml_stack.__file__)"


def clean(home: Path) -> dict[str, str]:
    """The environment of a user with Python, uv and their caches, without this repository."""
    found = {name: value for name, value in os.environ.items() if name.startswith(KEPT)}
    found.pop("UV_COMPILE_BYTECODE", None)  # only imported modules are compiled
    caches = {
        "UV_CACHE_DIR": subprocess.run([UV, "cache", "dir"], capture_output=True, text=True, check=True).stdout.strip()
    }
    if "PIP_FIND_LINKS" in found:
        found.setdefault("UV_FIND_LINKS", found["PIP_FIND_LINKS"])
    return {**found, **caches, "HOME": str(home), "UV_PYTHON": sys.executable}


def run(folder: Path, *words: str | Path, code: int | None = 0, **extra: str) -> str:
    """Run a command in `folder`; check its exit code (None for any failure) and return its output."""
    done = subprocess.run(
        list(map(str, words)),
        cwd=folder,
        env=clean(folder.parent) | extra,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert (done.returncode == code) if code is not None else done.returncode, done.stdout[-4000:]
    return done.stdout


def commit(project: Path) -> None:
    identity = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false")
    run(project, "git", "init", "-q")
    run(project, "git", "add", "-A")
    run(project, "git", *identity, "commit", "-q", "-m", "All of it")


def newer(wheel: Path, folder: Path) -> Path:
    """The next version of a wheel: the same code with another version number."""
    version = wheel.name.split("-")[1]
    target = folder / wheel.name.replace(version, "99.0.0")
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(target, "w") as made:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith(("/METADATA", "/RECORD")):
                content = content.replace(f"Version: {version}".encode(), b"Version: 99.0.0")
                content = content.replace(f"-{version}.dist-info".encode(), b"-99.0.0.dist-info")
            if name.endswith("/RECORD"):  # remove the checksum of METADATA, which has changed
                content = re.sub(rb"(METADATA),[^\n]*", rb"\1,,", content)
            made.writestr(name.replace(f"-{version}.dist-info", "-99.0.0.dist-info"), content)
    return target


def pip_line() -> list[str]:
    """The arguments of `pip install` in the documents."""
    found = re.search(r"^\.venv/bin/pip install (.*)$", (TEMPLATE / "docs" / "project.md").read_text("utf-8"), re.M)
    assert found and "--find-links" not in found[1]  # with it an index's package of the same version would win
    return found[1].split()


def install_cell(project: Path) -> str:
    """The code of the notebook's first cells, to the one that installs packages."""
    cells = nbformat.read(project / "notebooks" / "train.ipynb", as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    [last] = [number for number, source in enumerate(code) if "project.install()" in source]
    return "\n".join(code[: last + 1])


@pytest.mark.slow
@pytest.mark.first
def test_the_demo_succeeds_with_pip(tmp_path: Path) -> None:
    project = bake(tmp_path, hooks=False, project_slug=SLUG)
    run(tmp_path, sys.executable, "-m", "venv", "venv")
    programs = tmp_path / "venv" / "bin"
    pip = (programs / "pip", "install", "--quiet", "--no-compile")
    run(project, *pip, *pip_line())
    assert run(project, programs / SLUG, "demo").strip().splitlines()[-1].split() == ["Report", "report.html"]
    uninstall = (programs / "pip", "uninstall", "--quiet", "--yes", SLUG, "free-ml-stack")
    run(project, *uninstall)
    # The notebook imports the library from its wheel, and installs it for its commands.
    printed = run(project, programs / "python", "-c", install_cell(project))
    assert "Installed free-ml-stack==" in printed
    assert str(tmp_path / "venv") in run(project, programs / "python", "-c", WHERE)
    # From another folder, and as a package that is not editable.
    run(project, *uninstall)
    words = [word for word in pip_line() if word != "-e"]
    run(tmp_path, *pip, *(project / word for word in words))
    place = "import ferry_times; print(ferry_times.__file__)"
    assert str(tmp_path / "venv") in run(project, programs / "python", "-c", place)
    assert "Test accuracy" in run(project, programs / SLUG, "train", "--epochs", "1", STACK_TRACKER="none")
    # The update in the documents.
    [wheel] = (project / "vendor").glob("*.whl")
    made = newer(wheel, project / "vendor")
    wheel.unlink()
    run(project, "sh", "-c", "cd vendor && sha256sum *.whl > SHA256SUMS")
    settings = (project / "pyproject.toml").read_text("utf-8")
    settings = settings.replace(wheel.name, made.name).replace(f"=={wheel.name.split('-')[1]}", "==99.0.0")
    (project / "pyproject.toml").write_text(settings, "utf-8")
    [update] = re.findall(r"`pip install (\./vendor/.*)`", (TEMPLATE / "docs" / "project.md").read_text("utf-8"))
    run(project, *pip, *update.replace("X.Y.Z", "99.0.0").split())
    run(project, programs / "pip", "check")
    assert "No problems found." in run(project, programs / SLUG, "doctor")


@pytest.fixture(scope="module")
def synced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project generated without hooks, in a folder with a space, installed with the README's first command."""
    project = bake(tmp_path_factory.mktemp("with space"), hooks=False, project_slug=SLUG)
    run(project, UV, "sync", "--quiet")
    commit(project)
    return project


@pytest.mark.slow
def test_the_demo_succeeds_with_uv(synced: Path) -> None:
    assert run(synced, UV, "run", "--quiet", SLUG, "demo").strip().splitlines()[-1].split() == [
        "Report",
        "report.html",
    ]
    assert (synced / "report.html").is_file()
    place = Path(run(synced, UV, "run", "--quiet", "python", "-c", WHERE).strip())
    assert place.is_relative_to(synced / ".venv")


def clone(project: Path, folder: Path) -> Path:
    """The project at another path, with its lock file but without its environment."""
    run(folder, "git", "clone", "--quiet", project, "elsewhere")
    shutil.copy(project / "uv.lock", folder / "elsewhere")
    return folder / "elsewhere"


@pytest.mark.slow
def test_a_second_clone_at_another_path_installs_from_the_lock_and_is_updated(synced: Path, tmp_path: Path) -> None:
    lock = (synced / "uv.lock").read_text("utf-8")
    assert str(synced) not in lock and "file://" not in lock and str(Path.home()) not in lock
    other = clone(synced, tmp_path)
    run(other, UV, "sync", "--quiet", "--frozen", "--no-dev")
    assert "doctor" in run(other, UV, "run", "--quiet", "--no-sync", SLUG, "--help")
    assert str(other) in run(other, UV, "run", "--quiet", "--no-sync", "python", "-c", WHERE)
    # The three steps of the README for an update.
    science = other / "src" / "ferry_times" / "model.py"
    science.write_text(science.read_text("utf-8") + "EDITED = 1\n", "utf-8")
    [wheel] = (other / "vendor").glob("*.whl")
    made = newer(wheel, other / "vendor")
    wheel.unlink()
    text = (other / "README.md").read_text("utf-8")
    [record] = re.findall(r"^1\. .*`(\(.*\))`\.$", text, re.M)
    [words] = re.findall(r"^3\. .*`uv (add .*)`\.$", text, re.M)
    run(other, "sh", "-c", record)
    text = (other / "pyproject.toml").read_text("utf-8")
    (other / "pyproject.toml").write_text(text.replace(f"=={wheel.name.split('-')[1]}", "==99.0.0"), "utf-8")
    run(other, UV, *words.replace("X.Y.Z", "99.0.0").split(), "--quiet", "--no-sync")
    text = (other / "pyproject.toml").read_text("utf-8")
    assert f'path = "vendor/{made.name}"' in text and '"free-ml-stack==99.0.0"' in text
    run(other, UV, "sync", "--quiet", "--no-dev")
    version = "from importlib.metadata import version; print(version('free-ml-stack'))"
    assert run(other, UV, "run", "--quiet", "--no-sync", "python", "-c", version).strip() == "99.0.0"
    edited = "import ferry_times.model as model; print(model.EDITED)"
    assert run(other, UV, "run", "--quiet", "--no-sync", "python", "-c", edited).strip() == "1"
    assert "No problems found." in run(other, UV, "run", "--quiet", "--no-sync", SLUG, "doctor")
    from_an_index(other, made, tmp_path / "shelf")


def from_an_index(project: Path, wheel: Path, shelf: Path) -> None:
    """Change the source of the library to a package index, as in docs/project.md."""
    shelf.mkdir()
    wheel.rename(shelf / wheel.name)
    shutil.rmtree(project / "vendor")
    text = (project / "pyproject.toml").read_text("utf-8")
    (project / "pyproject.toml").write_text(re.sub(r"(?m)^free-ml-stack = .*\n", "", text), "utf-8")
    links = ",".join(filter(None, [clean(project).get("UV_FIND_LINKS"), str(shelf)]))
    run(project, UV, "add", "--quiet", "--no-sync", "free-ml-stack>=99.0,<99.1", UV_FIND_LINKS=links)
    assert '"free-ml-stack>=99.0,<99.1"' in (project / "pyproject.toml").read_text("utf-8")
    assert "vendor/" not in (project / "uv.lock").read_text("utf-8")
    run(project, UV, "sync", "--quiet", "--frozen", "--no-dev", UV_FIND_LINKS=links)
    assert "doctor" in run(project, UV, "run", "--quiet", "--no-sync", SLUG, "--help")


@pytest.mark.slow
def test_a_changed_wheel_is_rejected(synced: Path, tmp_path: Path) -> None:
    other = clone(synced, tmp_path)
    [wheel] = (other / "vendor").glob("*.whl")
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("free_ml_stack/added.py", "")
    stdout = run(other, UV, "sync", "--frozen", code=None)
    assert "Hash mismatch" in stdout and "free-ml-stack" in stdout.replace("_", "-")
    [check] = re.findall(r"^\(cd vendor .*\)$", (TEMPLATE / "docs" / "project.md").read_text("utf-8"), re.M)
    run(synced, "sh", "-c", check)
    assert wheel.name in run(other, "sh", "-c", check, code=None)
