"""Refuse answers that cannot work, one line each, before a file is written. Standard library only."""

import json
import keyword
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator

# tojson escapes what Jinja and Python would act on, so no answer can become code.
ANSWERS = json.loads(r"""{{ cookiecutter | tojson }}""")

TEXTS = ("project_name", "project_slug", "package_name", "description", "author_name", "author_email")
# The rules of each service's own sign-up form, or of its client where that is what refuses.
USERS = {
    "algorithmia_username": (
        r"[A-Za-z][A-Za-z0-9_]{0,29}",
        "a letter, then letters, digits and _, 30 at most",
    ),
    "wandb_entity": (r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}", "letters, digits, - and _"),
    "huggingface_username": (
        r"[A-Za-z0-9](?:[A-Za-z0-9_]|[.-](?=[A-Za-z0-9_])){0,95}",
        "letters, digits, _ and single - or . between them",
    ),
    "github_username": (
        r"[A-Za-z0-9](?:[A-Za-z0-9]|[-_](?=[A-Za-z0-9])){0,38}",
        "letters, digits and single hyphens between them, 39 at most",
    ),
}
CHOICES = {
    "license": ("MIT", "Apache-2.0", "BSD-3-Clause", "Proprietary"),
    "storage": ("algorithmia", "huggingface", "s3", "local"),
    "check_credentials": ("warn", "require", "skip"),
}
# A project named like what it installs or runs, or like one of its folders, would hide that.
TAKEN = set(
    """accelerate adk algo algorithm algorithmia anyio bash build cookiecutter data datasets dist
    false fastapi flask free-ml-stack fsspec git gradio gunicorn hf httptools httpx huggingface-hub hypothesis
    ipykernel ipython jupyter jupyterlab jupytext kaggle make matplotlib models mypy nbclient
    nbconvert nbformat nbstripout none notebook notebooks numpy onnx onnxruntime optuna orjson
    packaging pandas pillow pip pipx pre-commit prometheus-client pyarrow pydantic pytest pytest-cov
    pytest-xdist python python3 pyyaml requests ruff runs s3fs safetensors scikit-learn scipy setup
    setuptools sh sklearn space spaces src stack starlette store test tests torch torchrun
    torchvision tqdm trackio train transformers true types-pyyaml uv uvicorn uvloop uvx venv wandb wandb-core
    websockets wheel xxhash zizmor""".split()  # noqa: SIM905
) | {name.lower().replace("_", "-") for name in sys.stdlib_module_names}
WINDOWS = {"con", "prn", "aux", "nul"} | {f"{port}{number}" for port in ("com", "lpt") for number in range(10)}
SCHEMES = ("algorithmia", "file", "hf", "s3")


def text_problem(value: object) -> str | None:
    """Say why a value cannot stand in a one-line text, or nothing."""
    if not isinstance(value, str):
        return f"must be text, not {type(value).__name__}"
    if len(value) > 300:
        return f"has {len(value)} characters; 300 are the most"
    for character in value:
        code = ord(character)
        # Line ends, lone surrogates, non-characters break files; marks that reorder text hide what it says.
        broken = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or code & 0xFFFE == 0xFFFE
        reorders = 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069
        if broken or reorders or 0xFDD0 <= code <= 0xFDEF:
            return f"holds the control character U+{code:04X}; use one line of plain text"
    return None


def blank_problem(text: str) -> str | None:
    """Say that a text is blank, or nothing."""
    return None if text.strip() else "is empty"


def name_problem(name: str) -> str | None:
    """Say why a name would collide with another one, or nothing."""
    if name.lower().split(".")[0] in WINDOWS:
        return "is reserved on Windows"
    if re.sub(r"[-_.]+", "-", name.lower()) in TAKEN:
        return "is the name of a module or program that the project needs; add a word to it"
    return None


def slug_problem(slug: str) -> str | None:
    """Say why the slug cannot name a folder, a distribution, a command and a repository, or nothing."""
    if not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9]|[-_.](?=[A-Za-z0-9]))*", slug):
        return "must be letters and digits, with single - _ . between them"
    if slug.lower().endswith((".git", ".ipynb")):
        return "must not end in .git or .ipynb"
    return f"has {len(slug)} characters; 63 are the most" if len(slug) > 63 else name_problem(slug)


def package_problem(package: str) -> str | None:
    """Say why the package name cannot be imported safely, or nothing."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", package):
        return "must be a lower-case letter, then lower-case letters, digits and _"
    if keyword.iskeyword(package):
        return "is a Python keyword"
    return f"has {len(package)} characters; 50 are the most" if len(package) > 50 else name_problem(package)


def email_problem(email: str) -> str | None:
    """Say why package indexes would refuse an e-mail address, or nothing."""
    if email and not re.fullmatch(r"[\w.%+'-]+@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}", email, re.ASCII):
        return "is not an e-mail address such as ada@example.org (it may be empty)"
    return None


def user_problem(name: str, value: str) -> str | None:
    """Say why the service would refuse the user name, or nothing."""
    pattern, rule = USERS[name]
    return None if not value or re.fullmatch(pattern, value) else f"is not a user name there: {rule}"


def storage_problem(url: str) -> str | None:
    """Say why the storage URL does not parse, or nothing."""
    place = r"[\w.~@%+-]+(?:/[\w.~@%+-]+)*/?"
    if re.fullmatch(rf"(?:{'|'.join(SCHEMES)}):///?{place}|(?:\./)?{place}", url):
        return None
    return f"must be one of {', '.join(SCHEMES)}, then :// and a place; or a relative folder"


CHECKS: dict[str, Callable[[str], str | None]] = {
    "project_name": blank_problem,
    "project_slug": slug_problem,
    "package_name": package_problem,
    "description": lambda _: None,
    "author_name": blank_problem,
    "author_email": email_problem,
    "__storage_url": storage_problem,
}


def problems(answers: dict[str, object]) -> Iterator[tuple[str, object, str]]:
    """Yield (question, answer, what is wrong) for every answer that is refused."""
    # A slug that names no safe folder was set aside, since the folder is made before this runs.
    if answers["__refused_slug"]:
        answers["project_slug"] = json.loads(str(answers["__refused_slug"]))
    for name in (*TEXTS, *USERS, "__storage_url"):
        value = answers[name]
        problem = text_problem(value)
        if isinstance(value, str) and not problem:
            problem = user_problem(name, value) if name in USERS else CHECKS[name](value)
        if problem:
            yield name.lstrip("_"), value, problem
    for name, choices in CHOICES.items():
        if answers[name] not in choices:
            yield name, answers[name], f"must be one of {', '.join(choices)}"


refused = list(problems(ANSWERS))
for question, answer, problem in refused:
    shown = ascii(answer) if len(ascii(answer)) <= 60 else ascii(answer)[:57] + "..."
    print(f"{question} = {shown} {problem}", file=sys.stderr)
if refused:
    sys.exit(1)
