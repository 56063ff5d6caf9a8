"""What people call their columns, and how a row of each known shape becomes messages.

A shape is found out from a row's field names, or named by the user. ``chat`` and ``sharegpt`` hold a list of turns,
``{"role", "content"}`` or ``{"from", "value"}``; ``alpaca``, ``prompt-completion`` and ``question-answer`` hold a
question and an answer under their names, as text or as lists of turns; ``text`` holds one passage.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

from app.data.records import Message, Role
from app.errors import ConfigError

ShapeName = Literal["alpaca", "prompt-completion", "question-answer", "chat", "sharegpt", "text"]
SHAPES: tuple[str, ...] = get_args(ShapeName)

NAMES: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation", "chat", "dialog", "dialogue", "turns"),
    "question": (
        "question", "instruction", "prompt", "query", "user", "human", "request", "problem", "q",
        "question_text", "user_message", "customer", "frage", "input", "source",
    ),
    "answer": (
        "answer", "output", "response", "completion", "reply", "assistant", "solution", "target", "a",
        "answer_text", "assistant_message", "agent", "antwort", "gpt", "label_text",
    ),
    "context": ("context", "input", "passage", "document", "background"),
    "system": ("system", "system_prompt", "system_message"),
    "text": ("text", "content", "passage", "body"),
    "group": (
        "group", "group_id", "conversation_id", "document_id", "doc_id", "thread_id", "session_id", "module",
    ),
    "id": ("id", "uuid", "_id", "row_id", "sample_id", "key"),
    "label": ("label", "category", "class", "topic", "intent", "kategorie"),
}  # fmt: skip
"""Role of a column -> the names it is known by, the likeliest first; compared without case, spaces and dashes."""

FORMS: Mapping[ShapeName, Mapping[str, tuple[str, ...]]] = {
    "alpaca": {"question": ("instruction",), "answer": ("output", "response"), "context": ("input",)},
    "prompt-completion": {"question": ("prompt",), "answer": ("completion", "response")},
    "question-answer": {"question": NAMES["question"], "answer": NAMES["answer"]},
    "sharegpt": {"messages": ("conversations", "conversation")},
    "chat": {"messages": NAMES["messages"]},
    "text": {"text": NAMES["text"]},
}
"""Shape -> the names its own columns go by, the narrowest shapes first."""

SPEAKERS: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "customer": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "agent": "assistant",
}
"""Speakers' names in chat and ShareGPT data -> role."""


class RowError(Exception):
    """Why a row cannot be used: a kind from ``app.data.kinds`` and what was seen."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """How the fields of a row are read: role of a column -> its name."""

    name: ShapeName
    columns: Mapping[str, str]

    def describe(self) -> str:
        return f"{self.name} ({', '.join(f'{role}: {column}' for role, column in self.columns.items())})"


@lru_cache(maxsize=4096)
def _normal(name: str) -> str:
    return re.sub(r"[\s\-.]+", "_", name.strip().strip("\ufeff").casefold())


def find_shape(
    fields: Sequence[str], *, columns: Mapping[str, str] | None = None, wanted: ShapeName | None = None
) -> Shape | None:
    """The shape of a row with these fields, or None if no rule fits.

    Args:
        fields: the row's field names.
        columns: role -> column name, from the user; those not named are guessed.
        wanted: take no other shape than this.

    Raises:
        ConfigError: ``columns`` names a role there is none of.
    """
    given = dict(columns or {})
    unknown = sorted(set(given) - set(NAMES))
    if unknown:
        raise ConfigError(
            f"there is no column role {', '.join(unknown)}", where="--columns", remedy=f"use {', '.join(NAMES)}"
        )
    by_name: dict[str, str] = {}
    for field in fields:
        by_name.setdefault(_normal(field), field)
    if any(column not in fields and _normal(column) not in by_name for column in given.values()):
        return None
    named = {role: column if column in fields else by_name[_normal(column)] for role, column in given.items()}
    tried: tuple[ShapeName, ...] = (wanted,) if wanted else ("chat", "question-answer", "text")
    for shape in tried:
        needed = _NEEDED[shape]
        # Whoever names the column of one shape does not mean another.
        if (set(given) & _KEY_ROLES) - set(needed):
            continue
        found = dict(named)
        for role in (*needed, *_EXTRAS[shape]):
            names = (FORMS[shape] if wanted else {}).get(role, NAMES[role])
            if role not in found and (column := _first(names, by_name, set(found.values()))):
                found[role] = column
        if all(role in found for role in needed):
            ordered = {role: found[role] for role in (*needed, *_EXTRAS[shape]) if role in found}
            return Shape(name=wanted or _narrowest(shape, ordered), columns=ordered)
    return None


_QUESTION = ("question", "answer")
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "alpaca": _QUESTION, "prompt-completion": _QUESTION, "question-answer": _QUESTION,
    "chat": ("messages",), "sharegpt": ("messages",), "text": ("text",),
}  # fmt: skip
_KEY_ROLES = frozenset(("question", "answer", "messages", "text"))
_MARKS = ("group", "id", "label")
_EXTRAS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("alpaca", "prompt-completion", "question-answer"), ("context", "system", *_MARKS)),
    **dict.fromkeys(("chat", "sharegpt"), ("system", *_MARKS)),
    "text": _MARKS,
}


def _first(names: Sequence[str], by_name: Mapping[str, str], taken: set[str]) -> str | None:
    return next((by_name[name] for name in names if name in by_name and by_name[name] not in taken), None)


def _narrowest(found: ShapeName, columns: Mapping[str, str]) -> ShapeName:
    """The name of the shape whose own column names these are."""
    for name, roles in FORMS.items():
        if set(_NEEDED[name]) == set(_NEEDED[found]) and all(
            _normal(columns[role]) in names for role, names in roles.items() if role in _NEEDED[name]
        ):
            return name
    return found


def to_messages(row: Mapping[str, Any], shape: Shape) -> tuple[Message, ...]:
    """A row as messages, their text unchanged.

    Raises:
        RowError: a field is missing, empty or of the wrong type.
    """
    columns = shape.columns
    if "messages" in columns:
        messages = _turns(row.get(columns["messages"]), column=columns["messages"])
        system = _text(row, columns.get("system"), optional=True)
        if system and messages and messages[0].role != "system":
            return (Message(role="system", content=system), *messages)
        return messages
    if shape.name == "text":
        return _continuation(_text(row, columns["text"], kind="empty-answer"))
    question, answer = row.get(columns["question"]), row.get(columns["answer"])
    if isinstance(question, list) and isinstance(answer, list):
        return (*_turns(question, column=columns["question"]), *_turns(answer, column=columns["answer"]))
    prompt = _text(row, columns["question"], kind="empty-prompt")
    context = _text(row, columns.get("context"), optional=True)
    system = _text(row, columns.get("system"), optional=True)
    first = (Message(role="system", content=system),) if system else ()
    return (
        *first,
        Message(role="user", content=f"{prompt}\n\n{context}" if context else prompt),
        Message(role="assistant", content=_text(row, columns["answer"], kind="empty-answer")),
    )


def _text(row: Mapping[str, Any], column: str | None, *, kind: str = "missing-field", optional: bool = False) -> str:
    if column is None:
        return ""
    value = row.get(column)
    if value is None and not optional:
        if column in row:
            raise RowError(kind, f"{column!r} is empty")
        raise RowError("missing-field", f"there is no field {column!r}")
    if value is None or (optional and value == ""):
        return ""
    if not isinstance(value, str):
        raise RowError("wrong-type", f"{column!r} is {_type_name(value)}, not text")
    if not optional and not value.strip():
        raise RowError(kind, f"{column!r} is {'white space only' if value else 'empty'}")
    return value if value.strip() else ""


def _turns(value: Any, *, column: str) -> tuple[Message, ...]:
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as fault:
            raise RowError("wrong-type", f"{column!r} is text that is not a JSON list: {fault}") from fault
    if value is None:
        raise RowError("missing-field", f"there is no list of messages in {column!r}")
    if not isinstance(value, list):
        raise RowError("wrong-type", f"{column!r} is {_type_name(value)}, not a list of messages")
    if not value:
        raise RowError("empty-prompt", f"{column!r} is an empty list")
    messages = []
    for number, turn in enumerate(value, start=1):
        if not isinstance(turn, dict):
            raise RowError("wrong-type", f"message {number} is {_type_name(turn)}, not an object")
        speaker = turn.get("role", turn.get("from"))
        content = turn.get("content", turn.get("value"))
        if not isinstance(speaker, str) or speaker.strip().casefold() not in SPEAKERS:
            raise RowError("role-order", f"message {number} has the role {speaker!r}, not system, user or assistant")
        role = SPEAKERS[speaker.strip().casefold()]
        if content is None:
            raise RowError("missing-field", f"message {number} ({role}) has no content")
        if not isinstance(content, str):
            raise RowError("wrong-type", f"the content of message {number} ({role}) is {_type_name(content)}, not text")
        if not content.strip():
            kind = "empty-answer" if role == "assistant" else "empty-prompt"
            raise RowError(kind, f"message {number} ({role}) is empty")
        messages.append(Message(role=role, content=content))
    return tuple(messages)


_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+|\n+")


def _continuation(text: str) -> tuple[Message, ...]:
    """Plain text as a question (its first sentence or line) and an answer (the rest): training on continuation."""
    text = text.strip()
    end = _SENTENCE_END.search(text)
    if end is None:
        raise RowError("empty-answer", "the text is a single sentence: nothing is left to continue it with")
    return (
        Message(role="user", content=text[: end.start()]),
        Message(role="assistant", content=text[end.end() :]),
    )


def _type_name(value: Any) -> str:
    names = {bool: "a truth value", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), "null" if value is None else type(value).__name__)
