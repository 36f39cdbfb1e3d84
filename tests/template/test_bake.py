"""Generated projects for the defaults, for every value of each choice, and for all pairs of values."""

import ast
import base64
import configparser
import hashlib
import itertools
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import sound
import yaml
from baking import SKELETON, TEMPLATE, bake, context, refusals, template
from pairs import AWKWARD, COMBINATIONS, FACTORS, QUESTIONS, answers_of

from free_ml_stack.cli.commands import COMMANDS


@pytest.fixture(autouse=True)
def no_keys(monkeypatch, tmp_path):
    """Hide the keys and the git identity of the user who runs the tests from the hook."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("ALGORITHMIA_API_KEY", "WANDB_API_KEY", "HF_TOKEN", "NETRC", "HF_HOME", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def test_all_pairs_of_values_are_covered():
    both = {pair for row in COMBINATIONS for pair in itertools.combinations(row.items(), 2)}
    for (one, values), (other, others) in itertools.combinations(FACTORS.items(), 2):
        assert both >= {((one, value), (other, second)) for value in values for second in others}
    assert len(COMBINATIONS) <= 20


@pytest.mark.parametrize("row", COMBINATIONS, ids=lambda row: "-".join(row.values()))
def test_every_answer_gives_a_valid_project(tmp_path, row):
    answers = answers_of(row)
    whole = context(answers)["cookiecutter"]
    # `require` ends a generation without keys, as it should; without hooks the project is the same.
    project = bake(tmp_path, hooks=row["check_credentials"] != "require", **answers)
    sound.check(project, whole)
    assert sound.ruff(project) == ""


def test_the_defaults_give_a_valid_project(cookies):
    result = cookies.bake(template=str(template()))
    assert result.exception is None
    sound.check(result.project_path, result.context)
    assert sound.ruff(result.project_path) == ""


def test_answers_choose_defaults_never_code(tmp_path):
    """All answers give the same files with the same Python code."""
    answers = answers_of(
        {
            "task": QUESTIONS["task"][0],
            "license": "Proprietary",
            "storage": "s3",
            "check_credentials": "skip",
            "accounts": "all",
            "texts": "",
        }
    )
    (tmp_path / "other").mkdir()
    one, other = bake(tmp_path), bake(tmp_path / "other", package_name="another", **answers)
    code = [
        {path.relative_to(root): path.read_bytes() for path in (root / "src").glob("*/**/*.py")}
        for root in (one, other)
    ]
    renamed = [{Path("src/p", *path.parts[2:]): data for path, data in found.items()} for found in code]
    assert renamed[0] == renamed[1] and len(renamed[0]) >= 7


# The unrendered skeleton.


def test_the_skeletons_python_contains_no_jinja():
    found = list(SKELETON.rglob("*.py"))
    assert found
    for path in found:
        text = path.read_text(encoding="utf-8")
        ast.parse(text)
        assert "cookiecutter" not in text and "{%" not in text, path


def test_the_template_contains_little_jinja():
    """Block tags are in less than 5 % of the rendered lines."""
    skeleton = template() / SKELETON.name
    found = [
        path
        for path in skeleton.rglob("*")
        if path.is_file() and path.relative_to(skeleton).parts[0] not in ("src", "vendor")
    ]
    lines = [line for path in found for line in path.read_text(encoding="utf-8").splitlines()]
    assert sum("{%" in line for line in lines) / len(lines) < 0.05


def test_file_names_with_jinja_are_valid_on_windows():
    for path in SKELETON.rglob("*"):
        assert not sound.WINDOWS_FORBIDS.search(path.name), path


# What comes with the project.


@pytest.fixture
def project(tmp_path):
    return bake(tmp_path)


def test_dependencies_are_reserved_project_names(project):
    package = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    optional = package["project"]["optional-dependencies"].values()
    for requirement in itertools.chain(
        package["project"]["dependencies"], *optional, *package["dependency-groups"].values()
    ):
        name = re.match(r"[A-Za-z0-9._-]+", requirement)[0]
        assert refusals({"project_slug": name}), name


def hook_entries(project):
    text = (project / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    hooks = [hook for repo in yaml.safe_load(text)["repos"] for hook in repo["hooks"]]
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", pin) for hook in hooks for pin in hook["additional_dependencies"])
    return {hook["id"]: hook["entry"].split() for hook in hooks}


def scan(project, *names):
    program, *arguments = hook_entries(project)["detect-secrets"]
    command = [str(Path(sys.executable).with_name(program)), *arguments, *names]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)


def test_the_secret_scan_accepts_a_new_project_and_detects_a_key(project):
    clean = scan(project, *(str(name) for name, _ in sound.texts(project)))
    assert clean.returncode == 0, clean.stdout
    digest = hashlib.sha256(b"no key of anybody")
    for key in (
        "hf_" + base64.b64encode(digest.digest(), altchars=b"aB").decode()[:34],
        digest.hexdigest()[:40],
    ):
        (project / "notes.py").write_text(f'login("{key}")\n', encoding="utf-8")
        assert scan(project, "notes.py").returncode == 1, key


def test_a_dotenv_is_ignored_from_the_first_commit(project, monkeypatch):
    monkeypatch.chdir(project)
    for name in (".env", ".env.local", ".stack/gateway.json", "runs/1/model.safetensors", "models/x/a.onnx"):
        assert subprocess.run(["git", "check-ignore", "-q", name], check=False).returncode == 0, name
    for name in (".env.example", "src", "notebooks/train.ipynb"):
        assert subprocess.run(["git", "check-ignore", "-q", name], check=False).returncode == 1, name


def test_only_outputs_of_tools_are_ignored(project):
    """A user's package can have the name of an output folder; git and the wheel include it."""
    text = (project / ".gitignore").read_text("utf-8")
    made = re.findall(r"^/([\w.*/]+)$", text, re.MULTILINE)
    elsewhere = [line for line in text.splitlines() if line and line[0] not in "/#"]
    assert elsewhere == [".env", ".env.*", "!.env.example", ".DS_Store", ".ipynb_checkpoints/", "__pycache__/"]
    for pattern in made:
        name = pattern.replace("*", "x") + ("x.py" if pattern.endswith("/") else "")
        own = f"src/my_ml_project/{name}"
        done = subprocess.run(
            ["git", "check-ignore", name, own], cwd=project, capture_output=True, text=True, check=False
        )
        assert done.stdout.split() == [name], pattern
    for name in ("models", "runs", "store", "build", "dist", "wandb", "checkpoints"):
        (project / "src/my_ml_project" / name).mkdir()
        (project / "src/my_ml_project" / name / "__init__.py").touch()
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    subprocess.run(command, cwd=project, capture_output=True, check=True)
    [wheel] = project.glob("dist/*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {Path(name).parts[1] for name in archive.namelist()}
    assert held >= {"models", "runs", "store", "build", "dist", "wandb", "checkpoints", "model.py"}


def test_env_example_contains_no_key_and_names_the_pages(project):
    text = (project / ".env.example").read_text(encoding="utf-8")
    assert not re.search(r"^\w+=.+", text, re.MULTILINE)
    assert "https://huggingface.co/settings/tokens/new" in text and "WANDB_API_KEY=" in text


@pytest.mark.parametrize("where", ["project", "repository"])
def test_workflows_are_pinned_by_commit_and_clean(where, project, tmp_path):
    root = project if where == "project" else TEMPLATE
    shutil.copytree(root / ".github", tmp_path / "clean" / ".github")
    for path in (root / ".github/workflows").glob("*.yml"):
        text = path.read_text(encoding="utf-8")
        workflow = yaml.safe_load(text)
        uses = re.findall(r"uses: (.*)", text)
        assert uses and all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v[\d.]+", one) for one in uses), path
        assert workflow["permissions"] == {} and "secrets." not in text
        assert all("permissions" in job for job in workflow["jobs"].values())
    linter = [
        str(Path(sys.executable).with_name("zizmor")),
        "--offline",
        "--persona",
        "pedantic",
        "--quiet",
        "--no-progress",
    ]
    done = subprocess.run([*linter, str(tmp_path / "clean")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_project_is_small(project):
    made = subprocess.run(["git", "ls-files", "-o", "-c"], cwd=project, capture_output=True, text=True, check=True)
    assert 37 <= len(made.stdout.splitlines()) <= 45


def test_a_project_installs_without_cuda_and_names_no_index(project):
    """An unreachable index would break `uv sync`."""
    [line] = re.findall(r"^(uv pip install .*)$", (TEMPLATE / "docs" / "project.md").read_text("utf-8"), re.M)
    assert "--torch-backend cpu" in line
    runs = (project / ".github/workflows/tests.yml").read_text("utf-8")
    assert f"- run: {line} #" in runs and "uv sync" not in re.sub(r"#.*", "", runs)
    publishes = (project / ".github/workflows/publish.yml").read_text("utf-8")
    assert f"- run: {line.replace('--group dev ', '')} #" in publishes
    settings = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))["tool"]["uv"]
    assert settings.keys() == {"sources"}  # with compile-bytecode, each `uv run` compiles all packages again
    assert [source.keys() for source in settings["sources"].values()] == [{"path"}]


def test_editors_and_containers_find_the_environment(project):
    settings = json.loads((project / ".vscode/settings.json").read_text("utf-8"))
    assert settings["python.defaultInterpreterPath"] == "${workspaceFolder}/.venv/bin/python"  # where uv makes it
    container = json.loads((project / ".devcontainer/devcontainer.json").read_text("utf-8"))
    command = container["postCreateCommand"].split(" && ")
    assert command == ["pipx install uv", "uv sync"]  # the latter from a clean home: see test_delivery.py
    rules = configparser.ConfigParser()
    rules.read_string("[top]\n" + (project / ".editorconfig").read_text("utf-8"))
    assert rules["*"]["end_of_line"] == "lf" and rules["*.{json,yaml,yml}"]["indent_size"] == "2"


def test_agents_md_lists_existing_commands(project):
    text = (project / "AGENTS.stack.md").read_text("utf-8")
    named = {words.split()[0] for words in re.findall(r"^\| `([^`]*)`", text, re.MULTILINE)}
    assert named == {"info", "data", "train", "sweep", "publish"} and named <= {command.name for command in COMMANDS}
    assert "AGENTS.stack.md" in (project / "AGENTS.md").read_text("utf-8")
    for folder in re.findall(r"`([\w./]+/)`", text):
        assert (project / folder).is_dir() or f"/{folder}" in (project / ".gitignore").read_text("utf-8"), folder


def test_issue_forms_are_valid(tmp_path):
    forms = [yaml.safe_load(path.read_text("utf-8")) for path in (TEMPLATE / ".github/ISSUE_TEMPLATE").glob("*.yml")]
    asked = [form for form in forms if "body" in form]
    assert len(asked) == 2 and all(form["name"] and form["description"] for form in asked)
    assert "privately" in (TEMPLATE / "SECURITY.md").read_text("utf-8")


def test_github_expressions_are_unchanged(project):
    text = (project / ".github/workflows/tests.yml").read_text(encoding="utf-8")
    assert "runs-on: ${{ matrix.system }}" in text and "UV_PYTHON: ${{ matrix.python }}" in text


@pytest.mark.slow
@pytest.mark.parametrize("answers", [{}, AWKWARD | {"license": "Proprietary"}], ids=["plain", "awkward"])
def test_the_build_backend_accepts_the_metadata(tmp_path, answers):
    project = bake(tmp_path, **answers)
    command = [sys.executable, "-m", "hatchling", "metadata"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True)
    metadata = json.loads(done.stdout)
    assert metadata["name"] == project.name
    assert metadata["description"] == answers.get("description", QUESTIONS["description"])
