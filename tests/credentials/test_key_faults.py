"""The credential check with faulty servers, proxies and URLs: always a report, never a traceback."""

import socket
import ssl
import threading
from contextlib import contextmanager

import pytest
from key_server import ALGORITHMIA_KEY, HF_KEY, environment, serving, whoami, write

from free_ml_stack.credentials import check as credentials
from free_ml_stack.credentials import keys


@contextmanager
def replying(reply):
    """A server that sends these bytes to any request and keeps the connection open."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept = []

        def answer():
            kept.append(listener.accept()[0])
            kept[0].recv(65536)
            kept[0].sendall(reply)

        thread = threading.Thread(target=answer, daemon=True)  # it waits forever if a test fails before its request
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()
        kept[0].close()


def outcome_of(home, url, seconds=0.5, **environ):
    found = environment(home, HF_TOKEN=HF_KEY, HF_ENDPOINT=url, **environ)
    (report,) = credentials.check(found, services=["huggingface"], seconds=seconds)
    return report.outcome, report.reason


def answer(status, body, length=None):
    return f"HTTP/1.1 {status} X\r\nContent-Length: {length or len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (answer(401, b"", length=9), "timeout"),  # a truncated response leaves the key unknown
        (answer(503, b"", length=9), "timeout"),
        (b"HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "unreachable"),
        (b"SSH-2.0-OpenSSH\r\n", "unreachable"),
        (answer(200, b"[" * 100_000), "unexpected"),
        (answer(200, b"\xef\xbb\xbf<!doctype html>Log in"), "proxy"),
        (answer(511, b"Log in"), "proxy"),
    ],
)
def test_faulty_responses_are_unknown(tmp_path, reply, reason):
    seconds = 0.5 if reason == "timeout" else 60.0
    with replying(reply) as url:
        assert outcome_of(tmp_path, url, seconds) == ("unknown", reason)


@pytest.mark.parametrize(
    "url", ["http://a..b", "http://" + "x" * 64 + ".org", "http://host?q=1", "http://host#a", "http://a\\@b"]
)
def test_an_invalid_host_is_reported(tmp_path, url):
    assert outcome_of(tmp_path, url) == ("rejected", "address")


def test_an_invalid_proxy_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://a..b:1")
    monkeypatch.delenv("no_proxy", raising=False)
    assert outcome_of(tmp_path, "https://hub.example.org") == ("unknown", "unreachable")


def test_invalid_certificates_are_a_tls_failure(tmp_path, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(write(tmp_path / "bundle", "no certificate")))
    assert outcome_of(tmp_path, "https://127.0.0.1:1") == ("unknown", "tls")


def test_an_expired_browser_login_is_not_reported_as_a_bad_key(tmp_path):
    """The Hub's client renews the login with its stored refresh token."""
    folder = tmp_path / ".cache/huggingface"
    write(folder / "token", HF_KEY)
    stored = write(folder / "stored_tokens", f"[laptop]\nhf_token = {HF_KEY}\nrefresh_token = r%t\nexpires_at = 1\n")
    with serving(status=401, body={"error": "expired"}) as hub:
        environ = environment(tmp_path, HF_ENDPOINT=hub.url)
        (report,) = credentials.check(environ, services=["huggingface"])
        assert (report.outcome, report.reason) == ("unknown", "login-expired")
        write(stored, f"[laptop]\nhf_token = {HF_KEY}\n")
        (report,) = credentials.check(environ, services=["huggingface"])
        assert report.reason == "refused"
    with serving(body=whoami()) as hub:
        (report,) = credentials.check(environment(tmp_path, HF_ENDPOINT=hub.url), services=["huggingface"])
        assert report.outcome == "ok"


def test_the_key_of_a_profile_is_not_sent_to_another_installation(tmp_path):
    profile = f"[profiles.default]\napi_key = '{ALGORITHMIA_KEY}'\napi_server = 'https://algo.example.org'\n"
    write(tmp_path / ".algorithmia/config", profile)
    with serving() as other:
        (report,) = credentials.check(environment(tmp_path, ALGORITHMIA_API=other.url), services=["algorithmia"])
        assert (report.outcome, other.requests) == ("missing", [])
    same = environment(tmp_path, ALGORITHMIA_API="https://algo.example.org/")
    assert keys.find("algorithmia", same).value == ALGORITHMIA_KEY


def test_a_blank_variable_counts_as_absent(tmp_path):
    write(tmp_path / ".cache/huggingface/token", HF_KEY)
    assert keys.find("huggingface", environment(tmp_path, HF_TOKEN=" \t")).value == HF_KEY


@pytest.mark.parametrize("key", ["k" * 39 + "-", "abc-" + "k" * 38, "local-" + "k" * 39, "k" * 20 + "." + "k" * 30])
def test_keys_that_the_wandb_client_rejects_are_malformed(tmp_path, key):
    (report,) = credentials.check(environment(tmp_path, WANDB_API_KEY=key), services=["wandb"])
    assert (report.outcome, report.reason) == ("rejected", "malformed")


def test_missing_certificates_are_named(tmp_path, monkeypatch):
    """The client then trusts no certificate."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setattr("ssl.create_default_context", fail_with_tls)
    found = environment(tmp_path, HF_TOKEN=HF_KEY, HF_ENDPOINT="https://127.0.0.1:1")
    (report,) = credentials.check(found, services=["huggingface"])
    assert (report.outcome, report.reason) == ("unknown", "certificates")
    assert f"SSL_CERT_FILE={tmp_path}/none.pem does not exist" in report.text


def fail_with_tls(**_):
    raise ssl.SSLError(1, "certificate verify failed")
