"""Images of a user: files of any size and colour, a network of timm's with weights from the Hub, the page for them."""

import base64
import io
import json
import shutil
import signal
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forking
import fresh
import numpy as np
import projects
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm_here
from browsing import ANSWERS, browse, faults, folder_served
from huggingface_hub import ModelCard
from PIL import Image
from places import ROOT, SOURCE, TASKS
from services.hub_server import Hub, serving
from skeleton import predict
from skeleton.config import TrainConfig
from skeleton.data import fetch
from skeleton.model import build
from waiting import until

from free_ml_stack.deployment.answering import close
from free_ml_stack.deployment.spaces import SpaceContent, web_page
from free_ml_stack.errors import StackError

TASK, BASE = "image-classification", "timm/resnet18.a1_in1k"
MADE = """
import sys, timm, torch
torch.manual_seed(0)
made = timm.create_model("resnet18", num_classes=11)
timm.models.save_for_hf(made, sys.argv[1], model_args={"num_classes": 11}, safe_serialization=True)
"""
READ = """
import json, sys, timm, torch
from pathlib import Path
from PIL import Image
import numpy as np
model = timm.create_model("hf_hub:me/shapes", pretrained=True).eval()
about = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**about, is_training=False)
print(json.dumps([about["input_size"], model.pretrained_cfg["label_names"],
    model(transform(Image.open(sys.argv[1]).convert("RGB"))[None]).softmax(1)[0].tolist()]))
"""
QUICK = ("--size", "32", "--epochs", "1", "--batch-size", "16", "--shift", "0", "--lr", "0.001")


@dataclass
class Shapes:
    """A project with a user's pictures, the Hub, and the environment with timm."""

    folder: Path
    hub: Hub
    environ: dict[str, str]

    def run(self, *arguments: str, code: int = 0) -> str:
        return projects.run(self.folder, *arguments, code=code, **self.environ)

    def python(self, code: str, *arguments: str) -> str:
        process = forking.start(
            ["-c", code, *arguments], self.folder, projects.environment(self.folder, **self.environ)
        )
        printed, complaint = process.communicate(timeout=300)
        assert process.returncode == 0, complaint
        return printed


def pictures(folder: Path) -> None:
    """Discs and stripes, JPEG and PNG, of many sizes and colours."""
    chance = np.random.default_rng(0)
    for number in range(60):
        high, wide = chance.integers(40, 120, 2)
        rows, columns = np.mgrid[:high, :wide]
        kind = ("disc", "stripes")[number % 2]
        inside = (rows - high / 2) ** 2 + (columns - wide / 2) ** 2 < (min(high, wide) / 3) ** 2
        mask = inside if kind == "disc" else columns // 8 % 2 == 0
        colours = chance.integers(0, 256, (2, 3))
        image = Image.fromarray(np.where(mask[..., None], *colours).astype(np.uint8))
        (folder / kind).mkdir(parents=True, exist_ok=True)
        image.save(folder / kind / f"{number}.{('png', 'jpg')[number // 2 % 2]}")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shapes]:
    """A project with pictures, and a Hub with the weights of a backbone as timm itself writes them."""
    root = tmp_path_factory.mktemp("shapes")
    folder = root / "project"
    pictures(folder / "pictures")
    (folder / "stack.toml").write_text(
        'project = "shapes"\nstorage = "./store"\nalgorithm = "me/Shapes"\nmodel_repo = "me/shapes"\n'
    )
    hub = Hub(root / "hub")
    with serving(hub) as url:
        path = f"{SOURCE}:{timm_here.folder()}"
        environ = {"PYTHONPATH": path, "HF_ENDPOINT": url, "HF_TOKEN": "hf_write", "HF_HUB_DISABLE_TELEMETRY": "1"}
        made = Shapes(folder, hub, environ)
        made.python(MADE, str(root / "resnet18"))
        hub.put("model", BASE, {path.name: path.read_bytes() for path in (root / "resnet18").iterdir()})
        made.run("data", "--from", "pictures")
        yield made


@pytest.fixture(scope="module")
def published(shapes: Shapes) -> tuple[Path, str]:
    """The folder of a published model that stands on the backbone, and what training and publishing printed."""
    flags = ("--backbone", "resnet18", "--frozen-epochs", "1", *QUICK)
    printed = shapes.run("train", "--name", "backbone", *flags)
    return shapes.folder / "models" / "backbone", printed + shapes.run("publish")


def weights(path: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return dict(load_file(path))


@pytest.mark.slow
def test_a_backbone_starts_from_its_weights_on_the_hub(shapes: Shapes, published: tuple[Path, str]) -> None:
    """All but its head, which alone was trained."""
    folder, printed = published
    assert f"Starting from hf://{BASE}: 120 of 122 tensors. Not used: fc." in printed
    before, after = (
        weights(shapes.folder.parent / "resnet18" / "model.safetensors"),
        weights(folder / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    kept = {
        name for name in before if before[name].shape == after[name].shape and np.array_equal(before[name], after[name])
    }
    assert {name for name in before if not name.startswith("fc.")} - kept <= {
        name for name in before if "running" in name or "num_batches" in name
    }
    assert not kept & {"fc.weight", "fc.bias"}


@pytest.mark.slow
def test_what_is_published_is_one_of_timm(shapes: Shapes, published: tuple[Path, str], tmp_path: Path) -> None:
    """timm loads it from the Hub with its own preprocessing, and answers alike; the card states this and its origin."""
    folder, _ = published
    card = ModelCard((folder / "README.md").read_text())
    assert (card.data.library_name, card.data.base_model) == ("timm", BASE)
    assert 'timm.create_model("hf_hub:me/shapes", pretrained=True)' in card.text
    sample = json.loads((folder / "sample.json").read_text())
    (tmp_path / "sample.png").write_bytes(base64.b64decode(sample["input"]))
    small = Image.open(tmp_path / "sample.png").convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    small.save(tmp_path / "small.png")
    size, names, answer = json.loads(shapes.python(READ, str(tmp_path / "small.png")))
    assert (size, names) == ([3, 32, 32], ["disc", "stripes"])
    with (tmp_path / "small.png").open("rb") as file:
        served = shapes.python(SERVED, str(folder), base64.b64encode(file.read()).decode())
    assert answer == pytest.approx(json.loads(served), abs=1e-4)


SERVED = """
import json, sys
from pathlib import Path
from skeleton.predict import apply, load
print(json.dumps(apply(sys.argv[2], load(Path(sys.argv[1])))["probabilities"]))
"""


@pytest.mark.slow
def test_its_card_answers_without_torch_and_timm(published: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = published
    answer = json.loads((folder / "sample.json").read_text())["output"]
    text = (folder / "README.md").read_text()
    printed = fresh.use(
        text.replace('Path(snapshot_download("me/shapes", ignore_patterns="*.safetensors"))', 'Path(".")'), folder
    )
    assert close(json.loads(printed.replace("'", '"')), answer)


@pytest.mark.slow
def test_an_invalid_backbone_is_reported_in_one_line(shapes: Shapes) -> None:
    for flags, words in (
        (("--backbone", "nonsense"), "backbone: Unknown model (nonsense)"),
        (("--backbone", "vit_tiny_patch16_224"), "requires images of 224 pixels; add --size 224"),
        (("--backbone", "resnet34"), "hf://timm/resnet34.a1_in1k: not found on the Hub"),
    ):
        printed = shapes.run("train", *flags, *(() if "vit" in flags[1] else QUICK), "--batch-size", "16", code=1)
        assert [line for line in printed.splitlines() if line.startswith("error: ") and words in line], printed
    assert "Starting from" not in shapes.run("train", "--backbone", "resnet34", "--pretrained", "false", *QUICK)


@pytest.mark.slow
def test_the_page_answers_as_the_service_does(shapes: Shapes, tmp_path: Path) -> None:
    """Images of the model's size give scores within 1e-4; larger ones, resized by the browser, the same class."""
    shapes.run("train", "--name", "own", "--epochs", "3", "--batch-size", "16")
    shapes.run("publish")
    model = shapes.folder / "models" / "own"
    assert "library_name" not in (model / "README.md").read_text()
    files = [path.read_bytes() for path in sorted((shapes.folder / "pictures").rglob("*.png"))[::6]]
    exact = [png(Image.open(io.BytesIO(file)).resize((64, 64))) for file in files]
    samples = [base64.b64encode(file).decode() for file in [*exact, *files]]
    found = answers_of_the_page(tmp_path, model, samples)
    expected = predict.apply_batch([base64.b64decode(sample) for sample in samples], predict.load(model))
    assert [answer["label"] for answer in found] == [answer["label"] for answer in expected]
    for one, other in zip(found[: len(exact)], expected, strict=False):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-4)


@pytest.mark.slow
def test_the_embedded_digits_are_answered_at_another_size(tmp_path: Path) -> None:
    (tmp_path / "stack.toml").write_text('project = "digits"\nstorage = "./store"\nalgorithm = "me/Digits"\n')
    projects.run(tmp_path, "data")
    projects.run(tmp_path, "train", "--name", "large", "--size", "16", "--epochs", "5")
    for command in ("publish", "deploy", "predict"):
        projects.run(tmp_path, command)
    rows, model = fetch(), tmp_path / "models" / "large"
    samples = rows["image"][:40].tolist()
    loaded = predict.load(model)
    expected = predict.apply_batch(samples, loaded)
    right = [answer["label"] == label for answer, label in zip(expected, rows["label"], strict=False)]
    assert sum(right) >= 38
    with pytest.raises(ValueError, match="pixel values from 0 to 300"):
        predict.apply([[0] * 8] * 7 + [[300] * 8], loaded)
    (page := tmp_path / "page").mkdir()
    found = answers_of_the_page(page, model, samples)
    same = [answer["label"] == other["label"] for answer, other in zip(found, expected, strict=True)]
    assert sum(same) >= 38  # browsers resize by other rules than Pillow


def answers_of_the_page(folder: Path, model: Path, samples: list[Any]) -> Any:
    """What the static page of a model answers for samples; the page has no faults."""
    web_page(folder, model, SpaceContent("Page", folder, folder, "me/Page", "page", ROOT / "build" / "web", samples))
    shutil.copy(TASKS / TASK / "index.html", folder)
    with folder_served(folder) as url:
        page = browse(url, ANSWERS)
        assert faults(url, ANSWERS) == []
    return json.loads(page.partition('id="answers">')[2].partition("</script>")[0])


def png(image: Image.Image) -> bytes:
    """An image as a PNG file."""
    written = io.BytesIO()
    image.save(written, "PNG")
    return written.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("crop", ["0", "0.3"])
def test_killed_training_on_pictures_resumes_to_the_same_bytes(shapes: Shapes, crop: str) -> None:
    flags = ("--size", "24", "--width", "4", "--epochs", "40", "--batch-size", "8", "--patience", "0")
    train = ("train", *flags, "--crop", crop, "--flip", "0.5", "--checkpoint-steps", "9")
    runs, killed, whole = shapes.folder / "runs", f"killed-{crop}", f"whole-{crop}"
    with projects.start(shapes.folder, *train, "--name", killed, **shapes.environ) as running:
        until(lambda: list(runs.glob(f"{killed}/checkpoints/step-*/state.json")) or running.poll() is not None)
        running.kill()
        assert running.wait(60) == -signal.SIGKILL, running.communicate()
    assert "Resuming after step" in shapes.run(*train, "--name", killed)
    shapes.run(*train, "--name", whole)
    written = [(runs / name / "model" / "model.safetensors").read_bytes() for name in (killed, whole)]
    assert written[0] == written[1]


@pytest.mark.slow
def test_own_pictures_go_through_the_whole_loop(shapes: Shapes) -> None:
    shapes.run("train", "--name", "loop", "--size", "24", "--width", "8", "--epochs", "12")  # one batch per epoch
    for command in ("publish", "deploy"):
        shapes.run(command)
    for name in ("disc/0.png", "stripes/3.jpg"):
        answer, _ = json.JSONDecoder().raw_decode(shapes.run("predict", f"pictures/{name}"))
        assert answer["label"] in ("disc", "stripes")
        assert set(answer) == {"label", "confidence", "probabilities"}
    assert "label" in shapes.run("monitor")
    card = ModelCard.load(shapes.folder / "models" / "loop" / "README.md")
    assert [result.metric_type for result in card.data.eval_results][:2] == ["accuracy", "f1"]


def test_the_width_of_the_network_must_be_a_multiple_of_4() -> None:
    facts = {"columns": {"label": {"categories": [0, 1]}, "image": {"shape": [8, 8], "most": 16}}}
    assert build(TrainConfig(width=8), facts).about["width"] == 8
    with pytest.raises(StackError, match="width: expected a multiple of 4, got 6"):
        build(TrainConfig(width=6), facts)


def project_of_arrays(folder: Path, images: Any) -> Path:
    """A project with a Parquet file of images as arrays."""
    (folder / "stack.toml").write_text('project = "arrays"\nstorage = "./store"\nalgorithm = "me/Arrays"\n')
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(images)
    pq.write_table(pa.table({"image": column, "label": [row % 3 for row in range(len(images))]}), folder / "a.parquet")
    return folder


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (np.full((60, 8, 8), 4095, np.uint16), "8 x 8 numbers from 4095 to 4095"),
        (np.full((60, 8, 8), -0.5, np.float32), "8 x 8 numbers from -0.5 to -0.5"),
        (np.full((60, 8, 8), np.nan, np.float32), "8 x 8 numbers from nan to nan"),
        (np.zeros((60, 3, 8, 8), np.uint8), "3 x 8 x 8 numbers from 0 to 0"),
        (np.zeros((60, 8, 8, 1), np.uint8), "8 x 8 x 1 numbers from 0 to 0"),
        (np.zeros((60, 8, 8, 4), np.uint8), "8 x 8 x 4 numbers from 0 to 0"),
        (np.zeros((60, 64), np.uint8), "64 numbers from 0 to 0"),
    ],
)
def test_arrays_that_are_no_images_are_rejected_before_training(images: Any, found: str, tmp_path: Path) -> None:
    printed = projects.run(project_of_arrays(tmp_path, images), "data", "--from", "a.parquet", code=1)
    expected = "expected height x width or height x width x 3 numbers from 0 to 255, got"
    assert f"error: train, row 1: {expected} {found}" in printed


@pytest.mark.parametrize(
    ("kind", "most", "channels"), [("int64", 255, 3), ("int64", 0, 0), ("float32", 255, 0), ("float64", 1, 3)]
)
def test_arrays_of_any_numbers_are_images(kind: str, most: int, channels: int, tmp_path: Path) -> None:
    images = np.random.default_rng(0).uniform(0, most, (60, 8, 8, *[channels] * bool(channels))).astype(kind)
    folder = project_of_arrays(tmp_path, images)
    projects.run(folder, "data", "--from", "a.parquet")
    for number, size in enumerate(((), ("--size", "12"))):
        projects.run(folder, "train", "--epochs", "1", "--name", str(number), *size)
        projects.run(folder, "publish")


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3)])
def test_images_of_floats_are_resized_without_rounding(shape: tuple[int, ...]) -> None:
    image = np.full(shape, 0.25)
    image[:4] = 0.75
    model = predict.Model(None, [], [16, 16, *shape[2:]], 1)
    found = predict.images_of([image.tolist()], model)
    np.testing.assert_array_equal(found[0], predict.pixels(image, model.shape))
    np.testing.assert_array_equal(found[0][:6], 0.75)
    np.testing.assert_array_equal(found[0][-6:], 0.25)


def test_a_photo_with_an_invalid_exif_entry_is_rotated_as_its_orientation_says() -> None:
    upper = np.repeat(np.array([[[255] * 3], [[0] * 3]], np.uint8), 16, axis=0).repeat(16, axis=1)
    unit = struct.pack("<HHI4s", 0x128, 2, 4, b"cm")  # of the resolution: a text instead of a number
    entries = struct.pack("<HHHII", 2, 0x112, 3, 1, 6) + unit + bytes(4)
    Image.fromarray(upper).save(photo := io.BytesIO(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0" + entries)
    shown = predict.pixels(photo.getvalue(), [2, 8, 3])
    assert shown[:, :2].max() < 50 and shown[:, 6:].min() > 200  # to be rotated clockwise


@pytest.mark.parametrize("form", ["AVIF", "BMP", "DDS", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "TIFF", "WEBP"])
@pytest.mark.filterwarnings("ignore")  # of the decoders
def test_a_damaged_image_is_an_image_or_an_error(form: str) -> None:
    chance = np.random.default_rng(0)
    Image.fromarray(chance.integers(0, 256, (16, 16, 3), np.uint8)).save(written := io.BytesIO(), form)
    for _ in range(300):
        damaged = np.frombuffer(written.getvalue(), np.uint8).copy()
        damaged[chance.integers(0, min(len(damaged), 400), 4)] = chance.integers(0, 256, 4)
        with suppress(ValueError):
            assert predict.pixels(damaged.tobytes(), [8, 8, 3]).shape == (8, 8, 3)
