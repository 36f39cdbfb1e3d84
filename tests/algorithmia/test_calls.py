"""Calls of a deployed algorithm with the official client."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import Algorithmia
import pytest
from Algorithmia.algorithm import OutputType
from Algorithmia.errors import AlgorithmException
from deployed import KEY, Deployed, deployed
from services.ports import listening

from free_ml_stack.algorithmia.calls import RECORD, read_input, running_gateway
from free_ml_stack.errors import StackError
from free_ml_stack.gateway.protocol.express import ExpressProtocol
from free_ml_stack.project.settings import Settings


@pytest.fixture(scope="module", params=["httptools", "h11", ExpressProtocol])
def gateway(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Deployed]:
    """A gateway with each of the protocol implementations."""
    with deployed(tmp_path_factory.mktemp("gateway"), http=request.param) as gateway:
        yield gateway


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        ("text", "text"),
        ("☎ ünicode", "text"),
        ("", "text"),
        (b"\x00\xff", "binary"),
        (bytearray(b"bytes"), "binary"),
        (None, "json"),
        (True, "json"),
        (1.5, "json"),
        ([1, [2, {"three": None}]], "json"),
        ({"a": "b"}, "json"),
    ],
)
def test_text_json_and_binary_round_trip(gateway: Deployed, payload: Any, kind: str) -> None:
    answer = gateway.client().algo("me/demo").pipe(payload)
    assert answer.result == payload
    assert answer.metadata.content_type == kind
    assert answer.metadata.duration > 0


@pytest.mark.parametrize("version", ["", "/0.1.0", "/0.1", "/0.1.*", "/0.*", "/0.1.x", "/latest", "/"])
def test_a_version_can_be_specified_in_all_formats(gateway: Deployed, version: str) -> None:
    assert gateway.client().algo(f"me/demo{version}").pipe("word").result == "hello"


@pytest.mark.parametrize("name", ["me/demo/0.2.0", "me/demo/1.*", "me/nothing", "you/demo", "me/demo/0.1.0/x"])
def test_an_unknown_algorithm_is_not_found(gateway: Deployed, name: str) -> None:
    with pytest.raises(AlgorithmException) as raised:
        gateway.client().algo(name).pipe("word")
    assert raised.value.message == f"algorithm algo://{name} not found"
    assert raised.value.error_type == "EntityNotFoundError"


def test_output_raw_and_void(gateway: Deployed) -> None:
    algo = gateway.client().algo("me/demo")
    assert algo.set_options(output=OutputType.raw).pipe("naïve") == "naïve"
    assert algo.set_options(output=OutputType.raw).pipe({"a": 1}) == '{"a":1}'
    answer = algo.set_options(output=OutputType.void).pipe("later")
    assert answer.async_protocol
    assert answer.request_id.startswith("req-")


def test_stdout_is_returned_on_request(gateway: Deployed) -> None:
    algo = gateway.client().algo("me/demo")
    answer = algo.set_options(stdout=True).pipe({"print": "working"})
    assert answer.metadata.stdout == "working\n"
    assert algo.set_options(stdout=False).pipe({"print": "working"}).metadata.stdout is None


@pytest.mark.parametrize(
    ("payload", "message", "kind"),
    [
        ("refuse", "that makes no sense", "InputError"),
        ("fail", "'secret'", "AlgorithmError"),
        ("exit", "exited with code 3", "SystemExit"),
        (
            "object",
            "the answer is not JSON-serializable: Type is not JSON serializable: object",
            "AlgorithmError",
        ),
    ],
)
def test_an_error_of_the_algorithm_is_returned(gateway: Deployed, payload: str, message: str, kind: str) -> None:
    with pytest.raises(AlgorithmException) as raised:
        gateway.client().algo("me/demo").pipe(payload)
    assert (raised.value.message, raised.value.error_type) == (message, kind)
    assert gateway.client().algo("me/demo").pipe("still there").result == "still there"


def test_the_owner_gets_the_stack_trace(gateway: Deployed) -> None:
    with pytest.raises(AlgorithmException) as raised:
        gateway.client().algo("me/demo").pipe("fail")
    assert 'return {}["secret"]' in raised.value.stack_trace


def test_a_call_without_a_key_is_rejected_without_details(gateway: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALGORITHMIA_API_KEY", raising=False)
    with pytest.raises(AlgorithmException) as raised:
        Algorithmia.client(api_address=gateway.url).algo("me/demo").pipe("fail")
    assert str(raised.value) == str(AlgorithmException("authorization required", None, None))


def test_an_input_is_json_text_or_a_file(tmp_path: Path) -> None:
    files = {
        "a.json": b'\xef\xbb\xbf{"carat": 0.3}',
        "sample.json": b'{"input": [1, 2], "output": 3}',
        "note.txt": "Fünf, please\n".encode(),
        "photo.jpg": b"\xff\xd8\xff\xe0",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert read_input(str(tmp_path / "a.json")) == {"carat": 0.3}
    assert read_input(str(tmp_path / "sample.json")) == [1, 2]
    assert read_input(str(tmp_path / "note.txt")) == "Fünf, please"
    assert read_input(str(tmp_path / "photo.jpg")) == bytearray(b"\xff\xd8\xff\xe0")
    assert read_input("some text.") == "some text."
    assert read_input('{"a": null}') == {"a": None}
    for text in (
        "1.5 is text for some, and JSON here",
        "~you and ~me",
        "NaN",
        "why? " * 200 + "really?",
        "and/or? " * 800 + ".",
    ):
        assert read_input(text) == text
    assert read_input("caf\udce9 au lait") == bytearray(b"caf\xe9 au lait")  # an argument that is not UTF-8
    (tmp_path / "wide.json").write_bytes("[1]".encode("utf-16"))
    for wrong, words in (
        ('{"a": ', "invalid JSON input: "),
        ('["\\ud800"]', "invalid JSON input: "),
        ("[1e999]", "invalid JSON input: "),
        (str(tmp_path / "wide.json"), "save it as UTF-8 text"),
        (str(tmp_path / "none.json"), "none.json: no such file"),
        (str(tmp_path / "my photo.jpg"), "my photo.jpg: no such file"),
        (f"{tmp_path}/", "is a folder; name a file in it"),
    ):
        with pytest.raises(StackError, match=words):
            read_input(wrong)


def test_the_record_of_a_gateway_whose_process_id_is_used_again_is_ignored(gateway: Deployed, tmp_path: Path) -> None:
    """A gateway that was killed leaves its record, and in a restarted container ids repeat."""
    settings = Settings(project="p", root=tmp_path, storage="", algorithm="me/demo")
    settings.private.mkdir()
    with listening() as closed:
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
    for url, found in ((gateway.url, True), (nowhere, False)):
        record = {"url": url, "pid": os.getpid(), "key": KEY}
        (settings.private / RECORD).write_text(json.dumps(record))
        assert running_gateway(settings) == (record if found else {})
    (settings.private / RECORD).write_text(json.dumps(record | {"before": {**record, "url": gateway.url}}))
    assert running_gateway(settings)["url"] == gateway.url
