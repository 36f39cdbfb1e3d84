"""The file system behaves like a local folder for random sequences of operations."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from fsspec.implementations.dirfs import DirFileSystem
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from serving import serving
from storing import data_app

from free_ml_stack.algorithmia.filesystem import AlgorithmiaFileSystem
from free_ml_stack.gateway.protocol.direct import DirectProtocol
from free_ml_stack.storage.local import local_store

FILES = st.sampled_from(["a", "b", "ä ö", "d/a", "d/b", "d/e/a", "f/a"])
FOLDERS = st.sampled_from(["d", "d/e", "f", "g/h"])
CONTENTS = st.one_of(st.binary(max_size=20), st.sampled_from([bytes(70_000), b"\r\n" * 200_000]))


class Twins(RuleBasedStateMachine):
    """A store behind the Data API and a local folder; every step is run on both."""

    def __init__(self) -> None:
        super().__init__()
        self.open = ExitStack()
        root = Path(self.open.enter_context(tempfile.TemporaryDirectory()))
        url = self.open.enter_context(serving(data_app(root / "served"), lifespan="off", http=DirectProtocol))
        remote = AlgorithmiaFileSystem(url, "key-of-me", skip_instance_cache=True)
        self.root = root
        # not in fsspec's instance cache, which would keep its sockets open
        self.remote = DirFileSystem(".my/c", fs=remote, skip_instance_cache=True)
        self.local = local_store(root / "local")
        self.both(lambda store: store.makedirs("", exist_ok=True))

    def teardown(self) -> None:
        self.open.close()

    def both(self, step):
        """Run a step on both; compare the values or the types of the errors."""
        assert outcome(step, self.remote) == outcome(step, self.local)

    @rule(name=FILES, content=CONTENTS)
    def store(self, name, content):
        self.both(lambda store: store.pipe_file(name, content))

    @rule(name=FILES, content=CONTENTS)
    def write_in_pieces(self, name, content):
        def write(store):
            with store.open(name, "wb") as file:
                for start in range(0, len(content), 50_000):
                    file.write(content[start : start + 50_000])

        self.both(write)

    @rule(name=FILES, start=st.integers(-30, 30), end=st.integers(-30, 30))
    def read_a_range(self, name, start, end):
        if self.local.isfile(name):  # compared with a slice: fsspec's local files reject an end before the start
            assert self.remote.cat_file(name, start, end) == self.local.cat_file(name)[start:end]

    @rule(name=FILES)
    def remove(self, name):
        self.both(lambda store: store.rm(name) if not store.isdir(name) else None)

    @rule(name=FOLDERS)
    def remove_a_folder(self, name):
        self.both(lambda store: store.rm(name, recursive=True))

    @rule(name=FOLDERS)
    def make_a_folder(self, name):
        self.both(lambda store: store.mkdir(name))

    @rule(source=FILES, copy=FILES)
    def copy(self, source, copy):
        self.both(lambda store: store.cp_file(source, copy) if source != copy else None)

    @rule(source=FILES, copy=FILES)
    def move(self, source, copy):
        self.both(lambda store: store.mv(source, copy) if store.isfile(source) and source != copy else None)

    @rule(name=FOLDERS)
    def put_and_get_a_folder(self, name):
        def there_and_back(store):
            if not store.isdir(name):
                return None
            with tempfile.TemporaryDirectory() as folder:
                store.get(f"{name}/", f"{folder}/", recursive=True)
                store.put(f"{folder}/", f"copy/{name}/", recursive=True)
                return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))

        self.both(there_and_back)

    @rule()
    def find_and_glob(self):
        self.both(lambda store: sorted(store.find("")))
        self.both(lambda store: sorted(store.glob("**")))

    @invariant()
    def they_hold_the_same(self):
        def contents(store):
            return {
                name: (info["size"], store.cat_file(name)) if info["type"] == "file" else "folder"
                for name, info in store.find("", withdirs=True, detail=True).items()
                if name
            }

        self.both(contents)

    @invariant()
    def nothing_is_left_in_the_making(self):
        assert not any((self.root / "served" / ".part").glob("*"))


def outcome(step, store):
    """Return the value of a step, or the type of its error."""
    try:
        return step(store)
    except ConnectionError:
        raise
    except FileNotFoundError:
        return "missing"
    except OSError:
        return "in the way"


Twins.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestTwins = pytest.mark.slow(Twins.TestCase)
