"""The HTML report of a project: one self-contained page of results and pictures."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; --ground: #f6f7f9; --ink: #16202c; --soft: #5b6876; --line: #e3e7ec; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #0f141a; --ink: #e6ebf1; --soft: #96a3b1; --line: #27313c; }
}
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1rem; }
h1 { overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: 1rem 0 2rem; }
td { padding: .3rem 1.2rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td:first-child { color: var(--soft); min-width: 7rem; }
td { overflow-wrap: anywhere; }
figure { margin: 0 0 2rem; }
.picture { overflow-x: auto; border-radius: 8px; }
img { display: block; max-width: 100%; background: white; }
@media (max-width: 640px) { img { max-width: none; zoom: .6; } }
"""


def report(
    title: str,
    rows: Sequence[Sequence[object]],
    images: Mapping[str, Path],
    path: Path,
    tables: Mapping[str, Sequence[Sequence[object]]],
) -> Path:
    """Write the page: a table of `rows` (name, value), then each image with its title.

    `tables` maps titles of images to the rows of the table below them.
    """
    cells = _cells(rows)
    figures = "\n".join(_figure(name, image, tables.get(name, ())) for name, image in images.items())
    path.write_text(
        f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
<main>
<h1>{html.escape(title)}</h1>
<table>
{cells}
</table>
{figures}
</main>
</html>
""",
        encoding="utf-8",
    )
    return path


def _cells(rows: Sequence[Sequence[object]]) -> str:
    lines = ("".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows)
    return "\n".join(f"<tr>{line}</tr>" for line in lines)


def _figure(title: str, image: Path, rows: Sequence[Sequence[object]]) -> str:
    data = base64.b64encode(image.read_bytes()).decode()
    name, table = html.escape(title), f"<table>\n{_cells(rows)}\n</table>" if rows else ""
    picture = f'<img alt="{name}" src="data:image/png;base64,{data}">'
    # The Tab key reaches the box of a picture, because wide ones scroll on small screens.
    return f'<figure><h2>{name}</h2><div class="picture" tabindex="0">{picture}</div>{table}</figure>'
