"""The model card: measurements, sections edited by users, and metadata that the Hub accepts."""

import html
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from free_ml_stack.errors import StackError
from free_ml_stack.hub.card import MARK, card, check, edited_sections, merge_sections, read_card
from free_ml_stack.project.science import Science
from free_ml_stack.project.settings import Settings
from free_ml_stack.training.export import kept_sections

SCIENCE = Science("skeleton")
RESULT: dict[str, Any] = {
    "run": "20260101-000000-abcd",
    "config": {"init": "", "epochs": 3, "seed": 0},
    "data": {"name": "digits", "sha256": "ab" * 32, "rows": {"train": 1258, "validation": 269, "test": 270}},
    "steps": 57,
    "seconds": 3.25,
    "processes": 1,
    "parameters": 38378,
    "commit": "cd" * 20,
    "environment": {"python": "3.12.1", "torch": "2.9.0"},
    "machine": {"system": "Linux", "processor": "A CPU, 2 cores", "device": "cuda", "accelerator": "A GPU"},
    "validation": {"accuracy": 0.92, "f1": 0.91},
    "test": {"accuracy": np.float64(0.9037037037037037), "f1": 1 / 3},
    "url": "https://wandb.example/runs/abcd",
}


def text(kept: dict[str, str] | None = None, result: dict[str, Any] | None = None, **settings: Any) -> str:
    named = {"title": "Digits", "description": "Reads digits.", "author": "Ann", "license": "MIT", **settings}
    return str(card(Settings(**named), SCIENCE, {**RESULT, **(result or {})}, "DigitsNet", kept or {}))


def front(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


def test_metrics_equal_the_evaluation() -> None:
    metrics = front(text())["model-index"][0]["results"][0]["metrics"]
    assert {metric["type"]: metric["value"] for metric in metrics} == {
        "accuracy": 0.9037037037037037,
        "f1": 1 / 3,
    }


def test_the_origin_of_the_model_is_on_the_card() -> None:
    made = text()
    for fact in (
        "ab" * 32,
        "cd" * 20,
        "https://wandb.example/runs/abcd",
        "torch 2.9.0",
        "3.2 s",
        "A GPU",
        "A CPU",
    ):
        assert fact in made
    assert "![Learning curves](learning_curves.png)" in made
    assert "| `seed` | 0 |" in made


def test_initial_weights_on_the_hub_are_the_base_model() -> None:
    made = text(result={"config": {"init": "hf://you/model@abc"}})
    assert front(made)["base_model"] == "you/model"
    assert "initialized from hf://you/model@abc" in made
    assert "base_model" not in front(text())


def test_the_base_model_is_found_through_other_runs(tmp_path: Path) -> None:
    """Through any number of runs; a cycle of runs has none."""
    inits = {"first": "hf://you/model@abc", "second": "first", "third": "second", "a": "b", "b": "a"}
    for run, init in inits.items():
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "result.json").write_text(json.dumps({"config": {"init": init}}))
    for init, expected in (("third", "you/model"), ("a", None), ("other", None), ("./first", None)):
        assert front(text(result={"config": {"init": init}}, root=tmp_path)).get("base_model") == expected


def test_texts_of_model_py_are_on_the_card(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "library_name" not in front(text())
    own = {"library": "setfit", "use": 'load("<repository>")', "base_model": "you/encoder"}
    for name, value in own.items():
        monkeypatch.setattr(SCIENCE.model, name, lambda config, value=value: value, raising=False)
    made = text(model_repo="me/digits")
    assert (front(made)["library_name"], front(made)["base_model"]) == ("setfit", "you/encoder")
    assert '```python\nload("me/digits")\n```' in made
    assert "based on you/encoder" in made
    other = text(result={"config": {"init": "hf://you/model@abc"}})
    assert front(other)["base_model"] == "you/model"
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(SCIENCE.model, "library", lambda config: "pytorch")
    assert "library_name" not in front(text())
    assert "unknown library pytorch on the Hub, library_name omitted from the card" in capsys.readouterr().out


def test_the_bucket_and_the_new_version_are_linked() -> None:
    made = text(storage="hf://buckets/me/digits/sub", new_version="me/digits-2")
    check(made)
    assert (front(made)["buckets"], front(made)["new_version"]) == (["me/digits"], "me/digits-2")
    assert not front(text(storage="./store")).keys() & {"buckets", "new_version", "datasets"}


def test_a_model_cannot_replace_itself() -> None:
    with pytest.raises(StackError, match="new_version: expected a repository other than model_repo, got me/digits"):
        text(model_repo="me/digits", new_version="me/digits")


def test_a_data_set_on_the_hub_is_linked() -> None:
    assert front(text(storage="hf://datasets/me/digits/sub"))["datasets"] == ["me/digits"]
    assert front(text(result={"data": {**RESULT["data"], "published": "hf://datasets/me/d"}}))["datasets"] == ["me/d"]
    assert "datasets" not in front(text(storage="algorithmia://.my/digits"))


@pytest.mark.parametrize("license", ["MIT", "Apache-2.0", "BSD-3-Clause", "Proprietary"])
def test_every_card_passes_the_check(license: str) -> None:
    made = text(license=license)
    check(made)
    assert "More Information Needed" not in made


@pytest.mark.parametrize("title", ["Digits ---", "---", "- a: 'b' \"c\" #d", "null", "1e3", "{x}", "数 \u2028"])
def test_any_title_is_valid_in_the_metadata(title: str) -> None:
    made = text(title=title)
    check(made)
    [results] = ModelCard(made).data.to_dict()["model-index"]
    assert results["name"] == title
    with pytest.raises(StackError, match="metric accuracy: expected a finite value, got nan"):
        check(text(title=title, result={"test": {"accuracy": float("nan")}}))


@pytest.mark.parametrize(
    "words",
    [
        "# 1. [x](y) ![x](y) <script>alert(1)</script> <!-- x -->",
        "`code` **b** _i_ __b__ ~~s~~ a\\*b &lt; &amp; | a | b | $x$ {y}",
        "- a list",
        "1. one",
        "2) two",
        "+",
        "---",
        "> said",
        "```",
        "    code",
        "===",
        "first\nsecond\n\n- third\r\n# fourth\n## Limits\n\nnone",
    ],
)
def test_free_text_is_rendered_unchanged(words: str) -> None:
    """Compared with CommonMark with GitHub's tables and strikethrough."""
    made = text(title=words, description=words, author=words, result={"config": {"name": words}})
    shown = rendered(made)
    lines = html.escape(words.strip(), quote=False).replace("\r\n", "\n").replace("\n", "<br>")
    for place in ("<h1>{}</h1>", "<p>{}</p>", "<li>Author: {}</li>", "<td>{}</td>"):
        assert place.format(lines) in shown
    assert rendered(text()).count("<h2>") == shown.count("<h2>")
    assert edited_sections(made) == {}


def rendered(card: str) -> str:
    """Return a card's text as HTML."""
    markdown = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    return markdown.render(ModelCard(card).text).replace("&quot;", '"')


def test_a_card_saved_by_a_windows_editor_is_read(tmp_path: Path) -> None:
    """With a byte order mark, which is removed, and with CRLF."""
    changed = text().replace("## Limits", "## Mine\n\nNotes.\n\n## Limits")
    card = tmp_path / "README.md"
    card.write_bytes(b"\xef\xbb\xbf" + changed.replace("\n", "\r\n").encode())
    assert edited_sections(read_card(card, "README.md")) == edited_sections(changed)
    check(read_card(card, "README.md"))


def test_a_license_that_is_not_an_id_is_rejected() -> None:
    assert front(text(license="GPL-3.0"))["license"] == "gpl-3.0"
    with pytest.raises(StackError, match="license: expected an id of the Hub, got 'as you like'"):
        check(text(license="As you like"))


def test_edited_sections_are_kept_and_others_are_generated() -> None:
    first = text()
    assert edited_sections(first) == {}  # no edits yet
    changed = first.replace("Measured on the test split", "Only grey images. Measured on the test split")
    kept = edited_sections(changed)
    assert kept.keys() == {"Limits"}
    rows = {**RESULT["data"], "rows": {"train": 1, "validation": 1, "test": 9}}
    again = text(kept, {"data": rows})
    assert "Only grey images. Measured" in again
    assert unmarked(edited_sections(again)) == kept  # also in the next generation
    assert text(edited_sections(again), {"data": rows}) == again
    assert "(9 examples)" in text({}, {"data": rows})


def test_an_added_section_is_kept() -> None:
    """At the end, in order; the sections of a run are generated."""
    words = "\n## Citation\n\nMine.\n\n### More\n\n## Thanks\n\nYours.\n\n## Citation\n\nAnd another.\n"
    written = (text() + words).replace("Run `2026", "By hand `2026")
    kept = edited_sections(written)
    assert kept == {"Citation": "Mine.\n\n### More\n\nAnd another.", "Thanks": "Yours."}
    again = text(kept)
    assert again.startswith(text())
    assert unmarked(edited_sections(again)) == kept
    assert text(edited_sections(again)) == again
    changed = edited_sections(again.replace("Yours.", "Ours."))
    assert unmarked(merge_sections(edited_sections(again), changed))["Thanks"] == "Ours."


def unmarked(found: dict[str, str]) -> dict[str, str]:
    return {name: MARK.sub("", body) for name, body in found.items()}


def test_the_later_edit_of_two_cards_is_kept() -> None:
    before = text({"Limits": "First."})
    here, there = edited_sections(before), edited_sections(before.replace("First.", "Second, on the Hub."))
    assert unmarked(merge_sections(here, there)) == {"Limits": "Second, on the Hub."}
    edited_here = edited_sections(before.replace("First.", "Third, here."))
    assert unmarked(merge_sections(edited_here, there)) == {"Limits": "Third, here."}
    assert (
        unmarked(merge_sections(here, edited_sections(before)))
        == unmarked(merge_sections({}, here))
        == {"Limits": "First."}
    )


def test_a_line_of_code_is_not_a_title() -> None:
    words = "Mine.\n\n```\n## a comment\n```\n\nMore."
    assert unmarked(edited_sections(text({"Limits": words}))) == {"Limits": words}
    torn = edited_sections(text({"Limits": "Mine.\n\n```\nnever closed"}))
    assert unmarked(torn) == {"Limits": "Mine.\n\n```\nnever closed"}


@pytest.mark.parametrize(
    "block",
    [
        "~~~\n## a comment\n~~~",
        "  ```text\n## a comment\n  ```",
        "````\n```\n## a comment\n```\n````",
        "```\n~~~\n## a comment\n```",
        "```` inline ``` code ````",
        "A line\u2028that breaks\x0c\x85\x1cin other ways",
    ],
)
def test_edited_text_is_kept_unchanged(block: str) -> None:
    written = f"Mine.\n\n{block}\n\nMore."
    made = text({"Intended use": written, "Limits": written})
    assert unmarked(edited_sections(made)) == {"Intended use": written, "Limits": written}
    assert unmarked(edited_sections(made.replace("\n", "\r\n"))) == {
        "Intended use": written,
        "Limits": written,
    }


def test_an_unclosed_code_block_hides_no_title() -> None:
    words = {"Intended use": "Mine.\n\n```\nnever closed", "Limits": "Mine too."}
    assert unmarked(edited_sections(text(words))) == words


def test_a_card_that_is_not_utf_8_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "README.md").write_bytes("## Limits\n\nCafé".encode("latin-1"))
    with pytest.raises(StackError, match=r"first/README.md: .*save it as UTF-8 text") as refusal:
        kept_sections(tmp_path, tmp_path / "first")
    assert "\n" not in str(refusal.value)


def test_edits_are_kept_for_the_next_run(tmp_path: Path) -> None:
    for run, words in (("first", "My words."), ("second", "")):
        (tmp_path / run).mkdir()
        made = text({"Intended use": words} if words else None)
        (tmp_path / run / "README.md").write_text(made, encoding="utf-8")
    assert unmarked(kept_sections(tmp_path, tmp_path / "third")) == {"Intended use": "My words."}
    second = tmp_path / "second" / "README.md"
    second.write_text(text({"Intended use": "Newer words."}), encoding="utf-8")
    assert unmarked(kept_sections(tmp_path, tmp_path / "second")) == {"Intended use": "Newer words."}
    assert unmarked(kept_sections(tmp_path, tmp_path / "first")) == {"Intended use": "My words."}


MALFORMED = {
    "no metadata": ("# A model", "expected metadata between two lines of ---"),
    "no YAML": ("---\nlicense: [\n---\n", "invalid YAML"),
    "a list": ("---\n- license\n---\n", "expected metadata between"),
    "license": ("---\nlicense: [mit]\n---\n", "license: expected an id of the Hub"),
    "license text": ("---\nlicense: MIT License\n---\n", "license: expected an id of the Hub"),
    "task": ("---\npipeline_tag: 5\n---\n", "pipeline_tag: expected an id"),
    "data set": ("---\ndatasets: ['a b']\n---\n", "datasets: expected USER/NAME"),
    "bucket": ("---\nbuckets: ['a b']\n---\n", "buckets: expected USER/NAME"),
    "version": ("---\nnew_version: you/a/b\n---\n", "new_version: expected USER/NAME"),
    "base": ("---\nbase_model: https://hub/x/y\n---\n", "base_model: expected USER/NAME"),
    "open": ("---\nlicense: mit\n", "expected metadata between"),
    "gap": ("---\nlicense: mit\n---\n[More Information Needed]", "contains 'More Information Needed'"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_card_is_rejected_in_one_line(name: str) -> None:
    made, words = MALFORMED[name]
    with pytest.raises(StackError, match=words) as refusal:
        check(made)
    assert "\n" not in str(refusal.value)
