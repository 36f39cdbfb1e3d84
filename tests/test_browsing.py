"""The check of pages finds faults."""

from pathlib import Path

import pytest
from browsing import faults

PAGE = """<!doctype html><html lang="en"><title>Faults</title><style>
  p { color: #bbb; background: white; width: 60px; }
  a { outline: none; }
</style><main><h1>Faults</h1><p>pale Donaudampfschifffahrt</p><a href="/">flat</a> <button tabindex="-1">absent</button>
<svg width="99" height="20"><text y="15">one label</text><text x="9" y="15">another</text></svg></main></html>"""


@pytest.mark.slow
def test_faults_of_a_page_are_found(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(PAGE)
    found = faults((tmp_path / "index.html").as_uri())
    for fault in (
        "1280 light: color-contrast: p",
        '390 dark: too wide: P "pale Donaudampfschifffahrt"',
        '390 light: text "one label" overlaps text "another"',
        'no visible focus: <a href="/">flat</a>',
        'not reached by Tab: <button tabindex="-1">absent</button>',
    ):
        assert fault in found
