"""An S3 server on loopback with the limits of the S3 gateway of the Hub's buckets, based on moto.

The rejected and ignored features are listed in huggingface.co/docs/hub/storage-buckets-s3.
"""

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

ENVIRON = {
    "AWS_ACCESS_KEY_ID": "HFAKofme",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}
Answer = Callable[..., Any]
WRONG_KEY = re.compile(r"^/|/$|//|\.\./|^\./|\.\.$|\\|\0")
TRAILING = ("HTTP_X_AMZ_TRAILER", "HTTP_X_AMZ_SDK_CHECKSUM_ALGORITHM", "HTTP_X_AMZ_CHECKSUM_MODE")


class Gateway:
    """The buckets of one namespace, at `/<namespace>`. `refused` lists the reasons of rejected requests."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.app = DomainDispatcherApplication(create_backend_app)
        self.refused: list[str] = []
        self.calls: list[str] = []

    def __call__(self, environ: dict[str, Any], start: Answer) -> Iterable[bytes]:
        self.calls.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ['QUERY_STRING']}")
        problem = self.problem(environ)
        if problem:
            self.refused.append(f"{self.calls[-1]}: {problem}")
            start("501 Not Implemented", [("Content-Type", "application/xml")])
            return [f"<Error><Code>NotImplemented</Code><Message>{problem}</Message></Error>".encode()]
        for name in ("PATH_INFO", "RAW_URI", "REQUEST_URI"):
            environ[name] = environ[name].removeprefix(f"/{self.namespace}")
        for name in [name for name in environ if name.startswith("HTTP_X_AMZ_META_")]:
            del environ[name]

        def begin(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            return start(status, [each for each in headers if "checksum" not in each[0].lower()], *rest)

        return self.app(environ, begin)  # type: ignore[no-any-return]

    def problem(self, environ: Mapping[str, Any]) -> str:
        """Return why a request is rejected, "" if it is accepted."""
        path, query = environ["PATH_INFO"], parse_qs(environ["QUERY_STRING"], keep_blank_values=True)
        signed = environ.get("HTTP_AUTHORIZATION", "")
        if not path.startswith(f"/{self.namespace}"):
            return "buckets are addressed as a segment of the path, below the namespace"
        if not re.search(r"Credential=HFAK\w+/\d+/us-east-1/s3/", signed):
            return "keys begin with HFAK, and the region is us-east-1"
        bucket, _, key = path.removeprefix(f"/{self.namespace}/").partition("/")
        if any(environ.get(name) for name in TRAILING) or "aws-chunked" in environ.get("HTTP_CONTENT_ENCODING", ""):
            return "checksums in trailers are not parsed"
        if key and WRONG_KEY.search(key):
            return f"{key!r} is no key here"
        listing = bucket and not key and environ["REQUEST_METHOD"] == "GET"
        if listing and query.get("list-type") != ["2"] and not {"location", "uploads"} & set(query):
            return "ListObjectsV1"
        if query.get("delimiter", ["/"]) not in (["/"], [""]):
            return "the delimiter is not /"
        return "versions" if {"versions", "versionId", "tagging", "acl", "policy"} & set(query) else ""


class Quiet(WSGIRequestHandler):
    """A handler that logs nothing."""

    def log(self, *arguments: Any) -> None:
        """Log nothing."""


@contextmanager
def serving(gateway: Gateway) -> Iterator[str]:
    """Serve a gateway in a thread; yield its URL for AWS_ENDPOINT_URL."""
    server = make_server("127.0.0.1", 0, gateway, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}/{gateway.namespace}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
