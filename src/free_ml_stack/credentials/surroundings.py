"""What the environment names that no client can use, told by the variable. Standard library only."""

import os
from collections.abc import Mapping, MutableMapping

from free_ml_stack.credentials.keys import missing_certificates, socks_proxy

NUMBERS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")  # read by the Hub's client as it is imported
HERE = ("localhost", "127.0.0.1", "::1")


def surroundings(error: BaseException) -> str:
    """The line that names the variable which an error of a client comes of; nothing where it comes of none."""
    text = str(error)
    name = socks_proxy(os.environ)
    if name and "socks" in text.lower() and ("install" in text or "dependencies" in text):
        package = "PySocks" if "dependencies" in text else "socksio"
        return f"{name} names a SOCKS proxy, for which {package} is not installed: add it, or name an http:// proxy"
    certificates = missing_certificates(os.environ)
    unnamed = isinstance(error, FileNotFoundError) and not error.filename  # as ssl raises it
    if certificates and (unnamed or "certificate" in text.lower()):
        return f"{certificates}: name a file of certificates there, or unset it"
    return ""


def no_number(environ: Mapping[str, str]) -> str:
    """The variable of the Hub's client that is to be a number and is none; nothing where all are."""
    for name in NUMBERS:
        try:
            int(environ.get(name, "").strip() or 0)
        except ValueError:
            return name
    return ""


def spare_loopback(environ: MutableMapping[str, str]) -> None:
    """Let no client ask a proxy for this machine itself: where proxies are named, it is put into NO_PROXY."""
    if not any(name.lower().endswith("_proxy") and name.lower() != "no_proxy" for name in environ):
        return
    given = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    names = [name.strip() for name in given.split(",") if name.strip()]
    if "*" not in names:
        environ["NO_PROXY"] = environ["no_proxy"] = ",".join(dict.fromkeys((*names, *HERE)))
