"""Strategies for arbitrary answers, and the conditions that they must meet. Templates are rendered in this process."""

import ast
import atexit
import json
import string
import tempfile
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import sound
from baking import SKELETON, TEMPLATE, context, environment, template
from cookiecutter.exceptions import FailedHookException
from hypothesis import strategies

# Characters with a meaning in some file format, language or shell.
FRAGMENTS = [
    *(
        "'",
        '"',
        "\\",
        '"""',
        "'''",
        "`",
        "#",
        ": ",
        " #",
        "- ",
        "? ",
        "| ",
        "> ",
        "&a",
        "*a",
        "!!python/object",
        "%",
        "@",
        "~",
    ),
    *(
        "{{",
        "}}",
        "{%",
        "%}",
        "{#",
        "#}",
        "{{ 7*7 }}",
        "{% raw %}",
        "{% endraw %}",
        "{{ cookiecutter }}",
        "${HOME}",
        "$(id)",
    ),
    *(
        "</script>",
        "<!--",
        "-->",
        "[a](b)",
        "![a](b)",
        "**",
        "__",
        "```",
        "---",
        "...",
        "===",
        "1. ",
        "+ ",
        "= ",
        "|a|",
        "\\n",
    ),
    *(
        "\\u0000",
        "\\x41",
        "\\",
        "\u05e9\u05dc\u05d5\u05dd",
        "\u0645\u0631\u062d\u0628\u0627",
        "\U0001f469\u200d\U0001f52c",
    ),
    *(
        "\u202e",
        "\u2028",
        "\x00",
        "\x1b[2J",
        "\n",
        "\r",
        "\t",
        "\x7f",
        "\x85",
        "\ufeff",
        "\ud800",
        "\uffff",
        "\u00a0",
        "e\u0301",
    ),
    *(
        "../",
        "/etc",
        "C:\\",
        "con",
        "nul.txt",
        "torch",
        "class",
        "test",
        "null",
        "true",
        "0x1",
        "1e3",
        "NaN",
        "x" * 200,
        "",
    ),
]
LEGAL = [fragment for fragment in FRAGMENTS if fragment.isprintable() and len(fragment) < 100]
VALID = {
    "project_slug": ["digits", "Digits-2", "a.b_c", "3d-shapes", "x" * 63],
    "package_name": ["digits", "my_package", "p" * 50],
    "author_email": ["", "o'brien+ml@example.co.uk"],
    "algorithmia_username": ["", "ada_1"],
    "wandb_entity": ["", "lovelace-lab"],
    "huggingface_username": ["", "ada.l-1"],
    "github_username": ["", "ada-l"],
}


def mostly(
    usual: strategies.SearchStrategy[str], rare: strategies.SearchStrategy[str]
) -> strategies.SearchStrategy[str]:
    """Draw the rare strategy once in twenty draws."""
    return strategies.integers(0, 19).flatmap(lambda number: rare if number == 7 else usual)


# Most draws are valid but unusual, some are invalid: a single invalid answer rejects the whole set.
legal_text = strategies.lists(strategies.sampled_from(LEGAL), min_size=1, max_size=8).map("".join)
wild_text = strategies.lists(strategies.sampled_from(FRAGMENTS) | strategies.text(max_size=12), max_size=6).map("".join)
any_text = mostly(legal_text, wild_text)
any_name = strategies.text(string.ascii_lowercase + string.digits + "-_.", min_size=1, max_size=70)
any_answers = strategies.fixed_dictionaries(
    dict.fromkeys(("project_name", "description", "author_name"), any_text),
    optional={name: mostly(strategies.sampled_from(valid), any_name | wild_text) for name, valid in VALID.items()}
    | {
        "license": strategies.sampled_from(list(sound.LICENSES)),
        "storage": strategies.sampled_from(list(sound.STORES)),
    },
)


def holds(answers: dict[str, str]) -> bool:
    """Assert that the answers are rejected, or that all files are valid, and that no answer becomes code.

    Returns whether they were accepted.
    """
    try:
        whole = context(answers)
    except FailedHookException as refused:
        assert all(" = " in line for line in str(refused).splitlines())
        return False
    stays_data("post_gen_project.py", whole)
    render(folder(), whole)
    sound.check(folder(), whole["cookiecutter"])
    return True


def stays_data(hook: str, whole: dict) -> None:
    """Assert that answers change only the strings of a hook that contain them."""
    rendered = ast.parse(environment().get_template(hook).render(**whole))
    held = []
    for node, written in zip(ast.walk(rendered), syntax(hook), strict=True):
        assert type(node) is type(written)
        if isinstance(node, ast.Constant) and node.value != written.value:
            assert "{{ cookiecutter" in written.value and "| tojson }}" in written.value
            held.append(json.loads(node.value))
    assert held[0]["description"] == whole["cookiecutter"]["description"]


@cache
def syntax(hook: str) -> list[ast.AST]:
    """The syntax nodes of a hook in the repository."""
    return list(ast.walk(ast.parse((TEMPLATE / "hooks" / hook).read_text(encoding="utf-8"))))


@cache
def folder() -> Path:
    """One folder for all cases, which write the same files; removed when this process exits."""
    made = tempfile.TemporaryDirectory()
    atexit.register(made.cleanup)
    return Path(made.name)


@cache
def names() -> list[str]:
    """The files of the skeleton that are rendered."""
    skeleton = template() / SKELETON.name
    found = [path.relative_to(skeleton).as_posix() for path in skeleton.rglob("*") if path.is_file()]
    copied = context({})["cookiecutter"]["_copy_without_render"]
    found.remove("{{cookiecutter.__answers_file}}")  # copier's own
    return [name for name in found if name[-4:] != ".png" and not any(fnmatch(name, pattern) for pattern in copied)]


def render(folder: Path, whole: dict) -> None:
    """Write the rendered files to `folder`."""
    for name in names():
        path = folder / environment().from_string(name).render(**whole) if "{" in name else folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = environment().get_template(name).render(**whole)
        if not path.exists() or path.read_bytes() != text.encode():
            path.write_text(text, encoding="utf-8", newline="\n")
