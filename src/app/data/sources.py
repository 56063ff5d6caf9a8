"""What the user named as input: files, folders, and Hugging Face data sets, as streams of batches."""

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from app.data.compression import DAMAGED, open_bytes, unreadable
from app.data.encoding import TextFacts, survey
from app.data.ingest import Batch, Format, Row, batches, format_of, lines
from app.data.jsonlines import json_document, json_lines
from app.data.shapes import SHAPES, ShapeName, find_shape
from app.data.tabular import records, sniff
from app.errors import ConfigError, DataError, first_line

_SUFFIXES = (".csv", ".tsv", ".tab", ".psv", ".jsonl", ".ndjson", ".json", ".parquet", ".pq", ".txt")
_PACKED = (".gz", ".zst", ".zstd")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One file or data set of an input, looked at but not yet read.

    Attributes:
        name: as reports show it.
        number: of the input it belongs to, from 0.
        path: the file, None for a data set of the `datasets` library.
        format: of the file.
        facts: encoding and size, None for Parquet and data sets.
        header: of a CSV file.
        notes: what was found out about it, for the report.
        size: what ``Batch.consumed`` counts up to.
        options: how a CSV file is cut into cells, or which data set is meant.
    """

    name: str
    number: int
    path: Path | None
    format: Format | str
    facts: TextFacts | None
    header: tuple[str, ...] | None
    notes: tuple[str, ...]
    size: int
    options: Mapping[str, Any]

    def batches(self) -> Iterator[Batch]:
        """The rows, in order."""
        if self.format == "dataset":
            return batches(
                _table_rows(self.options["data"], self.size), file=self.name, source=self.number, header=None
            )
        assert self.path is not None
        if self.format == "parquet":
            return batches(_parquet_rows(self.path), file=self.name, source=self.number, header=None)
        assert self.facts is not None
        numbered = lines(self.path, self.facts)
        rows: Iterator[tuple[int, Row, int]]
        if self.format == "csv":
            assert self.header is not None
            numbered = islice(numbered, self.options["skip"], None)
            rows = records(numbered, self.options["dialect"], cells=len(self.header))
            _skip_header(rows)
        elif self.format == "json":
            rows = json_document(self.path, self.facts)
        elif self.format == "text":
            rows = ((n, {"text": t} if isinstance(t, str) else t, c) for n, t, c in json_lines(numbered))
        else:
            rows = json_lines(numbered)
        return batches(rows, file=self.name, source=self.number, header=self.header)


def open_source(
    given: str,
    number: int,
    *,
    columns: Mapping[str, str] | None,
    shape: ShapeName | None,
    encoding: str | None,
    delimiter: str | None,
) -> list[Source]:
    """The files or the data set an input stands for.

    Args:
        given: a file, a folder of files, a folder from ``save_to_disk``, or a hub id with options, such as
            ``org/name?config=main&split=train&revision=abc``.

    Raises:
        DataError: it is missing, unreadable, empty, or has no question and answer columns.
        ConfigError: an option is wrong.
    """
    path = Path(given).expanduser()
    try:
        exists, folder = path.exists(), path.is_dir()
    except (OSError, RuntimeError, ValueError) as fault:
        raise unreadable(path, fault if isinstance(fault, OSError) else OSError(str(fault))) from fault
    if exists and not folder:
        return [_file(path, number, columns=columns, shape=shape, encoding=encoding, delimiter=delimiter)]
    if folder and ((path / "state.json").is_file() or (path / "dataset_dict.json").is_file()):
        return _saved(path, number)
    if folder:
        inside = [p for p in sorted(path.rglob("*")) if p.is_file() and _is_data(p) and p.stat().st_size]
        if not inside:
            raise DataError(
                f"{path} holds no data files", remedy=f"name a file, or a folder with {', '.join(_SUFFIXES)}"
            )
        return [
            _file(
                p, number, columns=columns, shape=shape, encoding=encoding, delimiter=delimiter,
                name=str(p.relative_to(path)),
            )
            for p in inside
        ]  # fmt: skip
    looks_like_path = path.is_symlink() or path.suffix in (*_SUFFIXES, *_PACKED) or given.startswith((".", "/", "~"))
    if looks_like_path or not _is_hub_id(given):
        if path.is_symlink():
            raise DataError(
                f"{path} is a link that leads nowhere or in a circle", remedy="correct the link or the path"
            )
        raise DataError(f"there is no file {path}", remedy="correct the path, or give a hub id such as org/name")
    return _hub(given, number)


def _is_hub_id(given: str) -> bool:
    name = given.partition("?")[0]
    return name.count("/") <= 1 and all(part.replace("-", "").replace("_", "").replace(".", "").isalnum()
                                        for part in name.split("/"))  # fmt: skip


def _is_data(path: Path) -> bool:
    suffixes = [s.lower() for s in path.suffixes if s.lower() not in _PACKED]
    return bool(suffixes) and suffixes[-1] in _SUFFIXES and path.name not in ("report.json", "rejected.jsonl")


def _file(
    path: Path,
    number: int,
    *,
    columns: Mapping[str, str] | None,
    shape: ShapeName | None,
    encoding: str | None,
    delimiter: str | None,
    name: str | None = None,
) -> Source:
    if not path.is_file():
        raise DataError(f"{path} is not a regular file", remedy="name a file, a folder or a hub id")
    stream, raw = open_bytes(path)
    with raw, stream:
        try:
            magic = stream.read(4)
        except (EOFError, OSError):
            magic = b""
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty", remedy="write rows into it, or name another file")
    name = (name or path.name).encode("utf-8", "replace").decode()
    if magic == b"PAR1":
        return _parquet(path, number, name=name, columns=columns, shape=shape)
    facts = survey(path, encoding=encoding)
    if not facts.head.strip():
        raise DataError(f"{path} holds nothing but white space", remedy="write rows into it, or name another file")
    found, note = format_of(path, facts.head, magic)
    notes = [f"{facts.encoding} ({facts.note})", *([note] if note else [])]
    header: tuple[str, ...] | None = None
    options: dict[str, Any] = {}
    if found == "csv":
        head = facts.head
        said = re.match(r"sep=(.)\n", head)  # Excel's way of naming the delimiter
        if said:
            head, delimiter = head[said.end() :], delimiter or said[1]
        options["skip"] = int(said is not None)
        dialect, header = sniff(head, columns=columns, wanted=shape, delimiter=delimiter)
        _require_shape(header, path, columns=columns, shape=shape)
        options["dialect"] = dialect
        notes.append(dialect.describe())
    return Source(
        name=name, number=number, path=path, format=found, facts=facts, header=header,
        notes=(found, *notes), size=facts.size, options=options,
    )  # fmt: skip


def _skip_header(rows: Iterator[tuple[int, Row, int]]) -> None:
    """Goes past the header, and past the rows of empty cells that stand before it."""
    for _, row, _ in rows:
        if not isinstance(row, list) or "".join(row).strip():
            return


def _require_shape(
    names: tuple[str, ...], path: Path, *, columns: Mapping[str, str] | None, shape: ShapeName | None
) -> None:
    twice = sorted({name for name in names if name and names.count(name) > 1})
    missing = [column for column in (columns or {}).values() if column not in names]
    listed = ", ".join(repr(name) for name in names[:30])
    if missing:
        raise ConfigError(
            f"{path} has no column {', '.join(map(repr, missing))}", where="--columns", remedy=f"it has {listed}"
        )
    if find_shape(names, columns=columns, wanted=shape) is None:
        raise DataError(
            f"{path}: no columns for a question and an answer were found (its first line: {listed})",
            where=f"{path}:1",
            remedy="name them: --columns.question NAME --columns.answer NAME (the first line must hold the names)",
        )
    if twice:
        raise DataError(f"{path} has several columns called {', '.join(twice)}", remedy="give each its own name")


def _parquet(
    path: Path, number: int, *, name: str, columns: Mapping[str, str] | None, shape: ShapeName | None
) -> Source:
    import pyarrow as pa

    try:
        file = _parquet_file(path)
        names = tuple(file.schema_arrow.names)
    except (pa.ArrowException, *DAMAGED) as fault:
        raise DataError(f"{path} is a damaged Parquet file: {fault}", remedy="write it again") from fault
    _require_shape(names, path, columns=columns, shape=shape)
    return Source(
        name=name, number=number, path=path, format="parquet", facts=None, header=None,
        notes=("parquet",), size=path.stat().st_size, options={},
    )  # fmt: skip


def _parquet_file(path: Path) -> Any:
    """The opened file; one compressed as a whole is unpacked to disk first, for Parquet is read from its end."""
    import pyarrow.parquet as pq

    stream, raw = open_bytes(path)
    with raw, stream:
        if stream is raw:
            return pq.ParquetFile(path)
        unpacked = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the ParquetFile that reads it
        shutil.copyfileobj(stream, unpacked)
    return pq.ParquetFile(unpacked)


def _parquet_rows(path: Path) -> Iterator[tuple[int, Row, int]]:
    import pyarrow as pa

    number = 0
    try:
        file = _parquet_file(path)
        size, count = path.stat().st_size, max(1, file.metadata.num_rows)
        for batch in file.iter_batches(batch_size=1000):
            for row in batch.to_pylist():
                number += 1
                yield number, row, size * number // count
    except (pa.ArrowException, UnicodeDecodeError, *DAMAGED) as fault:
        raise DataError(f"{path} is a damaged Parquet file: {fault}", remedy="write it again") from fault


def _table_rows(data: Any, size: int) -> Iterator[tuple[int, Row, int]]:
    number = 0
    count = max(1, len(data))
    for batch in data.with_format("arrow").iter(batch_size=1000):
        for row in batch.to_pylist():
            number += 1
            yield number, row, size * number // count


def _saved(path: Path, number: int) -> list[Source]:
    from datasets import Dataset, load_from_disk

    try:
        loaded = load_from_disk(str(path))
    except Exception as fault:
        raise DataError(f"{path} is no readable data set: {fault}", remedy="save it again with save_to_disk") from fault
    parts = {path.name: loaded} if isinstance(loaded, Dataset) else {f"{path.name}/{k}": v for k, v in loaded.items()}
    return [_dataset(data, number, name=name) for name, data in parts.items()]


def _hub(given: str, number: int) -> list[Source]:
    from datasets import load_dataset

    name, _, query = given.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(options) - {"config", "split", "revision"})
    if unknown:
        raise ConfigError(
            f"{given}: there is no option {', '.join(unknown)}",
            where="INPUT",
            remedy="write org/name?config=NAME&split=NAME&revision=COMMIT, each of them optional",
        )
    try:
        loaded = load_dataset(
            name, options.get("config"), split=options.get("split", "train"), revision=options.get("revision")
        )
    except Exception as fault:
        raise DataError(
            f"no file and no data set {name!r}: {first_line(fault)}",
            where="INPUT",
            remedy="correct the path or the hub id; a data set with several configs needs ?config=NAME",
        ) from fault
    return [_dataset(loaded, number, name=given)]


def _dataset(data: Any, number: int, *, name: str) -> Source:
    return Source(
        name=name, number=number, path=None, format="dataset", facts=None, header=None,
        notes=("data set",), size=int(data.data.nbytes), options={"data": data},
    )  # fmt: skip


def check_shape(name: str | None) -> None:
    """Refuses a shape there is none of.

    Raises:
        ConfigError: naming those there are.
    """
    if name is not None and name not in SHAPES:
        raise ConfigError(f"there is no shape {name!r}", where="--shape", remedy=f"use {', '.join(SHAPES)}")
