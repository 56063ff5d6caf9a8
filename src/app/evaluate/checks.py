"""Checks of an answer that need no judge."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.evaluate.token_f1 import token_f1

MIN_F1 = 0.5
_FENCE = re.compile(r"\A\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*\Z", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Check:
    """What an answer must be.

    Attributes:
        kind: contains, regex, json_valid, max_length or reference.
        wanted: a text, a pattern, a number of words, or a right answer.
        min_f1: of ``reference``: the least token F1.
    """

    kind: str
    wanted: str | int
    min_f1: float = MIN_F1


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """Whether an answer passed, and what was looked for and found."""

    kind: str
    passed: bool
    detail: str


def parse_checks(value: Mapping[str, Any]) -> tuple[Check, ...]:
    """Checks as ``prompts.schema.json`` has them.

    Raises:
        ValueError: the regular expression is none.
    """
    checks = [Check(kind="contains", wanted=text) for text in value.get("contains", ())]
    if "regex" in value:
        try:
            re.compile(value["regex"])
        except re.error as fault:
            raise ValueError(str(fault)) from fault
        checks.append(Check(kind="regex", wanted=value["regex"]))
    if value.get("json_valid"):
        checks.append(Check(kind="json_valid", wanted=""))
    if "max_length" in value:
        checks.append(Check(kind="max_length", wanted=value["max_length"]))
    if "reference" in value:
        checks.append(Check(kind="reference", wanted=value["reference"], min_f1=value.get("min_f1", MIN_F1)))
    return tuple(checks)


def run_check(check: Check, text: str) -> CheckResult:
    """Whether ``text`` passes."""
    if check.kind == "contains":
        passed = str(check.wanted).casefold() in text.casefold()
        detail = f"{'contains' if passed else 'lacks'} {str(check.wanted)!r}"
    elif check.kind == "regex":
        passed = re.search(str(check.wanted), text) is not None
        detail = f"{'matches' if passed else 'does not match'} {check.wanted}"
    elif check.kind == "json_valid":
        passed, detail = _is_json(text)
    elif check.kind == "max_length":
        words = len(text.split())
        passed, detail = words <= int(check.wanted), f"{words} words of at most {check.wanted}"
    else:
        assert check.kind == "reference", check.kind
        reached = token_f1(text, str(check.wanted))
        passed, detail = reached >= check.min_f1, f"token F1 {reached:.2f} of at least {check.min_f1:g}"
    return CheckResult(kind=check.kind, passed=passed, detail=detail)


def _is_json(text: str) -> tuple[bool, str]:
    fenced = _FENCE.match(text)
    try:
        json.loads(fenced.group(1) if fenced else text)
    except ValueError as fault:
        return False, f"not JSON: {fault}"
    return True, "valid JSON"
