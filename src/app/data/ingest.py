"""Bytes to rows: compression, encoding and format found out from the content, never from the name alone.

Rows come in batches, in order, with the line they begin on. What cannot be read is a row too (``Unreadable``), so that
rows in = rows out + rows rejected holds for any bytes.
"""

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from app.data.shapes import find_shape
from app.errors import DataError

Format = Literal["csv", "jsonl", "json", "parquet", "text"]
BATCH_ROWS = 2000
MAX_ROW = 16 * 1024 * 1024
"""Characters of one row; a longer one is rejected (a 100 MB line must not fill the memory)."""
_BLOCK = 1 << 20
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
DAMAGED: tuple[type[Exception], ...] = (EOFError, zlib.error, OSError)
"""What reading a damaged compressed stream or disk raises (zstandard's own error is turned into EOFError)."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class TextFacts:
    """What a look through a whole file's bytes found out.

    Attributes:
        encoding: to decode it with.
        note: how the encoding was found, for the report.
        size: bytes on disk.
        head: the first characters, decoded.
    """

    encoding: str
    note: str
    size: int
    head: str


class _Zstd(io.RawIOBase):
    """Decompressed bytes of zstd frames; damage, and an end within a frame, is an EOFError (as gzip has it).

    zstandard's own stream reader ends quietly where a file was cut off.
    """

    def __init__(self, raw: BinaryIO) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        self._new = zstandard.ZstdDecompressor().decompressobj
        self._raw = raw
        self._frame: Any = None
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            packed = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
            packed = packed or self._raw.read(_BLOCK // 4)
            if not packed:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("it ends within a frame")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = self._new()
            try:
                self._left = self._frame.decompress(packed)
            except self._error as fault:
                raise EOFError(str(fault)) from fault
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size

    def close(self) -> None:
        self._raw.close()
        super().close()


def open_bytes(path: Path) -> tuple[BinaryIO, BinaryIO]:
    """The file's bytes, decompressed if its first bytes say gzip or zstd, and the raw file below (for ``tell``).

    Raises:
        DataError: it cannot be opened.
    """
    try:
        raw = path.open("rb")
        magic = raw.read(4)
        raw.seek(0)
    except OSError as fault:
        raise unreadable(path, fault) from fault
    if magic[:2] == b"\x1f\x8b":
        return cast(BinaryIO, io.BufferedReader(gzip.GzipFile(fileobj=raw), _BLOCK)), raw
    if magic == b"\x28\xb5\x2f\xfd":
        return cast(BinaryIO, io.BufferedReader(_Zstd(raw), _BLOCK)), raw
    return raw, raw


def unreadable(path: Path, fault: OSError) -> DataError:
    """The error for a file the system does not let us read."""
    return DataError(
        f"{path} cannot be read: {fault.strerror or fault}",
        remedy="check the path and its permissions (a loop of links cannot be followed)",
    )


def survey(path: Path, *, encoding: str | None) -> TextFacts:
    """Looks through all bytes once: is it UTF-8, and if not, what is it?

    A file with some broken bytes but more good multi-byte characters is UTF-8 with broken rows; one with single high
    bytes and no good multi-byte character is in a legacy code page.
    """
    stream, raw = open_bytes(path)
    size = path.stat().st_size
    good = bad = 0
    head = b""
    tell_tale: list[bytes] = []
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    with raw, stream:
        while True:
            try:
                block = stream.read(_BLOCK)
            except DAMAGED:
                break
            if not block:
                break
            if not head:
                head = block
                if encoding or any(head.startswith(bom) for bom, _ in _BOMS):
                    break
            if block.isascii() and decoder.getstate() == (b"", 0):
                continue
            text = decoder.decode(block)
            if text.isascii():
                continue
            broken = len(re.findall("[\udc80-\udcff]", text))
            bad += broken
            good += len(text) - len(text.encode("ascii", "ignore")) - broken
            if broken and sum(map(len, tell_tale)) < 65536:
                tell_tale.extend(re.findall(rb"[^\n]*[\x80-\xff][^\n]*", block)[:400])
    if encoding:
        found, note = encoding, "given"
    else:
        found, note = _encoding(head, good=good, bad=bad, sample=b"\n".join(tell_tale)[:65536])
    return TextFacts(encoding=found, note=note, size=size, head=_decode_head(head, found))


def _encoding(head: bytes, *, good: int, bad: int, sample: bytes) -> tuple[str, str]:
    for bom, name in _BOMS:
        if head.startswith(bom):
            return name, "byte order mark"
    if len(head) > 3:
        even, odd = head[0:4096:2].count(0), head[1:4096:2].count(0)
        half = max(1, min(len(head), 4096) // 2)
        if odd > 0.4 * half and even < 0.1 * half:
            return "utf-16-le", "every second byte is zero"
        if even > 0.4 * half and odd < 0.1 * half:
            return "utf-16-be", "every second byte is zero"
    if not bad:
        return "utf-8", "valid UTF-8"
    if good >= bad:
        return "utf-8", f"UTF-8 with {bad} broken bytes"
    return _code_page(sample), "not UTF-8; guessed from its letters"


def _code_page(sample: bytes) -> str:
    """The legacy encoding of lines with high bytes.

    In Latin text accented letters stand alone or in pairs among ASCII ones; in Cyrillic, Greek or East Asian code pages
    high bytes come in runs. Latin code pages cannot be told apart by frequency on short texts (charset-normalizer takes
    German cp1252 for cp1250), so such a text is cp1252 if its letters are western ones, unless it has the Czech or
    Polish letters that make no sense there: š or ž beside è, ì, ø or ù, and ³, ¹ or ¿ within a word.
    """
    high = len(re.findall(rb"[\x80-\xff]", sample))
    in_runs = len(re.findall(rb"(?<=[\x80-\xff]{2})[\x80-\xff]", sample))
    western = set("äöüßÄÖÜéèêëàâáãåçñóòôõíìîïúùûøØæÆœŒÅÉÈÀÁÇÑÓÍÚŠšŽžÝý€„“”‘’‚“–—…«»°§£©®™²³µ½¼¾¿¡·ªº\xa0•†‰‹›ÿ´×÷¢¥±¶¹")
    fitting = sum(1 for letter in sample.decode("cp1252", "replace") if letter in western)
    if in_runs < 0.2 * high and fitting >= 0.9 * high:
        czech = re.search(rb"[\x9a\x9e]", sample) and re.search(rb"[\xe8\xec\xf8\xf9]", sample)
        polish = re.search(rb"[a-z][\xb3\xb9\xbf][a-z]", sample)
        return "cp1250" if czech or polish else "cp1252"
    from charset_normalizer import from_bytes

    best = from_bytes(sample).best()
    return best.encoding if best is not None else "cp1252"


def _decode_head(head: bytes, encoding: str) -> str:
    try:
        return head.decode(encoding, "replace").replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
    except LookupError as fault:
        raise DataError(
            f"there is no encoding {encoding!r}", where="--encoding", remedy="use one such as utf-8 or cp1252"
        ) from fault


def lines(path: Path, facts: TextFacts) -> Iterator[tuple[int, str | Unreadable, int]]:
    """(number, line, bytes consumed) of a text file; \\n, \\r\\n and \\r all end lines, and are read as \\n.

    Bytes that are no text become lone surrogates (U+FFFD in UTF-16 and UTF-32), which `validate` finds.
    """
    stream, raw = open_bytes(path)
    errors = "surrogateescape" if not facts.encoding.startswith(("utf-16", "utf-32")) else "replace"
    number = 0
    with raw, io.TextIOWrapper(stream, encoding=facts.encoding, errors=errors, newline=None) as text:
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
