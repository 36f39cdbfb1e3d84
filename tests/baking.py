"""Generate a project in this process, hooks included."""

from pathlib import Path

from cookiecutter.main import cookiecutter

TEMPLATE = Path(__file__).resolve().parent.parent


def bake(folder: Path, **answers: str) -> Path:
    """Generate a project below `folder` with the defaults but for `answers`; return its folder."""
    config = folder / "cookiecutter.yaml"
    config.write_text(f"replay_dir: {folder / 'replay'}\n", encoding="utf-8")
    context = {"check_credentials": "skip", **answers}
    return Path(
        cookiecutter(
            str(TEMPLATE),
            no_input=True,
            extra_context=context,
            output_dir=str(folder),
            config_file=str(config),
        )
    )


def literal(text: str) -> str:
    """Spell an answer so that cookiecutter, which renders what a program answers, takes it as it is."""
    return '{{ "' + "".join(f"\\U{ord(character):08x}" for character in text) + '" }}'
