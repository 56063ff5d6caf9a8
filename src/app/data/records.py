"""The one shape data has inside this application, and its JSONL form.

A line of a prepared file::

    {"id": "json.dumps", "group": "json", "messages": [{"role": "user", "content": "…"},
     {"role": "assistant", "content": "…"}], "source": {"file": "functions.csv", "line": 12}}

``group`` names what must not be cut apart by a split (a document, a module); by default it is ``id``.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

from app.errors import DataError, several

Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn's text, without any template around it."""

    role: Role
    content: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """A sample: its messages, and where it came from (``line`` counts from 1; 0 where a source has no lines)."""

    id: str
    group: str
    messages: tuple[Message, ...]
    file: str
    line: int

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "group": self.group,
            "messages": [{"role": m.role, "content": m.content} for m in self.messages],
            "source": {"file": self.file, "line": self.line},
        }


def prompt(question: str, *, system: str | None = None) -> tuple[Message, ...]:
    """The messages of a single question."""
    first = (Message(role="system", content=system),) if system else ()
    return (*first, Message(role="user", content=question))


def dump_line(conversation: Conversation) -> str:
    """The conversation as one line of prepared JSONL, newline included."""
    return json.dumps(conversation.to_json(), ensure_ascii=False) + "\n"


def parse_record(value: Any) -> Conversation:
    """A prepared JSON object as a Conversation.

    Raises:
        ValueError: saying which field is missing or of the wrong type.
    """
    if not isinstance(value, dict):
        raise ValueError(f"not a JSON object but {type(value).__name__}")
    messages = value.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError('"messages" is not a non-empty list')
    parsed = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(f'"messages[{index}].content" is not a string')
        if message.get("role") not in ROLES:
            raise ValueError(f'"messages[{index}].role" is {message.get("role")!r}, not one of {", ".join(ROLES)}')
        parsed.append(Message(role=message["role"], content=message["content"]))
    source = value.get("source")
    source = source if isinstance(source, dict) else {}
    file, line = source.get("file", ""), source.get("line", 0)
    identity = str(value.get("id") or f"{file}:{line}")
    return Conversation(
        id=identity,
        group=str(value.get("group") or identity),
        messages=tuple(parsed),
        file=str(file),
        line=line if isinstance(line, int) else 0,
    )


def read_prepared(path: Path, *, every: int = 1) -> Iterator[Conversation]:
    """The conversations of a prepared JSONL file, in order.

    Args:
        path: of the file.
        every: how many rows there are to one that is read; the others are not looked at.

    Raises:
        DataError: the file is missing, or lines of it are not prepared records (all bad lines are named).
    """
    if not path.is_file():
        raise DataError(
            f"no data file {path}", remedy="run `python -m app prepare INPUT --output FOLDER` or correct the path"
        )
    faults = []
    with path.open("rb") as lines:
        rows = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
        for number, line in islice(rows, 0, None, every):
            try:
                yield parse_record(json.loads(str(line, "utf-8")))
            except ValueError as fault:
                faults.append(f"{path}:{number}: {fault}")
    if faults:
        raise DataError(
            several(f"{len(faults)} lines are not prepared records", faults),
            remedy="make the file with `python -m app prepare`, which reports and sets aside bad rows",
        )
