"""Settings: precedence of the sources, and errors that name the setting."""

from pathlib import Path

import pytest
from skeleton.config import TrainConfig

from free_ml_stack.algorithmia.calls import read_input
from free_ml_stack.errors import StackError
from free_ml_stack.project import flags
from free_ml_stack.project.settings import load
from free_ml_stack.storage.stores import open_store, place


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "stack.toml").write_text('project = "p"\nstorage = "./from-toml"\n')
    return tmp_path


def test_later_sources_take_precedence(project: Path) -> None:
    assert load({}, project, {}).storage == "./from-toml"
    (project / ".env").write_text("STACK_STORAGE=./from-dotenv\n")
    assert load({}, project, {}).storage == "./from-dotenv"
    assert load({}, project, {"STACK_STORAGE": "./from-environment"}).storage == "./from-environment"
    assert load({"storage": "./flag"}, project, {"STACK_STORAGE": "./from-environment"}).storage == "./flag"


def test_keys_of_dotenv_are_added_to_the_environment(project: Path) -> None:
    (project / ".env").write_text("HF_TOKEN=from-dotenv\nWANDB_API_KEY=from-dotenv\n")
    environ = {"HF_TOKEN": "from-environment", "HOME": str(project)}
    load({}, project, environ)
    assert environ["HF_TOKEN"] == "from-environment"
    assert environ["WANDB_API_KEY"] == "from-dotenv"


def test_a_project_is_found_from_any_folder_in_it(project: Path) -> None:
    (project / "src" / "deep").mkdir(parents=True)
    assert load({}, project / "src" / "deep", {}).root == project


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('storrage = "x"', "stack.toml: unknown setting 'storrage'; did you mean 'storage'?"),
        ('tracker = "mlflow"', "stack.toml: tracker: expected one of wandb, trackio, none"),
        ("project = [1]", "stack.toml: project: expected str"),
        ("project = ", "stack.toml: "),
    ],
)
def test_an_invalid_file_gives_a_one_line_error(project: Path, text: str, words: str) -> None:
    (project / "stack.toml").write_text(text)
    with pytest.raises(StackError) as raised:
        load({}, project, {})
    assert str(raised.value).startswith(words)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("algorithm", value)
            for value in ("Digits", "", "/x", "me/", "me/../x", "me/a{b}", "me/a b", "me/x/y", "..")
        ),
        ("model_repo", "a/b/c"),
        ("algorithmia_username", "../../me"),
        ("algorithmia_username", "a b"),
    ],
)
def test_a_name_that_would_be_another_path_is_rejected(project: Path, name: str, value: str) -> None:
    with pytest.raises(StackError, match=f"^{name}: expected .*, got '{value}'$"):
        load({name: value}, project, {})


def test_an_unknown_variable_is_rejected_with_a_suggestion(project: Path) -> None:
    with pytest.raises(StackError, match="STACK_TRAKKER.*did you mean 'STACK_TRACKER'"):
        load({}, project, {"STACK_TRAKKER": "none"})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("STACK_PATIENCE", "abc", "patience: expected float, got 'abc'"),
        ("STACK_CACHE_BYTES", "x", "cache_bytes: expected int, got 'x'"),
        ("STACK_TRACKER", "all", "tracker: expected one of .*, got 'all'"),
    ],
)
def test_an_invalid_variable_is_named(project: Path, name: str, value: str, words: str) -> None:
    with pytest.raises(StackError, match=f"^environment variable {name}: {words}"):
        load({}, project, {name: value})


def test_a_missing_project_is_reported(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="run this inside a project"):
        load({}, tmp_path, {})


def test_a_key_is_not_shown(project: Path) -> None:
    settings = load({}, project, {"ALGORITHMIA_API_KEY": "simSECRET"})
    assert settings.algorithmia_api_key == "simSECRET"
    assert "SECRET" not in repr(settings)


@pytest.mark.parametrize(
    ("value", "name", "expected"),
    [
        ("7", "epochs", 7),
        ("0.5", "dropout", 0.5),
        (3.0, "epochs", 3),
        ("cpu", "device", "cpu"),
        (1, "lr", 1.0),
    ],
)
def test_text_and_numbers_become_the_type_of_the_field(value: object, name: str, expected: object) -> None:
    found = flags.convert(TrainConfig, name, value)
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", "many"),
        ("epochs", 2.5),
        ("epochs", True),
        ("epochs", 10**30),
        ("seed", "9" * 20),
        ("lr", "nan"),
        ("lr", None),
        ("device", "tpu"),
        ("device", 5),
        ("lr", [1]),
    ],
)
def test_a_value_of_the_wrong_type_names_the_setting(name: str, value: object) -> None:
    with pytest.raises(StackError, match=name):
        flags.convert(TrainConfig, name, value)


@pytest.mark.parametrize("content", [b"HF_TOKEN=\xff\n", "HF_TOKEN=x\n".encode("utf-16"), b"HF_TOKEN=a\0b\n"])
def test_a_binary_dotenv_gives_a_one_line_error(project: Path, content: bytes) -> None:
    (project / ".env").write_bytes(content)
    with pytest.raises(StackError, match=r"^\.env: .*; save it as UTF-8 text$"):
        load({}, project, {})


def test_dotenv_overrides_an_empty_variable(project: Path) -> None:
    (project / ".env").write_text("HF_TOKEN=from-dotenv\n")
    environ = {"HF_TOKEN": "", "HOME": str(project)}
    load({}, project, environ)
    assert environ["HF_TOKEN"] == "from-dotenv"


def test_an_empty_variable_leaves_the_address_of_the_clients_profile(project: Path) -> None:
    (project / ".algorithmia").mkdir()
    profile = "[profiles.default]\napi_key = 'simKEY'\napi_server = 'https://algo.example.org'\n"
    (project / ".algorithmia" / "config").write_text(profile)
    settings = load({}, project, {"HOME": str(project), "ALGORITHMIA_API": ""})
    assert (settings.algorithmia_api, settings.algorithmia_api_key) == ("https://algo.example.org", "simKEY")


def test_a_byte_order_mark_is_accepted_and_other_encodings_are_not(project: Path) -> None:
    (project / "stack.toml").write_text('project = "p"\n', encoding="utf-8-sig")
    assert load({}, project, {}).project == "p"
    (project / "stack.toml").write_text('project = "p"\n', encoding="utf-16")
    with pytest.raises(StackError, match=r"stack\.toml: .*; save it as UTF-8 text"):
        load({}, project, {})


def test_an_invalid_number_of_torchrun_names_the_variable(project: Path) -> None:
    with pytest.raises(StackError, match="environment variable WORLD_SIZE: expected a number, got 'two'"):
        load({}, project, {"WORLD_SIZE": "two"})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("WANDB_BASE_URL", "nonsense", "environment variable WANDB_BASE_URL: expected a URL"),
        (
            "ALGORITHMIA_API",
            "https://ada:secret@a..b",
            "environment variable ALGORITHMIA_API: expected a URL",
        ),
        ("HF_ENDPOINT", "ftp://hub", "environment variable HF_ENDPOINT: expected a URL"),
        ("WANDB_MODE", "nonsense", "environment variable WANDB_MODE: expected one of online, offline"),
    ],
)
def test_invalid_variables_of_the_clients_give_one_line_errors(
    project: Path, name: str, value: str, words: str
) -> None:
    with pytest.raises(StackError) as raised:
        load({}, project, {name: value})
    assert str(raised.value).startswith(words) and "secret" not in str(raised.value)


def test_an_unknown_users_home_gives_a_one_line_error(project: Path) -> None:
    with pytest.raises(StackError, match="unknown user; use the full path of the folder"):
        open_store("~nobody-of-that-name/x", load({}, project, {}))


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_json_is_read_with_and_without_a_byte_order_mark(tmp_path: Path, mark: bytes) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(mark + b'{"epochs": 1}')
    assert flags.read_json(file) == read_input(str(file)) == {"epochs": 1}


def test_the_local_folder_of_a_store_is_shown(project: Path) -> None:
    settings = load({"storage": "algorithmia://.my/p"}, project, {"HOME": str(project)})
    shown = place(settings.storage, "data", settings)
    assert shown == f"algorithmia://.my/p/data (without a key: {project}/.stack/data/me/p/data)"
    own = load({"storage": "./store"}, project, {"HOME": str(project)})
    assert place(own.storage, "data", own) == "./store/data"
    named = load({"storage": "s3://bucket"}, project, {"HOME": str(project), "AWS_PROFILE": "x"})
    assert place(named.storage, "data", named) == "s3://bucket/data"
