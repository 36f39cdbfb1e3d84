"""The model card: metadata and text generated from the measurements of a run."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub import ModelCard

from free_ml_stack.errors import StackError
from free_ml_stack.evaluation.result import metric_text, metric_title, tables_with_pictures
from free_ml_stack.hub.metadata import base_model, metadata, optional_text
from free_ml_stack.hub.usage import lines, reload_lines, required_packages

if TYPE_CHECKING:
    from free_ml_stack.project.science import Science
    from free_ml_stack.project.settings import Settings

EDITABLE = ("Intended use", "Limits")
GENERATED = ("How to use", "Data", "Training", "Results", "Reproduce")  # generated for each run
MARK = re.compile(r"\n*<!-- (generated|kept) ([0-9a-f]{12}): .*-->\s*$")
FENCE = re.compile(r" {0,3}(`{3,}(?!.*`)|~{3,})(.*)")  # spec.commonmark.org, 4.5
FRONT = re.compile(r"---\n(.*?\n)---(?:\n|$)", re.DOTALL)
PLACEHOLDER = "More Information Needed"
ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")
REPOSITORY = re.compile(r"([\w.-]+/)?[\w.-]+")


def card(
    settings: "Settings", science: "Science", result: Mapping[str, Any], model: str, kept: Mapping[str, str]
) -> ModelCard:
    """Return the card of a run's model. `model` is its class name, `kept` are sections edited by a user."""
    config = result["config"]
    card: ModelCard = ModelCard.from_template(
        metadata(settings, science, result),
        template_str=files(__package__).joinpath("model_card.md").read_text(encoding="utf-8"),
        **{"url": "", "parameters": 0, "pictures": {}, "tables": {}, **result},
        tables_with_pictures=tables_with_pictures(result.get("pictures", {}), result.get("tables", {})),
        escape=escape_markdown,
        metric_text=metric_text,
        metric_title=metric_title,
        title=settings.title or settings.project,
        description=settings.description,
        author=settings.author,
        license=settings.license,
        model=model,
        model_repo=settings.model_repo or ".",
        use=optional_text(science, "use", config).replace("<repository>", settings.model_repo or "."),
        library=optional_text(science, "library", config),
        packages=required_packages(science.folder),
        snippet="\n".join(lines(science.package, settings.model_repo)),
        reload=reload_lines(science.package, settings.model_repo),
        base_model=base_model(settings, science, config),
        package=science.package,
        source=result["data"].get("source", science.data.SOURCE),
        intended_use=marked_section(kept.get("Intended use"), _intended(science, result["data"])),
        limits=marked_section(kept.get("Limits"), _limits(result["data"])),
        custom_sections=custom_sections(kept),
    )
    return card


def custom_sections(kept: Mapping[str, str]) -> str:
    """Return the sections added by a user, for the end of a card."""
    written = {title: body for title, body in kept.items() if title not in EDITABLE}
    return "".join(f"\n## {title}\n\n{marked_section(body, '')}\n" for title, body in written.items())


def escape_markdown(text: str) -> str:
    """Escape text for Markdown; line breaks are kept.

    Source: spec.commonmark.org, 2.4, 5.2 (list items) and 6.7; GitHub's tables and strikethrough.
    """
    escaped = re.sub(r"[\\`*_{}\[\]<>#|~$!&]", r"\\\g<0>", text.strip())
    escaped = re.sub(r"^(\d*)([-+.)])(?=[-\s]|$)", r"\1\\\2", escaped)
    return re.sub(r"[ \t]*(\r\n?|\n)[ \t]*", "<br>", escaped)


def marked_section(kept: str | None, generated: str) -> str:
    """Return a section's text, edited by a user or generated, with a mark that reveals later edits."""
    word, body = ("kept", kept) if kept else ("generated", generated)
    if not was_edited(body):
        return body
    return f"{body}\n\n<!-- {word} {_digest(body)}: edit the text above to replace it; edits are kept -->"


def was_edited(body: str) -> bool:
    """Return whether a section was edited since its card was generated."""
    mark = MARK.search(body)
    return not (mark and mark[2] == _digest(MARK.sub("", body)))


def read_card(path: Path, name: str) -> str:
    """Read a card. Raises StackError with its `name` if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise StackError(f"{name}: {error}; save it as UTF-8 text") from None


def edited_sections(card: str, made: Sequence[str] = GENERATED) -> dict[str, str]:
    """Return the sections of an earlier card edited by a user, except those in `made`.

    Sections edited before that card keep their mark.
    """
    found: dict[str, str] = {}
    for title, body in _parts(card):
        mark = MARK.search(body)
        if was_edited(body):
            body = MARK.sub("", body)
        elif mark and mark[1] == "generated":
            continue
        if title and title not in made and body:
            found[title] = "\n\n".join(filter(None, (found.get(title), body)))
    return found


def merge_sections(here: Mapping[str, str], there: Mapping[str, str]) -> dict[str, str]:
    """Merge the sections of two cards: those here, unless only the other one was edited since."""
    return {
        **there,
        **{name: body for name, body in here.items() if was_edited(body) or not _newer(name, there)},
    }


def _newer(name: str, there: Mapping[str, str]) -> bool:
    return name in there and was_edited(there[name])


def _parts(card: str) -> Iterable[tuple[str, str]]:
    """Yield titles and texts of a card's sections; lines in code blocks are not titles."""
    title = ""
    lines: list[str] = []
    written = re.split(r"\r\n?|\n", card)  # `splitlines` splits at further characters
    for line, code in zip(written, _code(written), strict=True):
        if line.startswith("## ") and not code:
            yield title, "\n".join(lines).strip()
            title, lines = line[3:].strip(), []
        else:
            lines.append(line)
    yield title, "\n".join(lines).strip()


def _code(lines: Sequence[str]) -> list[bool]:
    """Return for each line whether it is in a code block; all False if a block is not closed."""
    inside, fence = [], ""
    for line in lines:
        inside.append(bool(fence))
        found = FENCE.fullmatch(line)
        if found and not fence:
            fence = found[1]
        elif found and found[1].startswith(fence):
            if found[2].strip():  # another block starts
                return [False] * len(lines)
            fence = ""
    return [False] * len(lines) if fence else inside


def check(card: str) -> None:
    """Raise StackError if the Hub would reject a card, or if its text has a placeholder."""
    block = FRONT.match(card)
    try:
        front = yaml.safe_load(block[1]) if block else None
    except yaml.YAMLError as error:
        raise StackError(f"README.md: invalid YAML in the metadata: {' '.join(str(error).split())}") from None
    if not isinstance(front, dict):
        raise StackError("README.md: expected metadata between two lines of --- at the start")
    if faults := [*_malformed(front), *([f"contains {PLACEHOLDER!r}"] if PLACEHOLDER in card else [])]:
        raise StackError(f"README.md: {'; '.join(faults)}")


def _malformed(front: Mapping[str, Any]) -> Iterable[str]:
    for name in ("license", "pipeline_tag"):
        if name in front and not (isinstance(front[name], str) and ID.fullmatch(front[name])):
            yield f"{name}: expected an id of the Hub, got {front[name]!r}"
    for name in ("base_model", "datasets", "buckets", "new_version"):
        values = front.get(name, [])
        for value in values if isinstance(values, list) else [values]:
            if not REPOSITORY.fullmatch(str(value)):
                yield f"{name}: expected USER/NAME, got {value!r}"


def _digest(body: str) -> str:
    return hashlib.sha256(body.strip().encode()).hexdigest()[:12]


def _intended(science: "Science", data: Mapping[str, Any]) -> str:
    task = science.model.TASK.replace("-", " ").capitalize()
    return f"{task} of inputs similar to those of {escape_markdown(data['name'])}."


def _limits(data: Mapping[str, Any]) -> str:
    return (
        f"Measured on the test split of {escape_markdown(data['name'])} only ({data['rows']['test']:,} examples). "
        "Other inputs were not tested."
    )
