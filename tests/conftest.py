"""What all tests share."""

from pathlib import Path

import places  # noqa: F401 - makes the skeleton's package importable
import pytest


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that has its data, to make others from."""
    import projects

    return projects.make(tmp_path_factory.mktemp("data"))
