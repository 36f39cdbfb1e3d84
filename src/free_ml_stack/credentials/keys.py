"""Find the services' keys where their own clients find them. Standard library only; nothing is sent."""

import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

# The variables that hold a key, in the client's order; the one that names the server, and its default.
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
PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")
SECRET = {"algorithmia": "ALGORITHMIA_API_KEY", "wandb": "WANDB_API_KEY", "huggingface": "HF_TOKEN"}


@dataclass(frozen=True)
class Key:
    """A key, the source that won, and the address of the server that it is for."""

    service: str
    value: str = field(repr=False)
    source: str
    address: str
    twice: bool = False  # whether two are set of which the client takes neither


def read_env_file(path: Path) -> dict[str, str]:
    """Read NAME=value lines, with `export `, quotes and comments; names without a value are left out.

    Raises ValueError for what is no text in UTF-8, as an older Windows writes it, and OSError.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return {}
    if "\0" in text:
        raise ValueError("it holds a null character")
    lines = text.splitlines()
    found = (re.match(r"\s*(?:export\s+)?([A-Za-z_]\w*)\s*=\s*(.*?)\s*$", line) for line in lines)
    values = {match[1]: _unquote(match[2]) for match in found if match}
    return {name: value for name, value in values.items() if value}


def _unquote(value: str) -> str:
    quoted = re.match(r"(['\"])(.*?)\1\s*(?:#.*)?$", value)
    return quoted[2] if quoted else re.split(r"(?:^|\s)#", value, maxsplit=1)[0].rstrip()


def find(service: str, environ: Mapping[str, str], dotenv: Mapping[str, str] | None = None) -> Key | None:
    """Find a service's key as its client would: environment, then `.env`, the tool's files, Colab's secrets.

    An empty variable counts as absent, and so does a file that cannot be read.
    """
    values = _merged(environ, dotenv)
    value, source = next(_candidates(service, values), ("", ""))
    if not value:
        return None
    if dotenv and dotenv.get(source) == values.get(source, ""):
        source += " in .env"
    twice = service == "wandb" and all(name in values for name in VARIABLES[service])
    return Key(service, value.strip(), source, address(service, values), twice)


def present(environ: Mapping[str, str], dotenv: Mapping[str, str] | None = None) -> frozenset[str]:
    """Return which of algorithmia, wandb, huggingface and s3 have credentials, without a call."""
    values = _merged(environ, dotenv)
    shared = Path(values.get("AWS_SHARED_CREDENTIALS_FILE") or _home(values) / ".aws" / "credentials")
    # Path.is_file raises where a folder can't be searched, as a home can be that is another user's
    s3 = {"s3"} if os.path.isfile(shared) or any(name in values for name in S3_VARIABLES) else set()  # noqa: PTH113
    return frozenset(s3 | {service for service in VARIABLES if find(service, environ, dotenv)})


def address(service: str, values: Mapping[str, str]) -> str:
    """Return the server's address: the variable's, else the tool's own setting, else the public server."""
    variable, default = ADDRESSES[service]
    stored = {
        "algorithmia": lambda: _algorithmia_profile(values, "api_server"),
        "wandb": lambda: _wandb_setting(values, "base_url"),
    }
    named = values.get(variable) or stored.get(service, str)()
    return (named or default).rstrip("/")


def server(service: str, environ: Mapping[str, str], dotenv: Mapping[str, str] | None = None) -> str:
    """Return the address of the server that a service's key would be for."""
    return address(service, _merged(environ, dotenv))


def is_loopback(url: str) -> bool:
    """Whether an URL's host is this machine itself: no proxy is on the way there."""
    import ipaddress

    try:
        name = urlsplit(url).hostname or ""
        return name == "localhost" or name.endswith(".localhost") or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def missing_certificates(environ: Mapping[str, str]) -> str:
    """What names certificates that are not there, in words; nothing where none does."""
    for name in CERTIFICATES:
        if environ.get(name) and not os.path.exists(environ[name]):  # noqa: PTH110 - never fails
            return f"{name} names {environ[name]}, which is not there"
    return ""


def socks_proxy(environ: Mapping[str, str]) -> str:
    """The variable that names a proxy which speaks SOCKS; nothing where none does."""
    names = (spelt for name in PROXIES for spelt in (name, name.lower()))
    return next((name for name in names if environ.get(name, "").startswith("socks")), "")


def is_address(url: str) -> bool:
    """Whether an URL can be a server's address."""
    try:
        parts = urlsplit(url)
        port = parts.port  # raises where it is no number
        (parts.hostname or "").encode("idna")  # raises where no such host can be
    except ValueError:
        return False
    known = parts.scheme in ("http", "https") and parts.hostname and port != 0
    return bool(known and re.fullmatch(r"[!-~]+", url) and not re.search(r"[?#\\]", url))


def host(url: str) -> str:
    """Return the host and port in a URL that need not parse, without a user name or password."""
    return url.partition("://")[2].partition("/")[0].rpartition("@")[2]


def _merged(environ: Mapping[str, str], dotenv: Mapping[str, str] | None) -> dict[str, str]:
    both = (dotenv or {}, environ)
    return {name: value for source in both for name, value in source.items() if value.strip()}


def _candidates(service: str, values: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (value, source) pairs, first the one that the client would take."""
    files = {"algorithmia": _algorithmia_files, "wandb": _wandb_files, "huggingface": _huggingface_files}
    yield from ((values[name], name) for name in VARIABLES[service] if name in values)
    yield from ((value, source) for value, source in files[service](values) if value)
    yield from _colab_secret(SECRET[service])


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
        import tomllib  # the hook may run on a Python that does not have it yet
    except ImportError:
        return ""
    try:
        return str(tomllib.loads(text)["profiles"]["default"].get(name, ""))
    except (tomllib.TOMLDecodeError, KeyError, AttributeError, TypeError):
        return ""


def _algorithmia_files(values: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    server = _algorithmia_profile(values, "api_server").rstrip("/")
    if server and server != address("algorithmia", values):
        return  # a profile's key is for the profile's server
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
    # Keys made before the service moved stand under its old host.
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
    """Whether a log-in in the browser left a key that the Hub's client trades for a new one once it has ended."""
    import configparser

    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(_text(Path(key.source).with_name("stored_tokens")))
    except (configparser.Error, ValueError):  # the latter: no path
        return False
    sections = [parser[name] for name in parser.sections()]
    return any(one.get("hf_token") == key.value and "refresh_token" in one for one in sections)


def _colab_secret(name: str) -> Iterator[tuple[str, str]]:
    """Yield a secret of the notebook: only its kernel has them, and has `google.colab` loaded."""
    if "google.colab" not in sys.modules:
        return
    from google.colab import errors, userdata  # type: ignore[import-untyped, import-not-found, unused-ignore]

    try:
        yield userdata.get(name), f"{name} in Colab's secrets"
    except errors.Error:  # no such secret, access refused, or no notebook page attached
        return
