"""The fsspec file system over the Data API: fsspec's own suite, and what it doesn't look at."""

import fsspec.tests.abstract as abstract
import pytest
from serving import serving
from skeleton.stack.algorithmia import AlgorithmiaFileSystem
from storing import data_app


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with serving(data_app(tmp_path_factory.mktemp("store")), lifespan="off") as url:
        yield url


@pytest.fixture
def fs(url):
    return AlgorithmiaFileSystem(api_address=url, api_key="key-of-me", skip_instance_cache=True)


class Fixtures(abstract.AbstractFixtures):
    @pytest.fixture
    def fs(self, url):
        return AlgorithmiaFileSystem(api_address=url, api_key="key-of-me")

    @pytest.fixture
    def fs_path(self):
        return ".my/suite"


class TestCopy(abstract.AbstractCopyTests, Fixtures):
    pass


class TestGet(abstract.AbstractGetTests, Fixtures):
    pass


class TestPut(abstract.AbstractPutTests, Fixtures):
    pass


class TestOpen(abstract.AbstractOpenTests, Fixtures):
    pass


class TestPipe(abstract.AbstractPipeTests, Fixtures):
    pass
