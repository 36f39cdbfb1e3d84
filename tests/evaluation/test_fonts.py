"""Names in the pictures whose characters matplotlib's default font lacks."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from free_ml_stack.evaluation import plots

NAMES = ["猫", "Ѳdog", "🦊 fox", "犬"]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Axes]]:
    """The axes of the pictures of a test; fonts are installed in `tmp_path` only, and warnings are errors."""
    axes: list[Axes] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **how: (axes.extend(self.axes), save(self, path, **how)))
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(path) for path in tmp_path.glob("*.ttf")])
    monkeypatch.setattr(font_manager.fontManager, "ttflist", list(font_manager.fontManager.ttflist))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield axes


def install(path: Path, family: str, characters: str) -> None:
    """Create a font in which each of the characters is a square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 700), (700, 700), (700, 0)):
        pen.lineTo(corner)
    pen.closePath()
    names = [".notdef", *(f"u{ord(one):x}" for one in characters)]
    font = FontBuilder(1000)
    font.setupGlyphOrder(names)
    font.setupCharacterMap(dict(zip(map(ord, characters), names[1:], strict=True)))
    font.setupGlyf(dict.fromkeys(names, pen.glyph()))
    font.setupHorizontalMetrics(dict.fromkeys(names, (800, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": family, "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(path)


def labels(axes: Axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def test_names_without_a_font_are_cut_or_numbered(drawn: list[Axes], tmp_path: Path) -> None:
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    plots.confusion(np.eye(4, dtype=np.int64), NAMES, tmp_path / "a.png")
    plots.bars(dict.fromkeys(NAMES, 0.5), "share", "Shares", tmp_path / "b.png")
    plots.scatter(np.arange(3.0), np.arange(3.0), "猫", tmp_path / "c.png")
    plots.histograms({"猫": (NAMES, [0.25] * 4, [0.25] * 4)}, tmp_path / "d.png")
    assert labels(drawn[0]) == labels(drawn[1]) == ["no. 1", "Ѳdog", "fox", "no. 4"]
    assert drawn[2].get_xlabel() == "true"
    assert drawn[3].get_title() == "no. 1"


def test_names_are_drawn_with_an_installed_font_that_has_their_characters(drawn: list[Axes], tmp_path: Path) -> None:
    install(tmp_path / "a.ttf", "Only Fox", "🦊")
    install(tmp_path / "b.ttf", "Cats and Dogs", "猫犬")
    plots.confusion(np.eye(4, dtype=np.int64), NAMES, tmp_path / "a.png")
    assert labels(drawn[0]) == NAMES
    assert drawn[0].get_yticklabels()[0].get_fontfamily()[1:] == ["Cats and Dogs", "Only Fox"]


def test_the_default_font_is_not_changed_without_need(drawn: list[Axes], tmp_path: Path) -> None:
    install(tmp_path / "a.ttf", "Cats", "猫")
    plots.bars({"Zürich, Łódź": 1.0}, "share", "Shares", tmp_path / "b.png")
    assert len(drawn[0].get_yticklabels()[0].get_fontfamily()) == 1
