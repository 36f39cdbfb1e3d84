"""Check the settings that S3 clients need for the S3 gateway of the Hub's buckets.

Source: https://huggingface.co/docs/hub/storage-buckets-s3
"""

import os
from collections.abc import Iterator
from importlib import util
from urllib.parse import urlsplit

HOST, REGION, PREFIX = "s3.hf.co", "us-east-1", "HFAK"
CHECKSUMS = ("request_checksum_calculation", "response_checksum_validation")
REQUIRED = "when_required"


def on_gateway() -> bool:
    """Return whether the environment or the AWS profile selects the gateway."""
    return urlsplit(_endpoint()).hostname == HOST


def faults() -> Iterator[str]:
    """Yield one line with the remedy for each setting that does not fit the gateway."""
    endpoint = urlsplit(_endpoint())
    if endpoint.hostname != HOST:
        return
    if not endpoint.path.strip("/"):
        yield f"AWS_ENDPOINT_URL lacks the owner of the bucket: set it to https://{HOST}/USER"
    from botocore.session import Session

    session = Session()
    for name in CHECKSUMS:
        if session.get_config_variable(name) != REQUIRED:
            yield f"AWS_{name.upper()} must be {REQUIRED}: {HOST} does not accept the default checksums of S3 clients"
    if session.get_config_variable("region") not in (None, REGION):
        yield f"AWS_DEFAULT_REGION must be {REGION} for {HOST}, is {session.get_config_variable('region')}"
    if not (os.environ.get("AWS_ACCESS_KEY_ID") or PREFIX).startswith(PREFIX):
        yield f"AWS_ACCESS_KEY_ID is not a key for {HOST} ({PREFIX}...): generate one at https://huggingface.co/settings/tokens"


def _endpoint() -> str:
    if not util.find_spec("botocore"):
        return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    from botocore.configprovider import ConfiguredEndpointProvider
    from botocore.exceptions import ProfileNotFound
    from botocore.session import Session

    session = Session()
    try:
        scoped = session.get_scoped_config()
    except ProfileNotFound:
        scoped = {}
    found = ConfiguredEndpointProvider(full_config=session.full_config, scoped_config=scoped, client_name="s3")
    return str(found.provide() or "")
