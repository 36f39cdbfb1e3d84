"""Fixtures and hooks of all tests."""

import gc
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import forking
import places  # noqa: F401 - makes the skeleton's package importable
import pytest

if TYPE_CHECKING:
    from services.hub_server import Hub

gc.disable()  # until all tests are imported
# A shell ignores SIGINT in background processes, which would be inherited by all processes of the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The official client copies these certificates to a file per client, which stays open until exit.
if bundle := os.environ.pop("REQUESTS_CA_BUNDLE", ""):
    os.environ.setdefault("PIP_CERT", bundle)


@pytest.hookimpl
def pytest_configure(config: pytest.Config) -> None:
    """Start one fork server for all workers."""
    if config.getoption("numprocesses", None):
        forking.share()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the longest test to the start, as the other workers take over the tests that follow it, but the next."""
    items.sort(key=lambda item: item.get_closest_marker("first") is None)


@pytest.hookimpl
def pytest_collection_finish() -> None:
    """Exclude the imported modules from garbage collection, which would visit them in many tests."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """Terminate the processes left by a test before its services are stopped."""
    forking.end_all()
    yield


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with its data set, as a template for others."""
    import projects

    return projects.make(tmp_path_factory.mktemp("data"))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator["Hub"]:
    """An empty loopback Hub, served."""
    from services.hub_server import Hub, serving

    hub = Hub(tmp_path / "hub")
    with serving(hub):
        yield hub


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on another disk than `tmp_path`: in memory."""
    memory = Path("/dev/shm")
    assert memory.stat().st_dev != tmp_path.stat().st_dev
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)
