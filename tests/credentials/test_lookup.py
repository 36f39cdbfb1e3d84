"""Lookup of keys with unreadable homes, proxies, and self-hosted servers."""

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
    """Run as a user to whom file permissions apply, unlike root."""
    # imported first, because the other user may not be able to read Python's modules
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
    """A home that only its owner can access, beside a project that everyone can access."""
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


def test_an_inaccessible_home_has_no_keys(closed: Path) -> None:
    environ = {"HOME": str(closed / "home"), "NETRC": str(closed / "home/netrc")}
    with another_user():
        reports = credentials.check(environ)
        assert keys.present(environ) == frozenset()
        settings = load({}, closed / "project", environ)
    assert [report.outcome for report in reports] == ["missing"] * 3
    assert settings.root == closed / "project"


def test_keys_of_the_environment_are_found_with_an_inaccessible_home(closed: Path) -> None:
    with another_user():
        environ = {"HOME": str(closed / "home"), "WANDB_API_KEY": WANDB_KEY, "AWS_PROFILE": "x"}
        assert keys.present(environ) == {"wandb", "s3"}


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_a_server_on_this_machine_is_checked_without_the_proxy(
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
def test_loopback_urls_are_recognized(url: str, loopback: bool) -> None:
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
def test_the_page_for_new_keys_belongs_to_the_keys_server(
    tmp_path: Path, service: str, variable: str, address: str, page: str
) -> None:
    (missing,) = credentials.check(environment(tmp_path, **{variable: address}), services=[service])
    bad = {keys.SECRET[service]: "a b"}
    (report,) = credentials.check(environment(tmp_path, **bad, **{variable: address}), services=[service])
    assert (missing.outcome, report.outcome) == ("missing", "rejected")
    assert missing.page == report.page == page
    assert page in missing.remedy and page in report.remedy


def test_files_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    folder = tmp_path / ".cache/huggingface"
    folder.mkdir(parents=True)
    (folder / "token").write_bytes(b"\xef\xbb\xbf" + HF_KEY.encode())
    found = keys.find("huggingface", environment(tmp_path))
    assert found.value == HF_KEY
