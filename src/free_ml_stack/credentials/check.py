"""Live check of the services' keys: validity, account and permissions.

This package uses only the standard library, because a hook runs it before anything is installed. A key is sent only to
its own service; reports and errors contain at most its last four characters.
"""

import base64
import json
import os
import re
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from free_ml_stack.credentials.keys import (
    Key,
    find,
    is_address,
    is_loopback,
    missing_certificates,
    present,
    read_env_file,
    renewable,
)
from free_ml_stack.credentials.report import SERVICES, SETTINGS, Report, as_json, report, show

if TYPE_CHECKING:
    import urllib.request

__all__ = ["SERVICES", "SETTINGS", "Report", "as_json", "check", "find", "present", "read_env_file", "show"]

EXCHANGED = ("HF_OIDC_RESOURCE", "WANDB_IDENTITY_TOKEN_FILE")  # exchanged by the client for a key at runtime
ANSWER_LIMIT = 1 << 20  # bytes; real responses have a few kilobytes


def check(
    environ: Mapping[str, str],
    accounts: Mapping[str, str] | None = None,
    dotenv: Mapping[str, str] | None = None,
    services: Iterable[str] = tuple(SERVICES),
    seconds: float = 4.5,
) -> list[Report]:
    """Check the keys of `services` with one concurrent request each, within `seconds` in total.

    `accounts` maps a service to the account in the project's settings. Failures are returned as reports, not raised.
    """
    deadline = time.monotonic() + seconds
    keys = {service: find(service, environ, dotenv) for service in services}
    reports: dict[str, Report] = {}

    def run(key: Key) -> None:
        reports[key.service] = _check_key(key, (accounts or {}).get(key.service, ""), seconds)

    # Daemon threads, because DNS lookups and slow responses cannot be interrupted and must not block the exit.
    threads = [threading.Thread(target=run, args=(key,), daemon=True) for key in keys.values() if key.value]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = {service: report(key, "timeout" if key.value else "missing") for service, key in keys.items()}
    return [(late | reports)[service] for service in keys]


def check_here(service: str, account: str, env_file: Path) -> Report:
    """Check the key of one service in this process's environment."""
    return check(os.environ, {service: account}, read_env_file(env_file), [service])[0]


def key_problem(service: str, account: str, env_file: Path) -> str:
    """Return why a service's key is rejected, with the remedy; empty if it is valid or its state is unknown."""
    found = check_here(service, account, env_file)
    return f"{SERVICES[service]}: {found.text}; {found.remedy}" if found.outcome == "rejected" else ""


def _check_key(key: Key, expected: str, seconds: float) -> Report:
    if not is_address(key.address):
        return report(key, "address")
    if key.conflicting:
        return report(key, "conflict")
    if key.source.startswith(EXCHANGED):
        return report(key, "exchanged")
    if rule := _broken_rule(key):
        return report(key, "malformed", rule=rule)
    status, body, failure = _send(key, seconds)
    if failure == "refused" and renewable(key):
        failure = "login-expired"
    if failure:
        return report(key, failure, status, certificates=missing_certificates(os.environ))
    evaluate = {"algorithmia": _evaluate_algorithmia, "wandb": _evaluate_wandb, "huggingface": _evaluate_huggingface}
    try:
        return evaluate[key.service](key, expected, body)
    except (AttributeError, KeyError, IndexError, TypeError):  # JSON of an unexpected structure
        return report(key, "unexpected", status)


def _broken_rule(key: Key) -> str:
    """Return the rule of the clients that a value violates, or "" (for W&B: wandb/sdk/lib/wbauth)."""
    characters = "it contains spaces, quotes or other invalid characters"
    if not re.fullmatch(r"[!-~]+", key.value) or re.match(r"['\"]|\w+=", key.value):
        return characters
    if key.service != "wandb" or re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", key.value):
        return ""
    first, dash, rest = key.value.partition("-")  # the part before a dash names the server
    secret = rest if dash else first
    if not re.fullmatch(r"[\w-]*", secret):
        return characters
    return "" if len(secret) >= 40 else f"expected at least 40 letters and digits, got {len(secret)}"


def _send(key: Key, seconds: float) -> tuple[int, Any, str]:
    """Send the request; return (status, JSON, "") or (status, None, reason)."""
    import http.client
    import ssl
    import urllib.error
    import urllib.request

    class NoRedirects(urllib.request.HTTPErrorProcessor):
        """Return every status as a response and follow no redirect, so that a key is sent to its host only."""

        def http_response(self, request: Any, response: Any) -> Any:
            return response

        https_response = http_response

    try:
        bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")  # as in the clients
        context = ssl.create_default_context(cafile=bundle if bundle and os.path.isfile(bundle) else None)  # noqa: PTH113
        handlers: list[Any] = [NoRedirects, urllib.request.HTTPSHandler(context=context)]
        if is_loopback(key.address):
            handlers.append(urllib.request.ProxyHandler({}))
        opener = urllib.request.build_opener(*handlers)
        with opener.open(_request(key), timeout=seconds) as answer:
            return _classify_response(answer.status, answer.read(ANSWER_LIMIT))
    except (
        OSError,
        http.client.HTTPException,
        UnicodeError,
    ) as error:  # UnicodeError: invalid host name of a proxy
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLError):
            return 0, None, "certificates" if missing_certificates(os.environ) else "tls"
        if "407" in str(reason):  # a tunnelling proxy requires authentication
            return 407, None, "proxy"
        return 0, None, "timeout" if isinstance(reason, TimeoutError) else "unreachable"


def _request(key: Key) -> "urllib.request.Request":
    import urllib.request

    basic = base64.b64encode(f"api:{key.value}".encode()).decode()
    bearer = f"Bearer {key.value}"
    query = {"query": "query Viewer { viewer { id entity username teams { edges { node { name } } } } }"}
    path, authorization, data = {
        "algorithmia": ("/v1/data/", bearer if "bearer" in key.source.lower() else key.value, None),
        "wandb": ("/graphql", f"Basic {basic}", json.dumps(query).encode()),
        "huggingface": ("/api/whoami-v2", bearer, None),
    }[key.service]
    headers = {
        "Authorization": authorization,
        "Content-Type": "application/json",
        "User-Agent": "free-ml-stack",
    }
    return urllib.request.Request(key.address + path, data, headers)  # noqa: S310 (http or https: is_address)


def _classify_response(status: int, raw: bytes) -> tuple[int, Any, str]:
    """Distinguish a JSON response of the service from other responses, such as those of proxies."""
    reasons = {429: "rate-limit", 407: "proxy", 401: "refused", 403: "refused"}
    if status == 511:  # Network Authentication Required
        return status, None, "proxy"
    if status >= 500 or 300 <= status < 400:
        return status, None, "server-error" if status >= 500 else "redirect"
    if raw.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") and status != 429:
        return status, None, "proxy"
    if status != 200:
        return status, None, reasons.get(status, "unexpected")
    try:
        return status, json.loads(raw), ""
    except (ValueError, RecursionError):
        return status, None, "unexpected"


def _evaluate_algorithmia(key: Key, expected: str, body: Any) -> Report:
    """Evaluate the root listing, which names the caller's own folder first."""
    names = [folder["name"] for folder in body.get("folders") or []]
    account = names[0] if names else "a user without collections"
    if expected and expected not in names:
        return report(key, "other-account", account=account, expected=expected, accounts=", ".join(names))
    return report(key, "valid", account=account, rights=f"owns the collections of {expected or account}")


def _evaluate_wandb(key: Key, expected: str, body: Any) -> Report:
    """Evaluate the viewer, which is null for an unknown key."""
    viewer = body["data"]["viewer"]
    if viewer is None:
        return report(key, "refused")
    teams = [edge["node"]["name"] for edge in (viewer.get("teams") or {}).get("edges") or []]
    names = [name for name in (viewer.get("username"), viewer.get("entity"), *teams) if name]
    if expected and expected.casefold() not in [name.casefold() for name in names]:
        accounts = ", ".join(dict.fromkeys(names))
        return report(key, "other-account", account=names[0], expected=expected, accounts=accounts)
    entity = expected or viewer.get("entity") or names[0]
    return report(key, "valid", account=names[0], rights=f"logs to {entity}")


def _evaluate_huggingface(key: Key, expected: str, body: Any) -> Report:
    """Evaluate whoami: the namespace must be writable, and the account's own or one of its organizations'."""
    account, namespace = body["name"], expected or body["name"]
    roles = {account: "admin"} | {org["name"]: (org.get("roleInOrg") or "") for org in body.get("orgs") or []}
    role = next((role for name, role in roles.items() if name.casefold() == namespace.casefold()), None)
    plan = {True: "PRO", False: "free"}.get(body.get("isPro"), "")
    if role is None:
        accounts = ", ".join(roles)
        return report(key, "other-account", 0, account, plan, expected=expected, accounts=accounts)
    may = _can_write(body.get("auth") or {}, namespace)
    if may and role in ("", "read"):
        may = False if role else None
    if may is None:
        return report(key, "rights-unknown", 0, account, plan, rights=f"permissions for {namespace} unknown")
    rights = f"{'write' if may else 'read-only'} access to {namespace}"
    return report(key, "valid" if may or not expected else "rights", 0, account, plan, rights=rights)


def _can_write(auth: Mapping[str, Any], namespace: str) -> bool | None:
    """Return whether a token can write to a namespace; None if unknown. No global permission includes writing."""
    token = auth.get("accessToken") or {}
    if token.get("role") in ("read", "write"):
        return bool(token["role"] == "write")
    scopes = (token.get("fineGrained") or {}).get("scoped")
    if token.get("role") != "fineGrained" or scopes is None:
        return None
    own = [scope for scope in scopes if scope["entity"]["name"].split("/")[0].casefold() == namespace.casefold()]
    rights = [right for scope in own for right in scope["permissions"]]
    return any(right.startswith("repo.") and right.endswith("write") for right in rights)
