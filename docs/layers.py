"""Draw the layers of the library from its imports: `python docs/layers.py` writes architecture.svg beside it.

A box is a package or a module of the library, a row is a layer of the contract in pyproject.toml, and a line goes from
a box to one that it imports; lines that can be gone by others are left out, so that the picture can be read.
"""

import tomllib
from collections import defaultdict
from pathlib import Path

import grimp

HERE = Path(__file__).parent
PICTURE = HERE / "architecture.svg"
LIBRARY = "free_ml_stack"
WIDTH, ROW, BOX, TALL = 860, 92, 132, 42  # pixels
COLOURS = {
    "cli": "#2563c9",
    "sweeps": "#7c4dbd", "gateway": "#7c4dbd", "launch": "#7c4dbd",
    "training": "#0f766e", "notebook": "#0f766e", "deployment": "#0f766e",
    "data": "#0f766e", "hub": "#b45309", "algorithmia": "#b45309", "tracking": "#b45309", "storage": "#b45309",
}  # fmt: skip
STYLE = """
  text { font: 600 14px system-ui, sans-serif; fill: #fff; text-anchor: middle; dominant-baseline: central; }
  text.size { font-weight: 400; font-size: 11px; fill-opacity: .85; }
  path { fill: none; stroke: #8a96a3; stroke-width: 1.3; }
  rect.ground { fill: #fff; }
  @media (prefers-color-scheme: dark) { rect.ground { fill: #0f141a; } path { stroke: #66727f; } }
"""


def layers() -> list[list[str]]:
    """The boxes of each layer, from the top."""
    settings = tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    rows = next(one["layers"] for one in settings["contracts"] if one["containers"] == [LIBRARY])
    return [row.split(" | ") for row in rows]


def imports() -> tuple[dict[str, set[str]], dict[str, int]]:
    """Which boxes each box imports, and how many modules each has."""
    graph = grimp.build_graph(LIBRARY, cache_dir=None)
    edges: dict[str, set[str]] = defaultdict(set)
    sizes: dict[str, int] = defaultdict(int)
    for module in graph.modules:
        box = [*module.split("."), ""][1]
        sizes[box] += 1
        for other in graph.find_modules_directly_imported_by(module):
            below = [*other.split("."), ""][1]
            if box and below and below != box:
                edges[box].add(below)
    return edges, sizes


def reach(edges: dict[str, set[str]], box: str) -> set[str]:
    """All boxes below a box."""
    return set().union(*({below} | reach(edges, below) for below in edges.get(box, ())), set())


def picture() -> str:
    """The picture as SVG."""
    rows, (edges, sizes) = layers(), imports()
    places = {
        box: (WIDTH * (2 * column + 1) // (2 * len(row)), 24 + ROW * number)
        for number, row in enumerate(rows)
        for column, box in enumerate(row)
    }
    lines, boxes = [], []
    for box in places:
        direct = edges.get(box, set())
        around = set().union(*(reach(edges, below) for below in direct), set())
        for below in sorted(direct - around):
            (x1, y1), (x2, y2) = places[box], places[below]
            y1 += TALL
            lines.append(f'<path d="M{x1} {y1} C{x1} {y1 + 26} {x2} {y2 - 26} {x2} {y2}"/>')
    for box, (x, y) in places.items():
        colour, count = COLOURS.get(box, "#4b5a69"), sizes[box]
        boxes.append(
            f'<rect x="{x - BOX // 2}" y="{y}" width="{BOX}" height="{TALL}" rx="7" fill="{colour}"/>'
            f'<text x="{x}" y="{y + 15}">{box}</text>'
            f'<text class="size" x="{x}" y="{y + 31}">{count} module{"" if count == 1 else "s"}</text>'
        )
    height = ROW * len(rows)
    body = "\n".join([*lines, *boxes])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="The layers of the library">\n<style>{STYLE}</style>\n'
        f'<rect class="ground" width="{WIDTH}" height="{height}"/>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
