"""Keys are looked for and asked about in surroundings that are out of order."""

import codecs
import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from key_server import HF_KEY, WANDB_KEY, environment, serving, whoami

from free_ml_stack.credentials import check as credentials
from free_ml_stack.credentials import keys
from free_ml_stack.project.settings import load


@contextmanager
def another_user() -> Iterator[None]:
    """As a user for whom modes count, which they don't for root."""
    # first as ourselves: the other may not be able to read Python's own modules
    credentials.check({"HOME": "/nowhere"})
    assert codecs.lookup("utf-8-sig") and tomllib.loads("") == {}
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def closed() -> Iterator[Path]:
    """A home that only its owner can search, with a project beside it that anybody can."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    (folder / "home").mkdir(mode=0o700)
    (folder / "project").mkdir()
    (folder / "project/stack.toml").write_text('project = "p"\n')
    if os.geteuid():
        (folder / "home").chmod(0)
    yield folder
    (folder / "home").chmod(0o700)
    shutil.rmtree(folder)


def test_a_home_that_cannot_be_searched_holds_no_keys(closed: Path) -> None:
    environ = {"HOME": str(closed / "home"), "NETRC": str(closed / "home/netrc")}
    with another_user():
        reports = credentials.check(environ)
        assert keys.present(environ) == frozenset()
        settings = load({}, closed / "project", environ)
    assert [report.outcome for report in reports] == ["missing"] * 3
    assert settings.root == closed / "project"


def test_a_home_that_cannot_be_searched_hides_no_key_of_the_environment(closed: Path) -> None:
    with another_user():
        environ = {"HOME": str(closed / "home"), "WANDB_API_KEY": WANDB_KEY, "AWS_PROFILE": "x"}
        assert keys.present(environ) == {"wandb", "s3"}


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_no_proxy_is_asked_for_a_server_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for given in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(given, raising=False)
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving(body=whoami("ada")) as server:
        environ = environment(tmp_path, HF_TOKEN=HF_KEY, HF_ENDPOINT=server.url)
        (report,) = credentials.check(environ, services=["huggingface"])
    assert report.reason not in ("unreachable", "timeout")


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://127.0.0.1:8", True),
        ("http://127.3.2.1", True),
        ("http://[::1]:8", True),
        ("http://localhost", True),
        ("http://a.localhost:1", True),
        ("http://127.0.0.1.org", False),
        ("https://10.0.0.1", False),
        ("http://[::1", False),
        ("", False),
    ],
)
def test_the_machine_itself_is_known(url: str, loopback: bool) -> None:
    assert keys.is_loopback(url) is loopback


@pytest.mark.parametrize(
    ("service", "variable", "address", "page"),
    [
        ("wandb", "WANDB_BASE_URL", "https://wandb.example.org", "https://wandb.example.org/authorize"),
        ("wandb", "WANDB_BASE_URL", "https://me:secret@w.org:8/x", "https://w.org:8/authorize"),
        ("wandb", "WANDB_BASE_URL", "https://api.wandb.ai", "https://wandb.ai/authorize"),
        ("wandb", "WANDB_BASE_URL", "", "https://forge.coreweave.com/wandb/authorize"),
        ("huggingface", "HF_ENDPOINT", "https://hub.org", "https://hub.org/settings/tokens"),
    ],
)
def test_a_new_key_is_made_at_the_server_that_it_is_for(
    tmp_path: Path, service: str, variable: str, address: str, page: str
) -> None:
    (missing,) = credentials.check(environment(tmp_path, **{variable: address}), services=[service])
    bad = {keys.SECRET[service]: "a b"}
    (report,) = credentials.check(environment(tmp_path, **bad, **{variable: address}), services=[service])
    assert (missing.outcome, report.outcome) == ("missing", "rejected")
    assert missing.page == report.page == page
    assert page in missing.remedy and page in report.remedy


def test_files_with_the_mark_of_windows_editors_are_read(tmp_path: Path) -> None:
    folder = tmp_path / ".cache/huggingface"
    folder.mkdir(parents=True)
    (folder / "token").write_bytes(b"\xef\xbb\xbf" + HF_KEY.encode())
    found = keys.find("huggingface", environment(tmp_path))
    assert found and found.value == HF_KEY
