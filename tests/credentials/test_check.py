"""The credential check against loopback servers that respond like the real services."""

import io
import json
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest
from key_server import (
    ALGORITHMIA_KEY,
    HF_KEY,
    KEYS,
    SERVICES,
    VARIABLE,
    WANDB_KEY,
    environment,
    serving,
    viewer,
    whoami,
    write,
)

from free_ml_stack.credentials import check as credentials
from free_ml_stack.credentials import keys


def ask(service, home, account="", dotenv=None, key=None, **answer):
    """Check one service against a server that gives `answer`; return the report."""
    name = keys.SECRET[service]
    with serving(**answer) as server:
        environ = environment(home, **{name: key or KEYS[name], VARIABLE[service]: server.url})
        (report,) = credentials.check(environ, {service: account}, dotenv, [service])
    return report


def scope(name, *permissions, kind="user"):
    return {"entity": {"_id": "1", "type": kind, "name": name}, "permissions": list(permissions)}


FOLDERS = {"folders": [{"name": "ada"}, {"name": "lovelace_lab"}]}


# Valid keys and their permissions.


def test_a_valid_wandb_key_reports_its_entity(tmp_path):
    report = ask("wandb", tmp_path, body=viewer(entity="lovelace-lab"))
    assert (report.outcome, report.account) == ("ok", "ada")
    assert report.text == "valid, as ada; logs to lovelace-lab"


def test_a_wandb_key_must_see_the_entity(tmp_path):
    assert ask("wandb", tmp_path, "lovelace-lab", body=viewer()).outcome == "ok"
    report = ask("wandb", tmp_path, "elsewhere", body=viewer())
    assert (report.outcome, report.reason) == ("rejected", "other-account")
    assert "elsewhere" in report.text and "wandb_entity" in report.remedy and "lovelace-lab" in report.remedy


def test_a_null_viewer_means_an_unknown_wandb_key(tmp_path):
    assert ask("wandb", tmp_path, body={"data": {"viewer": None}}).reason == "refused"


def test_an_algorithmia_key_must_own_the_collection(tmp_path):
    assert ask("algorithmia", tmp_path, "lovelace_lab", body=FOLDERS).outcome == "ok"
    assert ask("algorithmia", tmp_path, body=FOLDERS).account == "ada"
    assert ask("algorithmia", tmp_path, "bob", body=FOLDERS).reason == "other-account"


@pytest.mark.parametrize(
    ("body", "account", "outcome", "reason"),
    [
        (whoami("write"), "ada", "ok", "valid"),
        (whoami("write"), "", "ok", "valid"),
        (whoami("write"), "Ada", "ok", "valid"),
        (whoami("read"), "ada", "rejected", "rights"),
        (whoami("read"), "", "ok", "valid"),  # no account is configured
        (whoami("write", orgs=[("lab", "write")]), "lab", "ok", "valid"),
        (whoami("write", orgs=[("lab", "read")]), "lab", "rejected", "rights"),
        (whoami("write", orgs=[("lab", None)]), "lab", "unknown", "rights-unknown"),
        (whoami("write"), "lab", "rejected", "other-account"),
        (whoami("fineGrained", [scope("ada", "repo.content.read", "repo.write")]), "ada", "ok", "valid"),
        (whoami("fineGrained", [scope("ada", "repo.content.write")]), "ada", "ok", "valid"),
        (whoami("fineGrained", [scope("ada/digits", "repo.write", kind="model")]), "ada", "ok", "valid"),
        (whoami("fineGrained", [scope("ada", "repo.content.read")]), "ada", "rejected", "rights"),
        (whoami("fineGrained", [scope("bob", "repo.write")]), "ada", "rejected", "rights"),
        (whoami("fineGrained", []), "ada", "rejected", "rights"),
        (whoami(auth={"type": "oauth"}), "ada", "unknown", "rights-unknown"),
        (whoami("a role of tomorrow"), "ada", "unknown", "rights-unknown"),
    ],
)
def test_a_hugging_face_token_must_be_able_to_write(tmp_path, body, account, outcome, reason):
    report = ask("huggingface", tmp_path, account, body=body)
    assert (report.outcome, report.reason, report.account) == (outcome, reason, "ada")
    assert report.plan == "free"


# Other responses. Only 401 and 403 mean that the key is invalid.


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize(
    ("answer", "outcome", "reason"),
    [
        (
            {"status": 401, "body": {"error": "Invalid credentials in Authorization header"}},
            "rejected",
            "refused",
        ),
        ({"status": 403, "body": {"error": {"message": "authorization required"}}}, "rejected", "refused"),
        ({"status": 403, "body": b"<html>blocked</html>", "kind": "text/html"}, "unknown", "proxy"),
        ({"status": 200, "body": b"\n<!doctype html>Log in", "kind": "text/html"}, "unknown", "proxy"),
        ({"status": 407, "body": b"{}"}, "unknown", "proxy"),
        ({"status": 429, "body": {"error": "slow down"}}, "unknown", "rate-limit"),
        ({"status": 500, "body": b"oops"}, "unknown", "server-error"),
        ({"status": 503, "body": b"<html>", "kind": "text/html"}, "unknown", "server-error"),
        ({"status": 404, "body": {"error": "not found"}}, "unknown", "unexpected"),
        ({"status": 200, "body": b"not JSON"}, "unknown", "unexpected"),
        ({"status": 200, "body": []}, "unknown", "unexpected"),
        ({"status": 200, "body": {"data": "else", "folders": 3}}, "unknown", "unexpected"),
    ],
)
def test_outcomes_are_distinguished(tmp_path, service, answer, outcome, reason):
    report = ask(service, tmp_path, **answer)
    assert (report.outcome, report.reason) == (outcome, reason)
    assert report.remedy and report.page and "\n" not in report.text + report.remedy


@pytest.mark.parametrize("service", SERVICES)
def test_one_request_is_sent_in_the_clients_format(tmp_path, service):
    name = keys.SECRET[service]
    with serving(status=401) as server:
        environ = environment(tmp_path, **{name: KEYS[name], VARIABLE[service]: server.url + "/"})
        credentials.check(environ, services=[service])
        ((method, path, headers),) = server.requests
    expected = {
        "algorithmia": ("GET", "/v1/data/", ALGORITHMIA_KEY),
        "wandb": ("POST", "/graphql", "Basic "),
        "huggingface": ("GET", "/api/whoami-v2", f"Bearer {HF_KEY}"),
    }[service]
    assert (method, path) == expected[:2]
    assert headers["Authorization"].startswith(expected[2])


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_does_not_send_the_key_to_another_host(tmp_path, service, status):
    with serving() as other:
        report = ask(service, tmp_path, status=status, headers=[("Location", f"{other.url}/api/whoami-v2")])
        assert other.requests == []
    assert (report.outcome, report.reason) == ("unknown", "redirect")


def test_a_closed_port_is_unreachable(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        environ = environment(tmp_path, HF_TOKEN=HF_KEY, HF_ENDPOINT=f"http://127.0.0.1:{listener.getsockname()[1]}")
        (report,) = credentials.check(environ, services=["huggingface"])
    assert (report.outcome, report.reason) == ("unknown", "unreachable")


def test_a_server_that_hangs_up_is_unreachable(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: listener.accept()[0].close())
        thread.start()
        environ = environment(tmp_path, HF_TOKEN=HF_KEY, HF_ENDPOINT=f"http://127.0.0.1:{listener.getsockname()[1]}")
        (report,) = credentials.check(environ, services=["huggingface"])
        thread.join()
    assert report.reason == "unreachable"


def test_an_untrusted_certificate_is_a_tls_failure(tmp_path):
    certificate, private = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "1",
                "-subj",
                "/CN=localhost",
            ),
            *("-keyout", "key.pem", "-out", "cert.pem"),
        ],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, private)
    with serving() as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        environ = environment(tmp_path, HF_TOKEN=HF_KEY, HF_ENDPOINT=f"https://localhost:{server.server_port}")
        (report,) = credentials.check(environ, services=["huggingface"])
        assert server.requests == []
    assert (report.outcome, report.reason) == ("unknown", "tls")


@pytest.mark.parametrize(("status", "reason"), [(407, "proxy"), (502, "unreachable")])
def test_a_blocking_proxy_leaves_the_key_unknown(tmp_path, monkeypatch, status, reason):
    with serving(status=status) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        environ = environment(tmp_path, HF_TOKEN=HF_KEY, HF_ENDPOINT="https://hub.example.org")
        (report,) = credentials.check(environ, services=["huggingface"])
        assert [method for method, _, headers in proxy.requests if "Authorization" not in headers] == ["CONNECT"]
    assert (report.outcome, report.reason) == ("unknown", reason)


@pytest.mark.slow
def test_slow_servers_are_limited_to_five_seconds(tmp_path):
    with serving(delay=0.5, body=viewer()) as server:
        environ = environment(tmp_path, **KEYS, **dict.fromkeys(VARIABLE.values(), server.url))
        start = time.monotonic()
        reports = credentials.check(environ)
        took = time.monotonic() - start
    assert took < 5
    assert [report.reason for report in reports] == ["timeout"] * 3


def test_a_slow_server_does_not_affect_the_others(tmp_path):
    with serving(delay=0.5, body=viewer()) as slow, serving(body=whoami()) as fast:
        environ = environment(tmp_path, **KEYS, WANDB_BASE_URL=slow.url, HF_ENDPOINT=fast.url, ALGORITHMIA_API=fast.url)
        reports = credentials.check(environ, seconds=1.0)
    assert [report.reason for report in reports] == ["valid", "timeout", "valid"]


# Malformed keys and URLs are reported without a request.


@pytest.mark.parametrize(
    ("service", "key"),
    [
        ("wandb", "k" * 39),
        ("wandb", "WANDB_API_KEY=" + "k" * 40),
        ("wandb", "k" * 20 + " " + "k" * 20),
        ("huggingface", '"' + HF_KEY + '"'),
        ("huggingface", "hf_schl\u00fcssel"),
        ("huggingface", "HF_TOKEN=" + HF_KEY),
        ("algorithmia", "two words"),
        ("algorithmia", "line\nbreak"),
    ],
)
def test_malformed_keys_are_reported_without_a_request(tmp_path, service, key):
    with serving() as server:
        environ = environment(tmp_path, **{keys.SECRET[service]: key, VARIABLE[service]: server.url})
        (report,) = credentials.check(environ, services=[service])
        assert server.requests == []
    assert (report.outcome, report.reason, report.last_four) == ("rejected", "malformed", "")


@pytest.mark.parametrize("key", ["k" * 40, "local-" + "k" * 40, WANDB_KEY, "k" * 86, "aaa.bbb-b.c_c"])
def test_every_format_of_wandb_keys_is_checked(tmp_path, key):
    assert ask("wandb", tmp_path, key=key, body=viewer()).outcome == "ok"


@pytest.mark.parametrize(
    "url", ["not a url", "ftp://host", "https://", "http://[::1", "http://host:port", "http://h\u00f6st"]
)
def test_an_invalid_url_is_reported(tmp_path, url):
    (report,) = credentials.check(environment(tmp_path, HF_TOKEN=HF_KEY, HF_ENDPOINT=url), services=["huggingface"])
    assert (report.outcome, report.reason) == ("rejected", "address")
    assert "HF_ENDPOINT" in report.text


@pytest.mark.parametrize(
    ("service", "name"), [("huggingface", "HF_OIDC_RESOURCE"), ("wandb", "WANDB_IDENTITY_TOKEN_FILE")]
)
def test_values_that_are_exchanged_for_a_key_are_not_sent(tmp_path, service, name):
    (report,) = credentials.check(environment(tmp_path, **{name: "ada/digits"}), services=[service])
    assert (report.outcome, report.reason) == ("unknown", "exchanged")


def test_conflicting_wandb_keys_are_reported(tmp_path):
    environ = environment(tmp_path, WANDB_API_KEY="k" * 40, WANDB_IDENTITY_TOKEN_FILE="token")
    (report,) = credentials.check(environ, services=["wandb"])
    assert (report.outcome, report.reason) == ("rejected", "conflict")


# Sources of keys.


def test_missing_keys_are_reported_without_a_request(tmp_path):
    reports = credentials.check(environment(tmp_path))
    assert [report.outcome for report in reports] == ["missing"] * 3
    assert all(report.page in report.remedy for report in reports)
    assert credentials.present(environment(tmp_path)) == frozenset()


@pytest.mark.parametrize(
    ("service", "names"),
    [
        ("algorithmia", ["ALGORITHMIA_API_KEY", "ALGORITHMIA_BEARER_TOKEN"]),
        ("wandb", ["WANDB_API_KEY"]),
        ("huggingface", ["HF_OIDC_RESOURCE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]),
    ],
)
def test_variables_have_the_clients_order_of_precedence(tmp_path, service, names):
    write(tmp_path / ".netrc", f"machine api.wandb.ai login user password {WANDB_KEY}\n")
    write(tmp_path / ".cache/huggingface/token", HF_KEY)
    environ = environment(tmp_path, **dict.fromkeys(names, "x" * 40))
    for name in names:
        found = keys.find(service, environ)
        assert (found.source, found.value) == (name, "x" * 40)
        del environ[name]


def test_dotenv_follows_the_environment_and_is_named_as_source(tmp_path):
    dotenv = credentials.read_env_file(write(tmp_path / ".env", f"HF_TOKEN={HF_KEY}\n"))
    assert keys.find("huggingface", environment(tmp_path), dotenv).source == "HF_TOKEN in .env"
    merged = environment(tmp_path, HF_TOKEN=HF_KEY)  # as the settings set it
    assert keys.find("huggingface", merged, dotenv).source == "HF_TOKEN in .env"
    other = environment(tmp_path, HF_TOKEN="another")
    assert keys.find("huggingface", other, dotenv).source == "HF_TOKEN"
    empty = environment(tmp_path, HF_TOKEN="")
    assert keys.find("huggingface", empty, dotenv).value == HF_KEY


def test_env_files_support_quotes_export_and_comments(tmp_path):
    text = "\ufeff# keys\nA=1\nexport B = two words # why\nC='3 # 4' # five\nD=\"6\"\n\nE=\nnot a line\nF=a#b\n"
    path = write(tmp_path / ".env", text)
    assert credentials.read_env_file(path) == {"A": "1", "B": "two words", "C": "3 # 4", "D": "6", "F": "a#b"}
    assert credentials.read_env_file(tmp_path / "none") == {}


@pytest.mark.parametrize("name", [".netrc", "_netrc"])
@pytest.mark.parametrize("machine", ["api.forge.coreweave.com", "api.wandb.ai"])
def test_wandb_keys_are_found_in_netrc_under_both_hosts(tmp_path, name, machine):
    write(tmp_path / name, f"machine {machine}\n  login user\n  password {WANDB_KEY}\n")
    found = keys.find("wandb", environment(tmp_path))
    assert found.value == WANDB_KEY and name in found.source


def test_netrc_entries_of_other_servers_are_ignored(tmp_path):
    write(tmp_path / ".netrc", f"machine api.wandb.ai login user password {WANDB_KEY}\n")
    assert not keys.find("wandb", environment(tmp_path, WANDB_BASE_URL="https://wandb.example.org")).value


def test_netrc_can_be_elsewhere_or_invalid(tmp_path):
    path = write(tmp_path / "keys", f"machine api.wandb.ai login user password {WANDB_KEY}\n")
    assert keys.find("wandb", environment(tmp_path, NETRC=str(path))).value == WANDB_KEY
    write(path, "machine machine machine")
    assert not keys.find("wandb", environment(tmp_path, NETRC=str(path))).value


def test_wandb_settings_files_hold_key_and_server(tmp_path):
    write(
        tmp_path / ".config/wandb/settings",
        f"[default]\napi_key = {WANDB_KEY}\nbase_url = https://wandb.example.org/\n",
    )
    found = keys.find("wandb", environment(tmp_path))
    assert (found.value, found.address) == (WANDB_KEY, "https://wandb.example.org")


@pytest.mark.parametrize(
    ("variable", "path"),
    [
        (None, ".cache/huggingface/token"),
        ("XDG_CACHE_HOME", "x/huggingface/token"),
        ("HF_HOME", "x/token"),
        ("HF_TOKEN_PATH", "x"),
    ],
)
def test_the_cached_hugging_face_token_is_found(tmp_path, variable, path):
    write(tmp_path / path, HF_KEY + "\n")
    more = {variable: str(tmp_path / "x")} if variable else {}
    assert keys.find("huggingface", environment(tmp_path, **more)).value == HF_KEY


def test_an_algorithmia_profile_holds_key_and_server(tmp_path):
    profile = f"[profiles.default]\napi_key = '{ALGORITHMIA_KEY}'\napi_server = 'https://algo.example.org'\n"
    profile += "ca_cert = ''\nbearer_token = ''\n"
    write(tmp_path / ".algorithmia/config", profile)
    found = keys.find("algorithmia", environment(tmp_path))
    assert (found.value, found.address) == (ALGORITHMIA_KEY, "https://algo.example.org")
    write(tmp_path / ".algorithmia/config", "[profiles\n")
    assert not keys.find("algorithmia", environment(tmp_path)).value


def test_an_algorithmia_token_is_sent_as_bearer(tmp_path):
    with serving(body=FOLDERS) as server:
        environ = environment(tmp_path, ALGORITHMIA_BEARER_TOKEN="a.b.c", ALGORITHMIA_API=server.url)
        credentials.check(environ, services=["algorithmia"])
        assert server.requests[0][2]["Authorization"] == "Bearer a.b.c"


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_PROFILE"])
def test_s3_credentials_are_detected_without_reading_them(tmp_path, name):
    assert credentials.present(environment(tmp_path, **{name: "x"})) == {"s3"}
    write(tmp_path / ".aws/credentials", "[default]\n")
    assert credentials.present(environment(tmp_path)) == {"s3"}


def test_keys_are_found_where_the_clients_find_them(tmp_path):
    """The clients, in a subprocess, find the same keys."""
    write(tmp_path / ".netrc", f"machine api.wandb.ai login user password {WANDB_KEY}\n")
    write(tmp_path / ".cache/huggingface/token", HF_KEY)
    code = (
        "import huggingface_hub, wandb.sdk.lib.wbauth.wbnetrc as netrc\n"
        "print(huggingface_hub.get_token(), netrc.read_netrc_auth(host='https://api.forge.coreweave.com'))"
    )
    environ = environment(tmp_path, PATH="", WANDB_SILENT="true")
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    theirs = done.stdout.split()[-2:]
    assert theirs == [keys.find("huggingface", environ).value, keys.find("wandb", environ).value]


# Output of the reports.


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown_reports(stream, tmp_path, **environ):
    with serving(body=whoami("read")) as good, serving(status=401) as bad:
        found = environment(tmp_path, **KEYS, HF_ENDPOINT=good.url, WANDB_BASE_URL=bad.url, ALGORITHMIA_API="nowhere")
        reports = credentials.check(found)
    credentials.show(reports, stream, environ)
    return reports, stream.getvalue()


def test_reports_are_plain_lines_without_a_terminal(tmp_path):
    _, text = shown_reports(io.StringIO(), tmp_path)
    assert "\033" not in text
    assert "Weights & Biases: rejected: " in text and "Hugging Face: ok: valid, as ada" in text


def test_reports_are_coloured_on_a_terminal_unless_disabled(tmp_path):
    assert "\033[31m" in shown_reports(Terminal(), tmp_path)[1]
    assert "\033" not in shown_reports(Terminal(), tmp_path, NO_COLOR="1")[1]
    assert "\033" not in shown_reports(Terminal(), tmp_path, TERM="dumb")[1]


def test_reports_contain_only_source_and_last_four_characters_of_a_key(tmp_path):
    reports, text = shown_reports(io.StringIO(), tmp_path)
    everything = text + json.dumps(credentials.as_json(reports)) + repr(reports) + repr(keys.find("wandb", KEYS))
    assert "[HF_TOKEN, ...wxyz]" in text
    for key in KEYS.values():
        assert key not in everything and key[:-4] not in everything and key[4:] not in everything


def test_control_characters_of_a_server_are_removed(tmp_path):
    report = ask("wandb", tmp_path, body=viewer(username="\033[2Jada\r\n", entity="x"))
    assert "\033" not in report.text + report.account and "\n" not in report.text
