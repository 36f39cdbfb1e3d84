"""Sources of data sets: arrays or files, as splits that are read in batches of rows."""

import codecs
import gzip
import json
import mimetypes
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from free_ml_stack.console import join_names, say
from free_ml_stack.data import columns as col
from free_ml_stack.errors import StackError, first_line

# Keywords of splits on the Hub (huggingface.co/docs/hub/datasets-file-names-and-splits).
WORDS = {
    "train": "train|training",
    "validation": "validation|valid|val|dev",
    "test": "test|testing|eval|evaluation",
}
ROWS = 1024  # per batch
FILES = 64  # per batch
FOOTERS = 8  # read at once, as each takes several requests to a Hub
BUFFER = 4 << 20  # bytes read ahead per column
BLOCK, MAX_BLOCK = 4 << 20, 1 << 30  # bytes of text per batch, and of the longest row
NAMES = {"parquet": "Parquet", "csv": "CSV", "json": "JSON Lines"}
TABLES = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".ndjson": "json"}
PACKED = ".gz"  # after the suffix of a table of text
FILE, FOLDER = "file", "folder"  # columns of a folder of files
NO_EXAMPLES = {".json", ".md", ".txt", ".html", ".xml", ".yml", ".yaml", ".db", ".ini", ".log"}  # of media
WIDER = (pa.null(), pa.int64(), pa.float64(), pa.bool_(), pa.timestamp("us"), pa.string(), pa.binary())  # tried in turn
COLUMN = re.compile(r"In CSV column #(\d+)")
CHANGED = re.compile(r"Column\(/(.+?)\) changed from (\w+) to (\w+)")  # in an error of Arrow about JSON
SEPARATOR = re.compile(r'"?sep=(.)"?\r?\n', re.IGNORECASE)  # Excel's first line of a CSV file

Batches = Iterator[dict[str, pa.Array]]


@dataclass(frozen=True)
class Rows:
    """The rows of one split: the storage type of each column, and a function that reads columns in batches.

    `name` returns the display name of a row, counted from 0, for messages. `unreadable` are the columns without a
    storage type, with the reason.
    """

    types: Mapping[str, pa.DataType]
    read: Callable[[Sequence[str]], Batches]
    name: Callable[[int], str] = lambda row: f"row {row + 1}"
    unreadable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A data set outside the store, opened when `splits` is first accessed.

    `facts` (name, source, license) are copied to the manifest. `immutable` means that the data at that source never
    change. Paths in columns are relative to `folder`. `target` is the default column to predict.
    """

    opened: Callable[[], Mapping[str, Rows]]
    facts: Mapping[str, Any]
    folder: Path | None = None
    immutable: bool = False
    target: str = ""

    @cached_property
    def splits(self) -> Mapping[str, Rows]:
        """Return the rows of each split by its name."""
        return self.opened()


def from_columns(data: Any) -> Rows:
    """Create rows from arrays by name, a pandas data frame or an Arrow table."""
    made: dict[str, pa.Array] = {}
    for name in data if isinstance(data, Mapping) else (data := pa.table(data)).column_names:
        try:
            made[name] = col.to_storage_type(col.from_array(data[name]), f"column {name}")
        except pa.ArrowException as error:
            raise StackError(f"cannot convert column {name} to Arrow: {first_line(error)}") from None
    table = pa.table(made)

    def read(names: Sequence[str]) -> Batches:
        for start in range(0, table.num_rows, ROWS):
            yield {name: made[name].slice(start, ROWS) for name in names}

    return Rows({name: column.type for name, column in made.items()}, read)


def from_path(place: str) -> Source:
    """Open a folder with one subfolder per class, or CSV, JSON Lines or Parquet files. Raises StackError.

    A folder with tables, and with images, audio or video in several subfolders, is a folder of classes.
    """
    path = Path(place).expanduser()
    if not path.exists():
        raise StackError(f"--from {place}: no such file or folder")
    name = path.resolve().name.removesuffix(PACKED)
    facts = {"name": PurePosixPath(name).stem, "source": path.resolve().name, "license": {"license": "unknown"}}
    files = [path] if path.is_file() else _visible(path)
    tables = [one for one in files if table_suffix(one.name)]
    filed = [] if path.is_file() else [one for one in files if one.parent != path]
    if len({_class_of(one, path) for one in filed if _is_media(one)} - {""}) > 1:  # tables are about the files
        filed = [one for one in filed if one.suffix.lower() not in NO_EXAMPLES and one not in tables]
        tables = []
        _say_ignored(path, files, filed, "the examples are the files in the subfolders of the classes")
    if tables:
        kind = table_suffix(tables[0].name)
        names = [one.as_posix() for one in tables if table_suffix(one.name) == kind]
        root = path.parent if path.is_file() else path
        within = {name: PurePosixPath(name).relative_to(root.as_posix()).as_posix() for name in names}
        shards = {"train": names} if path.is_file() else by_split(within)
        _say_ignored(path, tables, [Path(one) for part in shards.values() for one in part], "other tables are read")
        local = LocalFileSystem()
        return Source(lambda: {split: from_files(local, paths) for split, paths in shards.items()}, facts, root)
    if filed:
        return Source(lambda: _by_folder(path, filed), facts, target=FOLDER)
    raise StackError(
        f"--from {place}: no table found; expected a {', '.join(TABLES)} file, a folder of them, or a folder with one "
        "subfolder per class"
    )


def table_suffix(name: str) -> str:
    """Return the suffix in TABLES of a file name, before that of a compression, or an empty string."""
    suffix = PurePosixPath(name.lower().removesuffix(PACKED)).suffix
    return suffix if suffix in TABLES and not (suffix == ".parquet" and name.lower().endswith(PACKED)) else ""


def _visible(folder: Path) -> list[Path]:
    """Return the files below a folder, also in linked folders, without hidden files and folders such as .git.

    A link to a folder that is also found without it is not followed; links may form a loop.
    """
    files: list[Path] = []
    root = os.path.realpath(folder)
    own, seen = {place for place, _, _ in os.walk(root)}, set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        linked = real != str(Path(root, Path(place).relative_to(folder)))
        if real in seen or (linked and real in own):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(filter(Path.is_file, files))


def _is_media(path: Path) -> bool:
    kind = mimetypes.guess_type(path.name, strict=False)[0] or ""
    return kind.startswith(("image/", "audio/", "video/"))


def _class_of(path: Path, root: Path) -> str:
    """Return the name of the folders of a file below `root`, without a folder named after a split."""
    folders = path.relative_to(root).parts[:-1]
    return "/".join(folders[bool(split_of(f"/{folders[0]}/")[0]) :])


def _say_ignored(root: Path, files: Sequence[Path], used: Sequence[Path], reason: str) -> None:
    """Print the names of the files that are not used."""
    kept = set(used)
    ignored = [one for one in files if one not in kept]
    if not ignored:
        return
    tables = [one for one in ignored if table_suffix(one.name)]
    remedy = f"; to use a table, run `data --from {tables[0]}`" if tables else ""
    say(f"Ignored {join_names([one.relative_to(root).as_posix() for one in ignored])}: {reason}{remedy}.")


def by_split(names: Mapping[str, str]) -> dict[str, list[str]]:
    """Group paths by the split that their name contains; all are `train` if none does. `names` maps paths to names."""
    found: dict[str, list[str]] = {}
    for path, name in sorted(names.items()):
        found.setdefault(split_of(f"/{name}")[0], []).append(path)
    if set(found) == {""}:
        return {"train": found[""]}
    found.pop("", None)
    return {split: found[split] for split in WORDS if split in found}


def split_of(path: str) -> tuple[str, str]:
    """Return the last split keyword in a path and the folder that contains it, or empty strings."""
    named = [
        (match.start(), split)
        for split, words in WORDS.items()
        for match in re.finditer(rf"(?<![a-z0-9])({words})(?![a-z])", path.lower())
    ]
    start, split = max(named, default=(0, ""))
    return split, path[:start].rpartition("/")[0]


def _by_folder(root: Path, files: Sequence[Path]) -> dict[str, Rows]:
    """Create rows from files and the names of their folders, which may be inside folders named after splits."""
    found: dict[str, list[tuple[Path, str]]] = {}
    for path in files:
        folders = path.relative_to(root).parts[:-1]
        split = split_of(f"/{folders[0]}/")[0] if len(folders) > 1 else ""
        found.setdefault(split or "train", []).append((path, "/".join(folders[bool(split) :])))
    return {split: _file_rows(found[split]) for split in WORDS if split in found}


def _file_rows(files: Sequence[tuple[Path, str]]) -> Rows:
    """Create rows of the content of files and the names of their folders."""

    def read(names: Sequence[str]) -> Batches:
        for start in range(0, len(files), FILES):
            part = files[start : start + FILES]
            made: dict[str, Callable[[], pa.Array]] = {
                FILE: lambda part=part: pa.array([path.read_bytes() for path, _ in part], pa.binary()),  # type: ignore[misc]
                FOLDER: lambda part=part: pa.array([folder for _, folder in part], pa.string()),  # type: ignore[misc]
            }
            yield {name: made[name]() for name in names}

    return Rows({FILE: pa.binary(), FOLDER: pa.string()}, read, lambda row: str(files[row][0]))


def from_files(files: AbstractFileSystem, paths: Sequence[str]) -> Rows:
    """Create rows from Parquet, CSV or JSON Lines files with the same columns. Raises StackError."""
    kind = TABLES[table_suffix(paths[0])]
    opened = {"parquet": _parquet, "csv": _csv, "json": _json}[kind](files, paths)

    if repeated := [name for name, count in Counter(opened.names).items() if count > 1]:
        raise StackError(f"{paths[0]} has several columns {repeated[0]}; rename or remove all but one")

    def batches(names: Sequence[str]) -> Iterator[tuple[str, pa.RecordBatch]]:
        for path in paths:
            try:
                for batch in opened.batches(path, list(names)):
                    yield path, batch
            except pa.ArrowException as error:
                raise StackError(f"{path} is not a complete {NAMES[kind]} file ({first_line(error)})") from None

    def read(names: Sequence[str]) -> Batches:
        for path, batch in batches(names):
            found = {name: _read_column(batch, name, path, opened) for name in names}
            for name, column in found.items():
                if column.type != types[name]:
                    known, other = _type_name(types[name]), _type_name(column.type)
                    raise StackError(
                        f"{path}: column {name} has values of type {known} and of type {other}; convert it"
                    )
            yield found

    first = next(batches(opened.names), None)
    if first is None:
        raise StackError(f"{paths[0]} has no rows")
    types: dict[str, pa.DataType] = {}
    unreadable: dict[str, str] = {}
    for name in opened.names:
        try:
            types[name] = _read_column(first[1], name, first[0], opened).type
        except col.ColumnError as error:
            unreadable[name] = str(error)
    return Rows(types, read, unreadable=unreadable)


def _type_name(kind: pa.DataType) -> str:
    tensor = isinstance(kind, pa.FixedShapeTensorType)
    return f"list of {' x '.join(map(str, kind.shape))} {kind.value_type}" if tensor else str(kind)


@dataclass(frozen=True)
class Reader:
    """Reader of files of one format: column names of the first file, batches of a file, and class names by column."""

    names: list[str]
    batches: Callable[[str, list[str]], Iterator[pa.RecordBatch]]
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)


def _read_column(batch: pa.RecordBatch, name: str, path: str, opened: Reader) -> pa.Array:
    if name not in batch.schema.names:
        raise StackError(f"{path} lacks the column {name}; all files of a split must have the same columns")
    return col.to_storage_type(batch.column(name), f"{path}: column {name}", opened.classes.get(name, ()))


def _parquet(files: AbstractFileSystem, paths: Sequence[str]) -> Reader:
    def schema(path: str) -> pa.Schema:
        try:
            with files.open(path, "rb") as file, closing(pq.ParquetFile(file)) as parquet:
                return parquet.schema_arrow
        except pa.ArrowException as error:
            raise StackError(f"{path} is not a complete Parquet file ({first_line(error)})") from None

    def batches(path: str, names: list[str]) -> Iterator[pa.RecordBatch]:
        with (
            files.open(path, "rb", block_size=2 * BUFFER) as file,
            closing(pq.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False)) as parquet,
        ):
            there = [name for name in names if name in parquet.schema_arrow.names]
            for batch in parquet.iter_batches(ROWS, columns=there):
                wanted = pa.schema([one.with_type(common.get(one.name, one.type)) for one in batch.schema])
                yield batch if wanted == batch.schema else batch.cast(wanted, safe=False)

    with ThreadPoolExecutor(FOOTERS) as threads:
        schemas = list(threads.map(schema, paths))
    common = _common_types(schemas)
    return Reader(schemas[0].names, batches, _classes(schemas[0].metadata or {}))


def _common_types(schemas: Sequence[pa.Schema]) -> dict[str, pa.DataType]:
    """Return a type for each column that has several, such as integers and floats, if one represents them all."""
    kinds: dict[str, dict[pa.DataType, None]] = {}
    for field_ in (field_ for schema in schemas for field_ in schema):
        kinds.setdefault(field_.name, {})[field_.type] = None
    common: dict[str, pa.DataType] = {}
    for name, several in kinds.items():
        if len(several) > 1:
            with suppress(pa.ArrowException):
                options = [pa.schema([(name, kind)]) for kind in several]
                kind = pa.unify_schemas(options, promote_options="permissive").field(name).type
                wraps = pa.uint64() in several and kind == pa.int64()
                common[name] = pa.float64() if wraps or pa.types.is_decimal(kind) else kind
    return common


def _classes(metadata: Mapping[bytes, bytes]) -> dict[str, Sequence[str]]:
    """Return the class names by column, from the Hub's `ClassLabel` features in the file's metadata."""
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return {name: one["names"] for name, one in features.items() if isinstance(one, dict) and one.get("names")}


def _csv(files: AbstractFileSystem, paths: Sequence[str]) -> Reader:
    types: dict[str, pa.DataType] = {}
    headers: dict[str, list[str]] = {}
    blocks = [BLOCK]
    dialect = cache(lambda path: _dialect(files, path))

    @contextmanager
    def opened(path: str, options: pacsv.ConvertOptions | None = None) -> Iterator[Any]:
        encoding, delimiter, decimal_point, skipped = dialect(path)
        options = options or pacsv.ConvertOptions()
        options.decimal_point = decimal_point
        parse = pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        read = pacsv.ReadOptions(block_size=blocks[-1], use_threads=False, encoding=encoding, skip_rows=skipped)
        with _unpacked(files, path) as file, pacsv.open_csv(file, read, parse, options) as reader:
            yield reader

    def batches(path: str, wanted: list[str]) -> Iterator[pa.RecordBatch]:
        if path not in headers:  # read without types: files of other columns, or in another order, are no error
            with opened(path) as reader:
                headers[path] = reader.schema.names
        there = [name for name in wanted if name in headers[path]]
        options = pacsv.ConvertOptions(column_types=types, include_columns=there, strings_can_be_null=True)
        with opened(path, options) as reader:
            yield from reader

    waiting, read = list(paths), list[str]()
    while waiting:
        path, before = waiting.pop(0), dict(types)
        try:
            _widen(lambda path=path: batches(path, []), types, headers, blocks, path)  # type: ignore[misc]
        except UnicodeDecodeError:
            raise _not_utf8(files, path) from None
        if any(map(pa.types.is_binary, types.values())):
            raise _not_utf8(files, path)
        if types != {**types, **before}:  # values of earlier files may not have the wider type
            waiting, read = waiting + read, []
        read.append(path)
    return Reader(headers[paths[0]], batches)


@contextmanager
def _unpacked(files: AbstractFileSystem, path: str) -> Iterator[Any]:
    """Open a file of text, and decompress it if its suffix is that of gzip. Raises StackError if it is damaged."""
    try:
        with files.open(path, "rb", compression="gzip" if path.lower().endswith(PACKED) else None) as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise StackError(f"{path} is not a complete gzip file ({first_line(error)})") from None


def _dialect(files: AbstractFileSystem, path: str) -> tuple[str, str, str, int]:
    """Detect the encoding of a CSV file, its delimiter and decimal point, and whether its first line is `sep=;`."""
    with _unpacked(files, path) as file:
        start = file.read(1 << 16)
    encoding = "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8"
    text = start.decode(encoding, "ignore").strip("\r\n\ufeff")
    named = SEPARATOR.match(text)
    text = re.sub(r'"[^"]*"', "", text[named.end() :] if named else text)
    tabs = table_suffix(path) == ".tsv"
    delimiter = named[1] if named else "\t" if tabs else max(",;\t|", key=text.partition("\n")[0].count)
    european = delimiter == ";" and re.search(r";-?\d+,\d+\s*[;\n]|\n-?\d+,\d+;", text)
    return encoding, delimiter, "," if european else ".", 1 if named else 0


def _not_utf8(files: AbstractFileSystem, path: str) -> StackError:
    """Return the error for a file with another encoding, with the first line that is not UTF-8."""
    with _unpacked(files, path) as file:
        lines = enumerate(file, 1)
        first = next((number for number, line in lines if line.decode(errors="ignore").encode() != line), 1)
    return StackError(f"{path}: line {first} is not encoded in UTF-8; save the file as UTF-8")


def _widen(
    read: Callable[[], Iterator[pa.RecordBatch]],
    types: dict[str, pa.DataType],
    headers: Mapping[str, list[str]],
    blocks: list[int],
    path: str,
) -> None:
    """Read a CSV file repeatedly, widening types and blocks until all values fit."""
    while True:
        try:
            for batch in read():
                for field_ in batch.schema:
                    types.setdefault(field_.name, field_.type)
            return
        except pa.ArrowInvalid as error:
            if "straddling" in str(error) and blocks[-1] < MAX_BLOCK:
                blocks.append(2 * blocks[-1])
                continue
            found, names = COLUMN.search(str(error)), headers.get(path, [])
            if not found or int(found[1]) >= len(names):
                raise StackError(f"{path}: {first_line(error)}") from None
            name = names[int(found[1])]
            types[name] = _wider(types.get(name, pa.null()))


def _wider(kind: pa.DataType) -> pa.DataType:
    """Return the type to try for a column of a CSV file with a value that the type of the values before it lacks."""
    if kind in (pa.date32(), pa.timestamp("s")):
        return pa.timestamp("us")
    return WIDER[WIDER.index(kind) + 1] if kind in WIDER[:-1] else pa.string()


def _json(files: AbstractFileSystem, paths: Sequence[str]) -> Reader:
    schema = pa.schema([])

    def tables(path: str, known: pa.Schema | None) -> Iterator[pa.Table]:
        parse = pajson.ParseOptions(known, unexpected_field_behavior="infer" if known is None else "ignore")
        with _unpacked(files, path) as file:
            while text := file.read(BLOCK) + file.readline():
                text.decode()  # Arrow does not check it
                if text.startswith(b"["):
                    raise StackError(f"{path} has a JSON array; expected one object per line; convert it")
                if text.strip():
                    read = pajson.ReadOptions(use_threads=False, block_size=len(text) + 1)
                    yield pajson.read_json(pa.BufferReader(text), read, parse)

    def batches(path: str, names: list[str]) -> Iterator[pa.RecordBatch]:
        for table in tables(path, pa.schema([schema.field(name) for name in names])):
            yield from table.to_batches(ROWS)

    for path in paths:
        try:
            for table in tables(path, None):
                schema = _unify(schema, table.schema, path)
        except UnicodeDecodeError:
            raise _not_utf8(files, path) from None
        except pa.ArrowException as error:
            if change := CHANGED.search(str(error)):
                raise StackError(
                    f"{path}: column {change[1]} has values of type {change[2]} and of type {change[3]}; convert it"
                ) from None
            raise StackError(f"{path} is not a complete JSON Lines file ({first_line(error)})") from None
    return Reader(schema.names, batches)


def _unify(known: pa.Schema, found: pa.Schema, path: str) -> pa.Schema:
    """Merge the schemas of two blocks; texts that look like times in only one of them remain texts."""
    fields = {field_.name: field_ for field_ in known}
    for field_ in found:
        other = fields.get(field_.name, field_)
        if {str(field_.type), str(other.type)} == {"string", "timestamp[s]"}:
            fields[field_.name] = pa.field(field_.name, pa.string())
            continue
        try:
            [fields[field_.name]] = pa.unify_schemas(
                [pa.schema([other]), pa.schema([field_])], promote_options="permissive"
            )
        except pa.ArrowException:
            raise StackError(
                f"{path}: column {field_.name} has values of type {other.type} and of type {field_.type}; convert it"
            ) from None
    return pa.schema(list(fields.values()))
