"""Fonts for names in any script: installed ones that have the characters which matplotlib's default lacks."""

import unicodedata
from collections.abc import Iterable
from functools import cache

from matplotlib import font_manager, rcParams
from matplotlib.ft2font import FT2Font

INVISIBLE = ("Cc", "Cf", "Mn", "Zs")  # categories of characters without a glyph of their own
NO_GLYPHS = "lastresort"  # a font of boxes for all characters


def families(text: str) -> list[str]:
    """Return the font families to draw a text with: the default, then those of the characters that it lacks."""
    return [*_default(), *dict.fromkeys(filter(None, map(_family, _lacking(text))))]


def drawable(text: str) -> str:
    """Return a text without the characters that no installed font has."""
    unknown = {one for one in _lacking(text) if not _family(one)}
    return "".join(one for one in text if one not in unknown).strip() if unknown else text


def width(text: str) -> int:
    """Return the width of a text in Latin characters; Chinese, Japanese and Korean ones are twice as wide."""
    return sum(1 + (unicodedata.east_asian_width(one) in ("W", "F")) for one in text)


def _lacking(text: str) -> Iterable[str]:
    """Return the characters that the default font lacks, in the order of the text."""
    known = _characters(font_manager.findfont(font_manager.FontProperties(family=_default())))
    return [one for one in dict.fromkeys(text) if ord(one) not in known and unicodedata.category(one) not in INVISIBLE]


def _default() -> list[str]:
    chosen = rcParams["font.family"]
    return [chosen] if isinstance(chosen, str) else list(chosen)


@cache
def _family(character: str) -> str:
    """Return the family of the first installed font that has a character, or an empty string."""
    for path in _installed():
        if ord(character) in _characters(path):
            font_manager.fontManager.addfont(path)
            return font_manager.FontProperties(fname=path).get_name()
    return ""


@cache
def _installed() -> list[str]:
    """Return the paths of the installed fonts; regular ones first, since matplotlib draws a family with these."""
    paths = [path for path in font_manager.findSystemFonts() if NO_GLYPHS not in path.lower()]
    return sorted(paths, key=lambda path: ("regular" not in path.lower(), path))


@cache
def _characters(path: str) -> frozenset[int]:
    """Return the code points in a font; none of a damaged font or of one of bitmaps, which matplotlib cannot draw."""
    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(font.get_charmap() if font.scalable else ())
