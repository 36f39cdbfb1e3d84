"""The tested answers: every value of every choice, and all pairs of values."""

import itertools
import json

from baking import TEMPLATE

QUESTIONS = json.loads((TEMPLATE / "cookiecutter.json").read_text(encoding="utf-8"))
AWKWARD = {
    "project_name": '"Quoted" & <b> #1: it\'s a `x` *y* _z_ [l](u) | $a$ \\ {{ 7*7 }} {% raw %} $(id) \U0001f680 \u05e9\u05dc\u05d5\u05dd',
    "description": "- starts a list: yes # no 'one' \"two\" \\n ${HOME} \u0645\u0631\u062d\u0628\u0627 \U0001f469\u200d\U0001f52c",
    "author_name": 'O\'Brien, "Bob" <b@x> \\ \u00c5ngstr\u00f6m',
    "author_email": "o'brien+ml@example.co.uk",
}
ACCOUNTS = {
    "algorithmia_username": "ada",
    "wandb_entity": "lovelace-lab",
    "huggingface_username": "ada-l",
    "github_username": "adal",
}
FACTORS = {
    "task": QUESTIONS["task"],
    "license": QUESTIONS["license"],
    "storage": QUESTIONS["storage"],
    "check_credentials": QUESTIONS["check_credentials"],
    "accounts": ["none", "all"],
    "texts": ["plain", "awkward"],
}


def all_pairs(factors: dict[str, list[str]]) -> list[dict[str, str]]:
    """A small set of combinations with all pairs of values of every two factors (greedy)."""
    rows = [dict(zip(factors, row, strict=True)) for row in itertools.product(*factors.values())]

    def pairs(row: dict[str, str]) -> set:
        return set(itertools.combinations(row.items(), 2))

    wanted, chosen = set().union(*map(pairs, rows)), []
    while wanted:
        chosen.append(max(rows, key=lambda row: len(pairs(row) & wanted)))
        wanted -= pairs(chosen[-1])
    return chosen


COMBINATIONS = all_pairs(FACTORS)


def answers_of(row: dict[str, str]) -> dict[str, str]:
    """Turn a row of factors into answers."""
    answers = {name: row[name] for name in ("task", "license", "storage", "check_credentials")}
    answers |= ACCOUNTS if row["accounts"] == "all" else {}
    return answers | (AWKWARD if row["texts"] == "awkward" else {})
