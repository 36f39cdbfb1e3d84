"""Generation of copier.yml from cookiecutter.json and local_extensions.py: run `python tests/copier_questions.py`.

Copier has the same questions and renders the same files. It does not run code of untrusted templates, so the rules and
the derived variables are in Jinja there.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from baking import SKELETON, TEMPLATE

from local_extensions import BROKEN, LONGEST, MAY_BE_EMPTY, RULES, TAKEN, WINDOWS

MADE = TEMPLATE / "copier.yml"
HEAD = "# Made by tests/copier_questions.py from cookiecutter.json and local_extensions.py: edit those.\n"
SLUG = "{{ (project_name | lower | regex_replace('[^a-z0-9]+', '-') | trim('-'))[:50] | trim('-') or 'ml-project' }}"
PACKAGE = (
    "{% set name = (project_slug | lower | regex_replace('[^a-z0-9]+', '_') | trim('_'))[:40] | trim('_') %}"
    "{{ name if name[:1] | regex_search('[a-z]') else 'project_' ~ name }}"
)
DEFAULTS = {"project_slug": SLUG, "package_name": PACKAGE, "author_name": "The {{ project_name }} authors"}
SETTINGS = {
    "_min_copier_version": "9.10.0",
    "_subdirectory": "{% raw %}" + SKELETON.name + "{% endraw %}",
    "_templates_suffix": "",
    "_envops": {"lstrip_blocks": True, "trim_blocks": True, "keep_trailing_newline": True},
    "_skip_if_exists": ["AGENTS.md"],  # of the repository's owner
    "_exclude": ["__pycache__", ".*_cache", "*.py[co]", ".DS_Store"],
    "_message_after_copy": "Next:\n  cd {{ _copier_conf.dst_path }}\n  git init\n  git add .\n"
    "  git commit -m 'Generate the project'\n  uv sync\n  uv run {{ project_slug }} doctor\n"
    "  uv run {{ project_slug }} demo\n",
}
DERIVED = r"""
{% macro quoted(text) %}"{{ text | replace('\\', '\\\\') | replace('"', '\\"') }}"{% endmacro %}
{% macro shown(text) %}{{ text | regex_replace('([\\\\`*_{}\\[\\]<>#|~$!&])', '\\\\\\1') }}{% endmacro %}
{% set plain = project_slug | lower | replace('_', '-') | replace('.', '-') %}
{% set algorithm = plain.title() | replace('-', '') %}
{% set repository = github_username ~ '/' ~ project_slug if github_username else '' %}
{% set notebook = repository ~ '/blob/main/notebooks/train.ipynb' %}
{{ dict(ANSWERS,
    __answers_file=_copier_conf.answers_file | string,
    __storage_url={
        'algorithmia': 'algorithmia://.my/' ~ project_slug,
        'huggingface': 'hf://buckets/' ~ (huggingface_username or 'me') ~ '/' ~ project_slug,
        's3': 's3://' ~ plain ~ ('-store' if plain | length < 3 else ''),
        'local': './store',
    }[storage],
    __algorithm_owner=algorithmia_username or 'me',
    __algorithm_name=algorithm if algorithm[0].isalpha() else 'Model' ~ algorithm,
    __model_repo=huggingface_username ~ '/' ~ project_slug if huggingface_username else '',
    __github_repo=repository,
    __links='[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]'
        ~ '(https://colab.research.google.com/github/' ~ notebook ~ ') '
        ~ '[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]'
        ~ '(https://kaggle.com/kernels/welcome?src=https://github.com/' ~ notebook ~ ')'
        if repository else 'Push this project to GitHub to open it in Colab or Kaggle, on a free GPU.',
    __author='name = ' ~ quoted(author_name) ~ (', email = "' ~ author_email ~ '"' if author_email else ''),
    __license=('LicenseRef-' if license == 'Proprietary' else '') ~ license,
    __year='%Y' | strftime,
    __quoted_project_name=quoted(project_name),
    __quoted_description=quoted(description),
    __quoted_author_name=quoted(author_name),
    __shown_project_name=shown(project_name),
    __shown_description=shown(description),
) | to_json }}
"""


class Dumper(yaml.SafeDumper):
    """Write multi-line texts as blocks."""


def block(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    """Represent a text, as a block if it has several lines."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


Dumper.add_representer(str, block)


def literal(text: str) -> str:
    """Quote a text as a string of Jinja."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def message(name: str, choices: Sequence[str] = ()) -> str:
    """Return Jinja that renders to the error message for an answer, or to nothing."""
    if choices:
        return f"{{% if {name} not in {[*choices]} %}}must be one of {', '.join(choices)}{{% endif %}}"
    cases = [
        (f"{name} | length > {LONGEST}", f"has more than {LONGEST} characters"),
        (f"{name} | regex_search(broken)", "contains a control character; use one line of plain text"),
    ]
    if name != "description":
        optional = f"{name} and " if name in MAY_BE_EMPTY else ""
        cases.append((f"{optional}not {name} | trim", "is empty"))
    shape = f"{name} and " if name in MAY_BE_EMPTY else ""
    whole = [(literal(r"\A(?:" + rule + r")\Z"), text) for rule, text in RULES[name]]
    cases += [(f"{shape}not {name} | regex_search({rule})", text) for rule, text in whole]
    if name in ("project_slug", "package_name"):
        cases += [
            (f"({name} | lower).split('.')[0] in windows", "is reserved on Windows"),
            (
                f"{name} | lower | replace('_', '-') | replace('.', '-') in taken",
                "is a Python keyword, or a module or program that the project uses; choose another name",
            ),
        ]
    tags = [f"{{% {'elif' if number else 'if'} {test} %}}{text}" for number, (test, text) in enumerate(cases)]
    return "".join(tags) + "{% endif %}"


def question(name: str, default: Any, prompt: Any) -> dict[str, Any]:
    """Return one question of copier.

    Copier prints a traceback if the question rejects its default or an answer of `--data`, so only other typed answers
    are checked here, and all by `refused`.
    """
    default = DEFAULTS.get(name, default)
    if isinstance(default, list):
        choices = json.dumps({prompt[choice]: choice for choice in default}, indent=1)
        choices = f"{{% if '{name}' in _copier_conf.data %}}{{}}{{% else %}}{choices}{{% endif %}}"
        return {"type": "str", "help": prompt["__prompt__"], "choices": choices, "default": default[0]}
    typed = f"not _copier_conf.defaults and '{name}' not in _copier_conf.data and {name} != usual"
    return {
        "type": "str",
        "help": prompt,
        "default": default,
        "validator": f"{{% set usual %}}{default}{{% endset %}}{{% if {typed} %}}{message(name)}{{% endif %}}",
    }


def refused(questions: Mapping[str, Any]) -> str:
    """Return Jinja that fails with one line for invalid answers; `questions` are the defaults or choices by name.

    Copier prints one line only for an undefined variable, with the name of the variable.
    """
    tests = [
        f"{{% set found %}}{message(name, choices if isinstance(choices, list) else ())}{{% endset %}}"
        f"{{% if found %}}{{% set faults = faults + ['{name} ' ~ found] %}}{{% endif %}}"
        for name, choices in questions.items()
    ]
    wrong = "'invalid answers: ' ~ faults | join('; ')"
    return "\n".join(["{% set faults = [] %}", *tests, f"{{% if faults %}}{{{{ {{}}[{wrong}].stop }}}}{{% endif %}}"])


def converted() -> str:
    """Return the text of copier.yml."""
    asked = json.loads((TEMPLATE / "cookiecutter.json").read_text("utf-8"))
    prompts = asked["__prompts__"]
    names = [name for name in prompts if name != "check_credentials"]  # copier runs no hook
    hidden = {"type": "json", "when": False}
    questions: dict[str, Any] = {
        "broken": {"type": "str", "when": False, "default": f"[{BROKEN}]"},
        "taken": hidden | {"default": json.dumps(sorted(TAKEN))},
        "windows": hidden | {"default": json.dumps(sorted(WINDOWS))},
        **{name: question(name, asked[name], prompts[name]) for name in names},
        "refused": {"type": "str", "when": False, "default": refused({name: asked[name] for name in names})},
        "cookiecutter": hidden
        | {"default": DERIVED.strip().replace("ANSWERS", ", ".join(f"{name}={name}" for name in names))},
    }
    return HEAD + yaml.dump(SETTINGS | questions, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=118)


if __name__ == "__main__":
    MADE.write_text(converted(), encoding="utf-8")
    sys.stdout.write(f"made {MADE}\n")
