"""A batch of rows to prepared records, rejected rows and findings. Runs in worker processes: all of it pickles."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from app.data.ingest import Batch, Row, Unreadable
from app.data.jsonlines import parse_row
from app.data.kinds import KINDS
from app.data.lengths import TooLong, count_tokens, estimate_tokens, shorten
from app.data.privacy import redact_value
from app.data.records import Conversation, Message, dump_line
from app.data.shapes import RowError, Shape, ShapeName, find_shape, to_messages
from app.data.sketch import sketch
from app.data.split import position
from app.data.validate import check, group_of, text_key
from app.families import get_family

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NUMBERS = np.dtype(
    [
        ("size", "u4"),  # bytes of the record
        ("line", "u4"),
        ("key", "u8"),  # hash of the text: equal for exact duplicates
        ("prompt", "u8"),  # hash of the first question with its system text
        ("answer", "u8"),  # hash of the first answer
        ("unit", "f8"),  # where the row's group lies in [0, 1): equal for rows that stay together
        ("grouped", "?"),  # whether the group was given (and not made from the text)
        ("label", "i4"),  # number in the label table, -1 without one
        ("tokens", "i4"),  # of the rendered sample, estimated without a tokenizer
        ("answer_chars", "i4"),
    ]
)
"""What the passes over the whole set need of each accepted row: 59 bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """How rows are read and judged: what every worker needs to know.

    Attributes:
        columns: role -> column, as the user named them.
        shape: the shape to read, None finds it out.
        drop: kinds of findings that reject a row instead of warning.
        redact: personal data is masked.
        seed: of the split.
        tokenizer: JSON of a fast tokenizer, None estimates lengths.
        family: whose chat format lengths are counted in; needs ``tokenizer``.
        max_length: tokens a sample may have, None allows any.
        too_long: what becomes of longer ones.
    """

    columns: Mapping[str, str] | None = None
    shape: ShapeName | None = None
    drop: frozenset[str] = frozenset()
    redact: bool = False
    seed: int = 42
    tokenizer: str | None = None
    family: str | None = None
    max_length: int | None = None
    too_long: TooLong = "drop"


@dataclass(frozen=True, kw_only=True, slots=True)
class Examined:
    """What became of a batch.

    Attributes:
        records: accepted rows as prepared JSON lines, one after the other.
        numbers: one NUMBERS row for each.
        sketches: [accepted, 64] MinHash sketches.
        labels: table that ``numbers["label"]`` points into.
        rejected: rejected rows as JSON lines.
        refused: how many those are.
        findings: (kind, line, detail) of rejected and accepted rows alike.
        shapes: how often each shape was met.
    """

    file: str
    source: int
    consumed: int
    rows: int
    records: bytes
    numbers: NDArray[Any]
    sketches: NDArray[np.uint32]
    labels: tuple[str, ...]
    rejected: bytes
    refused: int
    findings: list[tuple[str, int, str]]
    shapes: Mapping[str, int]


def examine(batch: Batch, rules: Rules) -> Examined:
    """Reads, checks, measures and hashes a batch's rows."""
    known: dict[tuple[str, ...], Shape | None] = {}
    records: list[bytes] = []
    numbers: list[tuple[Any, ...]] = []
    texts: list[str] = []
    labels: dict[str, int] = {}
    rejected: list[str] = []
    findings: list[tuple[str, int, str]] = []
    shapes: Counter[str] = Counter()
    for line, row in batch.rows:
        fields: dict[str, Any] | Unreadable | None = None
        try:
            fields = _fields(row, batch.header)
            if isinstance(fields, Unreadable):
                raise RowError(fields.kind, fields.detail)
            names = tuple(fields)
            if names not in known:
                known[names] = find_shape(names, columns=rules.columns, wanted=rules.shape)
            shape = known[names]
            if shape is None:
                listed = ", ".join(map(repr, names))
                raise RowError("missing-field", f"no question and answer among the fields {listed[:200]}")
            conversation, explicit, tokens = _accept(fields, shape, batch.file, line, rules, findings)
            label = group_of(fields, shape.columns.get("label"))
            record = dump_line(conversation).encode()
            text = text_key(conversation.messages)
            unit = f"group {conversation.group}" if explicit else text
            answer = next(m.content for m in conversation.messages if m.role == "assistant")
            question = tuple(takewhile(lambda m: m.role != "assistant", conversation.messages))
            numbers.append(
                (
                    len(record),
                    min(line, 2**32 - 1),
                    _hash(text),
                    _hash(text_key(question).casefold()),
                    _hash(" ".join(answer.split()).casefold().rstrip(".!")),
                    position(unit, seed=rules.seed),
                    explicit,
                    labels.setdefault(label, len(labels)) if label else -1,
                    tokens,
                    len(conversation.messages[-1].content),
                )
            )
            records.append(record)
            texts.append(" ".join(m.content for m in conversation.messages if m.role != "system"))
            shapes[shape.describe()] += 1
        except RowError as fault:
            text_or_fields = fields.text if isinstance(fields, Unreadable) else fields
            rejected.append(
                rejected_line(
                    file=batch.file, line=line, kind=fault.kind, detail=fault.detail, row=text_or_fields,
                    redact=rules.redact,
                )
            )  # fmt: skip
            findings.append((fault.kind, line, redact_value(fault.detail) if rules.redact else fault.detail))
    return Examined(
        file=batch.file, source=batch.source, consumed=batch.consumed, rows=len(batch.rows),
        records=b"".join(records), numbers=np.array(numbers, dtype=NUMBERS), sketches=sketch(texts),
        labels=tuple(labels), rejected="".join(rejected).encode(), refused=len(rejected), findings=findings,
        shapes=shapes,
    )  # fmt: skip


def _fields(row: Row, header: tuple[str, ...] | None) -> dict[str, Any] | Unreadable:
    if isinstance(row, list):
        assert header is not None
        return dict(zip(header, row, strict=True))
    return parse_row(row) if isinstance(row, str) else row


def _accept(
    fields: Mapping[str, Any], shape: Shape, file: str, line: int, rules: Rules, findings: list[tuple[str, int, str]]
) -> tuple[Conversation, bool, int]:
    """The conversation, whether its group was given, and its tokens."""
    given = group_of(fields, shape.columns.get("group"))
    identity = group_of(fields, shape.columns.get("id")) or f"{file}:{line}"
    raw = Conversation(
        id=identity, group=given or identity, messages=to_messages(fields, shape), file=file, line=line
    )  # fmt: skip
    conversation, found = check(raw, redact=rules.redact)
    tokens = _tokens(conversation.messages, rules)
    if rules.max_length is not None and tokens > rules.max_length:
        detail = f"{tokens} tokens"
        shorter = None
        if rules.too_long == "truncate":
            shorter = shorten(conversation.messages, rules.max_length, lambda messages: _tokens(messages, rules))
        if shorter is None:
            raise RowError("too-long", detail)
        conversation = Conversation(
            id=identity, group=conversation.group, messages=shorter, file=file, line=line
        )  # fmt: skip
        tokens = _tokens(shorter, rules)
        findings.append(("shortened", line, f"{detail}, now {tokens}"))
    dropped = next((f for f in found if f.kind in rules.drop), None)
    if dropped is not None:
        raise RowError(dropped.kind, dropped.detail)
    findings.extend((finding.kind, line, finding.detail) for finding in found)
    return conversation, bool(given), tokens


@cache
def _tokenizer(serialised: str) -> "Tokenizer":
    from tokenizers import Tokenizer

    return Tokenizer.from_str(serialised)


def _tokens(messages: Sequence[Message], rules: Rules) -> int:
    if rules.tokenizer is None or rules.family is None:
        return estimate_tokens(messages)
    return count_tokens(messages, _tokenizer(rules.tokenizer), get_family(rules.family).chat)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def rejected_line(*, file: str, line: int, kind: str, detail: str, row: Any, redact: bool) -> str:
    """A line of rejected.jsonl; lone surrogates and NaN become escapes and text, so that the file is valid JSON."""
    if redact:
        row, detail = redact_value(row), redact_value(detail)
    value = {"file": file, "line": line, "kind": kind, "reason": detail, "remedy": KINDS[kind].remedy, "row": row}
    try:
        text = json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
        text.encode()
    except (ValueError, RecursionError):
        text = json.dumps({**value, "reason": ascii(detail)[1:-1], "row": _plain(row)})
    return text + "\n"


def _plain(row: Any) -> str:
    try:
        return ascii(row)[:4000]
    except (ValueError, RecursionError) as fault:
        return f"not writable: {fault}"
