"""JSON to rows: one object a line, or one array (read piece by piece, so it may be larger than memory)."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.data.ingest import MAX_ROW, Row, TextFacts, Unreadable, lines
from app.data.shapes import NAMES
from app.errors import DataError

_NEXT = re.compile(r"[\s,]*")
_BLOCK_LINES = 2000


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


def json_document(path: Path, facts: TextFacts) -> Iterator[tuple[int, Row, int]]:
    """The elements of an array, or of the first array in an object such as ``{"data": [...]}``; or the one object.

    Elements are decoded one at a time. Of one that is broken the text up to the next element is rejected.
    """
    source = lines(path, facts)
    buffer, line, position, ended = "", 1, 0, False
    held: Unreadable | None = None
    consumed = 0

    def more() -> None:
        nonlocal buffer, position, ended, held, consumed
        pieces = [buffer[position:]]
        position = 0
        for _ in range(_BLOCK_LINES):
            item = next(source, None)
            if item is None or isinstance(item[1], Unreadable):
                ended = True
                held = item[1] if item is not None and isinstance(item[1], Unreadable) else None
                break
            pieces.append(item[1])
            consumed = max(consumed, item[2])
        buffer = "".join(pieces)

    more()
    opening = re.match(r"\s*(?:\{\s*\"([^\"\\]*)\"\s*:\s*)?\[", buffer)
    if opening is None or opening[1] in NAMES["messages"]:
        yield from _single(buffer, ended, more_text=source, path=path, facts=facts)
        return
    wrapped = buffer.lstrip().startswith("{")
    line += buffer.count("\n", 0, opening.end())
    position = opening.end()
    while True:
        gap = _NEXT.match(buffer, position)
        assert gap is not None
        if gap.end() >= len(buffer) and not ended:
            more()
            continue
        line += buffer.count("\n", position, gap.end())
        position = gap.end()
        if position >= len(buffer) or buffer[position] == "]":
            if position >= len(buffer) and held is None:
                yield line, Unreadable(kind="broken-json", detail="the array is never closed", text=""), consumed
            break
        try:
            value, end = _DECODER.raw_decode(buffer, position)
        except DuplicateKeyError as fault:
            end = _skip(buffer, position)
            row: Row = Unreadable(kind="duplicate-key", detail=str(fault), text=buffer[position:end][:2000])
        except (ValueError, RecursionError) as fault:
            if not ended and len(buffer) - position < MAX_ROW:
                more()
                continue
            end = _skip(buffer, position)
            detail = "nested too deeply" if isinstance(fault, RecursionError) else str(fault)
            row = Unreadable(kind="broken-json", detail=detail, text=buffer[position:end][:2000])
        else:
            row = fields_of(value, buffer[position:end][:2000])
        yield line, row, consumed
        line += buffer.count("\n", position, end)
        position = end
    if held is not None:
        yield line, held, consumed
    rest = buffer[position + 1 :].strip()
    if rest and not wrapped:
        yield line, Unreadable(kind="broken-json", detail="text after the end of the array", text=rest[:2000]), consumed


def _skip(buffer: str, position: int) -> int:
    """Where the next element may begin: after a comma that a line break or an opening brace follows."""
    following = re.compile(r",\s*(?=\{)").search(buffer, position + 1)
    return following.start() if following else len(buffer)


def _single(
    text: str, ended: bool, *, more_text: Iterator[tuple[int, str | Unreadable, int]], path: Path, facts: TextFacts
) -> Iterator[tuple[int, Row, int]]:
    pieces, size = [text], len(text)
    if not ended:
        for _, line, _ in more_text:
            pieces.append(line if isinstance(line, str) else "")
            size += len(pieces[-1])
            if size > 16 * MAX_ROW:
                raise DataError(
                    f"{path} is one JSON object of more than {16 * MAX_ROW >> 20} MiB",
                    remedy="write it as JSONL, one object a line",
                )
    whole = "".join(pieces)
    parsed = parse_row(whole)
    if isinstance(parsed, dict):
        lists = [v for v in parsed.values() if isinstance(v, list) and v and all(isinstance(x, dict) for x in v)]
        nested = next((v for v in lists if not _is_messages(v)), None)
        if nested is not None:
            for number, value in enumerate(nested, start=1):
                yield number, value, facts.size
            return
    yield 1, parsed, facts.size


def _is_messages(value: list[dict[str, Any]]) -> bool:
    return {"role", "content"} <= set(value[0]) or {"from", "value"} <= set(value[0])
