"""Where things are; imported, it makes the skeleton's package importable as `skeleton`.

That package holds no Jinja, so it is tested as it stands.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SKELETON = ROOT / "{{cookiecutter.project_slug}}"
SOURCE = ROOT / "build" / "src"


def link_skeleton() -> None:
    """A link with a legal module name, made once; safe when several test workers start together."""
    SOURCE.mkdir(parents=True, exist_ok=True)
    target = SKELETON / "src" / "{{cookiecutter.package_name}}"
    link = SOURCE / "skeleton"
    if link.is_symlink() and link.resolve() == target:
        return
    temporary = SOURCE / f".skeleton-{os.getpid()}"
    temporary.symlink_to(target, target_is_directory=True)
    temporary.replace(link)


link_skeleton()
sys.path.insert(0, str(SOURCE))
