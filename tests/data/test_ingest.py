"""Ingestion of own data: folders of images, tables in three formats, missing splits and missing values."""

import gzip
import io
import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile
from PIL import Image
from skeleton import data as images

from free_ml_stack.data import dataset
from free_ml_stack.data.ingest import ingest
from free_ml_stack.data.source import Source, from_columns, from_files, from_path
from free_ml_stack.errors import StackError
from free_ml_stack.storage.local import local_store

ROWS = 60
TABLE = {
    "city": [["Oslo", "Rome", "Lima"][i % 3] for i in range(ROWS)],
    "rooms": [None if i == 7 else i % 5 for i in range(ROWS)],
    "area": [20.5 + i for i in range(ROWS)],
    "sold": [i % 2 == 0 for i in range(ROWS)],
    "built": [f"19{i % 90 + 10}-01-02" for i in range(ROWS)],
    "note": [f"number {i}, a “fine” flat\nwith a view" for i in range(ROWS)],
    "price": [1000.0 * i for i in range(ROWS)],
}


class Tables:
    """A project that takes any table: texts are categories, except the column `note`."""

    TARGET = "price"

    @staticmethod
    def arrange(columns: dict[str, str], target: str) -> dict[str, tuple[str, str]]:
        kinds = {name: "category" if kind == "text" and name != "note" else kind for name, kind in columns.items()}
        return {name: (name, kind) for name, kind in kinds.items()}


def load(
    source: Source, folder: Path, science: Any = Tables, target: str = ""
) -> tuple[dict[str, Any], dict[str, Any]]:
    store = local_store(folder / "store")
    ingest(store, source, science, target, 0, folder / "scratch")
    assert not list((folder / "scratch").iterdir())
    return dataset.read(store, folder / "cache", "project")


def stored(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "store" / "data").iterdir() if path.is_file()}


def table(folder: Path, kind: str) -> Path:
    path, found = folder / f"flats.{kind}", pa.table(TABLE)
    if kind == "parquet":
        pq.write_table(found.set_column(4, "built", pa.array(TABLE["built"]).cast(pa.date32())), path)
    elif kind == "csv":
        pacsv.write_csv(found, path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in found.to_pylist()), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_tables_are_read_from_three_formats(tmp_path: Path, kind: str) -> None:
    splits, facts = load(from_path(str(table(tmp_path, kind))), tmp_path)
    columns = facts["columns"]
    assert sum(facts["rows"].values()) == ROWS
    assert (facts["target"], columns["price"]["most"]) == ("price", 59000.0)
    assert columns["city"] == {"type": "category", "categories": ["Lima", "Oslo", "Rome"]}
    assert columns["rooms"]["missing"] == 1
    assert columns["built"]["type"] == "date"
    rows = {}
    for split in splits.values():
        for i in range(split.rows):
            rows[int(split["price"][i] / 1000)] = split.take([i])
    for i, row in rows.items():
        assert columns["city"]["categories"][row["city"][0]] == TABLE["city"][i]
        assert np.isnan(row["rooms"][0]) if i == 7 else row["rooms"][0] == TABLE["rooms"][i]
        assert (row["area"][0], row["sold"][0]) == (TABLE["area"][i], TABLE["sold"][i])
        assert row["note"] == [TABLE["note"][i]]
        assert str(row["built"][0])[:10] == TABLE["built"][i]


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_booleans_as_classes_are_named_as_in_the_source(tmp_path: Path, kind: str) -> None:
    splits, facts = load(from_path(str(table(tmp_path, kind))), tmp_path, Categories, "sold")
    assert facts["columns"]["sold"] == {"type": "category", "categories": ["false", "true"]}
    for split in splits.values():
        assert (split["sold"] == (split["price"] // 1000 % 2 == 0)).all()


def test_a_column_type_is_widened_for_late_values(tmp_path: Path) -> None:
    lines = [f"{i},{i},{i}" for i in range(200_000)] + ["1.5,x,7"]
    (tmp_path / "late.csv").write_text("a,b,price\n" + "\n".join(lines))
    _, facts = load(from_path(str(tmp_path / "late.csv")), tmp_path)
    assert facts["columns"]["a"]["type"] == "float64"
    assert facts["columns"]["b"]["type"] == "category"
    assert facts["columns"]["price"]["type"] == "int64"


def test_a_column_that_begins_with_missing_values_has_the_type_of_the_later_ones(tmp_path: Path) -> None:
    lines = [f"{i},,,,,2020-01-02,{'x' * 50}" for i in range(100_000)]
    lines += [f"{i},7,0.5,true,2020-01-02,2020-01-02 10:30:00,x" for i in range(9)]
    (tmp_path / "late.csv").write_text("price,whole,part,open,day,time,pad\n" + "\n".join(lines))
    _, facts = load(from_path(str(tmp_path / "late.csv")), tmp_path)
    kinds = {name: facts["columns"][name]["type"] for name in ("whole", "part", "open", "day", "time")}
    assert kinds == {"whole": "int64", "part": "float64", "open": "uint8", "day": "date", "time": "date"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_csv_files_of_a_split_may_differ_in_the_order_of_columns_and_in_dialect(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "flats").mkdir()
    (tmp_path / "flats" / "1.csv").write_text("city,price\n" + "Rome,1\n" * 20)
    (tmp_path / "flats" / "2.csv").write_text("more;price;city\nx;2,5;Oslo\n" + "y;3;Oslo\n" * 20, encoding=encoding)
    splits, facts = load(from_path(str(tmp_path / "flats")), tmp_path)
    assert facts["columns"]["price"] == {"type": "float64", "shape": [], "least": 1, "most": 3}
    assert facts["columns"]["city"]["categories"] == ["Oslo", "Rome"]
    assert sorted(price for split in splits.values() for price in split["price"]) == [1] * 20 + [2.5] + [3] * 20

    (tmp_path / "flats" / "2.csv").write_text("city,more\n" + "Oslo,1\n" * 20)
    with pytest.raises(StackError, match=r"2\.csv lacks the column price; all files of a split must have the same"):
        load(from_path(str(tmp_path / "flats")), tmp_path)


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        ("5,6", "2020-01-01,2020-01-02", "category"),
        ("5,6", "true,false", "category"),
        ("0.5,1.5", "true,false", "category"),
        ("true,false", "2020-01-01,2020-01-02", "category"),
        (",", "5,6", "int64"),
        ("5,6", ",", "int64"),
        ("5,6", "0.5,1.5", "float64"),
    ],
)
def test_csv_files_of_a_split_may_differ_in_the_types_of_columns(
    first: str, second: str, kind: str, tmp_path: Path
) -> None:
    for number, pair in enumerate((first, first, second)):
        one, other = pair.split(",")
        rows = "".join(f"{one},{i}\n{other},{i}\n" for i in range(20))
        (tmp_path / f"{number}.csv").write_text("x,price\n" + rows)
    _, facts = load(from_path(str(tmp_path)), tmp_path / "loaded")
    assert facts["columns"]["x"]["type"] == kind
    found = {text for text in f"{first},{second}".split(",") if text}
    assert kind != "category" or set(facts["columns"]["x"]["categories"]) == found


def picture(width: int, height: int, shade: int, kind: str = "JPEG") -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (width, height), (shade, 100, 200)).save(sink, kind)
    return sink.getvalue()


def folder_of_images(folder: Path, *splits: str) -> Path:
    for split in splits:
        for name in ("cat", "dög"):
            (folder / split / name).mkdir(parents=True)
            for i in range(10):
                kind, end = (("JPEG", "jpg"), ("PNG", "PNG"))[i % 2]
                (folder / split / name / f"{i}.{end}").write_bytes(picture(20 + i, 30 - i, 10 * i, kind))
    return folder


@pytest.mark.parametrize("splits", [("",), ("train", "test"), ("training", "val", "test")])
def test_images_in_a_folder_for_each_class(tmp_path: Path, splits: tuple[str, ...]) -> None:
    found, facts = load(from_path(str(folder_of_images(tmp_path / "pets", *splits))), tmp_path, images)
    assert facts["columns"] == {"image": {"type": "bytes"}, "label": {"type": "category", "categories": ["cat", "dög"]}}
    assert sum(facts["rows"].values()) == 20 * len(splits)
    assert min(facts["rows"].values()) > 0
    for split in found.values():
        assert Image.open(io.BytesIO(split["image"][0])).size[0] >= 20
        assert len(split["image"][:3]) == min(3, split.rows)
    if len(splits) == 3:
        assert set(facts["rows"].values()) == {20}


def test_the_error_names_a_file_that_is_not_an_image(tmp_path: Path) -> None:
    folder_of_images(tmp_path / "pets", "")
    (tmp_path / "pets" / "read me.txt").write_text("about pets")
    (tmp_path / "pets" / "cat" / ".hidden").write_text("")
    (tmp_path / "pets" / "cat" / "notes.jpg").write_text("about cats")
    with pytest.raises(StackError, match=r"train, .*cat/notes\.jpg: expected an image \("):
        load(from_path(str(tmp_path / "pets")), tmp_path, images)


@pytest.mark.parametrize("splits", [("",), ("train", "test")])
def test_other_files_in_a_folder_of_classes_are_ignored_and_named(
    tmp_path: Path, splits: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    pets = folder_of_images(tmp_path / "pets", *splits)
    (pets / ".git").mkdir()
    for name in (".DS_Store", ".git/x.jpg", "labels.csv", "README.md", "loose.jpg", f"./{splits[0]}/cat/Thumbs.db"):
        (pets / name).write_bytes(picture(9, 9, 1))
    _, facts = load(from_path(str(pets)), tmp_path, images)
    assert facts["columns"]["label"]["categories"] == ["cat", "dög"]
    assert sum(facts["rows"].values()) == 20 * len(splits)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"run `data --from {pets}/labels.csv`" in printed
    for name in ("labels.csv", "README.md", "loose.jpg", "Thumbs.db"):
        assert name in printed.partition("Ignored")[2].partition(":")[0]
    assert ".git" not in printed and ".DS_Store" not in printed


def test_folders_may_be_links(tmp_path: Path) -> None:
    elsewhere = folder_of_images(tmp_path / "elsewhere", "")
    (pets := tmp_path / "pets").mkdir()
    for name in ("cat", "dög"):
        (pets / name).symlink_to(elsewhere / name)
    (elsewhere / "dög" / "loop").symlink_to(pets)
    _, facts = load(from_path(str(pets)), tmp_path, images)
    assert facts["columns"]["label"]["categories"] == ["cat", "dög"]
    assert sum(facts["rows"].values()) == 20


def test_links_to_folders_of_the_same_folder_are_not_followed(tmp_path: Path) -> None:
    pets = folder_of_images(tmp_path / "pets", "")
    (pets / "alias").symlink_to(pets / "cat")
    (pets / "all").symlink_to(pets)
    _, facts = load(from_path(str(pets)), tmp_path, images)
    assert facts["columns"]["label"]["categories"] == ["cat", "dög"]
    assert sum(facts["rows"].values()) == 20


@pytest.mark.parametrize("name", ["my_test.csv", "dev.jsonl"])
def test_a_single_file_may_have_the_name_of_a_split(tmp_path: Path, name: str) -> None:
    made = table(tmp_path, name.rpartition(".")[2]).rename(tmp_path / name)
    _, facts = load(from_path(str(made)), tmp_path)
    assert facts["rows"] == {"train": 42, "validation": 9, "test": 9}


def test_a_table_about_images_in_one_folder_is_the_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train/1.png", "train/2.png", "test/3.png"):
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pets" / name).write_bytes(picture(9, 9, 1, "PNG"))
    (tmp_path / "pets" / "list.csv").write_text("file,animal\n" + "train/1.png,cat\ntrain/2.png,dog\n" * 10)
    (tmp_path / "pets" / "other.jsonl").write_text('{"file": 1}\n')
    _, facts = load(from_path(str(tmp_path / "pets")), tmp_path, images, "animal")
    assert facts["columns"]["label"]["categories"] == ["cat", "dog"]
    assert "Ignored other.jsonl: other tables are read" in " ".join(capsys.readouterr().out.split())


def test_files_are_read_from_a_table_of_paths(tmp_path: Path) -> None:
    folder_of_images(tmp_path / "pets", "all")
    lines = [f"all/{name}/{i}.{'PNG' if i % 2 else 'jpg'},{name}" for name in ("cat", "dög") for i in range(10)]
    (tmp_path / "pets" / "list.csv").write_text("file,animal\n" + "\n".join(lines), encoding="utf-8")
    splits, facts = load(from_path(str(tmp_path / "pets" / "list.csv")), tmp_path, images, "animal")
    assert facts["target"] == "label"
    assert splits["train"]["image"][0].startswith((b"\xff\xd8", b"\x89PNG"))
    (tmp_path / "pets" / "list.csv").write_text("file,animal\nall/cat/77.jpg,cat\n")
    with pytest.raises(StackError, match=r"column file: cannot read the file .*77\.jpg"):
        load(from_path(str(tmp_path / "pets" / "list.csv")), tmp_path, images, "animal")


def source(**columns: Any) -> Source:
    return Source(lambda: {"train": from_columns(columns)}, {"name": "given"})


def test_unusable_data_raise_an_error_and_leave_the_store_unchanged(tmp_path: Path) -> None:
    good = source(city=["a", "b"] * 30, price=np.arange(60.0))
    load(good, tmp_path)
    before = stored(tmp_path)
    torn = picture(30, 30, 1)[:300]
    for given, science, words in (
        (source(city=["a"] * 60), Tables, "no column price; set the target with --target COLUMN, one of city"),
        (source(price=np.zeros(0)), Tables, "no rows for train, validation, test"),
        (
            source(image=[picture(9, 9, 1), torn] * 20, label=["a", "b"] * 20),
            images,
            r"train, row 2: expected an image \(",
        ),
        (source(image=[b"x"] * 40, label=[f"{i}" for i in range(40)]), images, "row 1: expected an image"),
        (
            source(image=np.zeros((40, 8, 8), np.uint8), label=np.arange(40)),
            images,
            "has 40 distinct values in 40 rows, too many",
        ),
        (source(image=np.array([1j] * 40), price=np.ones(40)), Tables, "cannot convert column image to Arrow: "),
    ):
        with pytest.raises(StackError, match=words) as caught:
            load(given, tmp_path, science)
        assert "\n" not in str(caught.value)
        assert stored(tmp_path) == before
    rows = from_columns({"city": ["a"], "price": [1.0]})
    for other, words in (
        (
            {"town": ["a"], "price": [1.0]},
            "test lacks the column city, which is in train; add it, or use the files of train only",
        ),
        ({"city": [2.5], "price": [1.0]}, "column city has kind text in train and number in test"),
    ):
        splits = {"train": rows, "validation": rows, "test": from_columns(other)}
        with pytest.raises(StackError, match=words):
            load(Source(lambda splits=splits: splits, {}), tmp_path)


def test_rare_and_absent_classes_give_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = ["often"] * 990 + ["rare"] * 6 + ["once"]
    load(source(image=np.zeros((997, 2, 2), np.uint8), label=labels), tmp_path, images)
    printed = capsys.readouterr().out
    assert "warning: validation has no row of once" in printed
    assert "warning: fewer than 1 in 100 rows of train are once, rare" in printed


def test_balanced_classes_are_not_rare_however_many_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = [f"class {i % 200}" for i in range(20_000)] + ["odd"] * 40
    load(source(image=np.zeros((20_040, 2, 2), np.uint8), label=labels), tmp_path, images)
    printed = capsys.readouterr().out
    assert "warning: fewer than 1 in 402 rows of train are odd" in printed


@pytest.mark.parametrize("text", ["{:,}", "${}", "{} %", "-{},5", "{}.000.000", "1 {:03} 000", "{} kg", "{}cm", "{} m"])
def test_numbers_in_texts_give_a_warning(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = [text.format(1000 + i if "," in text else i + 1) for i in range(60)]
    plain = [["01234", "12.05.2024", "A 1", "-1.5e3", "2 of 3"][i % 5] + str(i) for i in range(60)]
    load(source(size=size, plain=plain, price=np.arange(60.0)), tmp_path)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"warning: column size has texts such as {min(size)}, used as categories; write numbers as" in printed
    assert "column plain" not in printed


DAYS = (
    "22.{:02}.{}",
    "22/{:02}/{}",
    "{}/22/{}",
    "2.{}.{} 13:45",
    "2-{}-{}, 9:05:00",
    "{}/2/{} 1:45 PM",
    "{1}/{0:02}/22",
    "{1}-{0:02}-03 9:05",
    "Jan 22, {1}",
    "22. März {1}",
)


@pytest.mark.parametrize("odd", ["?", "-", "unknown", "<5", "#REF!", "N.A.", "no\nvalue"])
@pytest.mark.parametrize("usual", ["{}.5", "2020-01-02T00:00:{:02}"])
def test_texts_among_numbers_or_dates_give_a_warning(
    odd: str, usual: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = [odd if i == 30 else usual.format(i) for i in range(60)]
    grade = [["1", "2", "3", odd][i % 4] for i in range(60)]
    load(source(size=size, grade=grade, price=np.arange(60.0)), tmp_path)
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        f"warning: column size has texts such as {' '.join(odd.split())!r} besides numbers or dates, used as categories; leave"
        in printed
    )
    assert "column grade" not in printed


@pytest.mark.parametrize("text", DAYS)
def test_dates_in_texts_give_a_warning(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    day = [text.format(i % 12 + 1, 1960 + i) for i in range(60)]
    plain = [["1.2.10", "555-01-2024", "2020.4.", "22.04.2020 to 23.04.2020"][i % 4] + str(i) for i in range(60)]
    load(source(day=day, plain=plain, price=np.arange(60.0)), tmp_path)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"warning: column day has texts such as {min(day)}, used as categories; write dates as 2020-04-22" in printed
    assert "column plain" not in printed


def test_the_seed_of_drawn_splits_is_recorded(tmp_path: Path) -> None:
    rows = from_columns({"price": np.arange(60.0)})
    _, facts = load(Source(lambda: {"train": rows}, {}), tmp_path)
    assert facts["split_seed"] == 0
    _, facts = load(Source(lambda: dict.fromkeys(("train", "validation", "test"), rows), {}), tmp_path)
    assert "split_seed" not in facts


def test_rows_without_a_target_are_dropped_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prices = [None if i % 10 == 0 else float(i) for i in range(60)]
    _, facts = load(source(city=["a", None, "b"] * 20, price=prices), tmp_path)
    assert sum(facts["rows"].values()) == 54
    assert "Dropped 6 rows without a value of price." in capsys.readouterr().out
    assert facts["columns"]["city"]["missing"] == 18


def test_a_nan_target_counts_as_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prices = pa.array([float("nan") if i % 10 == 0 else float(i) for i in range(60)], from_pandas=False)
    splits, facts = load(source(area=list(range(60)), price=prices), tmp_path)
    assert "Dropped 6 rows without a value of price." in capsys.readouterr().out
    assert sum(facts["rows"].values()) == 54
    assert all(np.isfinite(split["price"]).all() for split in splits.values())


def test_times_of_day_are_dates_and_durations_numbers(tmp_path: Path) -> None:
    opened = "".join(f"{hour:02}:30,{hour}\n" for hour in range(24))
    (tmp_path / "shops.csv").write_text("open,price\n" + opened)
    splits, facts = load(from_path(str(tmp_path / "shops.csv")), tmp_path)
    assert facts["columns"]["open"]["type"] == "date"
    for split in splits.values():
        assert [str(moment)[:16] for moment in split["open"]] == [f"1970-01-01T{int(x):02}:30" for x in split["price"]]
    waits = pa.array([1500 * number for number in range(24)], pa.duration("ms"))
    splits, _ = load(source(wait=waits, price=list(range(24))), tmp_path / "other")
    for split in splits.values():
        assert (split["wait"] == 1_500_000 * split["price"]).all()


@pytest.mark.parametrize("examples", range(2, 8))
def test_classes_of_few_rows_are_split(tmp_path: Path, examples: int) -> None:
    labels = [f"class {number}" for number in range(20)] * examples
    _, facts = load(source(image=np.zeros((len(labels), 2, 2), np.uint8), label=labels), tmp_path, images)
    assert min(facts["rows"].values()) >= len(labels) // 10
    assert sum(facts["rows"].values()) == len(labels)


def test_a_project_can_define_its_own_splits(tmp_path: Path) -> None:
    class ByTime(Tables):
        @staticmethod
        def split(columns: Any, seed: int) -> dict[str, Any]:
            order = np.argsort(columns["year"])
            return {"train": order[:40], "validation": order[40:50], "test": order[50:]}

    years = np.random.default_rng(0).permutation(60)
    splits, _ = load(source(year=years, price=np.arange(60.0)), tmp_path, ByTime)
    assert max(splits["train"]["year"]) < min(splits["validation"]["year"]) <= max(splits["validation"]["year"])
    assert max(splits["validation"]["year"]) < min(splits["test"]["year"])


SPLITS: dict[str, Any] = {
    "for validation and test, got validation": {"validation": range(5)},
    "for validation and test, got valid, test": {"valid": range(5), "test": range(5, 9)},
    "for validation and test, got tuple": (range(5), range(5, 9)),
    "those of test are not all from 0 to 59": {"validation": range(5), "test": [59, 60]},
    "those of validation are not all from 0 to 59": {"validation": [0.5], "test": [1]},
    "some rows are in more than one of them": {"validation": range(9), "test": range(8, 12)},
}


@pytest.mark.parametrize("message", SPLITS)
def test_invalid_splits_of_a_project_are_rejected(message: str, tmp_path: Path) -> None:
    class Own(Tables):
        @staticmethod
        def split(columns: Any, seed: int) -> Any:
            return SPLITS[message]

    with pytest.raises(StackError, match=f"^split in data.py must return a dict of row numbers .*{message}$"):
        load(source(price=np.arange(60.0), a=np.arange(60)), tmp_path, Own)


def test_splits_of_a_project_may_be_masks(tmp_path: Path) -> None:
    class Own(Tables):
        @staticmethod
        def split(columns: Any, seed: int) -> dict[str, Any]:
            return {"validation": columns["a"] < 5, "test": columns["a"] > 50}

    _, facts = load(source(price=np.arange(60.0), a=np.arange(60)), tmp_path, Own)
    assert facts["rows"] == {"train": 46, "validation": 5, "test": 9}


def test_ingest_is_reproducible_byte_for_byte(tmp_path: Path) -> None:
    made = []
    for name in ("one", "other"):
        load(from_path(str(table(tmp_path, "csv"))), tmp_path / name)
        made.append(stored(tmp_path / name))
    assert made[0] == made[1]


def file_source(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Source:
    (folder / name).write_text(text, encoding=encoding)
    return from_path(str(folder / name))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_a_csv_file_may_have_other_delimiters_and_encodings(tmp_path: Path, encoding: str, delimiter: str) -> None:
    point = "," if delimiter == ";" else "."
    lines = [delimiter.join(('"city, or; place"', "price")), *(f"Zürich{delimiter}{i}{point}5" for i in range(20))]
    _, facts = load(file_source(tmp_path, "shops.csv", "\n".join(lines) + "\n", encoding), tmp_path)
    assert facts["columns"] == {
        "city, or; place": {"type": "category", "categories": ["Zürich"]},
        "price": {"type": "float64", "shape": [], "least": 0.5, "most": 19.5},
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("first", ["sep=;\n", "SEP=;\r\n", '"sep=;"\n'])
def test_the_separator_that_excel_names_in_the_first_line_is_used(tmp_path: Path, encoding: str, first: str) -> None:
    text = first + "a,b,c;price\n" + "".join(f"x,{i};{i},5\n" for i in range(20))
    (tmp_path / "shops.csv").write_bytes(text.encode(encoding))
    _, facts = load(from_path(str(tmp_path / "shops.csv")), tmp_path)
    assert {name: one["type"] for name, one in facts["columns"].items()} == {"a,b,c": "category", "price": "float64"}


def shards(folder: Path, **columns: list[Any]) -> Source:
    """A folder of one Parquet file for each value of `columns`, with a target."""
    folder.mkdir()
    for number, values in enumerate(zip(*columns.values(), strict=True)):
        parts = {name: pa.array([value] * 20) for name, value in zip(columns, values, strict=True)}
        pq.write_table(pa.table({**parts, "price": range(20 * number, 20 * number + 20)}), folder / f"{number}.parquet")
    return from_path(str(folder))


def test_parquet_files_of_a_split_may_have_integers_and_floats(tmp_path: Path) -> None:
    found = shards(
        tmp_path / "flats", rooms=[None, 3, 2.5], city=[None, "Rome", "Oslo"], size=[[1, 2], [3, 4], [0.5, 1.0]]
    )
    splits, facts = load(found, tmp_path)
    assert facts["columns"]["rooms"] == {"type": "float64", "shape": [], "least": 2.5, "most": 3.0, "missing": 20}
    assert facts["columns"]["city"]["categories"] == ["Oslo", "Rome"]
    assert (facts["columns"]["size"]["type"], facts["columns"]["size"]["shape"]) == ("float64", [2])
    assert sum(np.nansum(split["rooms"]) for split in splits.values()) == 20 * (3 + 2.5)
    splits, facts = load(found, tmp_path / "target", Numbers, "rooms")
    assert sum(facts["rows"].values()) == 40


def test_large_integers_and_decimals_in_parquet_files_of_a_split_become_floats(tmp_path: Path) -> None:
    large = pa.scalar(2**64 - 1, pa.uint64())
    found = shards(tmp_path / "flats", rooms=[-1, large], paid=[Decimal("0.25"), 10**12])
    splits, _ = load(found, tmp_path)
    assert {float(room) for split in splits.values() for room in split["rooms"]} == {-1, 2.0**64}
    assert {float(paid) for split in splits.values() for paid in split["paid"]} == {0.25, 1e12}


def test_an_error_names_the_parquet_file_of_another_shape(tmp_path: Path) -> None:
    found = shards(tmp_path / "flats", size=[[1, 2], [3, 4, 5]])
    with pytest.raises(
        StackError, match=r"1\.parquet: column size has values of type list of 2 int64 and of type list"
    ):
        load(found, tmp_path)


def test_an_error_names_the_parquet_file_of_another_type(tmp_path: Path) -> None:
    found = shards(tmp_path / "flats", rooms=[1, "two"])
    for target in ("rooms", "price"):
        with pytest.raises(StackError, match=r"1\.parquet: column rooms has values of type int64 and of type string"):
            load(found, tmp_path, Categories, target)


def test_a_column_of_empty_lists_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(pa.table({"tags": [[[], []]] * 20, "price": range(20)}), tmp_path / "a.parquet")
    _, facts = load(from_path(str(tmp_path / "a.parquet")), tmp_path)
    assert list(facts["columns"]) == ["price"]
    assert "column tags has empty lists; convert or remove it" in " ".join(capsys.readouterr().out.split())


def test_json_lines_may_change_their_types_after_the_first_block(tmp_path: Path) -> None:
    rows = [{"size": i, "town": None, "pad": "x" * 10_000, "price": i % 5} for i in range(600)]
    rows += [{"size": 0.5, "town": "Rome", "when": "2020-01-02", "price": 1}, {"pad": "y" * 9_000_000, "price": 1}]
    splits, facts = load(
        file_source(tmp_path, "late.jsonl", "".join(json.dumps(row) + "\n" for row in rows)), tmp_path, Categories
    )
    columns = facts["columns"]
    assert (columns["size"]["type"], columns["when"]["type"], columns["town"]["categories"]) == (
        "float64",
        "date",
        ["Rome"],
    )
    sizes = np.concatenate([split["size"] for split in splits.values()])
    assert (np.nansum(sizes), np.isnan(sizes).sum()) == (sum(range(600)) + 0.5, 1)


class Categories:
    """A project with a target of classes."""

    TARGET = "price"

    @staticmethod
    def arrange(columns: dict[str, str], target: str) -> dict[str, tuple[str, str]]:
        return {
            name: (name, "category" if kind == "text" or name == target else kind) for name, kind in columns.items()
        }


class Numbers:
    """A project with a target of numbers."""

    TARGET = "price"

    @staticmethod
    def arrange(columns: dict[str, str], target: str) -> dict[str, tuple[str, str]]:
        return {name: (name, "number" if name == target else kind) for name, kind in columns.items()}


def test_a_field_of_a_csv_file_may_be_longer_than_a_block(tmp_path: Path) -> None:
    text = "note,price\n" + "".join(f"{'x' * (9_000_000 if i == 9 else 3)},{i}\n" for i in range(20))
    splits, _ = load(file_source(tmp_path, "long.csv", text), tmp_path)
    notes = [len(note) for split in splits.values() for note in split["note"]]
    assert (len(notes), max(notes)) == (20, 9_000_000)


def test_dates_as_classes_have_no_empty_time(tmp_path: Path) -> None:
    text = "a,price\n" + "".join(f"{i},2020-01-0{1 + i % 2}\n" for i in range(20))
    _, facts = load(file_source(tmp_path, "days.csv", text), tmp_path, Categories)
    assert facts["columns"]["price"]["categories"] == ["2020-01-01", "2020-01-02"]


def test_compressed_tables_are_read(tmp_path: Path) -> None:
    for kind in ("csv", "jsonl"):
        plain = table(tmp_path, kind)
        content = gzip.compress(plain.read_bytes())
        (packed := plain.with_name(f"{plain.name}.gz")).write_bytes(content)
        _, facts = load(from_path(str(packed)), tmp_path / kind)
        assert (facts["name"], sum(facts["rows"].values())) == ("flats", ROWS)
        for wrong in (content[:-30], b"city,price"):
            packed.write_bytes(wrong)
            with pytest.raises(StackError, match=rf"flats\.{kind}\.gz is not a complete gzip file"):
                load(from_path(str(packed)), tmp_path / kind)


def test_a_json_array_is_rejected_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="has a JSON array; expected one object per line"):
        load(file_source(tmp_path, "array.jsonl", '[{"price": 1}, {"price": 2}]'), tmp_path)


def test_columns_that_cannot_be_stored_are_named_and_ignored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = {
        "part": [{"x": i} for i in range(ROWS)],
        "tags": [["a"]] * ROWS,
        "ragged": [[1.0] * (i % 3) for i in range(ROWS)],
    }
    pq.write_table(pa.table({**TABLE, **odd}), tmp_path / "flats.parquet")
    _, facts = load(from_path(str(tmp_path / "flats.parquet")), tmp_path)
    assert facts["columns"].keys() == TABLE.keys()
    printed = " ".join(capsys.readouterr().out.split())
    for name, reason in (
        ("part", "has type struct"),
        ("tags", "has lists of string"),
        ("ragged", "has lists of 3 different lengths"),
    ):
        assert re.search(rf"Not used: \S+: column {name} {reason}", printed)
    with pytest.raises(StackError, match="column part has type struct"):
        load(from_path(str(tmp_path / "flats.parquet")), tmp_path, Tables, "part")


def test_columns_that_the_project_ignores_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(source(image=np.zeros((60, 2, 2), np.uint8), label=["a", "b"] * 30, id=list(range(60))), tmp_path, images)
    assert "Not used: id." in capsys.readouterr().out


BROKEN = {
    "several columns a; rename": ("a,a,price\n" + "1,2,3\n" * 20, "utf-8", Tables),
    "broken.csv: line 8 is not encoded in UTF-8; save the file": (
        "a,price\n" + "a,3\n" * 6 + "ü,3\n",
        "latin1",
        Tables,
    ),
    "broken.csv: line 1 is not encoded in UTF-8; save": ("ü,price\n" + "1,3\n" * 20, "latin1", Tables),
    "column price has the value inf, expected at most 3.4e": ("a,price\n" + "1,3\n" * 20 + "1,inf\n", "utf-8", Tables),
    r"has the value -1e\+39, expected at most 3.4e\+38 \(float32\); rescale": (
        "a,price\n" + "1,3\n" * 20 + "1,-1e39\n",
        "utf-8",
        Tables,
    ),
    "column price must hold numbers, got 'about 3'; correct or remove": (
        "a,price\n" + "1,3\n" * 20 + "1,about 3\n",
        "utf-8",
        Numbers,
    ),
    r"got '234\.181,39'; write numbers as 1234\.5, without thousands separators, decimal commas and units": (
        "a;price\n" + "1;234.181,39\n" * 20,
        "utf-8",
        Numbers,
    ),
    "column price has kind date, expected number; convert it": ("a,price\n" + "1,2020-01-02\n" * 20, "utf-8", Numbers),
    "column price has the value 3 in all rows": ("a,price\n" + "1,3\n" * 20, "utf-8", Categories),
}


@pytest.mark.parametrize("message", BROKEN)
def test_tables_that_cannot_be_trained_on_are_rejected(tmp_path: Path, message: str) -> None:
    text, encoding, science = BROKEN[message]
    with pytest.raises(StackError, match=message):
        load(file_source(tmp_path, "broken.csv", text, encoding), tmp_path, science)


def test_another_encoding_after_the_first_block_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "late.csv"
    path.write_bytes(b"a,price\n" + b"text,1\n" * 700_000 + "ü,2\n".encode("latin1"))  # a block has 4 MiB
    with pytest.raises(StackError, match=r"late\.csv: line 700002 is not encoded in UTF-8; save the file as UTF-8"):
        load(from_path(str(path)), tmp_path, Tables)


def test_json_lines_with_two_types_in_a_column_name_it(tmp_path: Path) -> None:
    for number, lines in enumerate((['{"a": "0", "price": 1}', '{"a": 1, "price": 2}'], ['{"a": 1}', '{"a": [1]}'])):
        with pytest.raises(
            StackError, match=r"x\d\.jsonl: column a has values of type \w+ and of type \w+; convert it$"
        ):
            load(file_source(tmp_path, f"x{number}.jsonl", "\n".join(lines)), tmp_path)


def test_json_lines_of_another_encoding_are_reported(tmp_path: Path) -> None:
    lines = ['{"a": "x", "price": 1}'] * 20 + ['{"a": "ü", "price": 2}']
    with pytest.raises(StackError, match=r"a\.jsonl: line 21 is not encoded in UTF-8; save the file as UTF-8"):
        load(file_source(tmp_path, "a.jsonl", "\n".join(lines), "latin1"), tmp_path)


def test_a_target_that_float32_rounds_gives_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, start in enumerate((1e12, 0, -1e12, 2e7)):
        load(source(a=["x"] * 60, price=start + 1000 * np.arange(60.0)), tmp_path / str(number))
        warned = "which float32 rounds; subtract a constant from the column" in capsys.readouterr().out
        assert warned == (abs(start) == 1e12)


@pytest.mark.parametrize("step", [1, 3600])
def test_features_that_float32_rounds_give_a_warning(
    step: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = np.datetime64("2024-05-01T10:00") + step * np.arange(60).astype("timedelta64[s]")
    stamps = 1_714_550_400_000 + 100_000 * step * np.arange(60)
    load(source(time=times, stamp=stamps, price=np.arange(60.0)), tmp_path)
    printed = " ".join(capsys.readouterr().out.split())
    for warning in (
        "warning: column time has dates within 0.0164 hours, which float32 rounds; add a column of seconds",
        "warning: column stamp has values from 1714550400000 to 1714556300000, which float32 rounds; subtract a",
    ):
        assert (warning in printed) == (step == 1)


def test_a_missing_path_of_an_image_is_an_error_of_its_row(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(encoded(np.zeros((2, 2), np.uint8)))
    with pytest.raises(StackError, match=r"train, row 2: expected an image"):
        load(file_source(tmp_path, "list.csv", "file,animal\nx.png,cat\n,dog\n"), tmp_path, images, "animal")


def encoded(pixels: Any, form: str = "PNG", **options: Any) -> bytes:
    Image.fromarray(pixels).save(file := io.BytesIO(), form, **options)
    return file.getvalue()


def test_images_are_decoded_as_viewers_show_them() -> None:
    upper = np.zeros((64, 32, 3), np.uint8)
    upper[:32] = 255
    turned = Image.Exif()
    turned[0x112] = 6  # to be rotated clockwise
    shown = images.pixels(encoded(upper, "JPEG", quality=100, exif=turned), [2, 16, 3])[..., 0]
    assert (shown[:, :6].max(), shown[:, 10:].min()) == (0, 255)
    deep = np.array([[0, 0x4000], [0x8000, 0xFFFF]], np.uint16)
    assert images.pixels(encoded(deep), [2, 2]).tolist() == [[0, 64], [128, 255]]
    clear = np.array([[[0, 0, 0, 0], [0, 0, 0, 255]]], np.uint8)
    assert images.pixels(encoded(clear), [1, 2]).tolist() == [[255, 0]]
    with pytest.raises(ValueError, match="got floats"):
        images.pixels(encoded(deep.astype(np.float32), "TIFF"), [2, 2])


class Remote(AbstractFileSystem):
    """A store whose files are read in ranges, as those of the Hub."""

    def __init__(self, content: bytes) -> None:
        super().__init__(skip_instance_cache=True)
        self.content = content

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        class File(AbstractBufferedFile):  # type: ignore[misc]
            def _fetch_range(file, start: int, end: int) -> bytes:  # noqa: N805 - `self` is the store
                return self.content[start:end]

        return File(self, path, mode, size=len(self.content))


def test_json_lines_are_read_from_a_remote_store() -> None:
    lines = [json.dumps({"price": i, "pad": "x" * 100_000}) for i in range(60)]
    rows = from_files(Remote("\n".join(lines).encode()), ["a.jsonl"])
    assert [price for batch in rows.read(["price"]) for price in batch["price"].to_pylist()] == list(range(60))
