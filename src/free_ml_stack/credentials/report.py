"""What is told of a service's key, and how it is told. Standard library only."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TextIO

from free_ml_stack.credentials.keys import ADDRESSES, SECRET, Key, host, is_address

SERVICES = {"algorithmia": "Algorithmia", "wandb": "Weights & Biases", "huggingface": "Hugging Face"}
PAGES = {
    "algorithmia": "the account page of your Algorithmia installation",
    "wandb": "https://forge.coreweave.com/wandb/authorize",
    "huggingface": "https://huggingface.co/settings/tokens/new?tokenType=fineGrained"
    "&ownUserPermissions=repo.content.read&ownUserPermissions=repo.write",
}
WITHOUT = {
    "algorithmia": "the project's own gateway stands in",
    "wandb": "runs are tracked offline",
    "huggingface": "models are published to a folder",
}
SETTINGS = {
    "algorithmia": "algorithmia_username",
    "wandb": "wandb_entity",
    "huggingface": "huggingface_username",
}
NAMED = {"huggingface": "huggingface_username and the owner in model_repo"}
CURRENT = {"https://api.wandb.ai": "https://wandb.ai/authorize"}  # public servers beside the defaults
OWN = {"wandb": "/authorize", "huggingface": "/settings/tokens"}  # where a server of one's own makes keys
REASONS = {  # reason: (outcome, what is so, how to mend it)
    "valid": ("ok", "valid, as {account}; {rights}", ""),
    "missing": (
        "missing",
        "no key found; {without}",
        "to have one, put {secret}=... into .env; made at {page}",
    ),
    "malformed": (
        "rejected",
        "not a key: {rule}",
        "copy the whole key again, without quotes; made at {page}",
    ),
    "two": (
        "rejected",
        "WANDB_API_KEY and WANDB_IDENTITY_TOKEN_FILE are both set, and W&B's client refuses that",
        "unset one of them",
    ),
    "address": ("rejected", "{variable} is not a server's address", "give {variable} as https://HOST"),
    "refused": (
        "rejected",
        "{host} refuses the key",
        "revoked, expired or for another server; new at {page}",
    ),
    "other-account": (
        "rejected",
        "valid, as {account}, who has no access to {expected}",
        "set {setting} in stack.toml to one of: {accounts}; or use the key of {expected}, made at {page}",
    ),
    "rights": ("rejected", "valid, as {account}; {rights}", "make a key that may write, at {page}"),
    "rights-untold": ("unknown", "valid, as {account}; {rights}", "publishing will tell"),
    "ended": (
        "unknown",
        "the log-in at {host} has ended; its client renews it when needed",
        "if publishing fails, log in again with `hf auth login`",
    ),
    "exchanged": ("unknown", "a key is made from it when needed; not checked", "publishing will tell"),
    "unreachable": (
        "unknown",
        "{host} cannot be reached",
        "check network, proxy, {variable}; or work offline",
    ),
    "timeout": ("unknown", "no answer from {host} in time", "try again later, or work offline"),
    "tls": (
        "unknown",
        "no trusted connection to {host}",
        "check the clock; name certificates in SSL_CERT_FILE",
    ),
    "certificates": (
        "unknown",
        "no trusted connection to {host}: {certificates}",
        "name a file of certificates there, or unset it",
    ),
    "proxy": ("unknown", "a proxy or log-in page answers for {host}", "log in to the network in a browser"),
    "redirect": (
        "unknown",
        "{host} points elsewhere; no key was sent there",
        "set {variable} to the new address",
    ),
    "rate-limit": ("unknown", "{host} asks to wait (HTTP 429)", "wait five minutes and try again"),
    "server-error": (
        "unknown",
        "{host} has a fault (HTTP {status})",
        "nothing to mend here; try again later",
    ),
    "unexpected": ("unknown", "{host} does not answer as {title} (HTTP {status})", "check {variable}"),
}


@dataclass(frozen=True)
class Report:
    """What is known of a service's key: outcome is ok, missing, rejected or unknown; reason is in REASONS."""

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
        """Whether a call may be tried with it: it works, or a key is only made from it by the call."""
        return self.outcome == "ok" or self.reason == "exchanged"


def report(key: Key, reason: str, status: int = 0, account: str = "", plan: str = "", **facts: str) -> Report:
    """Word a finding; of the key only its source and its last four characters are kept."""
    outcome, text, remedy = REASONS[reason]
    name, page = key.service, page_of(key)
    facts |= {"account": account, "page": page, "host": host(key.address), "status": str(status)}
    facts |= {"variable": ADDRESSES[name][0], "secret": SECRET[name], "title": SERVICES[name]}
    facts |= {"without": WITHOUT[name], "setting": NAMED.get(name, SETTINGS[name])}
    last_four = key.value[-4:] if len(key.value) >= 16 and reason != "malformed" else ""
    text, remedy = _printable(text.format(**facts)), _printable(remedy.format(**facts))
    return Report(name, outcome, reason, text, remedy, page, key.source, last_four, _printable(account), plan)


def page_of(key: Key) -> str:
    """Where a key is made: at the server that it is for."""
    default = ADDRESSES[key.service][1]
    if key.service not in OWN or key.address in ("", default) or not is_address(key.address):
        return PAGES[key.service]
    return CURRENT.get(key.address) or key.address.partition("://")[0] + f"://{host(key.address)}{OWN[key.service]}"


def _printable(text: str) -> str:
    # A server wrote some of it, and the terminal obeys control characters.
    return "".join(character if character.isprintable() else "?" for character in text)


def show(reports: Iterable[Report], stream: TextIO, environ: Mapping[str, str]) -> None:
    """Print the reports: columns, in colour unless NO_COLOR, on a terminal; plain lines elsewhere."""
    terminal = bool(stream) and stream.isatty()  # none where it is closed
    colour = terminal and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
    for one in reports:
        name, outcome, indent = f"{SERVICES[one.service]}: ", f"{one.outcome}: ", "  "
        if terminal:
            name, outcome, indent = f"{SERVICES[one.service]:<18}", f"{one.outcome:<10}", " " * 28
        if colour:
            code = {"ok": 32, "rejected": 31}.get(one.outcome, 33)
            outcome = f"\033[{code}m{outcome}\033[0m"
        ending = f", ...{one.last_four}" if one.last_four else ""
        source = f" [{one.source}{ending}]" if one.source else ""
        print(f"{name}{outcome}{one.text}{source}", file=stream)
        if one.remedy:
            print(f"{indent}{one.remedy}", file=stream)


def as_json(reports: Iterable[Report]) -> list[dict[str, str]]:
    """The reports as plain dictionaries; no key is among them."""
    return [asdict(one) for one in reports]
