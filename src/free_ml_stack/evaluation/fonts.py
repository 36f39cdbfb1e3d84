"""Fonts for names in any script: installed ones that have the characters which matplotlib's default lacks."""

import unicodedata
from collections.abc import Sequence
from functools import cache

from matplotlib import font_manager, rcParams
from matplotlib.ft2font import FT2Font

INVISIBLE = ("Cc", "Cf", "Mn", "Zs")  # categories of characters without a glyph of their own
NO_GLYPHS = "lastresort"  # a font of boxes for all characters


def families(text: str) -> list[str]:
    """Return the font families to draw a text with: the default, then those of the characters that it lacks."""
    return [*_default(), *dict.fromkeys(filter(None, _found(text).values()))]


def drawable(texts: Sequence[str]) -> list[str]:
    """Return texts without the characters that no installed font has."""
    unknown = {character for character, family in _found("".join(texts)).items() if not family}
    return ["".join(one for one in text if one not in unknown).strip() if unknown & {*text} else text for text in texts]


def width(text: str) -> int:
    """Return the width of a text in Latin characters; Chinese, Japanese and Korean ones are twice as wide."""
    return sum(1 + (unicodedata.east_asian_width(one) in ("W", "F")) for one in text)


def _found(text: str) -> dict[str, str]:
    """Return the family of each character of a text that the default font lacks, in order; "" if no font has it."""
    known = _characters(font_manager.findfont(font_manager.FontProperties(family=_default())))
    characters = [one for one in dict.fromkeys(text) if ord(one) not in known]
    lacking = [one for one in characters if unicodedata.category(one) not in INVISIBLE]
    paths = _installed() if lacking else ()
    return {one: _family(one, paths) for one in lacking}


def _default() -> list[str]:
    chosen = rcParams["font.family"]
    return [chosen] if isinstance(chosen, str) else list(chosen)


@cache
def _family(character: str, paths: tuple[str, ...]) -> str:
    """Return the family of the first font that has a character, or an empty string."""
    for path in paths:
        if ord(character) in _characters(path):
            font_manager.fontManager.addfont(path)
            return font_manager.FontProperties(fname=path).get_name()
    return ""


def _installed() -> tuple[str, ...]:
    """Return the paths of the installed fonts; regular ones first, since matplotlib draws a family with these."""
    paths = [path for path in font_manager.findSystemFonts() if NO_GLYPHS not in path.lower()]
    return tuple(sorted(paths, key=lambda path: ("regular" not in path.lower(), path)))


@cache
def _characters(path: str) -> frozenset[int]:
    """Return the code points in a font; none of a damaged font or of one of bitmaps, which matplotlib cannot draw."""
    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(font.get_charmap() if font.scalable else ())
