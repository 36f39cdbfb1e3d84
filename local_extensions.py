"""Validate the answers, with one line per error, before a file is written; derive further variables from them.

This is a Jinja extension, which runs in cookiecutter's process, also without hooks. `cruft update` renders two releases
with the module of the older one, so a new release must neither rename a filter nor depend on a new one.
"""

import keyword
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import cookiecutter
from cookiecutter.exceptions import FailedHookException
from jinja2 import Environment, StrictUndefined, Template
from jinja2.ext import Extension
from slugify import slugify

MINIMUM = (2, 2, 3)  # earlier versions fail during generation
# Line endings, lone surrogates and non-characters break files; bidirectional marks hide the real text.
BROKEN = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff" + "".join(
    rf"\U{plane:04x}fffe\U{plane:04x}ffff" for plane in range(1, 17)
)
LONGEST = 300
MAY_BE_EMPTY = ("description", "author_email", "algorithmia_username", "wandb_entity", "huggingface_username",
                "github_username")  # fmt: skip
# Patterns that the whole answer must match, with the error message.
RULES: dict[str, list[tuple[str, str]]] = {
    "project_name": [],
    "project_slug": [
        (
            r"[A-Za-z0-9](?:[A-Za-z0-9]|[-_.](?=[A-Za-z0-9]))*",
            "must consist of letters and digits, with single - _ . between them",
        ),
        (
            r"(?i:(?!.*\.(?:git|ipynb)$)).{1,63}",
            "must have at most 63 characters, and must not end with .git or .ipynb",
        ),
    ],
    "package_name": [
        (
            r"[a-z][a-z0-9_]{0,49}",
            "must be a lower-case letter followed by lower-case letters, digits and _ (at most 50 characters)",
        )
    ],
    "description": [],
    "author_name": [],
    "author_email": [
        (
            r"[A-Za-z0-9_.%+'-]+@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}",
            "is not an e-mail address such as ada@example.org (can be empty)",
        )
    ],
    # The rules of each service's sign-up form, or of its client if that is stricter.
    "algorithmia_username": [
        (
            r"[A-Za-z][A-Za-z0-9_]{0,29}",
            "is not a valid user name: expected a letter followed by letters, digits and _ (at most 30 characters)",
        )
    ],
    "wandb_entity": [
        (r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}", "is not a valid user name: expected letters, digits, - and _")
    ],
    "huggingface_username": [
        (
            r"[A-Za-z0-9](?:[A-Za-z0-9_]|[.-](?=[A-Za-z0-9_])){0,95}",
            "is not a valid user name: expected letters, digits and _, with single - or . between them",
        )
    ],
    "github_username": [
        (
            r"[A-Za-z0-9](?:[A-Za-z0-9]|[-_](?=[A-Za-z0-9])){0,38}",
            "is not a valid user name: expected letters and digits, with single hyphens between them (at most 39)",
        )
    ],
}
# A project with the name of a dependency, of one of its folders, or of a Python keyword or module would shadow it. The
# last lines are modules of only some supported Python versions, so that all versions reject the same names.
TAKEN = set(
    """accelerate adk algo algorithm algorithmia anyio bash build cookiecutter data datasets dist
    false fastapi flask free-ml-stack fsspec git gradio gunicorn hf httptools httpx huggingface-hub hypothesis
    ipykernel ipython jupyter jupyterlab jupytext kaggle lightgbm make matplotlib models mypy nbclient
    nbconvert nbformat nbstripout none notebook notebooks numpy onnx onnxmltools onnxruntime optuna
    orjson packaging palmerpenguins pandas pillow pip pipx plotnine pre-commit prometheus-client pyarrow
    psycopg pydantic pytest pytest-cov pytest-xdist python python3 pyyaml requests ruff runs s3fs safetensors
    scikit-learn scipy setup setuptools sh sklearn space spaces src stack starlette store test tests
    timm torch torchrun torchvision tqdm trackio train transformers true types-pyyaml uv uvicorn uvloop
    uvx venv wandb wandb-core websockets wheel xxhash zizmor
    aifc annotationlib asynchat asyncore audioop cgi cgitb chunk compression crypt distutils imghdr imp lib2to3 mailcap
    msilib nis nntplib ossaudiodev pipes smtpd sndhdr spwd sunau telnetlib uu xdrlib""".split()  # noqa: SIM905
) | {name.lower().replace("_", "-") for name in {*sys.stdlib_module_names, *keyword.kwlist} if name[0] != "_"}
WINDOWS = {"con", "prn", "aux", "nul"} | {f"{port}{number}" for port in ("com", "lpt") for number in range(10)}


def problem(name: str, value: object) -> str | None:
    """Return the error message for the answer to a question, or None."""
    if not isinstance(value, str):
        return f"must be text, not {type(value).__name__}"
    if len(value) > LONGEST:
        return f"has {len(value)} characters; the maximum is {LONGEST}"
    if not value.isprintable() and (broken := re.search(f"[{BROKEN}]", value)):
        return f"contains the control character U+{ord(broken[0]):04X}; use one line of plain text"
    if not value.strip():
        return None if (name in MAY_BE_EMPTY and not value) or name == "description" else "is empty"
    for pattern, text in RULES[name]:
        if not re.fullmatch(pattern, value):
            return text
    return name_problem(value.lower()) if name in ("project_slug", "package_name") else None


def name_problem(name: str) -> str | None:
    """Return the error message for a lower-case name that collides with another name, or None."""
    if name.split(".")[0] in WINDOWS:
        return "is reserved on Windows"
    if name.replace("_", "-").replace(".", "-") in TAKEN:
        return "is a Python keyword, or a module or program that the project uses; choose another name"
    return None


def problems(answers: Mapping[str, object]) -> Iterator[str]:
    """Yield one line for each invalid answer."""
    for name in RULES:
        found = problem(name, answers[name]) if name in answers else None
        if found:
            shown = ascii(answers[name])
            yield f"{name} = {shown if len(shown) <= 60 else shown[:57] + '...'} {found}"


def quoted(text: str) -> str:
    """Quote a text as a string of TOML, YAML or JSON."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def markdown(text: str) -> str:
    """Escape a text for Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$!&])", r"\\\1", text)


def links(repository: str) -> str:
    """Return badges that open the notebook of a GitHub repository."""
    if not repository:
        return "Push this project to GitHub to open it in Colab or Kaggle, on a free GPU."
    notebook = f"{repository}/blob/main/notebooks/train.ipynb"
    return (
        "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
        f"(https://colab.research.google.com/github/{notebook}) "
        "[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]"
        f"(https://kaggle.com/kernels/welcome?src=https://github.com/{notebook})"
    )


def derived(answers: Mapping[str, str]) -> dict[str, str]:
    """Return the variables derived from the answers; copier.yml has the same in Jinja."""
    name = answers["project_slug"]
    plain = name.lower().replace("_", "-").replace(".", "-")
    algorithm = plain.title().replace("-", "")
    users = {service: answers[f"{service}_username"] for service in ("algorithmia", "huggingface", "github")}
    repositories = {service: f"{user}/{name}" if user else "" for service, user in users.items()}
    stores = {
        "algorithmia": f"algorithmia://.my/{name}",
        "huggingface": f"hf://buckets/{users['huggingface'] or 'me'}/{name}",
        "s3": f"s3://{plain}{'-store' if len(plain) < 3 else ''}",
        "local": "./store",
    }
    author = f"name = {quoted(answers['author_name'])}"
    email = f', email = "{answers["author_email"]}"' if answers["author_email"] else ""
    return {
        "__answers_file": "",  # only copier has one
        "__year": time.strftime("%Y"),
        "__storage_url": stores[answers["storage"]],
        "__algorithm_owner": users["algorithmia"] or "me",
        "__algorithm_name": algorithm if algorithm[0].isalpha() else f"Model{algorithm}",
        "__model_repo": repositories["huggingface"],
        "__github_repo": repositories["github"],
        "__links": links(repositories["github"]),
        "__author": author + email,
        "__license": ("LicenseRef-" if answers["license"] == "Proprietary" else "") + answers["license"],
        **{f"__quoted_{text}": quoted(answers[text]) for text in ("project_name", "description", "author_name")},
        **{f"__shown_{text}": markdown(answers[text]) for text in ("project_name", "description")},
    }


def completed(answers: dict[str, Any]) -> str:
    """Add the derived variables to the answers, and return an empty string.

    Raises FailedHookException, which cookiecutter prints unchanged, for invalid answers.
    """
    if invalid := list(problems(answers)):
        raise FailedHookException("\n".join(invalid))
    answers |= derived(answers)
    return ""


def slug(title: object) -> str:
    """Create a name for the folder and the repositories from a title in any script."""
    text = str(title)
    plain = text if text.isascii() else slugify(text)
    return re.sub(r"[^a-z0-9]+", "-", plain.lower())[:51].strip("-")[:50].strip("-") or "ml-project"


def package(slug: object) -> str:
    """Create an import name from a slug."""
    name = re.sub(r"[^a-z0-9]+", "_", str(slug).lower()).strip("_")[:40].strip("_")
    return name if name[:1].isalpha() else f"project_{name}"


class Filled:
    """A template whose only Jinja is variables and includes, rendered without Jinja; others are compiled."""

    FIELD = re.compile(r"\{\{ ?cookiecutter\.(\w+) ?\}\}|\{\{ '(\w+)' \}\}")
    INCLUDE = re.compile(r'\{% include "([\w/.-]+)" ~ cookiecutter\.(\w+)(?: ~ "([\w/.-]+)")? %\}\n?')

    def __init__(self, text: str, compiled: Callable[[], Template], read: Callable[[str], str] | None = None) -> None:
        """Take a text, a function that compiles it, and one that reads included files."""
        self.text, self.compiled, self.read = text, compiled, read

    def render(self, **context: Any) -> str:
        """Render the text. Raises UndefinedError for an unknown variable."""
        answers, text = context["cookiecutter"], self.text

        def filled(field: re.Match[str]) -> str:
            return field[2] or str(answers.get(field[1], StrictUndefined(name=field[1])))

        if read := self.read:
            text = self.INCLUDE.sub(lambda tag: read(f"{tag[1]}{answers[tag[2]]}{tag[3] or ''}"), text)
        rest = self.FIELD.sub("", text)
        if any(mark in rest for mark in ("{{", "{%", "{#")):
            return self.compiled().render(**context)
        return self.FIELD.sub(filled, text)


class Answers(Extension):
    """The filters, and a shortcut around Jinja, which takes longer to compile most templates than to render them."""

    def __init__(self, environment: Environment) -> None:
        """Raise FailedHookException if cookiecutter is too old for this template."""
        super().__init__(environment)
        if tuple(int(part) for part in re.findall(r"\d+", cookiecutter.__version__)[:3]) < MINIMUM:
            wanted = ".".join(map(str, MINIMUM))
            raise FailedHookException(f"cookiecutter {cookiecutter.__version__} is too old: install {wanted} or later")
        environment.filters |= {"completed": completed, "slug": slug, "package": package}
        from_string, get_template = environment.from_string, environment.get_template

        def read(name: str) -> str:
            return environment.loader.get_source(environment, name)[0]

        def file(name: str, *rest: Any) -> Filled | Template:
            if ".." not in environment.loader.searchpath:
                environment.loader.searchpath.append("..")  # so that files can include templates/…, as in copier
            return get_template(name, *rest) if rest else Filled(read(name), lambda: get_template(name), read)

        vars(environment).update(from_string=lambda text: Filled(text, lambda: from_string(text)), get_template=file)
