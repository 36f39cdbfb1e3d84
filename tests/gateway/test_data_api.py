"""The Data API with the official client and other HTTP clients."""

import errno
import hashlib
import os
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Semaphore

import Algorithmia
import numpy as np
import pytest
import requests
from Algorithmia.acl import ReadAcl
from Algorithmia.errors import DataApiError
from fsspec.callbacks import Callback
from serving import serving
from storing import data_app, free_port, process

from free_ml_stack.algorithmia import connection
from free_ml_stack.algorithmia.filesystem import AlgorithmiaFileSystem
from free_ml_stack.gateway.protocol.direct import DirectProtocol


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def url(folder):
    with serving(data_app(folder), lifespan="off", http=DirectProtocol) as url:
        yield url


@pytest.fixture
def client(url) -> Algorithmia.Client:
    return Algorithmia.client("key-of-me", url)


@pytest.fixture
def you(url) -> Algorithmia.Client:
    return Algorithmia.client("key-of-you", url)


@pytest.fixture
def stranger(url) -> Algorithmia.Client:
    return Algorithmia.client(None, url)


@pytest.fixture
def collection(client, request):
    directory = client.dir(f"data://.my/{re.sub(r'[^a-z]+', '_', request.node.name.lower())}")
    directory.create()
    yield directory
    directory.delete(force=True)


@pytest.fixture
def http(url):
    with requests.Session() as session:
        session.headers["Authorization"] = "key-of-me"
        yield lambda method, path, **options: session.request(method, url + path, **options)


class TestFiles:
    def test_bytes_are_returned_unchanged(self, collection):
        content = bytes(range(256)) * 100
        file = collection.file("a.bin").put(content)
        assert file.exists()
        assert file.getBytes() == content
        assert Path(file.getFile(as_path=True)).read_bytes() == content

    def test_text_is_returned_unchanged(self, collection):
        assert collection.file("a.txt").put("Grüße, 世界").getString() == "Grüße, 世界"

    @pytest.mark.filterwarnings("ignore:'pkgutil.find_loader' is deprecated")  # the client's own
    def test_json_and_arrays(self, collection):
        assert collection.file("a.json").putJson({"a": [1, None, "ä"]}).getJson() == {"a": [1, None, "ä"]}
        array = np.arange(6.0).reshape(2, 3)
        assert np.array_equal(collection.file("b.json").putNumpy(array).getNumpy(), array)

    @pytest.mark.parametrize("size", [0, 1, 65_536, 300_000, 5_000_001])
    def test_files_of_any_size(self, collection, tmp_path, size):
        (tmp_path / "up").write_bytes(os.urandom(size))
        file = collection.file("sized").putFile(str(tmp_path / "up"))
        assert file.getBytes() == (tmp_path / "up").read_bytes()

    def test_a_file_is_replaced(self, collection):
        assert collection.file("a").put("one").put("two").getString() == "two"

    def test_a_zip_of_a_folder(self, collection, tmp_path):
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "a").write_text("1")
        (tmp_path / "x" / "b").write_text("2")
        folder = collection.file("x.zip").putAsZip(str(tmp_path / "x")).getAsZip()
        assert {path.name: path.read_text() for path in Path(folder).iterdir()} == {"a": "1", "b": "2"}

    @pytest.mark.parametrize("name", ["with space", "a+b&c=d;e'(f):g", "[brackets]", "ünï-код-文件.txt", "100%", "%41"])
    def test_names_that_need_encoding(self, collection, client, name):
        client.file(f"{collection.path}/{name}").put("x")
        named = "A" if name == "%41" else name  # the client decodes %41 to A
        assert [file.getName() for file in collection.files()] == [named]
        assert client.file(f"{collection.path}/{name}").getString() == "x"

    @pytest.mark.parametrize("name", ["a:", "s3:", "a:b:", ":"])
    def test_a_folder_name_may_contain_a_colon(self, collection, client, name):
        folder = client.dir(f"{collection.path}/{name}")
        folder.create()
        folder.file("x").put("y")
        assert client.file(f"{collection.path}/{name}/x").getString() == "y"
        assert [file.getName() for file in folder.files()] == ["x"]
        folder.delete(force=True)

    def test_a_missing_file_or_folder_is_reported(self, collection):
        assert not collection.file("nothing").exists()
        with pytest.raises(DataApiError, match="no such file or directory: data://me/"):
            collection.file("nothing").getString()
        with pytest.raises(DataApiError, match="no such file"):
            collection.file("nothing").delete()

    def test_a_deleted_file_is_gone(self, collection):
        file = collection.file("a").put("x")
        assert file.delete()
        assert not file.exists()


class TestDirectories:
    def test_the_root_lists_the_user(self, client):
        assert client.username() == "me"

    def test_a_directory_cannot_be_created_twice(self, collection):
        assert collection.exists()
        with pytest.raises(Exception, match="409"):  # the client drops the message
            collection.create()

    def test_files_and_directories_are_listed_with_size_and_time(self, collection):
        collection.file("b").put("123")
        collection.file("a").put("12345")
        collection.dir("sub").create()
        assert [file.getName() for file in collection.files()] == ["a", "b"]
        assert [directory.getName() for directory in collection.dirs()] == ["sub"]
        first = next(collection.files())
        assert first.size == 5
        assert abs(first.last_modified.replace(tzinfo=UTC) - datetime.now(UTC)).total_seconds() < 60

    def test_a_long_listing_is_paginated(self, collection, folder, http):
        names = {f"{number:04d}" for number in range(2500)}
        for name in names:
            (folder / "me" / collection.getName() / name).touch()
        assert {file.getName() for file in collection.files()} == names
        page = http("GET", collection.url).json()
        assert len(page["files"]) == 1000
        assert http("GET", collection.url, params={"marker": "nonsense"}).status_code == 400

    def test_a_directory_with_files_is_deleted_with_force(self, collection):
        inner = collection.dir("inner")
        inner.create()
        inner.file("a").put("x")
        with pytest.raises(DataApiError, match="not empty"):
            inner.delete()
        assert inner.delete(force=True)
        assert not inner.exists()
        inner.create()
        assert inner.delete()

    def test_a_directory_is_downloaded(self, collection):
        for name in ("a", "b"):
            collection.file(name).put(name)
        assert sorted(path.name for path in Path(collection.getDir()).iterdir()) == ["a", "b"]

    def test_a_directory_and_a_file_cannot_share_a_name(self, collection, http):
        collection.file("file").put("x")
        collection.dir("dir").create()
        assert http("PUT", f"{collection.url}/dir", data=b"x").status_code == 409
        assert http("PUT", f"{collection.url}/file/inner", data=b"x").status_code == 409
        assert http("GET", f"{collection.url}/file/inner").status_code == 404


class TestRights:
    @pytest.mark.parametrize("acl", [ReadAcl.public, ReadAcl.private, ReadAcl.my_algos])
    def test_a_directory_is_created_with_rights(self, client, acl):
        directory = client.dir("data://.my/rights")
        directory.create(acl)
        assert directory.get_permissions().read_acl is acl.read_acl
        directory.delete()

    def test_rights_are_changed_and_deleted_with_the_directory(self, collection):
        inner = collection.dir("inner")
        inner.create(ReadAcl.public)
        inner.update_permissions(ReadAcl.private)
        assert inner.get_permissions().read_acl is ReadAcl.private.read_acl
        inner.delete()
        inner.create()
        assert inner.get_permissions().read_acl is ReadAcl.my_algos.read_acl

    def test_rights_persist_across_restarts(self, collection, folder, you):
        collection.update_permissions(ReadAcl.public)
        collection.file("a").put("x")
        with serving(data_app(folder), lifespan="off") as url:
            assert Algorithmia.client(None, url).file(f"data://me/{collection.getName()}/a").getString() == "x"

    def test_other_users_can_read_public_collections_and_write_nothing(self, collection, you, stranger):
        collection.file("a").put("x")
        path = f"data://me/{collection.getName()}"
        for other, word in ((you, "no access"), (stranger, "authorization required")):
            with pytest.raises(DataApiError, match=word):
                other.file(f"{path}/a").getString()
            assert not other.dir(path).exists()
        collection.update_permissions(ReadAcl.public)
        for other in (you, stranger):
            assert other.file(f"{path}/a").getString() == "x"
            assert [file.getName() for file in other.dir(path).files()] == ["a"]
            with pytest.raises(Exception, match="Response"):
                other.file(f"{path}/a").put("y")
            with pytest.raises(DataApiError):
                other.file(f"{path}/a").delete()
            with pytest.raises(Exception, match="Response"):
                other.dir(f"{path}/mine").create()
            with pytest.raises(DataApiError):
                other.dir(path).update_permissions(ReadAcl.private)
        assert collection.file("a").getString() == "x"

    @pytest.mark.parametrize("acl", [None, {}, {"read": ["user://someone"]}, {"read": "user://*"}, {"write": []}, 7])
    def test_unknown_rights_are_rejected(self, collection, http, acl):
        answer = http("PATCH", collection.url, json={"acl": acl})
        assert (answer.status_code, answer.json()["error"]["message"][:7]) == (400, "acl mus")


class TestHttp:
    def test_the_connector_path_is_the_same_store(self, collection, http):
        path = f"me%2F{collection.getName()}%2Fa%20b"
        assert http("PUT", f"/v1/connector/data/{path}", data=b"x").json() == {
            "result": f"data://me/{collection.getName()}/a b"
        }
        assert collection.file("a b").getString() == "x"
        assert http("GET", "/v1/connector/dropbox/x").status_code == 404
        assert http("GET", "/v1/data/s3+label://bucket/x").status_code == 404
        assert http("GET", "/v1/data/s3+label:/bucket/x").status_code == 404

    def test_session_paths_are_not_supported(self, http):
        """A session is one call of an algorithm; requests outside of a call are rejected."""
        for path in ("/v1/data/.session/x", "/v1/connector/data/.session/x", "/v1/data//.session//x"):
            refused = http("PUT", path, data=b"secret")
            assert (refused.status_code, ".session is not supported" in refused.text) == (404, True)
            assert http("GET", path).status_code == 404

    @pytest.mark.parametrize("path", ["//v1/data/.my/{}", "/v1/data//.my//{}/", "/v1/data/me/{}//"])
    def test_repeated_slashes_are_ignored(self, collection, http, path):
        collection.file("a").put("x")
        assert http("GET", path.format(collection.getName())).json()["files"][0]["filename"] == "a"

    def test_a_chunked_upload_without_a_length(self, collection, http):
        assert http("PUT", f"{collection.url}/a", data=iter([b"one", b"two"])).status_code == 200
        assert collection.file("a").getBytes() == b"onetwo"

    @pytest.mark.parametrize("size", [20, 3_000_000])
    @pytest.mark.parametrize(
        ("asked", "slice_"),
        [
            ("0-4", slice(0, 5)),
            ("5-", slice(5, None)),
            ("-7", slice(-7, None)),
            ("3-99999999", slice(3, None)),
        ],
    )
    def test_a_range_of_a_file(self, collection, http, size, asked, slice_):
        content = os.urandom(size)
        collection.file("a").put(content)
        answer = http("GET", f"{collection.url}/a", headers={"Range": f"bytes={asked}"})
        assert (answer.status_code, answer.content) == (206, content[slice_])
        begin = slice_.indices(size)[0]
        assert answer.headers["Content-Range"] == f"bytes {begin}-{begin + len(answer.content) - 1}/{size}"

    def test_invalid_ranges(self, collection, http):
        collection.file("a").put("0123456789")
        get = lambda **headers: http("GET", f"{collection.url}/a", headers=headers)  # noqa: E731
        assert get(Range="bytes=10-").status_code == 416
        assert get(Range="bytes=10-").headers["Content-Range"] == "bytes */10"
        for nonsense in ("bytes=5-2", "bytes=-", "lines=1-2", "bytes=1-2,4-5", "bytes=a-b"):
            assert get(Range=nonsense).content == b"0123456789"
        changed = {"Range": "bytes=2-3", "If-Range": '"of another version"'}
        assert http("GET", f"{collection.url}/a", headers=changed).content == b"0123456789"

    def test_head_and_get_agree_and_contain_the_md5(self, collection, http):
        content = os.urandom(1000)
        collection.file("a").put(content)
        head, get = http("HEAD", f"{collection.url}/a"), http("GET", f"{collection.url}/a")
        for name in ("Content-Length", "ETag", "Content-Type", "Last-Modified", "X-Data-Type"):
            assert head.headers[name] == get.headers[name]
        assert head.headers["ETag"] == f'"{hashlib.md5(content).hexdigest()}"'
        assert head.headers["X-Data-Type"] == "file"
        folder = http("HEAD", collection.url).headers
        assert folder["X-Data-Type"] == "directory"
        assert "Content-Length" not in folder  # the length of GET needs a listing
        unchanged = http("GET", f"{collection.url}/a", headers={"If-None-Match": head.headers["ETag"]})
        assert (unchanged.status_code, unchanged.content) == (304, b"")

    def test_the_etag_of_a_large_file_changes_with_the_file(self, collection, http):
        tags = set()
        for _ in range(2):
            collection.file("large").put(bytes(17 << 20))
            tags.add(http("HEAD", f"{collection.url}/large").headers["ETag"])
        assert len(tags) == 2

    def test_a_body_with_a_checksum_mismatch_is_not_stored(self, collection, http):
        right = {"Repr-Digest": "sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:"}
        assert http("PUT", f"{collection.url}/a", data=b"hello", headers=right).status_code == 200
        wrong = http("PUT", f"{collection.url}/a", data=b"hellO", headers=right)
        assert (wrong.status_code, collection.file("a").getString()) == (400, "hello")

    def test_if_none_match_prevents_an_overwrite(self, collection, http):
        new = {"If-None-Match": "*"}
        answers = [http("PUT", f"{collection.url}/a", data=b"x", headers=new).status_code for _ in range(2)]
        assert answers == [200, 412]

    @pytest.mark.parametrize(
        ("method", "path", "options", "status"),
        [
            ("PUT", "/v1/data/.my/file", {"data": b"x"}, 400),
            ("PUT", "/v1/data/", {"data": b"x"}, 400),
            ("POST", "/v1/data/.my", {"data": b"{"}, 400),
            ("POST", "/v1/data/.my", {"json": []}, 400),
            ("POST", "/v1/data/.my", {"json": {"name": 5}}, 400),
            ("POST", "/v1/data/.my", {"json": {"name": "a/b"}}, 400),
            ("POST", "/v1/data/.my", {"json": {"name": ".."}}, 400),
            ("POST", "/v1/data/.my", {"data": b"[" * 100_000}, 400),
            ("POST", "/v1/data/.my", {"data": b" " * 2_000_000}, 413),
            ("POST", "/v1/data/", {"json": {"name": "someone"}}, 403),
            ("DELETE", "/v1/data/.my", {}, 400),
            ("DELETE", "/v1/data/.my/nothing", {}, 404),
            ("PATCH", "/v1/data/.my/nothing", {"json": {"acl": {"read": []}}}, 404),
            ("OPTIONS", "/v1/data/.my", {}, 405),
            ("PUT", "/v1/data/.my/c/" + "x" * 256, {"data": b"x"}, 400),
            ("PUT", "/v1/data/.my/c/a%23b", {"data": b"x"}, 400),
            ("PUT", "/v1/data/.my/c/a%3Fb", {"data": b"x"}, 400),
            ("PUT", "/v1/data/.my/c/a%00b", {"data": b"x"}, 400),
            ("GET", "/v1/data/.my/c/a%00b", {}, 404),
        ],
    )
    def test_an_invalid_request_gets_an_error_of_the_documented_form(self, http, method, path, options, status):
        answer = http(method, path, **options)
        error = answer.json()["error"]
        assert (answer.status_code, set(error)) == (status, {"id", "code", "message"})
        assert "Traceback" not in answer.text


TRAVERSAL = [
    "../../../etc/passwd",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "..%252f..%252fetc%252fpasswd",
    "..%c0%af..%c0%afetc/passwd",
    "....//....//etc/passwd",
    "..\\..\\etc\\passwd",
    "..%5c..%5cetc%5cpasswd",
    "/etc/passwd",
    "//etc/passwd",
    "%2fetc%2fpasswd",
    "file:///etc/passwd",
    "file%3a%2f%2f%2fetc%2fpasswd",
    ".my/c/../../../../etc/passwd",
    ".my/c/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    ".my/c/..%00/../etc/passwd",
    "me/c/./../../you/secret",
    "..;/..;/etc/passwd",
    "C:/Windows/win.ini",
    "C:%5cWindows%5cwin.ini",
    ".part/x",
    ".acl/me/c/%23read",
    "me/c/link/passwd",
    "me/c/to_passwd",
]


def ask(url: str, method: str, path: str, body: bytes = b"") -> bytes:
    """Send a request with the given path, without normalization by a library."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = f"{method} /v1/data/{path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: key-of-me\r\nConnection: close\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize("path", TRAVERSAL)
def test_no_path_points_outside_the_store(tmp_path, path):
    store, outside = tmp_path / "store", tmp_path / "outside"
    (store / "me" / "c").mkdir(parents=True)
    outside.mkdir()
    (outside / "passwd").write_text("root:secret")
    (store / "me" / "c" / "link").symlink_to(outside)
    (store / "me" / "c" / "to_passwd").symlink_to(outside / "passwd")
    before = {
        path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(store)
    }
    with serving(data_app(store), lifespan="off") as url:
        for method in ("GET", "HEAD", "PUT", "DELETE"):
            answer = ask(url, method, path, b"overwritten" if method == "PUT" else b"")
            assert b"root:" not in answer
            assert b"Traceback" not in answer
            assert int(answer.split()[1]) < 500
    after = {
        path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(store)
    }
    assert after == before
    assert not Path("/etc/passwd").read_text().startswith("overwritten")


class TestFaults:
    """A server that is killed or out of disk space keeps complete files only."""

    @pytest.mark.parametrize("chunked", [False, True])
    def test_a_server_killed_during_an_upload(self, tmp_path, chunked):
        store, port = tmp_path / "store", free_port()
        content = os.urandom(20 << 20)

        def body():
            for start in range(0, len(content), 1 << 16):
                yield content[start : start + (1 << 16)]
                if start > 10 << 20 and server.poll() is None:
                    os.kill(server.pid, signal.SIGKILL)
                    server.wait()

        with process(store, port) as server:
            client = Algorithmia.client("key-of-me", f"http://127.0.0.1:{port}")
            client.file("data://.my/c/a").put("old")
            sent = body() if chunked else Sized(body(), len(content))
            with pytest.raises(requests.ConnectionError):
                client.requestSession.put(f"{client.apiAddress}/v1/data/.my/c/a", data=sent, headers=KEY)
        with process(store, port):
            assert [file.getName() for file in client.dir("data://.my/c").files()] == ["a"]
            assert client.file("data://.my/c/a").getString() == "old"

    def test_the_file_system_retries_after_a_restart_of_the_server(self, tmp_path, monkeypatch):
        """The file system repeats an interrupted upload when the server is back."""
        tried = Semaphore(0)
        monkeypatch.setattr(connection.log, "info", lambda *_: tried.release())
        port = free_port()
        (tmp_path / "up").write_bytes(os.urandom(30 << 20))
        with process(tmp_path / "store", port) as first:
            fs = AlgorithmiaFileSystem(f"http://127.0.0.1:{port}", "key-of-me", skip_instance_cache=True)
            sent = Callback(hooks={"kill": lambda size, value: first.kill() if value > 10 << 20 else None})
            with ThreadPoolExecutor(1) as pool:
                upload = pool.submit(fs.put_file, str(tmp_path / "up"), ".my/c/a", callback=sent)
                first.wait()
                assert not (tmp_path / "store" / "me" / "c" / "a").exists()
                # the retries last longer than for a server that was never reachable
                assert all(tried.acquire(timeout=30) for _ in range(connection.FIRST_ATTEMPTS))
                with process(tmp_path / "store", port):
                    upload.result()
                    fs.get_file(".my/c/a", str(tmp_path / "down"))
        assert (tmp_path / "down").read_bytes() == (tmp_path / "up").read_bytes()

    def test_partial_files_of_a_killed_server_are_removed_after_a_day(self, tmp_path):
        part = tmp_path / ".part"
        part.mkdir()
        for name, age in (("old", 2 * 86400), ("fresh", 60)):
            (part / name).touch()
            os.utime(part / name, (time.time() - age,) * 2)
        data_app(tmp_path)
        assert [path.name for path in part.iterdir()] == ["fresh"]

    @pytest.mark.parametrize("chunked", [False, True])
    def test_a_full_disk(self, tmp_path, chunked):
        port = free_port()
        with process(tmp_path / "store", port, limit=2_000_000):
            client = Algorithmia.client("key-of-me", f"http://127.0.0.1:{port}")
            client.file("data://.my/c/a").put("old")
            sent = iter([bytes(1 << 20)] * 3) if chunked else bytes(3 << 20)
            answer = client.requestSession.put(f"{client.apiAddress}/v1/data/.my/c/a", data=sent, headers=KEY)
            assert (answer.status_code, answer.json()["error"]["message"]) == (
                507,
                "the store is full; nothing was changed",
            )
            assert client.file("data://.my/c/a").getString() == "old"
            assert client.file("data://.my/c/b").put(bytes(1_900_000)).exists()
            fs = AlgorithmiaFileSystem(client.apiAddress, "key-of-me", skip_instance_cache=True)
            with pytest.raises(OSError, match="the store is full") as failure:
                fs.pipe_file(".my/c/a", bytes(3 << 20))
            assert failure.value.errno == errno.ENOSPC
        assert list((tmp_path / "store" / ".part").iterdir()) == []

    def test_a_disconnected_client_leaves_no_file(self, url, folder, collection):
        host, port = url.removeprefix("http://").split(":")
        for length in (b"Content-Length: 9000000", b"Transfer-Encoding: chunked"):
            with socket.create_connection((host, int(port))) as connection:
                head = f"PUT {collection.url}/a HTTP/1.1\r\nHost: x\r\nAuthorization: key-of-me\r\n".encode()
                connection.sendall(head + length + b"\r\n\r\n" + b"100000\r\n" + bytes(1 << 20))
                wait_until(lambda: any((folder / ".part").glob("*")))
            wait_until(lambda: not any((folder / ".part").glob("*")))
        assert list(collection.files()) == []


class Sized:
    """A body with a known length for requests."""

    def __init__(self, pieces, size):
        self.pieces, self.size = pieces, size

    def __iter__(self):
        return self.pieces

    def __len__(self):
        return self.size


KEY = {"Authorization": "key-of-me"}


def wait_until(condition, seconds=10):
    """Wait until a condition is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("address", ["/v1/database", "/v1/data.my", "/v1/connector/data2/me"])
def test_a_path_with_the_same_prefix_is_not_the_data_api(http, address):
    assert http("GET", address).status_code == 404


def test_a_part_of_a_file_does_not_replace_the_whole(collection, http):
    collection.file("a").put("0123456789")
    answer = http("PUT", f"{collection.url}/a", data=b"56789", headers={"Content-Range": "bytes 5-9/10"})
    assert answer.status_code == 400
    assert "Content-Range" in answer.json()["error"]["message"]
    assert collection.file("a").getString() == "0123456789"
