"""Lookup of the services' keys where their clients find them, with the standard library and without requests."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

# Variables of keys in the client's order; variables of servers with their default.
VARIABLES = {
    "algorithmia": ("ALGORITHMIA_API_KEY", "ALGORITHMIA_BEARER_TOKEN"),
    "wandb": ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"),
    "huggingface": ("HF_OIDC_RESOURCE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
}
ADDRESSES = {
    "algorithmia": ("ALGORITHMIA_API", "https://api.algorithmia.com"),
    "wandb": ("WANDB_BASE_URL", "https://api.forge.coreweave.com"),
    "huggingface": ("HF_ENDPOINT", "https://huggingface.co"),
}
S3_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
PROXY_SCHEMES = ("", "http", "https", "socks5", "socks5h")
PROXIES = ("ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")
SECRET = {"algorithmia": "ALGORITHMIA_API_KEY", "wandb": "WANDB_API_KEY", "huggingface": "HF_TOKEN"}


@dataclass(frozen=True)
class Key:
    """A key, "" if there is none, its source, and the URL of its server."""

    service: str
    value: str = field(repr=False)
    source: str
    address: str
    conflicting: bool = False  # whether two keys are set, which the client rejects


def read_env_file(path: Path) -> dict[str, str]:
    """Read NAME=value lines, with optional `export `, quotes and comments; names without a value are skipped.

    Raises ValueError if the file is not UTF-8 text, and OSError.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return {}
    if "\0" in text:
        raise ValueError("contains a null character")
    lines = text.splitlines()
    found = (re.match(r"\s*(?:export\s+)?([A-Za-z_]\w*)\s*=\s*(.*?)\s*$", line) for line in lines)
    values = {match[1]: _unquote(match[2]) for match in found if match}
    return {name: value for name, value in values.items() if value}


def _unquote(value: str) -> str:
    quoted = re.match(r"(['\"])(.*?)\1\s*(?:#.*)?$", value)
    return quoted[2] if quoted else re.split(r"(?:^|\s)#", value, maxsplit=1)[0].rstrip()


def find(service: str, environ: Mapping[str, str], dotenv: Mapping[str, str] | None = None) -> Key:
    """Find a service's key as its client does: in the environment, in `.env`, or in the client's files.

    Empty variables and unreadable files count as absent. Without a key, the value is empty.
    """
    values = _merged(environ, dotenv)
    value, source = next(_candidates(service, values), ("", ""))
    if dotenv and dotenv.get(source) == values.get(source, ""):
        source += " in .env"
    conflicting = service == "wandb" and all(name in values for name in VARIABLES[service])
    return Key(service, value.strip(), source, address(service, values), conflicting)


def present(environ: Mapping[str, str], dotenv: Mapping[str, str] | None = None) -> frozenset[str]:
    """Return which of algorithmia, wandb, huggingface and s3 have credentials, without a request."""
    values = _merged(environ, dotenv)
    shared = Path(values.get("AWS_SHARED_CREDENTIALS_FILE") or _home(values) / ".aws" / "credentials")
    # Path.is_file raises PermissionError in folders of other users
    s3 = {"s3"} if os.path.isfile(shared) or any(name in values for name in S3_VARIABLES) else set()  # noqa: PTH113
    return frozenset(s3 | {service for service in VARIABLES if find(service, environ, dotenv).value})


def address(service: str, values: Mapping[str, str]) -> str:
    """Return the server's URL: from the variable, the client's settings, or the public default."""
    variable, default = ADDRESSES[service]
    stored = {
        "algorithmia": lambda: _algorithmia_profile(values, "api_server"),
        "wandb": lambda: _wandb_setting(values, "base_url"),
    }
    named = values.get(variable) or stored.get(service, str)()
    return (named or default).rstrip("/")


def is_loopback(url: str) -> bool:
    """Return whether the host of a URL is this machine, which is reached without a proxy."""
    import ipaddress

    try:
        name = urlsplit(url).hostname or ""
        return name == "localhost" or name.endswith(".localhost") or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def missing_certificates(environ: Mapping[str, str]) -> str:
    """Return the error message for a variable that names missing certificates, or ""."""
    for name in CERTIFICATES:
        if environ.get(name) and not os.path.exists(environ[name]):  # noqa: PTH110 - never fails
            return f"{name}={environ[name]} does not exist"
    return ""


def invalid_proxy(environ: Mapping[str, str]) -> str:
    """Return the variable whose value is no proxy for the clients of the services, or ""."""
    for name in PROXIES:
        scheme, _, rest = environ.get(name, "").rpartition("://")
        if rest and not (scheme in PROXY_SCHEMES and is_address(f"http://{rest}")):
            return name
    return ""


def socks_proxy(environ: Mapping[str, str]) -> str:
    """Return the variable that names a SOCKS proxy, or ""."""
    return next((name for name in PROXIES if environ.get(name, "").startswith("socks")), "")


def is_address(url: str) -> bool:
    """Return whether a URL is valid as a server's URL."""
    try:
        parts = urlsplit(url)
        port = parts.port  # raises if it is not a number
        (parts.hostname or "").encode("idna")  # raises if it is not a valid host name
    except ValueError:
        return False
    known = parts.scheme in ("http", "https") and parts.hostname and port != 0
    return bool(known and re.fullmatch(r"[!-~]+", url) and not re.search(r"[?#\\]", url))


def host(url: str) -> str:
    """Return the host and port of a URL, even if it is invalid, without user name and password."""
    return url.partition("://")[2].partition("/")[0].rpartition("@")[2]


def _merged(environ: Mapping[str, str], dotenv: Mapping[str, str] | None) -> dict[str, str]:
    both = (dotenv or {}, environ)
    return {name: value for source in both for name, value in source.items() if value.strip()}


def _candidates(service: str, values: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (value, source) pairs in the client's order of precedence."""
    files = {"algorithmia": _algorithmia_files, "wandb": _wandb_files, "huggingface": _huggingface_files}
    yield from ((values[name], name) for name in VARIABLES[service] if name in values)
    yield from ((value, source) for value, source in files[service](values) if value)


def _home(values: Mapping[str, str]) -> Path:
    return Path(values.get("HOME") or values.get("USERPROFILE") or os.path.expanduser("~"))  # noqa: PTH111 - never fails


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return ""


def _algorithmia_profile(values: Mapping[str, str], name: str) -> str:
    windows = values.get("LOCALAPPDATA")
    folder = Path(windows, "Algorithmia") if windows else _home(values) / ".algorithmia"
    text = _text(folder / "config")
    if not text:
        return ""
    try:
        import tomllib  # the hook may run with an older Python
    except ImportError:
        return ""
    try:
        return str(tomllib.loads(text)["profiles"]["default"].get(name, ""))
    except (tomllib.TOMLDecodeError, KeyError, AttributeError, TypeError):
        return ""


def _algorithmia_files(values: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    server = _algorithmia_profile(values, "api_server").rstrip("/")
    if server and server != address("algorithmia", values):
        return  # the key of a profile is for the profile's server only
    for name in ("api_key", "bearer_token"):
        yield _algorithmia_profile(values, name), f"{name} in Algorithmia's config file"


def _wandb_setting(values: Mapping[str, str], name: str) -> str:
    import configparser

    folder = Path(values.get("WANDB_CONFIG_DIR") or _home(values) / ".config" / "wandb")
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    for path in (folder / "settings", Path(values.get("WANDB_DIR", "."), "wandb", "settings")):
        try:
            parser.read_string(_text(path))
        except configparser.Error:
            continue
    return parser.get("default", name, fallback="")


def _wandb_files(values: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    import netrc

    server, home = host(address("wandb", values)), _home(values)
    named = values.get("NETRC")
    paths = (Path(os.path.expanduser(named)),) if named else (home / ".netrc", home / "_netrc")  # noqa: PTH111
    path = next((path for path in paths if os.path.isfile(path)), None)  # noqa: PTH113
    # Keys created before the service moved are stored under its old host.
    hosts = (server, "api.wandb.ai") if server == host(ADDRESSES["wandb"][1]) else (server,)
    try:
        entries = netrc.netrc(path) if path else None
    except (netrc.NetrcParseError, OSError, UnicodeDecodeError):
        entries = None
    for name in hosts:
        login = entries.authenticators(name) if entries else None
        yield (login[2] if login else "") or "", f"{path} (machine {name})"
    yield _wandb_setting(values, "api_key"), "W&B's settings file"


def _huggingface_files(values: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    cache = Path(values.get("XDG_CACHE_HOME") or _home(values) / ".cache")
    folder = Path(values.get("HF_HOME") or cache / "huggingface")
    path = str(values.get("HF_TOKEN_PATH") or folder / "token")
    path = os.path.expandvars(os.path.expanduser(path))  # noqa: PTH111 - as the client does
    yield _text(Path(path)).strip(), path


def renewable(key: Key) -> bool:
    """Return whether a key comes from a browser login, which the Hub's client renews after it expires."""
    import configparser

    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(_text(Path(key.source).with_name("stored_tokens")))
    except (configparser.Error, ValueError):  # ValueError: the source is not a path
        return False
    sections = [parser[name] for name in parser.sections()]
    return any(one.get("hf_token") == key.value and "refresh_token" in one for one in sections)
