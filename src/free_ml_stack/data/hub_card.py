"""Card and files of a data set for the Hub's viewer: splits, column types, tensors as lists."""

from collections.abc import Mapping
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from free_ml_stack.data import dataset
from free_ml_stack.hub.card import ID, check, custom_sections, escape_markdown, marked_section
from free_ml_stack.hub.metadata import repository_id

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
# How files of images begin: JPEG, PNG, GIF, BMP, TIFF and, after eight bytes, WebP.
PICTURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")
WEBP = slice(8, 12), b"WEBP"


def viewable(path: Path) -> None:
    """Rewrite the tensors of a Parquet file as nested lists, batch by batch; the viewer does not support tensors."""
    with pq.ParquetFile(path) as file:
        if not any(isinstance(field.type, pa.FixedShapeTensorType) for field in file.schema_arrow):
            return
        changed = path.with_suffix(".part")
        writer = None
        for batch in file.iter_batches(batch_size=file.metadata.row_group(0).num_rows if file.num_row_groups else 1):
            table = pa.table({name: nested(column) for name, column in zip(batch.schema.names, batch, strict=True)})
            writer = writer or pq.ParquetWriter(changed, table.schema, compression="zstd")
            writer.write_table(table)
        if writer:
            writer.close()
    if writer:
        changed.replace(path)


def nested(column: pa.Array) -> pa.Array:
    """Convert a column of tensors to nested lists; return any other column unchanged."""
    if not isinstance(column, pa.FixedShapeTensorArray):
        return column
    values = column.storage.flatten()
    for size in reversed(column.type.shape):
        values = pa.FixedSizeListArray.from_arrays(values, size)
    return values


def features(facts: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Return the `features` of the card: column types, class names, and columns of image files."""
    with pq.ParquetFile(folder / next(iter(facts["files"]))) as file:
        [first] = next(file.iter_batches(batch_size=1)).to_pylist()
        target, kinds = facts["target"], {field.name: field.type for field in file.schema_arrow}
    found = {name: {"dtype": "image"} if is_picture(first[name]) else feature(kind) for name, kind in kinds.items()}
    names = facts["columns"][target].get("categories", [])
    if names and (all(isinstance(name, str) for name in names) or names == list(range(len(names)))):
        found[target] = {"dtype": {"class_label": {"names": {str(n): str(name) for n, name in enumerate(names)}}}}
    return [{"name": name, **about} for name, about in found.items()]


def feature(kind: pa.DataType) -> dict[str, Any]:
    """Return an Arrow type in the notation of the library `datasets`."""
    if pa.types.is_fixed_size_list(kind):
        inner = feature(kind.value_type)
        return {"list": inner.get("dtype", inner)}
    return {"dtype": {"double": "float64", "float": "float32"}.get(str(kind), str(kind))}


def is_picture(value: Any) -> bool:
    """Return whether a value is an image file, which the viewer displays."""
    return isinstance(value, bytes) and (value.startswith(PICTURES) or value[WEBP[0]] == WEBP[1])


def card(
    facts: Mapping[str, Any], columns: list[dict[str, Any]], task: str, title: str, kept: Mapping[str, str]
) -> str:
    """Return the card of a data set, generated from its manifest and its columns."""
    from huggingface_hub import DatasetCard, DatasetCardData

    terms = facts.get("license", {"license": ""})
    total = sum(facts["rows"].values())
    parts = [{"split": split, "path": f"{split}.parquet"} for split in facts["rows"]]
    front = DatasetCardData(
        pretty_name=title,
        **(terms if ID.fullmatch(terms["license"]) else {"license": "unknown"}),
        source_datasets=list(filter(None, [repository_id(facts["source"], "dataset")])) or None,
        task_categories=[task],
        size_categories=[next((word for limit, word in SIZES if total < limit), "n>1M")],
        tags=["free-ml-stack"],
        dataset_info={"config_name": "default", "features": columns},
        configs=[{"config_name": "default", "data_files": parts}],
    )
    target = facts["columns"][facts["target"]]
    classes = escape_markdown(", ".join(map(str, target.get("categories", ()))))
    what = f"with the classes {classes}" if classes else f"of {escape_markdown(facts['target'])}"
    intended = f"{task.replace('-', ' ').capitalize()} {what}."
    limits = "The examples were selected and labelled by the source, whose documented limits apply here too."
    made = DatasetCard.from_template(
        front,
        template_str=resources(__package__).joinpath("dataset_card.md").read_text(encoding="utf-8"),
        **facts,
        escape=escape_markdown,
        title=title,
        fingerprint=dataset.fingerprint(facts),
        intended_use=marked_section(kept.get("Intended use"), intended),
        limits=marked_section(kept.get("Limits"), limits),
        custom_sections=custom_sections(kept),
    )
    check(str(made))
    return str(made)
