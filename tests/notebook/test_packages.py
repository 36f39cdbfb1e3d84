"""Missing packages are installed without a change of the machine's torch and numpy; conflicts are errors."""

import hashlib
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import fresh
import nbformat
import projects
import pytest
from percent import TASKS
from places import ROOT

from free_ml_stack.errors import StackError
from free_ml_stack.notebook import packages, runner

TOOLS = ROOT / "build" / "tools" / "bin"  # where `make` installs uv if it is missing
HERE = {"torch": "2.11.0+cu128", "numpy": "2.1.3", "nvidia-cublas-cu12": "12.8", "wandb": "0.20"}
OFFERED = {**HERE, "torch ": "2.13.0", "numpy ": "2.4.0", "wandb ": "0.31", "orjson": "3.11"}
CODE = """
import sys
from pathlib import Path
from free_ml_stack.errors import StackError
from free_ml_stack.notebook import packages
sys.path.append(Path("modules"))  # as a cell may do
if sys.argv[1] == "pip":
    packages.shutil.which = lambda name: None
try:
    packages.install(Path.cwd())
except StackError as error:
    raise SystemExit(f"error: {error}")
"""


def wheel(folder: Path, name: str, version: str, *needs: str) -> None:
    """Build an empty package."""
    module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}.dist-info"
    metadata = [
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}",
        *(f"Requires-Dist: {n}" for n in needs),
    ]
    with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{module}/__init__.py", "")
        file.writestr(f"{info}/METADATA", "\n".join(metadata) + "\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


class Machine:
    """A Python with preinstalled packages, such as Colab's, and a folder of wheels as its only index."""

    def __init__(self, folder: Path, tool: str) -> None:
        self.tool = tool
        self.folder, self.shelf, self.python = folder, folder / "shelf", folder / "venv" / "bin" / "python"
        self.shelf.mkdir()
        for name, version in OFFERED.items():
            wheel(self.shelf, name.strip(), version)
        wheel(self.shelf, "onnx", "1.19", "numpy>=1.20")
        wheel(self.shelf, "greedy", "1.0", "numpy>=2.4")
        wheel(self.shelf, "shell", "7.34", "jedi>=0.16", "pytz (>dev)")  # Colab's IPython lacks jedi
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        [site] = (folder / "venv" / "lib").glob("*/site-packages")
        (site / "ghost-1.0.dist-info").mkdir()  # left by an interrupted removal; pip skips it with a warning
        [known] = (fresh.python("packaging==25.0").parents[1] / "lib").glob("*/site-packages/packaging")  # Colab's
        (folder / "packaging").symlink_to(known)
        self.run("-m", "pip", "install", "--quiet", *(f"{name}=={version}" for name, version in HERE.items()))
        self.run("-m", "pip", "install", "--quiet", "--no-deps", "shell==7.34")

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        environ = {
            "PATH": os.pathsep.join([str(TOOLS), os.environ["PATH"]]),
            "HOME": str(self.folder),
            "PYTHONPATH": f"{ROOT / 'src'}:{self.folder}",
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.shelf),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "UV_OFFLINE": "1",
            "UV_FIND_LINKS": str(self.shelf),
            "UV_CACHE_DIR": str(self.folder / "cache"),
        }
        return subprocess.run(
            [str(self.python), *words],
            cwd=self.folder,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )

    def install(self, *requirements: str) -> str:
        """Install a project with these requirements; return the output."""
        lines = [f'    "{requirement}",' for requirement in requirements]
        (self.folder / "pyproject.toml").write_text("[project]\ndependencies = [\n" + "\n".join(lines) + "\n]\n")
        done = self.run("-c", CODE, self.tool)
        return done.stdout + done.stderr

    def versions(self) -> dict[str, str]:
        """Return the installed packages."""
        lines = self.run("-m", "pip", "freeze").stdout.splitlines()
        return dict(line.split("==") for line in lines if "==" in line)


@pytest.fixture(scope="module", params=["uv", "pip"])
def machine(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Machine:
    return Machine(tmp_path_factory.mktemp("machine"), request.param)


@pytest.mark.slow
def test_a_conflict_with_numpy_is_an_error_and_installs_nothing(machine: Machine) -> None:
    before = machine.versions()
    printed = machine.install("torch>=2.8,<2.14", "greedy>=1")
    assert (
        "error: nothing was installed: no matching packages for the installed numpy, nvidia-cublas-cu12, torch"
        in printed
    )
    assert "greedy" in printed
    printed = machine.install("torch>=2.12")
    assert "error: nothing was installed" in printed
    assert machine.versions() == before


@pytest.mark.slow
def test_only_missing_and_old_packages_are_installed(machine: Machine) -> None:
    wanted = ("torch>=2.8,<2.14", "numpy>=2.1", "wandb>=0.28,<0.32", "onnx>=1.18", "orjson>=3.10")
    printed = machine.install(*wanted)
    assert "Installed wandb>=0.28,<0.32, onnx>=1.18, orjson>=3.10." in printed
    assert "Unchanged: numpy, nvidia-cublas-cu12, torch." in printed
    assert machine.install(*wanted) == "All packages are installed.\n"
    assert machine.versions() == {**HERE, "shell": "7.34", "wandb": "0.31", "onnx": "1.19", "orjson": "3.11"}


def vendor(folder: Path) -> Path:
    """Create a project with a vendored wheel of the library and its checksum."""
    (folder / "vendor").mkdir()
    wheel(folder / "vendor", "free-ml-stack", "1.2.0", "orjson>=3", "s3fs>=1; extra == 's3'")
    made = folder / "vendor" / "free_ml_stack-1.2.0-py3-none-any.whl"
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    (folder / "vendor" / "SHA256SUMS").write_text(f"{digest}  {made.name}\n")
    (folder / "pyproject.toml").write_text(
        '[project]\ndependencies = ["numpy>=2", "free_ml_stack==1.1.0"]\n'
        f'[tool.uv.sources]\nfree-ml-stack = {{ path = "vendor/{made.name}" }}\n'
    )
    return made


def test_requirements_are_those_of_the_project_and_the_library(tmp_path: Path) -> None:
    made = vendor(tmp_path)
    assert packages.vendored(tmp_path) == made
    assert packages.requirements(tmp_path, made) == ["numpy>=2", "free-ml-stack==1.2.0", "orjson>=3"]


def test_a_changed_or_missing_wheel_is_rejected(tmp_path: Path) -> None:
    made = vendor(tmp_path)
    with zipfile.ZipFile(made, "a") as file:
        file.writestr("free_ml_stack/added.py", "")
    with pytest.raises(
        StackError, match=rf"{made.name}: checksum mismatch with SHA256SUMS; .* `git checkout -- vendor/{made.name}`"
    ):
        packages.install(tmp_path)
    newer = made.rename(made.with_name("free_ml_stack-1.3.0-py3-none-any.whl"))
    settings = tmp_path / "pyproject.toml"
    settings.write_text(settings.read_text().replace(made.name, newer.name))
    with pytest.raises(StackError, match=r"1.3.0.*checksum mismatch .* `cd vendor && sha256sum \*.whl > SHA256SUMS`"):
        packages.install(tmp_path)
    subprocess.run("cd vendor && sha256sum *.whl > SHA256SUMS", shell=True, cwd=tmp_path, check=True)
    assert packages.vendored(tmp_path) == newer
    subprocess.run("cd vendor && sha256sum -b *.whl > SHA256SUMS", shell=True, cwd=tmp_path, check=True)
    assert packages.vendored(tmp_path) == newer
    newer.unlink()
    with pytest.raises(StackError, match=rf"{newer.name} not found"):
        packages.install(tmp_path)


def test_a_library_from_an_index_or_a_checkout_has_no_wheel(tmp_path: Path) -> None:
    for source in ("", '[tool.uv.sources]\nfree-ml-stack = { path = "../free-ml-stack", editable = true }\n'):
        (tmp_path / "pyproject.toml").write_text(f'[project]\ndependencies = ["free-ml-stack>=0.2"]\n{source}')
        assert packages.vendored(tmp_path) is None
        assert "free-ml-stack>=0.2" in packages.requirements(tmp_path, None)
        assert any(text.startswith("orjson") for text in packages.requirements(tmp_path, None))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["notebook", "remote"])
def test_a_library_from_an_index_is_installed_in_the_version_of_the_project(where: str, tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    for version in ("0.2.7", "0.3.0"):
        wheel(shelf, "free-ml-stack", version, "absent>=1")
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["free-ml-stack>=0.2,<0.3"]\n')
    if where == "notebook":
        cells = nbformat.read(TASKS / "image-classification" / "train.ipynb", as_version=4).cells
        code = "\n".join(
            next(cell.source for cell in cells if text in cell.source) for text in ("import os", "find_spec(")
        )
    else:
        code = runner.INSTALL
    begun, mark, _ = code.partition("from free_ml_stack.notebook")
    assert mark
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    done = subprocess.run(
        [tmp_path / "venv" / "bin" / "python", "-c", f"{begun}\nimport free_ml_stack; print(free_ml_stack.__file__)"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(shelf)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(str(tmp_path / "venv"))
    assert list((tmp_path / "venv").rglob("free_ml_stack-0.2.7.dist-info"))


@pytest.mark.slow
def test_the_library_is_installed_from_its_wheel(machine: Machine) -> None:
    vendor(machine.folder)
    printed = machine.run("-c", CODE, machine.tool)
    assert "Installed free-ml-stack==1.2.0" in printed.stdout, printed
    frozen = machine.run("-m", "pip", "freeze").stdout
    assert "free-ml-stack @ file:" in frozen and "free_ml_stack-1.2.0-py3-none-any.whl" in frozen


@pytest.mark.parametrize("source", ["../free-ml-stack", "{}/free_ml_stack-1.2.0-py3-none-any.whl", "library"])
def test_a_library_that_another_machine_lacks_is_rejected_before_it_is_used(source: str, tmp_path: Path) -> None:
    vendor(tmp_path)
    packages.require_portable(tmp_path)
    source = source.format(tmp_path.parent)
    settings = tmp_path / "pyproject.toml"
    settings.write_text(re.sub('path = ".*"', f'path = "{source}", editable = true', settings.read_text()))
    (tmp_path / "stack.toml").write_text('project = "skeleton"\nstorage = "s3://bucket/digits"\n')
    expected = (
        f"error: pyproject.toml uses free-ml-stack from {source}, which is not on the other machine; build its wheel"
    )
    for command in ("launch sky -- train", "launch hf --yes -- train", "remote colab", "remote kaggle --user me"):
        printed = projects.run(tmp_path, *command.split(), code=1)
        assert printed.startswith(expected) and printed.count("\n") == 1
