"""Diagnosis of environment variables on which clients fail, with the standard library only."""

import os
from collections.abc import Mapping, MutableMapping

from free_ml_stack.credentials.keys import CERTIFICATES, invalid_proxy, missing_certificates, socks_proxy

NUMBERS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")  # read by the Hub's client on import
HERE = ("localhost", "127.0.0.1", "::1")


def explain_error(error: BaseException) -> str:
    """Return a message that names the variable that caused a client's error, or ""."""
    text = str(error)
    name = socks_proxy(os.environ)
    if name and "socks" in text.lower() and ("install" in text or "dependencies" in text):
        package = "PySocks" if "dependencies" in text else "socksio"
        return f"{name} is a SOCKS proxy, which requires {package}: install it, or use an http:// proxy"
    name = invalid_proxy(os.environ)
    if name and ("proxy" in text.lower() or type(error).__name__ == "InvalidURL"):
        return f"{name}: expected a proxy such as http://HOST:PORT"
    name = next((name for name in CERTIFICATES if os.environ.get(name)), "")
    if name and ("NO_CERTIFICATE" in text or "PEM lib" in text):
        return f"{name}={os.environ[name]} has no CA certificates; set it to a file of CA certificates, or unset it"
    certificates = missing_certificates(os.environ)
    unnamed = isinstance(error, FileNotFoundError) and not error.filename  # raised by ssl
    if certificates and (unnamed or "certificate" in text.lower()):
        return f"{certificates}; set it to a file of CA certificates, or unset it"
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        return f"{error.object[:200]!a} is not valid UTF-8; rename it, or set PYTHONUTF8=1 if the locale is not UTF-8"
    return ""


def invalid_number(environ: Mapping[str, str]) -> str:
    """Return the variable of the Hub's client that should be a number but is not, or ""."""
    for name in NUMBERS:
        try:
            int(environ.get(name, "").strip() or 0)
        except ValueError:
            return name
    return ""


def bypass_proxy_for_loopback(environ: MutableMapping[str, str]) -> None:
    """Add this machine to NO_PROXY if a proxy is set, so that clients connect to it directly."""
    if not any(name.lower().endswith("_proxy") and name.lower() != "no_proxy" for name in environ):
        return
    given = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    names = [name.strip() for name in given.split(",") if name.strip()]
    if "*" not in names:
        environ["NO_PROXY"] = environ["no_proxy"] = ",".join(dict.fromkeys((*names, *HERE)))
