"""A batch of rows to prepared records, rejected rows and findings. Runs in worker processes: all of it pickles."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from app.data.ingest import Batch, Row, Unreadable
from app.data.jsonlines import parse_row
from app.data.kinds import KINDS
from app.data.records import Conversation, dump_line
from app.data.shapes import RowError, Shape, ShapeName, find_shape, to_messages
from app.data.validate import check, group_of, text_key


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """How rows are read and judged: what every worker needs to know."""

    columns: Mapping[str, str] | None = None
    shape: ShapeName | None = None
    drop: frozenset[str] = frozenset()


@dataclass(kw_only=True, slots=True)
class Examined:
    """What became of a batch. Lists over accepted rows run in parallel.

    Attributes:
        records: accepted rows as prepared JSON lines.
        lines: line of each accepted row.
        keys: 16-byte hash of each accepted row's text.
        prompts: 8-byte hash of each accepted row's question.
        units: what the row's split is decided by: its group, or the hash of its text.
        labels: value of the label column, "" without one.
        rejected: rejected rows as JSON lines.
        findings: (kind, line, detail) of rejected and accepted rows alike.
        shapes: how often each shape was met.
    """

    file: str
    source: int
    consumed: int
    rows: int = 0
    records: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    prompts: list[bytes] = field(default_factory=list)
    units: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    findings: list[tuple[str, int, str]] = field(default_factory=list)
    shapes: dict[str, int] = field(default_factory=dict)


def examine(batch: Batch, rules: Rules) -> Examined:
    """Reads, checks and hashes a batch's rows."""
    done = Examined(file=batch.file, source=batch.source, consumed=batch.consumed, rows=len(batch.rows))
    shapes: dict[tuple[str, ...], Shape | None] = {}
    for line, row in batch.rows:
        fields: dict[str, Any] | Unreadable | None = None
        try:
            fields = _fields(row, batch.header)
            if isinstance(fields, Unreadable):
                raise RowError(fields.kind, fields.detail)
            names = tuple(fields)
            if names not in shapes:
                shapes[names] = find_shape(names, columns=rules.columns, wanted=rules.shape)
            shape = shapes[names]
            if shape is None:
                raise RowError("missing-field", f"no question and answer among the fields {', '.join(names)[:200]}")
            _accept(done, fields, shape, line=line, rules=rules)
        except RowError as fault:
            text = fields.text if isinstance(fields, Unreadable) else fields
            reject(done, line=line, kind=fault.kind, detail=fault.detail, row=text)
    return done


def _fields(row: Row, header: tuple[str, ...] | None) -> dict[str, Any] | Unreadable:
    if isinstance(row, list):
        assert header is not None
        return dict(zip(header, row, strict=True))
    return parse_row(row) if isinstance(row, str) else row


def _accept(done: Examined, fields: Mapping[str, Any], shape: Shape, *, line: int, rules: Rules) -> None:
    columns = shape.columns
    group = group_of(fields, columns.get("group"))
    identity = group_of(fields, columns.get("id")) or f"{done.file}:{line}"
    raw = Conversation(
        id=identity, group=group or identity, messages=to_messages(fields, shape), file=done.file, line=line
    )
    conversation, findings = check(raw)
    dropped = next((f for f in findings if f.kind in rules.drop), None)
    if dropped is not None:
        raise RowError(dropped.kind, dropped.detail)
    key = hashlib.blake2b(text_key(conversation.messages).encode(), digest_size=16)
    question = text_key(tuple(takewhile(lambda m: m.role != "assistant", conversation.messages))).casefold()
    done.records.append(dump_line(conversation))
    done.lines.append(line)
    done.keys.append(key.digest())
    done.prompts.append(hashlib.blake2b(question.encode(), digest_size=8).digest())
    done.units.append(f"group {group}" if group else key.hexdigest())
    done.labels.append(group_of(fields, columns.get("label")))
    done.findings.extend((finding.kind, line, finding.detail) for finding in findings)
    described = shape.describe()
    done.shapes[described] = done.shapes.get(described, 0) + 1


def reject(done: Examined, *, line: int, kind: str, detail: str, row: Any) -> None:
    """Notes a rejected row."""
    done.rejected.append(rejected_line(file=done.file, line=line, kind=kind, detail=detail, row=row))
    done.findings.append((kind, line, detail))


def rejected_line(*, file: str, line: int, kind: str, detail: str, row: Any) -> str:
    """A line of rejected.jsonl; lone surrogates and NaN become escapes and text, so that the file is valid JSON."""
    value = {"file": file, "line": line, "kind": kind, "reason": detail, "remedy": KINDS[kind].remedy, "row": row}
    try:
        text = json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
        text.encode()
    except (ValueError, RecursionError):
        text = json.dumps({**value, "reason": ascii(detail)[1:-1], "row": ascii(row)[:4000]})
    return text + "\n"
