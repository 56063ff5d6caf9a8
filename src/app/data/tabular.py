"""CSV of any dialect to rows: the delimiter, quoting and escaping that make the file's beginning most regular."""

import csv
import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from app.data.ingest import MAX_ROW, Row, Unreadable
from app.data.shapes import ShapeName, find_shape

csv.field_size_limit(MAX_ROW)
MAX_RECORD_LINES = 20_000
"""Lines one quoted field may span before its opening quote counts as a stray one."""
_SAMPLE_LINES = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialect:
    """How a file separates and quotes its cells."""

    delimiter: str
    quote: str
    escape: str | None

    def describe(self) -> str:
        named = {"\t": "tab", ";": "semicolon", ",": "comma", "|": "pipe"}
        escape = "" if self.escape is None else ", backslash escapes"
        return f"{named.get(self.delimiter, repr(self.delimiter))}, quote {self.quote}{escape}"


class _Feed:
    """Lines for csv.reader one at a time, remembering which ones a record took, so that they can be given back."""

    def __init__(self, source: Iterator[tuple[int, str | Unreadable, int]]) -> None:
        self.source = source
        self.back: deque[tuple[int, str | Unreadable, int]] = deque()
        self.taken: list[tuple[int, str | Unreadable, int]] = []
        self.blocked: tuple[int, Unreadable, int] | None = None

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        if self.blocked is not None or len(self.taken) >= MAX_RECORD_LINES:
            raise StopIteration
        item = self.back.popleft() if self.back else next(self.source)
        line = item[1]
        if isinstance(line, Unreadable):
            self.blocked = (item[0], line, item[2])
            raise StopIteration
        self.taken.append(item)
        return line


def records(
    source: Iterator[tuple[int, str | Unreadable, int]], dialect: Dialect, *, cells: int | None
) -> Iterator[tuple[int, Row, int]]:
    """The records of a CSV file: (line they begin on, cells or what is wrong, bytes consumed).

    A quote that is never closed would swallow the rows after it. Where a record of several lines is not a whole row,
    but its further lines are rows by themselves, only its first line is rejected and the others are read again.

    Args:
        source: numbered lines.
        dialect: from `sniff`.
        cells: how many a row must have; None accepts any (for the header).
    """
    feed = _Feed(source)
    options = {"delimiter": dialect.delimiter, "quotechar": dialect.quote, "escapechar": dialect.escape}
    double = dialect.escape is None
    reader = csv.reader(feed, strict=True, doublequote=double, **options)  # type: ignore[arg-type]
    taken = feed.taken
    while True:
        taken.clear()
        fault = ""
        row: list[str] = []
        try:
            row = next(reader)
        except StopIteration:
            if feed.blocked is not None:
                yield feed.blocked
                feed.blocked = None
                continue
            if feed.back:
                continue
            return
        except csv.Error as error:
            fault = _explain(str(error), dialect)
        if not taken:
            continue
        number, first, consumed = taken[0]
        if cells is not None and len(row) > cells and not "".join(row[cells:]).strip():
            del row[cells:]  # Spreadsheets end rows with empty cells that the header has not.
        if not fault and (cells is None or len(row) == cells):
            yield number, row, taken[-1][2]
            continue
        if not fault and (not row or not "".join(row).strip()):
            continue
        text = "".join(str(line) for _, line, _ in taken)
        if not text.strip():
            continue
        broken = bool(fault)
        fault = fault or f"{len(row)} cells where the header has {cells}"
        # Cells in the wrong number may be one bad row of several lines; broken quoting surely ends before a whole row.
        whole = _whole_rows(taken[1:], dialect, cells)
        if whole > (0.5 if not broken else 0):
            feed.back.extendleft(reversed(taken[1:]))
            text = str(first)
        yield number, Unreadable(kind="broken-row", detail=fault, text=text[:2000].rstrip("\n")), consumed


def _whole_rows(items: list[tuple[int, str | Unreadable, int]], dialect: Dialect, cells: int | None) -> float:
    """The share of these lines (of the first 50 that are not blank) that are rows by themselves."""
    if cells is None or cells < 2:
        return 0.0
    sample = [str(line) for _, line, _ in items if str(line).strip()][:50]
    return sum(_cells(line, dialect) == cells for line in sample) / max(1, len(sample))


def _cells(line: str, dialect: Dialect) -> int:
    try:
        rows = list(_parse([line], dialect))
    except csv.Error:
        return 0
    return len(rows[0]) if len(rows) == 1 else 0


def _parse(text: list[str], dialect: Dialect, *, strict: bool = True) -> Iterator[list[str]]:
    double = dialect.escape is None
    return csv.reader(
        text, delimiter=dialect.delimiter, quotechar=dialect.quote, escapechar=dialect.escape, doublequote=double,
        strict=strict,
    )  # fmt: skip


def _explain(error: str, dialect: Dialect) -> str:
    if "unexpected end of data" in error:
        return f"a quote {dialect.quote} is opened and never closed"
    if "expected after" in error:
        return f"a quote {dialect.quote} inside a quoted cell is not doubled"
    if "field larger" in error:
        return "a cell is larger than 16 MiB"
    return error


def sniff(
    head: str, *, columns: Mapping[str, str] | None, wanted: ShapeName | None, delimiter: str | None
) -> tuple[Dialect, tuple[str, ...]]:
    """The dialect under which the file's beginning is most regular, and its header.

    A dialect whose header names a question and an answer wins over one that is merely regular.
    """
    text = head[:262_144]
    if len(head) > len(text) or not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1] or text
    sample = text.splitlines(keepends=True)[:_SAMPLE_LINES]
    first = next((line for line in sample if line.strip()), "")
    others = Counter(re.findall(r"[^\w\s\"'\\.\-/()]", first))
    candidates = [delimiter] if delimiter else list(dict.fromkeys([*",;\t|", *(c for c, _ in others.most_common(3))]))
    escapes = [None, "\\"] if '\\"' in text or "\\'" in text else [None]
    best: tuple[tuple[float, ...], Dialect, tuple[str, ...]] | None = None
    for mark in candidates:
        for quote in ['"', "'"] if "'" in text else ['"']:
            for escape in escapes:
                dialect = Dialect(delimiter=mark, quote=quote, escape=escape)
                score, header = _score(sample, dialect, columns=columns, wanted=wanted)
                if best is None or score > best[0]:
                    best = (score, dialect, header)
    assert best is not None
    return best[1], best[2]


def _score(
    sample: list[str], dialect: Dialect, *, columns: Mapping[str, str] | None, wanted: ShapeName | None
) -> tuple[tuple[float, ...], tuple[str, ...]]:
    rows: list[list[str]] = []
    broken = 0
    position = 0
    while position < len(sample):
        reader = _parse(sample[position:], dialect)
        start = position
        try:
            for row in reader:
                if "".join(row).strip():
                    rows.append(row)
                start = position + reader.line_num  # type: ignore[attr-defined]
            break
        except csv.Error:
            broken += 1
            position = start + 1
    if not rows:
        return (0.0, 0.0, 0.0), ()
    header = tuple(rows[0])
    usual = len(header)
    regular = sum(len(row) == usual for row in rows) / (len(rows) + broken)
    # Cells that stand in the other quotes: of a few stray apostrophes it would make one regular cell of many lines.
    other = "'" if dialect.quote == '"' else '"'
    cells = [cell.strip() for row in rows for cell in row]
    regular -= sum(len(cell) > 1 and cell[0] == cell[-1] == other for cell in cells) / len(cells)
    named = [name for name in header if name]
    known = find_shape(header, columns=columns, wanted=wanted) is not None and len(set(named)) == len(named)
    # Rounded, so that of dialects equally regular the first tried (comma, double quote, no escapes) wins.
    return (float(known), round(regular, 2), float(min(usual, 50) > 1), float(usual)), header
