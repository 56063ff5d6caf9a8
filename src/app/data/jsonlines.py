"""JSON to rows: one object a line, or one array (read piece by piece, so it may be larger than memory)."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.data.encoding import TextFacts
from app.data.ingest import MAX_ROW, Row, Unreadable, blocks
from app.data.shapes import NAMES
from app.errors import DataError

_NEXT = re.compile(r"[\s,]*")
_FURTHER = re.compile(r"\"([^\"\\]*)\"\s*:\s*\[\s*\{")


class DuplicateKeyError(ValueError):
    """A JSON object names a key twice: which of the values is meant?"""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DuplicateKeyError(f"the key {twice!r} stands twice in one object")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs)


def parse_row(text: str) -> dict[str, Any] | Unreadable:
    """One JSON text as fields (runs in the workers, so that parsing uses all cores)."""
    try:
        value = _DECODER.decode(text)
    except DuplicateKeyError as fault:
        return Unreadable(kind="duplicate-key", detail=str(fault), text=text[:2000])
    except RecursionError:
        return Unreadable(kind="broken-json", detail="nested too deeply", text=text[:2000])
    except ValueError as fault:
        return Unreadable(kind="broken-json", detail=str(fault), text=text[:2000].rstrip("\n"))
    return fields_of(value, text)


def fields_of(value: Any, text: str) -> dict[str, Any] | Unreadable:
    """A JSON value as fields: an object is its own; a list of messages and a bare string are given a name."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return {"messages": value}
    if isinstance(value, str):
        return {"text": value}
    return Unreadable(kind="wrong-type", detail=f"{type(value).__name__} where an object belongs", text=text[:2000])


def json_lines(source: Iterator[tuple[int, str | Unreadable, int]]) -> Iterator[tuple[int, Row, int]]:
    """One JSON text a line; blank lines are no rows."""
    for number, line, consumed in source:
        if isinstance(line, Unreadable) or line.strip():
            yield number, line, consumed


class _Text:
    """A file's text with a place in it: what lies before the place is forgotten when more is read."""

    def __init__(self, path: Path, facts: TextFacts) -> None:
        self._blocks = blocks(path, facts)
        self.text = ""
        self.at = 0
        self.line = 1
        self.consumed = 0
        self.ended = False
        self.damage: Unreadable | None = None
        self.more()

    def more(self) -> None:
        block, consumed = next(self._blocks, ("", 0))
        self.consumed = max(self.consumed, consumed)
        if isinstance(block, Unreadable):
            self.damage, block = block, ""
        self.ended = not block
        self.text, self.at = self.text[self.at :] + block, 0

    def move(self, end: int) -> str:
        """Goes on to ``end``; returns the text in between."""
        passed = self.text[self.at : end]
        self.line += passed.count("\n")
        self.at = end
        return passed


def json_document(path: Path, facts: TextFacts) -> Iterator[tuple[int, Row, int]]:
    """The elements of an array, or of the first array of objects in an object such as ``{"data": [...]}``; or the one
    object. A further array of objects beside the first is rejected as a whole.

    Elements are decoded one at a time, so that neither a long array nor one without line breaks fills the memory. Of an
    element that is broken the text up to the next one is rejected.
    """
    source = _Text(path, facts)
    opening = re.match(r"\s*(?:\{\s*\"([^\"\\]*)\"\s*:\s*(?=\[\s*\[?\s*\{))?\[", source.text)
    if opening is None or opening[1] in NAMES["messages"]:
        yield from _single(source, path, facts)
        return
    source.move(opening.end())
    first_key = ""
    while True:
        gap = _NEXT.match(source.text, source.at)
        assert gap is not None
        source.move(gap.end())
        if source.at >= len(source.text) and not source.ended:
            source.more()
            continue
        if source.at >= len(source.text) or source.text[source.at] == "]":
            break
        line = source.line
        row: Row
        try:
            value, end = _DECODER.raw_decode(source.text, source.at)
        except (ValueError, RecursionError) as fault:
            if not isinstance(fault, DuplicateKeyError) and not source.ended and len(source.text) - source.at < MAX_ROW:
                source.more()
                continue
            text = source.move(_end_of_broken(source, fault, first_key))
            kind = "duplicate-key" if isinstance(fault, DuplicateKeyError) else "broken-json"
            detail = "nested too deeply" if isinstance(fault, RecursionError) else str(fault)
            row = Unreadable(kind=kind, detail=detail, text=text[:2000])
        else:
            row = fields_of(value, source.move(end)[:2000])
            first_key = first_key or (next(iter(value), "") if isinstance(value, dict) else "")
        yield line, row, source.consumed
    if source.damage is not None:
        yield source.line, source.damage, source.consumed
    elif source.at >= len(source.text):
        row = Unreadable(kind="broken-json", detail="the array is never closed", text="")
        yield source.line, row, source.consumed
    elif opening[1] is None and source.text[source.at + 1 :].strip():
        rest = source.text[source.at + 1 :].strip()
        row = Unreadable(kind="broken-json", detail="text after the end of the array", text=rest[:2000])
        yield source.line, row, source.consumed
    elif opening[1] is not None:
        while not source.ended and len(source.text) < MAX_ROW:
            source.more()
        further = _FURTHER.search(source.text, source.at + 1)
        if further is not None:
            yield source.line, _unread(further[1], source.text[further.start() :]), source.consumed


def _unread(name: str, text: str) -> Unreadable:
    """A list of rows that is not the first of its document."""
    detail = f"{name!r} is a second list of rows: only a document's first is read; write each to a file of its own"
    return Unreadable(kind="broken-json", detail=detail, text=text[:2000])


def _end_of_broken(source: _Text, fault: Exception, first_key: str) -> int:
    """Where the next element may begin: at a comma and a brace, with the key that the others begin with if known."""
    if isinstance(fault, DuplicateKeyError):
        return json.JSONDecoder().raw_decode(source.text, source.at)[1]
    key = re.escape(json.dumps(first_key)) if first_key else ""
    following = re.compile(rf",\s*(?=\{{\s*{key})").search(source.text, source.at + 1)
    return following.start() if following else len(source.text)


def _single(source: _Text, path: Path, facts: TextFacts) -> Iterator[tuple[int, Row, int]]:
    while not source.ended:
        if len(source.text) > 16 * MAX_ROW:
            raise DataError(
                f"{path} is one JSON object of more than {16 * MAX_ROW >> 20} MiB",
                remedy="write it as JSONL, one object a line",
            )
        source.more()
    parsed = parse_row(source.text)
    if isinstance(parsed, dict):
        lists = {k: v for k, v in parsed.items() if isinstance(v, list) and v and all(isinstance(x, dict) for x in v)}
        names = [name for name, value in lists.items() if not _is_messages(value)]
        if names:
            rows = lists[names[0]]
            for number, value in enumerate(rows, start=1):
                yield number, value, facts.size
            for name in names[1:]:
                yield len(rows) + 1, _unread(name, json.dumps(lists[name])), facts.size
            return
    yield 1, source.damage or parsed, facts.size


def _is_messages(value: list[dict[str, Any]]) -> bool:
    return {"role", "content"} <= set(value[0]) or {"from", "value"} <= set(value[0])
