"""Draw docs/demo.svg, the end of a real `demo` in a terminal of 80 columns.

make demo && python docs/terminal.py
"""

import io
import os
import pty
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
PROJECT, PACKAGE = ROOT / "build" / "demo" / "my-ml-project", "my_ml_project"
COMMAND, BEGINNING = "uv run my-ml-project demo", "== train =="
# Rich's picture without its frame's web font, which pages on GitHub do not load.
FORMAT = """<svg class="rich-terminal" viewBox="0 0 1000 {terminal_height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="990" height="{terminal_height}"/></clipPath>
{lines}</defs>
<rect fill="#16181d" width="1000" height="{terminal_height}" rx="8"/>
<g transform="translate(10, 10)" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""


def recorded() -> str:
    """Return what the first demo of a project prints to a terminal."""
    for name in ("runs", "models", ".stack"):  # of `make demo`; a second demo repeats no sweep
        shutil.rmtree(PROJECT / name)
    pieces: list[bytes] = []

    def read(descriptor: int) -> bytes:
        pieces.append(os.read(descriptor, 1 << 16))
        return pieces[-1]

    os.environ |= {"COLUMNS": "80", "LINES": "40", "HOME": str(ROOT / "build" / "home")}
    os.chdir(PROJECT)
    pty.spawn([sys.executable, "-m", PACKAGE, "demo"], read)
    return b"".join(pieces).decode().replace("\r\n", "\n")


def main() -> None:
    """Run the demo and write the picture."""
    text = recorded()
    console = Console(record=True, width=80, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {COMMAND}\n...", "bold"))
    console.print(Text.from_ansi(text[text.index(BEGINNING) :].split("\r")[-1]))
    svg = console.export_svg(title="", theme=SVG_EXPORT_THEME, code_format=FORMAT, unique_id="demo")
    (ROOT / "docs" / "demo.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
