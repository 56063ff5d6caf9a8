"""One row's checks: from fields to a Conversation, with everything wrong with it, or the reason it cannot be one."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

from app.data.privacy import scan
from app.data.records import Conversation, Message
from app.data.render import role_fault
from app.data.shapes import RowError
from app.families import all_families

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff]")
"""C0 and C1 controls (tab, line feed, carriage return and NEL stay), direction overrides, stray byte order marks."""
_MOJIBAKE_HINT = re.compile("[ÂÃâÅÐÑØÙÎÏ][\x80-\xbfŒœŠšŽžŸƒˆ˜–—‘’‚“”„†‡•…‰‹›€™]")
"""A UTF-8 lead byte and a continuation byte, both read as cp1252 or Latin-1."""
_SENTENCE_ENDS = frozenset(".!?…。！？:;)]}\"'`»”’*>|~")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something about a row: a kind from ``app.data.kinds`` and what was seen."""

    kind: str
    detail: str


@cache
def control_tokens() -> re.Pattern[str]:
    """Matches every control token of every family here, and anything of the form <|name|>.

    All families', not one's: prepared data is not tied to a model, and a tokenizer reads such a text as a real turn.
    """
    tokens = {"<s>", "</s>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"}
    tokens |= {"[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"}
    for family in all_families().values():
        chat = family.chat
        forms = (chat.bos, chat.system or "", chat.user, chat.answer_open, chat.answer, chat.answer_close)
        tokens.update(token for form in forms for token in re.findall(r"<[|\w]+>|\[/?[A-Z_]+\]", form))
        tokens.update((*family.stop_tokens, family.pad_token))
    tokens.discard("")
    exact = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))
    return re.compile(rf"{exact}|<\|[a-z0-9_]{{2,40}}\|>")


def check(conversation: Conversation, *, redact: bool) -> tuple[Conversation, list[Finding]]:
    """The conversation, mended where that is safe and masked if ``redact``, with what was found.

    Raises:
        RowError: the row cannot be trained on.
    """
    findings: list[Finding] = []
    messages = tuple(_mend(message, findings) for message in conversation.messages)
    fault = role_fault(messages)
    if fault is None and messages[-1].role != "assistant":
        fault = "the last turn is a question without an answer"
    if fault is not None:
        raise RowError("role-order", fault)
    for number, message in enumerate(messages, start=1):
        token = control_tokens().search(message.content)
        if token is not None:
            raise RowError("control-token", f"message {number} ({message.role}) holds {token[0]!r}")
        if not message.content.strip():
            kind = "empty-answer" if message.role == "assistant" else "empty-prompt"
            raise RowError(kind, f"message {number} ({message.role}) has no visible text")
    for asked, answered in pairwise(messages):
        if answered.role == "assistant" and _same(asked.content, answered.content):
            shown = scan(answered.content.strip(), redact=redact)[0]
            raise RowError("prompt-is-answer", f"both are {shown[:80]!r}")
    private: Counter[str] = Counter()
    scanned = []
    for message in messages:
        text, found = scan(message.content, redact=redact)
        private += found
        scanned.append(message if text is message.content else Message(role=message.role, content=text))
    findings.extend(
        Finding(kind=kind, detail=f"{count}" + (", masked" if redact else "")) for kind, count in private.items()
    )
    ending = cut_off(scanned[-1].content)
    if ending:
        findings.append(Finding(kind="cut-off", detail=f"it ends with {ending!r}"))
    return replace(conversation, messages=tuple(scanned)), findings


def _mend(message: Message, findings: list[Finding]) -> Message:
    text = message.content
    if not text.isascii():
        text = _mend_encoding(text, findings)
    control = _CONTROL.search(text)
    if control is not None:
        cleaned = _CONTROL.sub("", text)
        detail = f"{len(text) - len(cleaned)} removed, the first U+{ord(control[0]):04X}"
        findings.append(Finding(kind="control-characters", detail=detail))
        text = cleaned
    return message if text is message.content else Message(role=message.role, content=text)


def _mend_encoding(text: str, findings: list[Finding]) -> str:
    broken = re.search("[\ud800-\udfff\ufffd]", text)
    if broken is not None:
        around = text[max(0, broken.start() - 20) : broken.start() + 20]
        raise RowError("broken-encoding", repr(around))
    hint = _MOJIBAKE_HINT.search(text)
    if hint is None:
        return text
    # ftfy's table of improbable sequences was made from real text; the hint alone would hit "Ã–" in a title.
    import ftfy
    from ftfy.badness import is_bad

    if not is_bad(text):
        return text
    mended = ftfy.fix_encoding(text)
    around = text[max(0, hint.start() - 15) : hint.start() + 15]
    if is_bad(mended) or "\ufffd" in mended:
        raise RowError("mojibake", repr(around))
    findings.append(Finding(kind="repaired-encoding", detail=repr(around)))
    return mended


def _same(one: str, other: str) -> bool:
    if abs(len(one) - len(other)) > 20 + len(one) // 10:
        return False
    return " ".join(one.split()).casefold() == " ".join(other.split()).casefold()


def cut_off(answer: str) -> str:
    """The end of an answer that seems cut off, or "".

    Only prose can be judged: several sentences, over 80 characters, whose last line is long and ends within a word
    (a letter or a comma) instead of with punctuation. Lists, code and titles end like that by right and are left alone.
    """
    text = answer.rstrip()
    if len(text) < 80 or text[-1] in _SENTENCE_ENDS or not (text[-1].isalpha() or text[-1] in ",-"):
        return ""
    last = text[text.rfind("\n") + 1 :]
    if len(last) < 40 or last.lstrip()[:1] in "-*#•|>" or not re.search(r"[.!?] +\S", text):
        return ""
    if re.search(r"[{}();=<>\[\]]", last):
        return ""
    return text[-25:]


def text_key(messages: Sequence[Message]) -> str:
    """What two samples have in common if they are the same: roles and text, white space runs as one blank."""
    return "\0".join(f"{m.role}\1{' '.join(m.content.split())}" for m in messages)


def group_of(row: Mapping[str, object], column: str | None) -> str:
    """The row's group as text, or "" if it has none."""
    value = row.get(column) if column else None
    return "" if value is None else str(value).strip().encode("utf-8", "replace").decode()
