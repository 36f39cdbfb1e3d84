"""Reports on the services' keys, and their output, with the standard library only."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TextIO

from free_ml_stack.console import fill
from free_ml_stack.credentials.keys import ADDRESSES, SECRET, Key, host, is_address

SERVICES = {"algorithmia": "Algorithmia", "wandb": "Weights & Biases", "huggingface": "Hugging Face"}
PAGES = {
    "algorithmia": "the account page of your Algorithmia installation",
    "wandb": "https://forge.coreweave.com/wandb/authorize",
    "huggingface": "https://huggingface.co/settings/tokens/new?tokenType=fineGrained"
    "&ownUserPermissions=repo.content.read&ownUserPermissions=repo.write",
}
WITHOUT = {
    "algorithmia": "the project's local gateway is used",
    "wandb": "runs are tracked offline",
    "huggingface": "models are published to a folder",
}
SETTINGS = {
    "algorithmia": "algorithmia_username",
    "wandb": "wandb_entity",
    "huggingface": "huggingface_username",
}
SETTING_NAMES = {"huggingface": "huggingface_username and the owner in model_repo"}
OTHER_PAGES = {"https://api.wandb.ai": "https://wandb.ai/authorize"}  # public servers besides the defaults
SELF_HOSTED_PAGES = {"wandb": "/authorize", "huggingface": "/settings/tokens"}  # pages for keys of self-hosted servers
REASONS = {  # reason: (outcome, text, remedy)
    "valid": ("ok", "valid, as {account}; {rights}", ""),
    "missing": (
        "missing",
        "no key found; {without}",
        "to add one, create it at {page} and set {secret}=... in .env",
    ),
    "malformed": (
        "rejected",
        "malformed key: {rule}",
        "copy the complete key again, without quotes, from {page}",
    ),
    "conflict": (
        "rejected",
        "WANDB_API_KEY and WANDB_IDENTITY_TOKEN_FILE are both set, which W&B's client rejects",
        "unset one of them",
    ),
    "address": ("rejected", "{variable} is not a valid URL", "set {variable} to https://HOST"),
    "refused": (
        "rejected",
        "key rejected by {host}",
        "it is revoked, expired or for another server; create a new one at {page}",
    ),
    "other-account": (
        "rejected",
        "valid, as {account}, which has no access to {expected}",
        "set {setting} in stack.toml to one of {accounts}, or use a key of {expected} from {page}",
    ),
    "rights": ("rejected", "valid, as {account}; {rights}", "create a key with write access at {page}"),
    "rights-unknown": ("unknown", "valid, as {account}; {rights}", "run `publish` to find out"),
    "login-expired": (
        "unknown",
        "login at {host} expired; its client renews it automatically",
        "if publishing fails, log in again with `hf auth login`",
    ),
    "exchanged": ("unknown", "exchanged for a key at runtime; not checked", "run `publish` or `train` to find out"),
    "unreachable": (
        "unknown",
        "cannot connect to {host}",
        "check the network, the proxy and {variable}, or work offline",
    ),
    "timeout": ("unknown", "request to {host} timed out", "try again later, or work offline"),
    "tls": (
        "unknown",
        "no trusted TLS connection to {host}",
        "check the clock, or set SSL_CERT_FILE to a file of CA certificates",
    ),
    "certificates": (
        "unknown",
        "no trusted TLS connection to {host}: {certificates}",
        "set it to a file of CA certificates, or unset it",
    ),
    "proxy": ("unknown", "a proxy or login page answered instead of {host}", "log in to the network in a browser"),
    "redirect": (
        "unknown",
        "{host} redirects to another host; the key was not sent there",
        "set {variable} to the new URL",
    ),
    "rate-limit": ("unknown", "rate limited by {host} (HTTP 429)", "wait five minutes and try again"),
    "server-error": (
        "unknown",
        "server error from {host} (HTTP {status})",
        "try again later",
    ),
    "unexpected": (
        "unknown",
        "unexpected response from {host}, not from {title} (HTTP {status})",
        "check {variable}",
    ),
}


@dataclass(frozen=True)
class Report:
    """The state of a service's key: outcome is ok, missing, rejected or unknown; reason is a key of REASONS."""

    service: str
    outcome: str
    reason: str
    text: str
    remedy: str
    page: str
    source: str = ""
    last_four: str = ""
    account: str = ""
    plan: str = ""

    @property
    def usable(self) -> bool:
        """Return whether requests can use the key: it is valid, or the client exchanges it for one."""
        return self.outcome == "ok" or self.reason == "exchanged"


def report(key: Key, reason: str, status: int = 0, account: str = "", plan: str = "", **facts: str) -> Report:
    """Create a report; it contains only the source and the last four characters of the key."""
    outcome, text, remedy = REASONS[reason]
    name, page = key.service, page_of(key)
    facts |= {"account": account, "page": page, "host": host(key.address), "status": str(status)}
    facts |= {"variable": ADDRESSES[name][0], "secret": SECRET[name], "title": SERVICES[name]}
    facts |= {"without": WITHOUT[name], "setting": SETTING_NAMES.get(name, SETTINGS[name])}
    last_four = key.value[-4:] if len(key.value) >= 16 and reason != "malformed" else ""
    text, remedy = _printable(text.format(**facts)), _printable(remedy.format(**facts))
    return Report(name, outcome, reason, text, remedy, page, key.source, last_four, _printable(account), plan)


def page_of(key: Key) -> str:
    """Return the page where keys of the key's server are created."""
    default = ADDRESSES[key.service][1]
    if key.service not in SELF_HOSTED_PAGES or key.address in ("", default) or not is_address(key.address):
        return PAGES[key.service]
    return (
        OTHER_PAGES.get(key.address)
        or key.address.partition("://")[0] + f"://{host(key.address)}{SELF_HOSTED_PAGES[key.service]}"
    )


def _printable(text: str) -> str:
    # Text from a server must not send control characters to the terminal.
    return "".join(character if character.isprintable() else "?" for character in text)


def show(reports: Iterable[Report], stream: TextIO, environ: Mapping[str, str]) -> None:
    """Print the reports: as columns on a terminal, in colour unless NO_COLOR is set; otherwise as plain lines."""
    terminal = bool(stream) and stream.isatty()  # None if it is closed
    colour = terminal and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
    for one in reports:
        name, outcome = f"{SERVICES[one.service]}: ", f"{one.outcome}: "
        if terminal:
            name, outcome = f"{SERVICES[one.service]:<18}", f"{one.outcome:<10}"
        ending = f", ...{one.last_four}" if one.last_four else ""
        source = f" [{one.source}{ending}]" if one.source else ""
        text = f"{name}{outcome}{one.text}{source}"
        if terminal:
            text = fill(text, 28)
        if colour:
            code = {"ok": 32, "rejected": 31}.get(one.outcome, 33)
            text = text.replace(outcome, f"\033[{code}m{outcome}\033[0m", 1)
        print(text, file=stream)
        if one.remedy:
            print(fill(f"  {one.remedy}", 2) if terminal else f"  {one.remedy}", file=stream)


def as_json(reports: Iterable[Report]) -> list[dict[str, str]]:
    """Convert the reports to dictionaries, which contain no keys."""
    return [asdict(one) for one in reports]
