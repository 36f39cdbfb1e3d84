"""Generation with the `cookiecutter` command, and the behaviour of its hooks."""

import json
import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import forking
import pytest
from baking import TEMPLATE, literal, refusals, template
from key_server import HF_KEY, WANDB_KEY, serving, viewer, whoami

COMMAND = str(Path(sys.executable).with_name("cookiecutter"))
IDENTITY = "[user]\n\tname = Ada Lovelace\n\temail = ada@example.org\n"


class Machine:
    """A new home and an empty output folder."""

    def __init__(self, folder: Path) -> None:
        self.home, self.out = folder / "home", folder / "out"
        self.home.mkdir()
        self.out.mkdir()
        (self.home / ".gitconfig").write_text(IDENTITY, encoding="utf-8")
        self.environ = {"HOME": str(self.home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}

    def run(self, *arguments: str, typed: str | None = None, **environ: str) -> subprocess.CompletedProcess:
        """Run cookiecutter without a terminal; `typed` is the standard input."""
        return subprocess.run(
            [str(forking.python()), COMMAND, str(template()), "--output-dir", str(self.out), *arguments],
            cwd=self.out,
            env={**self.environ, **environ},
            input=typed,
            stdin=subprocess.DEVNULL if typed is None else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def git(self, *arguments: str, at: Path | None = None) -> str:
        done = subprocess.run(
            ["git", *arguments],
            cwd=at or self.project,
            env=self.environ,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    @property
    def project(self) -> Path:
        return self.out / "my-ml-project"

    @property
    def made(self) -> list[str]:
        return sorted(path.name for path in self.out.iterdir())


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and ".git" not in path.relative_to(folder).parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


# The ways to generate.


def test_defaults_create_a_committed_project_and_print_the_next_commands(machine):
    done = machine.run("--no-input", "check_credentials=skip")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-3:] == ["  cd my-ml-project", "  uv sync", "  uv run my-ml-project demo"]
    assert machine.git("log", "--format=%an %s") == "Ada Lovelace Generate the project"
    assert machine.git("status", "--porcelain") == ""
    assert machine.git("branch", "--show-current") == "main"


def test_typed_answers_are_used_unchanged(machine):
    title = 'He said "hi" \\ {{ 7*7 }} {% raw %} $(id) `id` \U0001f600'
    typed = "\n".join([title, "talk", "", "", "", "", "1", "2", "4", "", "", "", "", "3"]) + "\n"
    done = machine.run(typed=typed)
    assert done.returncode == 0, done.stdout
    assert json.dumps(title, ensure_ascii=False) in (machine.out / "talk/stack.toml").read_text(encoding="utf-8")
    assert "Apache License" in (machine.out / "talk/LICENSE").read_text(encoding="utf-8")


def test_a_replay_creates_the_same_project(machine):
    machine.run("--no-input", "check_credentials=skip", "storage=s3", "description=" + literal("{{ 7*7 }}"))
    first = files(machine.project)
    shutil.rmtree(machine.project)
    assert machine.run("--replay").returncode == 0
    assert files(machine.project) == first
    assert "{{ 7*7 }}" in first["stack.toml"].decode()


def test_the_users_default_config_is_used(machine):
    defaults = "default_context:\n  author_name: Grace\n  license: BSD-3-Clause\n  check_credentials: skip\n"
    (machine.home / ".cookiecutterrc").write_text(defaults, encoding="utf-8")
    assert machine.run("--no-input").returncode == 0
    text = (machine.project / "LICENSE").read_text(encoding="utf-8")
    assert text.startswith("BSD 3-Clause") and "Grace" in text


def test_a_default_that_is_not_text_gives_a_one_line_error(machine):
    (machine.home / ".cookiecutterrc").write_text("default_context:\n  description: null\n", encoding="utf-8")
    done = machine.run("--no-input", "check_credentials=skip")
    assert done.returncode == 1 and machine.made == []
    assert "description = None must be text, not NoneType" in done.stdout


def test_without_hooks_the_project_is_the_same(machine):
    machine.run("--no-input", "check_credentials=skip", "license=Proprietary")
    with_hooks = files(machine.project)
    shutil.rmtree(machine.project)
    done = machine.run("--no-input", "--accept-hooks", "no", "check_credentials=skip", "license=Proprietary")
    assert done.returncode == 0
    assert files(machine.project) == with_hooks


def test_output_folders_can_contain_spaces_and_non_ascii_letters(machine):
    folder = machine.out / "m\u00eame \u05e9\u05dc\u05d5\u05dd"
    assert machine.run("--no-input", "-o", str(folder), "check_credentials=skip").returncode == 0
    assert (folder / "my-ml-project/stack.toml").is_file()


# Answers cannot run.

ATTACKS = [
    "');open('owned','w');('",
    '""");open("owned","w");("""',
    "'''+__import__('os').system('touch owned')+'''",
    "\\",
    '\\"""',
    "$(touch owned)",
    "`touch owned`",
    "{{ cycler.__init__.__globals__.os.system('touch owned') }}",
    "{% raw %}{{ '{' }}",
    "%} {{",
    "# not a comment",
    "]]></script>",
]


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
def test_answers_are_never_executed(machine, attack):
    answers = [f"{name}={literal(attack)}" for name in ("project_name", "description", "author_name")]
    done = machine.run("--no-input", "check_credentials=skip", "project_slug=safe", "package_name=safe", *answers)
    assert done.returncode == 0, done.stdout
    assert attack in (machine.out / "safe/LICENSE").read_text(encoding="utf-8")
    names = [
        f"{name}={literal(attack)}" for name in ("project_slug", "package_name", "github_username", "author_email")
    ]
    refused = machine.run("--no-input", "check_credentials=skip", *names)
    assert refused.returncode == 1 and all(f"{name.split('=')[0]} = " in refused.stdout for name in names)
    assert machine.made == ["safe"] and not list(machine.out.parent.rglob("owned"))


# Rejected answers, which leave no files.

REFUSED = {
    "project_slug": [
        *(
            "a/b",
            "a\\b",
            "../up",
            "..",
            ".",
            "/abs",
            "~",
            "a b",
            "-a",
            "a-",
            "a--b",
            ".a",
            "a:b",
            "caf\u00e9",
            "a\nb",
        ),
        *(
            "torch",
            "Torch",
            "huggingface_hub",
            "wandb",
            "test",
            "json",
            "con",
            "NUL",
            "com1",
            "aux.txt",
            "python",
        ),
        *("x" * 64, "x.git", "tests", "a\x00b", "x" * 300, "a/b/c/../../d"),
    ],
    "package_name": [
        "class",
        "None",
        "1a",
        "a-b",
        "A",
        "_a",
        "torch",
        "json",
        "test",
        "sklearn",
        "stack",
        "x" * 51,
        "a.b",
    ],
    "project_name": ["   ", "a\tb", "a\nb", "a\x1b[2J", "\u2028", "\ud800", "\ufffe", "a\u202eb", "x" * 301],
    "description": ["a\rb", "\x7f", "\x85"],
    "author_name": [" ", "a\nb"],
    "author_email": [
        "ada",
        "ada@",
        "ada@host",
        "ada@example.org\n",
        "<ada@example.org>",
        "a b@example.org",
        '"@example.org',
    ],
    "github_username": ["-ada", "ada-", "a--b", "a/b", "a.b", "x" * 40],
    "huggingface_username": ["a--b", "a..b", "-a", "a/b", "a b"],
    "wandb_entity": ["a b", "a/b", "a.b", "-a"],
    "algorithmia_username": ["1a", "a-b", "a.b", ".my", "x" * 31],
}


@pytest.mark.parametrize("question", REFUSED)
def test_an_invalid_answer_gives_a_one_line_error(question):
    for answer in REFUSED[question]:
        lines = [line for line in refusals({question: answer}) if line.startswith(f"{question} = ")]
        assert len(lines) == 1, answer


@pytest.mark.slow
@pytest.mark.parametrize("slug", ["a/b/c", "../up", "..", "", "/abs", "a\x00b", "a\nb", "x" * 300, "~", "torch"])
def test_an_invalid_slug_leaves_no_folder(machine, slug):
    done = machine.run("--no-input", "check_credentials=skip", f"project_slug={literal(slug)}")
    assert done.returncode == 1 and "project_slug = " in done.stdout
    assert machine.made == []
    assert sorted(path.name for path in machine.out.parent.iterdir()) == ["home", "out"]


def test_all_invalid_answers_are_reported_together(machine):
    done = machine.run("--no-input", "project_slug=a/b", "package_name=class", "github_username=-")
    assert [line.split(" = ")[0] for line in done.stdout.splitlines() if " = " in line][:3] == [
        "project_slug",
        "package_name",
        "github_username",
    ]


def test_an_existing_folder_is_not_changed(machine):
    machine.project.mkdir()
    (machine.project / "mine").write_text("precious", encoding="utf-8")
    done = machine.run("--no-input", "check_credentials=skip")
    assert done.returncode == 1 and "already exists" in done.stdout
    assert files(machine.project) == {"mine": b"precious"}


@pytest.mark.parametrize(
    "name",
    [
        "3D Shapes",
        "\U0001f680",
        "\u05e9\u05dc\u05d5\u05dd",
        "C#: why?",
        "x" * 200,
        "a / b",
        "100%",
        "Caf\u00e9 \u2014 no. 5",
    ],
)
def test_every_title_gives_valid_names(machine, name):
    done = machine.run("--no-input", "check_credentials=skip", f"project_name={literal(name)}")
    assert done.returncode == 0, done.stdout
    (slug,) = machine.made
    (package,) = (path.name for path in (machine.out / slug / "src").iterdir())
    assert package.isidentifier() and package.isascii() and len(slug) <= 50


OWN = (
    "src/my_ml_project/mine.py",
    "src/my_ml_project/parts/mine.py",
    "space/docker/notes.txt",
    "algorithm/src/mine.py",
    "vendor/other-1.0-py3-none-any.whl",
    ".ruff_cache/CACHEDIR.TAG",
    ".own_cache/mine",
    "src/my_ml_project/__pycache__/mine.pyc",
    "notes.md",
)


@pytest.mark.parametrize("skip", [(), ("--skip-if-file-exists",)])
def test_generating_over_a_project_deletes_nothing(machine, skip):
    """With -s, existing files are not changed either, including edited files of the template."""
    machine.run("--no-input", "check_credentials=skip")
    for name in OWN:
        path = machine.project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("precious", encoding="utf-8")
    edited = machine.project / "src/my_ml_project/model.py"
    edited.write_text("EDITED = 1\n", encoding="utf-8")
    before = files(machine.project)
    done = machine.run("--no-input", "check_credentials=skip", "--overwrite-if-exists", *skip)
    assert done.returncode == 0, done.stdout
    after = files(machine.project)
    assert set(after) == set(before) and all(after[name] == b"precious" for name in OWN)
    assert (after["src/my_ml_project/model.py"] == b"EDITED = 1\n") == bool(skip)


def test_an_invalid_answer_does_not_change_an_existing_project(machine):
    machine.run("--no-input", "check_credentials=skip")
    before = files(machine.out)
    done = machine.run("--no-input", "--overwrite-if-exists", "check_credentials=skip", "author_email=nobody")
    assert done.returncode == 1 and files(machine.out) == before


def test_invalid_answers_are_rejected_without_hooks(machine):
    done = machine.run("--no-input", "--accept-hooks", "no", "package_name=class")
    assert done.returncode == 1 and "package_name = 'class' is a Python keyword" in done.stdout
    assert machine.made == [] and "Traceback" not in done.stdout


def test_no_folder_is_copied_without_rendering():
    """Cookiecutter would replace such a folder, including files that the user added."""
    patterns = json.loads((TEMPLATE / "cookiecutter.json").read_text("utf-8"))["_copy_without_render"]
    skeleton = template() / "{{cookiecutter.project_slug}}"
    folders = [path.relative_to(skeleton).as_posix() for path in skeleton.rglob("*") if path.is_dir()]
    assert folders and not [name for name in folders for pattern in patterns if fnmatch(name, pattern)]


# git.


def test_hooks_are_idempotent(machine):
    machine.run("--no-input", "check_credentials=skip")
    before, head = files(machine.project), machine.git("rev-parse", "HEAD")
    done = machine.run("--no-input", "check_credentials=skip", "--overwrite-if-exists")
    assert done.returncode == 0
    assert files(machine.project) == before
    assert machine.git("rev-parse", "HEAD") == head


def test_no_repository_is_created_inside_another_one(machine):
    machine.git("init", "-q", at=machine.out)
    done = machine.run("--no-input", "check_credentials=skip")
    assert done.returncode == 0 and "inside an existing git repository" in done.stdout
    assert not (machine.project / ".git").exists()


def test_a_repository_is_created_inside_one_that_ignores_the_project(machine):
    machine.git("init", "-q", at=machine.out)
    (machine.out / ".gitignore").write_text("my-ml-project/\n", encoding="utf-8")
    assert machine.run("--no-input", "check_credentials=skip").returncode == 0
    assert machine.git("rev-list", "--count", "HEAD") == "1"


def test_a_repository_whose_hook_runs_generation_is_not_changed(machine):
    other = machine.home / "other"
    other.mkdir()
    machine.git("init", "-q", at=other)
    machine.run(
        "--no-input",
        "check_credentials=skip",
        GIT_DIR=str(other / ".git"),
        GIT_INDEX_FILE=str(other / "index"),
    )
    assert machine.git("rev-list", "--count", "HEAD") == "1"
    assert machine.git("rev-list", "--count", "--all", at=other) == "0"


def test_a_missing_git_identity_is_reported(machine):
    (machine.home / ".gitconfig").write_text("", encoding="utf-8")
    done = machine.run("--no-input", "check_credentials=skip")
    assert done.returncode == 0 and "user.name and user.email" in done.stdout
    assert machine.git("diff", "--cached", "--name-only") != ""


def test_signing_and_hooks_of_the_user_are_ignored(machine):
    hooks = machine.home / "hooks"
    hooks.mkdir()
    (hooks / "pre-commit").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    (hooks / "pre-commit").chmod(0o755)
    config = f"{IDENTITY}\tsigningkey = nobody\n[commit]\n\tgpgsign = true\n[core]\n\thooksPath = {hooks}\n"
    (machine.home / ".gitconfig").write_text(config, encoding="utf-8")
    machine.run("--no-input", "check_credentials=skip")
    assert machine.git("rev-list", "--count", "HEAD") == "1"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'a line'\necho 'no issue is named' >&2\necho", "git: no issue is named"),
        ("printf '\\033[31mred'", "git: ?[31mred"),
        (":", "git failed without a message"),
    ],
)
def test_the_message_of_a_rejecting_hook_is_shown(machine, script, words):
    hook = machine.home / "hooks/prepare-commit-msg"
    hook.parent.mkdir()
    hook.write_text(f"#!/bin/sh\n{script}\nexit 1\n", encoding="utf-8")
    hook.chmod(0o755)
    config = f"{IDENTITY}[core]\n\thooksPath = {hook.parent}\n"
    (machine.home / ".gitconfig").write_text(config, encoding="utf-8")
    done = machine.run("--no-input", "check_credentials=skip")
    assert done.returncode == 0 and f"without a commit: {words}" in done.stdout
    assert "user.name" not in done.stdout


def test_generation_works_with_closed_output(machine):
    command = (
        f'exec "{COMMAND}" "{template()}" --output-dir "{machine.out}" --no-input check_credentials=skip 1>&- 2>&-'
    )
    done = subprocess.run(["sh", "-c", command], cwd=machine.out, env=machine.environ, check=False)
    assert done.returncode == 0
    assert machine.git("rev-list", "--count", "HEAD") == "1"


def test_generation_works_without_git(machine):
    done = machine.run("--no-input", "check_credentials=skip", PATH=str(machine.home))
    assert done.returncode == 0 and re.search("because git failed: .*git: not found", done.stdout)
    assert (machine.project / "stack.toml").is_file() and not (machine.project / ".git").exists()


def test_generation_reports_the_reason_of_git(machine):
    (machine.home / "broken").write_text("[broken")
    done = machine.run("--no-input", "check_credentials=skip", GIT_CONFIG_GLOBAL=str(machine.home / "broken"))
    assert done.returncode == 0 and "because git failed: fatal: bad config line" in done.stdout
    assert (machine.project / "stack.toml").is_file() and not (machine.project / ".git").exists()


# The credential check.


def test_missing_keys_are_reported_with_the_pages_for_new_ones(machine):
    done = machine.run("--no-input")
    assert done.returncode == 0
    assert done.stdout.count(": missing: ") == 3 and "https://huggingface.co/settings/tokens" in done.stdout
    assert "\033" not in done.stdout


def test_require_fails_without_keys_and_leaves_no_project(machine):
    done = machine.run("--no-input", "check_credentials=require")
    assert done.returncode == 1 and machine.made == []
    assert "check_credentials=require: check failed for wandb, huggingface." in done.stdout
    kept = machine.run("--no-input", "check_credentials=require", "--keep-project-on-failure")
    assert kept.returncode == 1 and machine.made == ["my-ml-project"]


def test_require_accepts_valid_keys(machine):
    answers = ("check_credentials=require", "wandb_entity=lovelace-lab", "huggingface_username=ada")
    with serving(body=viewer()) as wandb, serving(body=whoami()) as hub:
        addresses = {"WANDB_BASE_URL": wandb.url, "HF_ENDPOINT": hub.url}
        done = machine.run("--no-input", *answers, WANDB_API_KEY=WANDB_KEY, HF_TOKEN=HF_KEY, **addresses)
        assert (done.returncode, len(wandb.requests), len(hub.requests)) == (0, 1, 1)
    assert "valid, as ada; logs to lovelace-lab" in done.stdout
    everything = done.stdout.encode() + b"".join(files(machine.out.parent).values())
    assert WANDB_KEY[:-4].encode() not in everything and HF_KEY[:-4].encode() not in everything


@pytest.mark.parametrize(("check", "code"), [("warn", 0), ("require", 1)])
def test_an_outage_is_fatal_only_if_keys_are_required(machine, check, code):
    with serving(status=503) as down:
        addresses = dict.fromkeys(("WANDB_BASE_URL", "HF_ENDPOINT"), down.url)
        done = machine.run(
            "--no-input", f"check_credentials={check}", WANDB_API_KEY=WANDB_KEY, HF_TOKEN=HF_KEY, **addresses
        )
    assert done.returncode == code and "(HTTP 503)" in done.stdout


def test_skip_sends_no_requests(machine):
    with serving() as server:
        environ = {"WANDB_API_KEY": WANDB_KEY, "WANDB_BASE_URL": server.url}
        assert machine.run("--no-input", "check_credentials=skip", **environ).returncode == 0
        assert server.requests == []


def test_no_question_asks_for_a_secret():
    questions = json.loads((TEMPLATE / "cookiecutter.json").read_text(encoding="utf-8"))
    asked = [name for name in questions if not name.startswith("_")]
    assert set(questions["__prompts__"]) == set(asked)  # every question has a prompt
    assert not [name for name in asked if "key" in name or "token" in name or "secret" in name]
