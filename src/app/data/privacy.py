"""Personal data and secrets in texts: e-mail addresses, phone numbers, payment cards, API keys."""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w@])")
_DIGITS = re.compile(r"(?<![\w.,/=-])(?:\+|\(|00)?\d[\d ()./-]{5,60}\d(?![\w])")
"""Runs of digits and separators: each is looked at more closely by `_masked`."""
_LONG_NUMBER = re.compile(r"[0-9][0-9 ()./-]{5,24}[0-9]")
"""Whether a closer look pays: it begins with a set of characters, which `re` skips to at a tenth of the time."""
_PHONE = re.compile(
    r"(?:\+|00)[1-9]\d{0,2}[ ./-]?(?:\(\d{1,5}\)[ ./-]?)?\d{1,5}(?:[ ./-]?\d{2,5}){1,5}"  # +49 171 1234567
    r"|\(\d{2,5}\)[ ./-]?\d{3,5}[ ./-]?\d{3,5}"  # (030) 1234 5678, (212) 555-0123
    r"|[2-9]\d{2}[ .-][2-9]\d{2}[ .-]\d{4}"  # 212-555-0123
    r"|0[1-9]\d{1,4}[ /-]\d{4,9}"  # 0171 1234567, 030/1234567
    r"|0[1-9](?:[ .]\d{2}){4}"  # 01 23 45 67 89
)
_CARD = re.compile(r"\d(?:[ -]?\d){12,18}")
_GROUPS = re.compile(r"\d{3,}(?:[ -]\d{3,})*")
"""How cards are printed, so that beside other numbers a part of a list of small ones is not taken for one."""
_ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"
    r"|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}|35\d{14}|6(?:011|5\d\d|4[4-9]\d)\d{12}|62\d{14,17}"
)
"""Lengths and first digits of the card networks (ISO/IEC 7812); one of ten random numbers would pass Luhn alone."""
_KEY_HINTS = (
    "sk-", "sk_", "rk_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "AKIA", "ASIA", "AIza", "xox", "hf_",
    "glpat-", "eyJ", "PRIVATE KEY", "npm_", "pypi-",
)  # fmt: skip
"""What a key begins with: looking for these first takes a tenth of the time that `_KEY` does."""
_KEY = re.compile(
    r"(?<![\w-])(?:sk-[\w-]{20,200}|[sr]k_(?:live|test)_\w{16,100}|gh[pousr]_\w{36,255}|github_pat_\w{22,255}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{35}|xox[abeprs]-[\w-]{10,200}|hf_[A-Za-z]{30,60}|glpat-[\w-]{20,60}"
    r"|npm_\w{36}|pypi-[\w-]{50,200}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})(?![\w])"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[\s\S]{0,6000}?-----END [A-Z ]*PRIVATE KEY-----)?"
)


def luhn(digits: str) -> bool:
    """Whether the check digit is right (ISO/IEC 7812-1, annex B)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def scan(text: str, *, redact: bool) -> tuple[str, Counter[str]]:
    """The text, masked if asked for, and how many of each kind it holds."""
    found: Counter[str] = Counter()

    def mask(kind: str, text: str) -> str:
        found[kind] += 1
        return f"[{kind.upper()}]" if redact else text

    if any(hint in text for hint in _KEY_HINTS):
        text = _KEY.sub(lambda match: mask("api-key", match[0]), text)
    if "@" in text:
        text = _EMAIL.sub(lambda match: mask("email", match[0]), text)
    if _LONG_NUMBER.search(text):
        text = _DIGITS.sub(lambda match: _masked(match[0], mask), text)
    return text, found


def _masked(text: str, mask: Callable[[str, str], str]) -> str:
    """Digits and separators with the cards and phone numbers in them masked, one after the other."""
    for kind, found in (("card", _card(text)), ("phone", _phone(text))):
        if found is not None:
            start, end = found
            return _masked(text[:start], mask) + mask(kind, text[start:end]) + _masked(text[end:], mask)
    return text


def _card(text: str) -> tuple[int, int] | None:
    """Where a card's number stands: an expiry date or another number may stand beside it."""
    for begin in re.finditer(r"(?<!\d)\d", text):
        match = _CARD.match(text, begin.start())
        piece = "" if match is None else match[0]
        while piece:
            start, end = begin.start(), begin.start() + len(piece)
            digits = re.sub(r"\D", "", piece)
            whole = not text[end : end + 1].isdigit() and (piece == text or _GROUPS.fullmatch(piece))
            if whole and _ISSUERS.fullmatch(digits) and luhn(digits):
                return start, end
            piece = piece[: max(piece.rfind(" "), piece.rfind("-"), 0)]
    return None


def _phone(text: str) -> tuple[int, int] | None:
    """Where a phone number stands: it is all of the text, or ends where a space or slash stands, or begins there."""
    cuts = [cut.span() for cut in re.finditer(r"[ /]+", text)]
    whole = (0, len(text))
    for start, end in [whole, *((0, cut[0]) for cut in reversed(cuts)), *((cut[1], len(text)) for cut in cuts)]:
        piece = text[start:end]
        if 7 <= sum(map(str.isdigit, piece)) <= 15 and _PHONE.fullmatch(piece):
            return start, end
    return None


def redact_value(value: Any) -> Any:
    """A row of rejected.jsonl with every text in it masked."""
    if isinstance(value, str):
        return scan(value, redact=True)[0]
    if isinstance(value, dict):
        return {key: redact_value(item) for key, item in value.items()}
    return [redact_value(item) for item in value] if isinstance(value, list) else value
