"""All texts are in plain technical English, as described in CONTRIBUTING.md."""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from baking import SKELETON, TEMPLATE

COVERED = (
    *("src", "templates/tasks", "hooks", "tests", "bench", "docs", SKELETON.name),
    *("cookiecutter.json", "copier.yml", "local_extensions.py", "Makefile", "pyproject.toml"),
    *("AGENTS.md", "CHANGELOG.md", "CONTRIBUTING.md", "README.md", "SECURITY.md"),
)
WORDS = re.compile(
    r"(?i:\b(told|tells|mend(ed|s)?|torso|goes on|going on|go on with|for ever|meanwhile|all the while|strangers?|lest)\b"
    r"|\b(anew|somebody|whoever|knows|says|asks|comes of|of yours|as if it never|left as it was|will do)\b)"
    r"|(?<!there )\bis none\b(?! of)"
)
SHORT = re.compile(r"(?i:\b(ca|do|does|did|is|are|was|wo|could|should|would|has|have)n['’]t\b)")  # cannot, do not, …
QUOTED = TEMPLATE / "tests" / "services"  # answers of the services, word for word
PYTHON = re.compile(r"\.py(\.jinja)?$|\{\{ 'py' \}\}$")
OTHER = re.compile(r"\.(md|json|toml|yaml|yml|html|ipynb|example|jinja)$|\{\{ '(html|ipynb)' \}\}$")


def covered() -> Iterator[Path]:
    """Yield the files of the covered paths."""
    for name in COVERED:
        path = TEMPLATE / name
        assert path.exists(), f"{name} in COVERED does not exist"
        yield from sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines of a file's texts: strings and comments of Python, everything else of other files."""
    text = path.read_text("utf-8")
    if not PYTHON.search(path.name):
        yield from enumerate(text.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            yield from enumerate(token.string.splitlines(), token.start[0])


def test_the_word_list_matches_words_only() -> None:
    assert [match[0] for match in WORDS.finditer("Told to stop, it goes on later")] == ["Told", "goes on"]
    assert SHORT.search("This can't be.") and not SHORT.search("This cannot be.")
    assert not WORDS.search("Raises StackError if there is none. `size` is None if unknown. A retold atoll.")


def test_texts_contain_no_words_of_the_list() -> None:
    found = [
        f"{path.relative_to(TEMPLATE)}:{number}: {match[0]}"
        for path in covered()
        if (PYTHON.search(path.name) or OTHER.search(path.name)) and path != Path(__file__)
        for number, line in lines(path)
        if (match := WORDS.search(line) or (QUOTED not in path.parents and SHORT.search(line)))
    ]
    assert found == []
