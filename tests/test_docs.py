"""Commands, flags, targets and links in the documents exist."""

import argparse
import re
from functools import cache
from pathlib import Path

import pytest
from places import DEFAULT, ROOT, SKELETON, TASKS, package

from free_ml_stack.cli.main import all_commands
from free_ml_stack.project.science import Science

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *SKELETON.rglob("*.md"), *TASKS.parent.rglob("*.md")])
CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
BLOCK = re.compile(r"```(?:console|shell|bash|sh)\n(.*?)```", re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)")


@cache
def flags(task: str, command: str) -> set[str]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--set")
    all_commands()[command].add_arguments(parser, Science(package(task)))
    found, parsers = set(), [parser]
    for one in parsers:
        found |= set(one._option_string_actions)
        for action in one._actions:
            parsers += action.choices.values() if isinstance(action, argparse._SubParsersAction) else []
    return found


def commands(text: str) -> list[list[str]]:
    """Return the words of all commands of a project in a document."""
    spans = [*CODE.findall(text), *(line for block in BLOCK.findall(text) for line in block.splitlines())]
    found = []
    for span in re.split(r"\n|&&", "\n".join(spans)):
        words = re.sub(r"^(uv run )?(my-ml-project|\{\{ cookiecutter.project_slug \}\}) ", "", span.strip()).split()
        if words and words[0] in all_commands():
            found.append(words)
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_flags_of_commands_exist(path: Path) -> None:
    named = path.parent.name if path.parent.parent == TASKS else path.stem
    task = named if (TASKS / named).is_dir() else DEFAULT
    for name, *words in commands(path.read_text(encoding="utf-8")):
        own = words[: words.index("--")] if "--" in words else words
        given = [word.split("=")[0] for word in own if word.startswith("--")]
        unknown = [word for word in given if word not in flags(task, name)]
        assert unknown == [], f"`{name} {' '.join(words)}`"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(path: Path) -> None:
    targets = [link.partition("#")[0] for link in LINK.findall(path.read_text(encoding="utf-8"))]
    local = [target for target in targets if target and "://" not in target and "{{" not in target]
    assert [target for target in local if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_targets_of_make_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"\bmake ([a-z-]+)`", path.read_text(encoding="utf-8"))) <= targets


def test_the_documents_name_every_command() -> None:
    readme = (SKELETON / "README.md").read_text(encoding="utf-8")
    assert [name for name in all_commands() if f"`{name}`" not in readme] == []


def test_troubleshooting_quotes_messages_of_the_library() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source).replace("`", "")  # strings that continue on the next line
    rows = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"), re.M)
    parts = [part.strip(" :;().") for row in rows for part in row.split("…")]
    assert len(rows) > 15
    assert [part for part in parts if len(part) > 3 and part not in re.sub(r"\{[^{}]*\}", "", source)] == []
