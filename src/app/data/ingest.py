"""Bytes to rows: compression, encoding and format found out from the content, never from the name alone.

Rows come in batches, in order, with the line they begin on. What cannot be read is a row too (``Unreadable``), so that
rows in = rows out + rows rejected holds for any bytes.
"""

import io
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO

from app.data.compression import DAMAGED, open_bytes
from app.data.encoding import TextFacts
from app.data.shapes import find_shape

Format = Literal["csv", "jsonl", "json", "parquet", "text"]
BATCH_ROWS = 2000
MAX_ROW = 16 * 1024 * 1024
"""Characters of one row; a longer one is rejected (a 100 MB line must not fill the memory)."""
_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Unreadable:
    """A row that could not be read: its kind (``app.data.kinds``), what was seen, and the beginning of its text."""

    kind: str
    detail: str
    text: str


Row = list[str] | str | dict[str, Any] | Unreadable
"""Cells of a CSV row, one JSON text, or the fields themselves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Consecutive rows of one file.

    Attributes:
        file: the file's name as the report shows it.
        source: number of the input it belongs to.
        header: names of the cells, None where rows carry their own.
        rows: (line, row); the line counts from 1, rows from sources without lines count from 1 as well.
        consumed: bytes of the file read so far, for the progress bar.
    """

    file: str
    source: int
    header: tuple[str, ...] | None
    rows: list[tuple[int, Row]]
    consumed: int


@contextmanager
def _open_text(path: Path, facts: TextFacts) -> Iterator[tuple[TextIO, BinaryIO]]:
    stream, raw = open_bytes(path)
    errors = "surrogateescape" if not facts.encoding.startswith(("utf-16", "utf-32")) else "replace"
    with raw, io.TextIOWrapper(stream, encoding=facts.encoding, errors=errors, newline=None) as text:
        yield text, raw


def blocks(path: Path, facts: TextFacts) -> Iterator[tuple[str | Unreadable, int]]:
    """(about a million characters, bytes consumed) of a text file, decoded as `lines` does."""
    with _open_text(path, facts) as (text, raw):
        while True:
            try:
                block = text.read(_BLOCK)
            except DAMAGED as fault:
                yield Unreadable(kind="broken-file", detail=f"the compressed stream breaks off: {fault}", text=""), 0
                return
            if not block:
                return
            yield block, raw.tell()


def lines(path: Path, facts: TextFacts) -> Iterator[tuple[int, str | Unreadable, int]]:
    """(number, line, bytes consumed) of a text file; \\n, \\r\\n and \\r all end lines, and are read as \\n.

    Bytes that are no text become lone surrogates (U+FFFD in UTF-16 and UTF-32), which `validate` finds.
    """
    number = 0
    with _open_text(path, facts) as (text, raw):
        readline = text.readline
        while True:
            number += 1
            try:
                line = readline(MAX_ROW)
                if len(line) == MAX_ROW and line[-1] != "\n":
                    start, length, piece = line[:200], len(line), line
                    while piece and piece[-1] != "\n":
                        piece = readline(MAX_ROW)
                        length += len(piece)
                    detail = f"a line of {length:,} characters"
                    yield number, Unreadable(kind="too-large", detail=detail, text=start), raw.tell()
                    continue
            except DAMAGED as fault:
                detail = f"the compressed stream breaks off: {fault}"
                yield number, Unreadable(kind="broken-file", detail=detail, text=""), facts.size
                return
            if not line:
                return
            yield number, line, raw.tell() if number % BATCH_ROWS == 0 else 0


def batches(
    rows: Iterator[tuple[int, Row, int]], *, file: str, source: int, header: tuple[str, ...] | None
) -> Iterator[Batch]:
    """Groups rows, at most BATCH_ROWS and about 4 million characters together."""
    part: list[tuple[int, Row]] = []
    weight = consumed = 0
    for line, row, position in rows:
        consumed = max(consumed, position)
        part.append((line, row))
        weight += _characters(row)
        if len(part) == BATCH_ROWS or weight > 4_000_000:
            yield Batch(file=file, source=source, header=header, rows=part, consumed=consumed)
            part, weight = [], 0
    if part:
        yield Batch(file=file, source=source, header=header, rows=part, consumed=consumed)


def _characters(row: Row) -> int:
    if isinstance(row, dict):
        return sum(len(value) if isinstance(value, str) else 200 for value in row.values())
    return len(row) if isinstance(row, str) else sum(map(len, row)) if isinstance(row, list) else 200


def format_of(path: Path, head: str, magic: bytes) -> tuple[Format, str]:
    """The format, and a note where the name says otherwise."""
    suffixes = [s.lower() for s in path.suffixes if s.lower() not in (".gz", ".zst", ".zstd")]
    named: Mapping[str, Format] = {
        ".csv": "csv", ".tsv": "csv", ".tab": "csv", ".psv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl",
        ".json": "json", ".parquet": "parquet", ".pq": "parquet", ".txt": "text", ".md": "text",
    }  # fmt: skip
    claimed = named.get(suffixes[-1]) if suffixes else None
    found = _sniff(head, magic, claimed)
    note = f"named {suffixes[-1]} but holds {found}" if claimed and claimed != found and suffixes else ""
    if {claimed, found} == {"json", "jsonl"}:
        note = ""
    return found, note


def _sniff(head: str, magic: bytes, claimed: Format | None) -> Format:
    if magic.startswith(b"PAR1"):
        return "parquet"
    start = head.lstrip()
    if start.startswith("{"):
        first = start.split("\n", 1)[0]
        try:
            value = json.loads(first)
        except (ValueError, RecursionError):
            # A pretty-printed object goes on after its brace; anything longer is a JSONL whose first line is bad.
            return "json" if len(first.strip()) < 3 or claimed == "json" else "jsonl"
        wraps_rows = find_shape(tuple(value)) is None and any(isinstance(part, list) for part in value.values())
        return "json" if wraps_rows else "jsonl"
    if start.startswith("[") and re.match(r"\[\s*(\{|\[|\"|\]|$)", start):
        return "json"
    if claimed in ("jsonl", "text"):
        return claimed
    return "csv"
