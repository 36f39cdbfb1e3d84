"""The fsspec file system of the Data API: fsspec's test suite, libraries based on it, and failures of the server."""

import hashlib
import itertools
import os
import pickle
import random
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import Algorithmia
import fsspec
import fsspec.tests.abstract as abstract
import pandas as pd
import places
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from faults import Faults, failing, original, proxied, spoiling
from fsspec.generic import rsync
from serving import serving
from storing import data_app

from free_ml_stack.algorithmia import connection
from free_ml_stack.algorithmia.filesystem import AlgorithmiaFileSystem
from free_ml_stack.algorithmia.streams import ChecksumError
from free_ml_stack.gateway.protocol.direct import DirectProtocol
from free_ml_stack.storage import retry

MIB = 1 << 20


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def url(store):
    with serving(data_app(store), lifespan="off", http=DirectProtocol) as url:
        yield url


def files_at(url: str) -> AlgorithmiaFileSystem:
    return AlgorithmiaFileSystem(api_address=url, api_key="key-of-me", skip_instance_cache=True)


@pytest.fixture
def fs(url):
    fs = files_at(url)
    yield fs
    if fs.exists(".my/c"):
        fs.rm(".my/c", recursive=True)


@pytest.fixture
def impatient(monkeypatch):
    """Retry without pauses, which have their own tests."""
    monkeypatch.setattr(retry, "SCALE", 0.0)


class Fixtures(abstract.AbstractFixtures):
    @pytest.fixture
    def fs(self, url):
        return files_at(url)

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


class TestLibraries:
    """Use of URLs; the installed package registers the scheme."""

    @pytest.fixture
    def options(self, url, fs):
        fsspec.register_implementation("algorithmia", AlgorithmiaFileSystem, clobber=True)
        return {"api_address": url, "api_key": "key-of-me"}

    def test_fsspec_open(self, options):
        with fsspec.open("algorithmia://.my/c/a.txt.gz", "wt", compression="infer", **options) as file:
            file.write("Grüße\n" * 1000)
        with fsspec.open("algorithmia://.my/c/a.txt.gz", "rt", compression="infer", **options) as file:
            assert file.readline() == "Grüße\n"

    def test_pandas(self, options):
        frame = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
        frame.to_csv("algorithmia://.my/c/a.csv", index=False, storage_options=options)
        assert pd.read_csv("algorithmia://.my/c/a.csv", storage_options=options).equals(frame)

    def test_parquet_reads_only_the_needed_columns(self, fs):
        table = pa.table({name: pa.array(random.choices(range(10**9), k=500_000)) for name in "abcd"})
        with fs.open(".my/c/a.parquet", "wb") as file:
            pq.write_table(table, file, compression="none")
        assert pq.read_table(".my/c/a.parquet", filesystem=fs).equals(table)
        with fs.open(".my/c/a.parquet") as file:
            assert pq.ParquetFile(file).read(columns=["c"]).column("c").equals(table.column("c"))

    def test_torch(self, fs):
        weights = {"layer": torch.randn(100, 100)}
        with fs.open(".my/c/model.pt", "wb") as file:
            torch.save(weights, file)
        with fs.open(".my/c/model.pt") as file:
            assert torch.equal(torch.load(file, weights_only=True)["layer"], weights["layer"])

    def test_generic_rsync(self, options, fs, tmp_path):
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "a").write_text("x")
        known = {"algorithmia": options}
        rsync(
            f"file://{tmp_path}",
            "algorithmia://.my/c",
            inst_kwargs={"storage_options": known, "default_method": "options"},
        )
        assert fs.cat_file(".my/c/sub/a") == b"x"

    def test_the_official_client_reads_written_files(self, fs, url):
        fs.pipe_file("data://.my/c/a", b"x")
        assert Algorithmia.client("key-of-me", url).file("data://.my/c/a").getBytes() == b"x"

    def test_other_processes_and_threads(self, fs):
        content = os.urandom(3 * MIB)
        fs.pipe_file(".my/c/a", content)
        with fs.open(".my/c/a") as file:
            file.seek(MIB)
            again = pickle.loads(pickle.dumps(file))
            assert again.read() == content[MIB:]
            again.close()
        child = os.fork()
        if not child:
            os._exit(0 if fs.cat_file(".my/c/a") == content else 1)
        assert os.waitpid(child, 0)[1] == 0
        with ThreadPoolExecutor(32) as pool:
            assert set(pool.map(fs.cat_file, [".my/c/a"] * 64)) == {content}


class TestFiles:
    @pytest.mark.parametrize("name", ["a[1]", "[ab]", "a*", "**"])
    def test_a_file_name_can_contain_wildcards(self, fs, tmp_path, name):
        others = ("a1", "a", "b", "ab")
        for one in (*others, name):
            fs.pipe_file(f".my/c/{one}/x", one.encode())
        fs.get(f".my/c/{name}", str(tmp_path / "copy"), recursive=True)
        assert (tmp_path / "copy/x").read_bytes() == name.encode()
        fs.rm(f".my/c/{name}", recursive=True)
        assert sorted(path.rpartition("/")[2] for path in fs.ls(".my/c", detail=False)) == sorted(others)
        fs.rm(".my/c/a*", recursive=True)  # a pattern, because no file has this name
        assert [path.rpartition("/")[2] for path in fs.ls(".my/c", detail=False)] == ["b"]

    def test_random_access(self, fs):
        content = os.urandom(5 * MIB)
        fs.pipe_file(".my/c/a", content)
        with fs.open(".my/c/a") as file:
            for position in (4 * MIB, 10, 10, 2 * MIB, 5 * MIB, 0, 5 * MIB - 3):
                file.seek(position)
                assert file.read(1000) == content[position : position + 1000]
            assert (file.size, file.seek(-5, os.SEEK_END), file.read()) == (
                5 * MIB,
                5 * MIB - 5,
                content[-5:],
            )

    @pytest.mark.parametrize(
        ("content", "is_zip"), [(b"PK\x05\x06" + bytes(18), True), (b"", False), (b"short", False)]
    )
    def test_zip_files_are_recognized_at_any_size(self, fs, content, is_zip):
        fs.pipe_file(".my/c/a", content)
        with fs.open(".my/c/a") as file:
            assert zipfile.is_zipfile(file) is is_zip

    @pytest.mark.parametrize(
        ("start", "end"),
        [(None, None), (3, 9), (3, None), (None, 9), (-4, None), (-4, -1), (50, 60), (9, 3), (8, 99)],
    )
    def test_ranges(self, fs, start, end):
        fs.pipe_file(".my/c/a", b"0123456789")
        assert fs.cat_file(".my/c/a", start, end) == b"0123456789"[start:end]

    def test_appending_to_a_file(self, fs):
        for piece in (b"one", b"two"):
            with fs.open(".my/c/log", "ab") as file:
                file.write(piece)
        assert fs.cat_file(".my/c/log") == b"onetwo"

    def test_an_unfinished_write_is_not_visible(self, fs):
        with pytest.raises(ZeroDivisionError), fs.open(".my/c/a", "wb") as file:
            file.write(b"half")
            raise ZeroDivisionError
        assert not fs.exists(".my/c/a")
        with fs.transaction:
            fs.pipe_file(".my/c/b", b"at once")
            with fs.open(".my/c/a", "wb") as file:
                file.write(b"in a transaction")
            assert not fs.exists(".my/c/a")
        assert fs.cat_file(".my/c/a") == b"in a transaction"

    def test_a_listing_of_several_pages(self, fs, store):
        fs.mkdir(".my/c")
        for number in range(2100):
            (store / "me" / "c" / f"{number}").touch()
        assert len(fs.ls(".my/c")) == 2100

    def test_info_of_a_file(self, fs):
        fs.pipe_file(".my/c/sub/a", b"x" * 10)
        info = fs.info("algorithmia://.my/c/sub/a")
        assert (info["name"], info["type"], info["size"]) == (".my/c/sub/a", "file", 10)
        assert info["etag"] == hashlib.md5(b"x" * 10).hexdigest()
        assert fs.sha256(".my/c/sub/a") == hashlib.sha256(b"x" * 10).hexdigest()
        assert abs(fs.modified(".my/c/sub/a").timestamp() - time.time()) < 60
        assert fs.find(".my/c") == [".my/c/sub/a"]
        assert fs.glob(".my/*/sub/*") == [".my/c/sub/a"]
        assert fs.ls(".my/c/sub/a", detail=False) == [".my/c/sub/a"]
        assert (fs.isdir(".my/c/sub"), fs.isfile(".my/c/sub"), fs.exists(".my/c/no")) == (True, False, False)

    def test_errors_are_file_errors(self, fs):
        fs.pipe_file(".my/c/sub/a", b"x")
        with pytest.raises(FileNotFoundError):
            fs.open(".my/c/no")
        with pytest.raises(FileNotFoundError):
            fs.ls(".my/no")
        with pytest.raises(IsADirectoryError):
            fs.open(".my/c/sub")
        with pytest.raises(FileExistsError):
            fs.mkdir(".my/c")
        with pytest.raises(FileExistsError):
            fs.pipe_file(".my/c/sub", b"x")
        with pytest.raises(OSError, match="not empty"):
            fs.rmdir(".my/c")
        with pytest.raises(OSError, match="must not contain"):
            fs.pipe_file(".my/c/a#b", b"x")

    def test_a_key_appears_in_no_text(self, url):
        fs = files_at(f"{url}/k/secret-in-address")
        with pytest.raises(OSError) as failure:
            fs.cat_file(".my/c/a")
        assert "secret-in-address" not in f"{failure.value!r} {fs!r}"


class TestOriginalService:
    """A private installation lacks the gateway's extensions."""

    @pytest.fixture
    def fs(self, tmp_path):
        with serving(original(data_app(tmp_path / "store")), lifespan="off") as url:
            yield files_at(url)

    def test_folders_round_trip(self, fs, tmp_path):
        contents = {
            "a": b"a",
            "empty": b"",
            "sub/large": os.urandom(300_000),
            **{f"{n}": b"%d" % n for n in range(9)},
        }
        for name, content in contents.items():
            (tmp_path / "up" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "up" / name).write_bytes(content)
        fs.put(f"{tmp_path}/up/", ".my/c/", recursive=True)
        fs.get(".my/c/", f"{tmp_path}/down/", recursive=True)
        assert {name: (tmp_path / "down" / name).read_bytes() for name in contents} == contents
        fs.cp(".my/c/sub/large", ".my/c/copy")
        fs.mv(".my/c/a", ".my/c/moved")
        assert (fs.cat_file(".my/c/copy"), fs.exists(".my/c/a")) == (contents["sub/large"], False)
        fs.rm(".my/c", recursive=True)
        assert not fs.exists(".my/c")

    def test_random_access(self, fs):
        content = os.urandom(3 * MIB)
        fs.pipe_file(".my/c/a", content)
        assert fs.info(".my/c/a")["size"] == len(content)
        assert fs.sha256(".my/c/a") == hashlib.sha256(content).hexdigest()
        assert fs.cat_file(".my/c/a", 2 * MIB, 2 * MIB + 10) == content[2 * MIB :][:10]
        with fs.open(".my/c/a") as file:
            for position in (10, 2 * MIB, 5):
                file.seek(position)
                assert file.read(100) == content[position : position + 100]

    def test_an_exclusive_file(self, fs):
        fs.pipe_file(".my/c/a", b"x", mode="create")
        with pytest.raises(FileExistsError):
            fs.pipe_file(".my/c/a", b"y", mode="create")


def test_a_deleted_file_system_closes_its_sockets_immediately(url):
    fs = files_at(url)
    fs.pipe_file(".my/c/a", b"x")
    pool = fs.connection.pool
    assert pool.pool.qsize()
    del fs
    assert pool.pool is None  # closed, although the pool is still referenced here


class TestFaults:
    """Failures never lose, duplicate or truncate data."""

    @pytest.mark.slow
    def test_transfers_interrupted_a_thousand_times_have_the_right_checksum(self, url, fs, impatient, tmp_path):
        choose = random.Random(7)
        content = choose.randbytes(MIB // 2)
        (tmp_path / "up").write_bytes(content)
        for number in range(500):
            up, down = ("up", choose.randrange(MIB // 2)), ("down", choose.randrange(MIB // 2))
            with proxied(url, Faults(cuts=iter([up, down]))) as flaky:
                cut = files_at(flaky)
                cut.put_file(str(tmp_path / "up"), f".my/c/{number % 3}")
                assert fs.cat_file(f".my/c/{number % 3}") == content
                cut.get_file(f".my/c/{number % 3}", str(tmp_path / "down"))
                assert (tmp_path / "down").read_bytes() == content
        assert {path.name for path in tmp_path.iterdir()} == {"up", "down"}

    def test_an_interrupted_stream_resumes(self, url, fs, impatient):
        content = os.urandom(8 * MIB)
        fs.pipe_file(".my/c/a", content)
        faults = Faults(cuts=itertools.repeat(("down", MIB), 5))
        with proxied(url, faults) as flaky, files_at(flaky).open(".my/c/a") as file:
            assert file.read() == content
        assert faults.seen == 6

    def test_a_file_replaced_during_a_read_raises_an_error(self, url, fs, impatient):
        fs.pipe_file(".my/c/a", b"a" * 8 * MIB)
        with (
            proxied(url, Faults(cuts=iter([("down", MIB)]))) as flaky,
            files_at(flaky).open(".my/c/a") as file,
        ):
            assert file.read(10) == b"a" * 10
            fs.pipe_file(".my/c/a", b"b" * 8 * MIB)
            with pytest.raises(OSError, match="replaced"):
                file.read()

    @pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
    def test_busy_responses_are_retried(self, tmp_path, impatient, status):
        answers, calls = [], []
        with serving(failing(data_app(tmp_path / "store"), answers, calls), lifespan="off") as url:
            fs = files_at(url)
            for call in (
                lambda: fs.pipe_file(".my/c/a", b"x"),
                lambda: fs.cat_file(".my/c/a"),
                lambda: fs.ls(".my/c"),
                lambda: fs.rm(".my/c/a"),
            ):
                answers += [(status, {})] * 3
                call()
            assert fs.ls(".my/c") == []

    def test_a_request_that_may_have_succeeded_is_not_retried(self, tmp_path, impatient):
        answers, calls = [(500, {})], []
        with serving(failing(data_app(tmp_path / "store"), answers, calls), lifespan="off") as url:
            with pytest.raises(OSError, match="status 500"):
                files_at(url).mkdir(".my/c")
            assert calls == ["POST"]
            answers.append((429, {}))
            files_at(url).mkdir(".my/c")
            assert calls == ["POST", "POST", "POST"]

    def test_retry_after_is_respected(self, tmp_path):
        answers = [(429, {"retry-after": "1"})]
        with serving(failing(data_app(tmp_path / "store"), answers, []), lifespan="off") as url:
            before = time.monotonic()
            files_at(url).pipe_file(".my/c/a", b"x")
            assert 1 <= time.monotonic() - before < 5

    def test_a_full_disk_raises_an_error_and_leaves_no_file(self, url, fs, tmp_path):
        fs.pipe_file(".my/c/a", os.urandom(3 * MIB))
        code = (
            "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000,) * 2);"
            "from free_ml_stack.algorithmia.filesystem import AlgorithmiaFileSystem;"
            "AlgorithmiaFileSystem(sys.argv[1], 'key-of-me').get_file('.my/c/a', sys.argv[2])"
        )
        command = [sys.executable, "-c", code, url, str(tmp_path / "down")]
        environ = {**os.environ, "PYTHONPATH": str(places.SOURCE)}
        done = subprocess.run(command, env=environ, capture_output=True, text=True)
        assert done.stderr.splitlines()[-1].startswith("OSError: [Errno 27] File too large")
        assert list(tmp_path.iterdir()) == []

    def test_attempts_are_limited(self, tmp_path, impatient):
        calls = []
        app = failing(data_app(tmp_path / "store"), [(503, {})] * 99, calls)
        with serving(app, lifespan="off") as url, pytest.raises(OSError, match="status 503"):
            files_at(url).cat_file(".my/c/a")
        assert len(calls) == connection.ATTEMPTS
        with pytest.raises(ConnectionError, match=r"no answer from http://127\.0\.0\.1:\d+: "):
            files_at(url).exists(".my/c/a")

    def test_an_unresponsive_server_times_out(self, url, fs, impatient, monkeypatch):
        content = os.urandom(2 * MIB)
        fs.pipe_file(".my/c/a", content)
        monkeypatch.setattr(connection, "READ_SECONDS", 0.2)
        faults = Faults(cuts=iter([]), bytes_per_second=50_000)
        with proxied(url, faults) as slow:
            threading.Timer(1.0, setattr, (faults, "bytes_per_second", float("inf"))).start()
            assert files_at(slow).cat_file(".my/c/a") == content
        assert faults.seen > 1

    def test_a_checksum_mismatch_is_detected_and_retried(self, tmp_path):
        spoils = iter([True])
        with serving(spoiling(data_app(tmp_path / "store"), lambda: next(spoils, False)), lifespan="off") as url:
            fs = files_at(url)
            (tmp_path / "a").write_bytes(os.urandom(100_000))
            fs.put_file(str(tmp_path / "a"), ".my/c/a")
            spoils = iter([True])
            fs.get_file(".my/c/a", str(tmp_path / "b"))
            assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
            spoils = iter([True])
            with pytest.raises(OSError, match="another xxh3-128"):
                fs.pipe_file(".my/c/a", b"these bytes")
            assert fs.cat_file(".my/c/a") == (tmp_path / "a").read_bytes()

    def test_a_persistent_checksum_mismatch_leaves_no_file(self, tmp_path):
        with serving(data_app(tmp_path / "store"), lifespan="off") as url:
            files_at(url).pipe_file(".my/c/a", os.urandom(100_000))
        with serving(spoiling(data_app(tmp_path / "store"), lambda: True), lifespan="off") as url:
            (tmp_path / "mine").write_text("old")
            with pytest.raises(ChecksumError):
                files_at(url).get_file(".my/c/a", str(tmp_path / "mine"))
            with pytest.raises(ChecksumError), files_at(url).open(".my/c/a") as file:
                file.read()
        assert {path.name for path in tmp_path.iterdir()} == {"store", "mine"}
        assert (tmp_path / "mine").read_text() == "old"

    def test_a_hundred_concurrent_clients(self, url, fs):
        contents = {f".my/c/{number % 10}": os.urandom(200_000) for number in range(10)}

        def work(number: int) -> bool:
            name = f".my/c/{number % 10}"
            client = Algorithmia.client("key-of-me", url)
            with closing(client.requestSession):
                client.file(f"data://{name}").put(contents[name])
                return client.file(f"data://{name}").getBytes() == contents[name]

        with ThreadPoolExecutor(100) as pool:
            assert all(pool.map(work, range(100)))
        assert {name: fs.cat_file(name) for name in contents} == contents
