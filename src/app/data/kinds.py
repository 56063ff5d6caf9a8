"""Every kind of finding: what it means, what becomes of the row, and what to do about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Action = Literal["reject", "repair", "warn"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A kind of finding.

    Attributes:
        action: "reject" (the row goes to rejected.jsonl), "repair" (the text was mended) or "warn" (kept as it is).
        title: one line for the report.
        remedy: what to do about it.
    """

    action: Action
    title: str
    remedy: str


def _reject(title: str, remedy: str) -> Kind:
    return Kind(action="reject", title=title, remedy=remedy)


def _repair(title: str, remedy: str) -> Kind:
    return Kind(action="repair", title=title, remedy=remedy)


def _warn(title: str, remedy: str) -> Kind:
    return Kind(action="warn", title=title, remedy=remedy)


KINDS: Mapping[str, Kind] = {
    # Reading
    "broken-row": _reject("not a whole row", "correct the quoting or the number of columns of that line"),
    "broken-json": _reject("not valid JSON", "correct that line; one JSON object a line"),
    "duplicate-key": _reject("a JSON object names a key twice", "keep one of the two values"),
    "too-large": _reject("a row larger than 16 MiB", "split it: no model reads so much at once"),
    "broken-encoding": _reject("bytes that are no text in the file's encoding", "export the file again as UTF-8"),
    "broken-file": _reject("the file is damaged from here on", "fetch or compress the file again"),
    # Fields
    "missing-field": _reject("a field is missing", "fill it in, or name the right column with --columns"),
    "wrong-type": _reject("a field is not text", "write it as text"),
    "empty-prompt": _reject("an empty question", "write the question, or delete the row"),
    "empty-answer": _reject("an empty answer", "write the answer, or delete the row"),
    "role-order": _reject("turns out of order", "let user and assistant alternate, user first, assistant last"),
    # Text
    "mojibake": _reject("text decoded with the wrong encoding", "export the file again as UTF-8"),
    "control-token": _reject("a model's control token inside the text", "remove it: it would forge a turn"),
    "prompt-is-answer": _reject("the answer repeats the question", "write the real answer"),
    "too-long": _reject("longer than --max_length", "raise --max_length, or split the text"),
    "repaired-encoding": _repair("wrongly decoded text, mended", "export the file as UTF-8 to be sure"),
    "control-characters": _repair("control characters, removed", "remove them at the source"),
    "shortened": _repair("shortened to --max_length", "raise --max_length, or split the text"),
    "cut-off": _warn("the answer seems cut off in the middle", "look for a length limit where the data was exported"),
    # The set as a whole
    "same-length": _warn("many answers are equally long", "look for a length limit where the data was exported"),
    "duplicate": _reject("the same sample again", "delete the copies"),
    "near-duplicate": _warn("nearly the same as another sample", "keep one; --drop near-duplicate does"),
    "contradiction": _warn("the same question with another answer", "decide which is right; --drop contradiction"),
    "leak": _warn("moved: a near-duplicate would be in another split", "nothing: it was moved to one side"),
    "unweighted": _reject("left out by its input's weight", "raise the weight"),
    # Personal data
    "email": _warn("an e-mail address", "--redact masks it"),
    "phone": _warn("a phone number", "--redact masks it"),
    "card": _warn("a payment card number (Luhn-valid)", "--redact masks it"),
    "api-key": _warn("an API key or private key", "revoke it, and mask it with --redact"),
}
