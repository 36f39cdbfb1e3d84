"""Invalid environment variables give one-line errors, and proxies are not used for this machine."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from deployed import KEY, Deployed, deployed

from free_ml_stack.algorithmia.calls import call_algorithm
from free_ml_stack.algorithmia.connection import Connection
from free_ml_stack.cli import main
from free_ml_stack.credentials import environment as diagnosis
from free_ml_stack.errors import StackError
from free_ml_stack.hub import client
from free_ml_stack.project import settings
from free_ml_stack.project.settings import Settings, load

NOBODY = "http://127.0.0.1:9"
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with deployed(tmp_path_factory.mktemp("gateway")) as served:
        yield served


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_local_gateway_is_called_without_the_proxy(
    gateway: Deployed, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, NOBODY)
    settings = Settings(project="p", algorithm="me/demo", algorithmia_api=gateway.url, algorithmia_api_key=KEY)
    assert call_algorithm(settings, ["word"]) == ["hello"]
    assert Connection(gateway.url, KEY, 1).pool.proxy is None


@pytest.mark.parametrize("given", ["", "intranet, 10.0.0.1", "localhost"])
def test_no_proxy_includes_this_machine_if_a_proxy_is_set(tmp_path: Path, given: str) -> None:
    (tmp_path / "stack.toml").write_text('project = "p"\n')
    environ = {"HOME": str(tmp_path), "https_proxy": NOBODY, "NO_PROXY": given}
    load({}, tmp_path, environ)
    named = environ["no_proxy"].split(",")
    assert environ["NO_PROXY"] == environ["no_proxy"]
    assert {"localhost", "127.0.0.1", "::1", *filter(None, given.replace(" ", "").split(","))} == set(named)


def test_no_proxy_is_unchanged_without_a_proxy() -> None:
    for environ in ({}, {"NO_PROXY": "a"}, {"HTTP_PROXY": NOBODY, "no_proxy": "*"}):
        before = dict(environ)
        diagnosis.bypass_proxy_for_loopback(environ)
        assert environ == before


@pytest.mark.parametrize("name", diagnosis.NUMBERS)
def test_an_invalid_timeout_of_the_hubs_client_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "stack.toml").write_text('project = "p"\n')
    with pytest.raises(StackError, match=f"environment variable {name}: expected an integer, got 'ten'"):
        load({}, tmp_path, {name: "ten", "HOME": str(tmp_path)})


def raising(error: Exception) -> Any:
    def work() -> None:
        raise error

    return work


def test_an_unsupported_socks_proxy_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    httpx = pytest.importorskip("httpx")
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "socksio", None)
    with pytest.raises(StackError, match="ALL_PROXY is a SOCKS proxy, which requires socksio"):
        client.with_retries(lambda: httpx.Client())
    monkeypatch.setattr(settings, "load", lambda *_: httpx.Client())
    assert main.run(SimpleNamespace(package="p"), ["doctor"]) == 1  # type: ignore[arg-type]
    assert capsys.readouterr().err.startswith("error: ALL_PROXY is a SOCKS proxy")


@pytest.mark.parametrize("proxy", ["foo://x", "socks4://127.0.0.1:9", "http://127.0.0.1:port", "::::"])
def test_an_invalid_proxy_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], proxy: str
) -> None:
    httpx = pytest.importorskip("httpx")
    monkeypatch.setenv("https_proxy", proxy)

    def work(*_: object) -> Any:
        return client.with_retries(lambda: httpx.Client())

    monkeypatch.setattr(settings, "load", work)
    assert main.run(SimpleNamespace(package="p"), ["doctor"]) == 1  # type: ignore[arg-type]
    assert capsys.readouterr().err == "error: https_proxy: expected a proxy such as http://HOST:PORT\n"


def test_the_variable_of_missing_certificates_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    wanted = f"SSL_CERT_FILE={tmp_path}/none.pem does not exist"
    with pytest.raises(StackError, match=wanted):
        client.with_retries(raising(FileNotFoundError(2, "No such file or directory")))


def test_the_variable_of_a_file_without_certificates_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    httpx = pytest.importorskip("httpx")
    empty = tmp_path / "empty.pem"
    empty.write_text("no certificates")
    monkeypatch.setenv("SSL_CERT_FILE", str(empty))
    with pytest.raises(StackError, match=f"^SSL_CERT_FILE={empty} has no CA certificates; set it"):
        client.with_retries(lambda: httpx.Client())


def test_unrelated_errors_are_not_attributed_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    assert diagnosis.explain_error(ImportError("No module named 'x'")) == ""
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/none.pem")
    assert diagnosis.explain_error(FileNotFoundError(2, "No such file", "/a/file")) == ""


def test_the_variable_of_an_unusable_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    program = "from free_ml_stack.hub.client import check_cache_writable as check; check()"
    environ = {"HF_HUB_CACHE": str(tmp_path / "file/cache"), "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=False)
    assert f"HF_HUB_CACHE: cannot write to {tmp_path}/file/cache" in done.stderr
