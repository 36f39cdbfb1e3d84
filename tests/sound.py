"""Requirements for every generated project with any answers: one function per requirement."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import nbformat
import yaml
from markdown_it import MarkdownIt

WINDOWS_FORBIDS = re.compile(r'[<>:"|?*\x00-\x1f\\]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)
LICENSES = {
    "MIT": ("MIT License", "MIT"),
    "Apache-2.0": ("Apache License", "Apache-2.0"),
    "BSD-3-Clause": ("BSD 3-Clause License", "BSD-3-Clause"),
    "Proprietary": ("All rights reserved", "LicenseRef-Proprietary"),
}
STORES = {
    "algorithmia": "algorithmia://.my/{project_slug}",
    "huggingface": "hf://buckets/{user}/{project_slug}",
    "s3": "s3://{bucket}",
    "local": "./store",
}


def texts(project: Path) -> Iterator[tuple[Path, str]]:
    """Yield (relative path, text) of every text file of the project, except tool caches."""
    for path in sorted(project.rglob("*")):
        name = path.relative_to(project)
        binary = path.suffix in (".png", ".pyc", ".whl") or any(
            re.fullmatch(r"\.git|\..*_cache", part) for part in name.parts
        )
        if path.is_file() and not binary:
            yield name, path.read_bytes().decode("utf-8")


def parses(project: Path, answers: Mapping[str, str]) -> None:
    """Check that every file is valid for its type."""
    for name, text in texts(project):
        parse(name, text)


@cache  # most files are equal in all projects
def parse(name: Path, text: str) -> None:
    """Check that a file is valid for its type."""
    if name.suffix == ".toml":
        tomllib.loads(text)
    elif name.suffix in (".yaml", ".yml"):
        assert list(yaml.load_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))), name
    elif name.suffix == ".json":
        json.loads(text)
    elif name.suffix == ".ipynb":
        nbformat.validate(nbformat.reads(text, as_version=4))
    elif name.suffix == ".py":
        ast.parse(text)
    elif name.suffix == ".md":
        assert MarkdownIt().parse(text), name


def is_rendered(project: Path, answers: Mapping[str, str]) -> None:
    """Check that no Jinja is left except GitHub's `${{ }}`; skip answers with braces."""
    if "{" in answers["project_name"] + answers["description"] + answers["author_name"]:
        return
    for name, text in texts(project):
        rest = re.sub(r"\$\{\{[^{}]*\}\}", "", text).replace(answers["project_slug"], "")
        assert "{%" not in rest, name
        assert not re.search(r"\{\{\s*\w", rest) or name.suffix == ".py", name
        assert "cookiecutter" not in rest or name.suffix == ".md", name


def has_plain_files(project: Path, answers: Mapping[str, str]) -> None:
    """Check for LF line ends, a final newline, and names and path lengths that Windows accepts."""
    for name, text in texts(project):
        assert "\r" not in text and (not text or text.endswith("\n")) and not text.endswith("\n\n"), name
        assert not [part for part in name.parts if WINDOWS_FORBIDS.search(part)], name
        assert len(str(name)) < 160 and "__pycache__" not in name.parts, name


def has_its_license(project: Path, answers: Mapping[str, str]) -> None:
    """Check for the complete text of the chosen license only, and the same license in the package."""
    text = (project / "LICENSE").read_text(encoding="utf-8")
    package = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name, (words, identifier) in LICENSES.items():
        assert (words in text) == (name == answers["license"])
        assert (package["license"] == identifier) == (name == answers["license"])
    assert re.search(rf"Copyright (\(c\) )?20\d\d,? {re.escape(answers['author_name'])}", text)


def has_its_settings(project: Path, answers: Mapping[str, str]) -> None:
    """Check that stack.toml and pyproject.toml contain the answers unchanged."""
    stack = tomllib.loads((project / "stack.toml").read_text(encoding="utf-8"))
    bucket = re.sub(r"[^a-z0-9-]+", "-", answers["project_slug"].lower())
    facts = {
        "project_slug": answers["project_slug"],
        "user": answers["huggingface_username"] or "me",
        "bucket": bucket if len(bucket) > 2 else f"{bucket}-store",  # the minimum length in S3
    }
    same = {"title": "project_name", "author": "author_name", "project": "project_slug"}
    for name in ("algorithmia_username", "wandb_entity", "huggingface_username", "license", "description"):
        same[name] = name
    assert {name: stack[name] for name in same} == {name: answers[question] for name, question in same.items()}
    assert stack["storage"] == STORES[answers["storage"]].format(**facts)
    owner, name = stack["algorithm"].split("/")
    assert owner == (answers["algorithmia_username"] or "me") and name.isidentifier() and name[0].isupper()
    user = answers["huggingface_username"]
    assert stack["model_repo"] == (f"{user}/{answers['project_slug']}" if user else "")
    package = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (package["name"], package["description"]) == (answers["project_slug"], answers["description"])
    assert package["authors"][0]["name"] == answers["author_name"]
    assert package["authors"][0].get("email", "") == answers["author_email"]
    assert package["scripts"] == {answers["project_slug"]: f"{answers['package_name']}.__main__:main"}


def shows_its_title(project: Path, answers: Mapping[str, str]) -> None:
    """Check that the README's heading renders as the title, with any punctuation."""
    tokens = MarkdownIt().parse((project / "README.md").read_text(encoding="utf-8"))
    heading = next(tokens[i + 1] for i, token in enumerate(tokens) if token.type == "heading_open")
    kinds = {child.type for child in heading.children or ()}
    shown = "".join(child.content for child in heading.children or ())
    assert kinds <= {"text", "text_special"} and shown.split() == answers["project_name"].split()


EVERY = (
    parses,
    is_rendered,
    has_plain_files,
    has_its_license,
    has_its_settings,
    shows_its_title,
)


def check(project: Path, answers: Mapping[str, str]) -> None:
    """Check all requirements for one generated project."""
    for promise in EVERY:
        promise(project, answers)


def ruff(*projects: Path) -> str:
    """Return ruff's output for projects with their own rules; "" if there are no findings."""
    told = []
    for command in (("check",), ("format", "--check")):
        line = [sys.executable, "-m", "ruff", *command, "--no-cache", "--quiet", *map(str, projects)]
        told.append(subprocess.run(line, capture_output=True, text=True, check=False).stdout)
    return "".join(told)
