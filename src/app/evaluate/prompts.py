"""Benchmark prompts: a file of questions with checks, asked of base and tuned model side by side.

``prompts.schema.json`` beside this file documents the form; ``configs/prompts.json`` is an example.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from app.data.records import Message
from app.data.render import role_fault
from app.errors import ConfigError, several
from app.evaluate.checks import Check, CheckResult, parse_checks, run_check
from app.evaluate.json_lines import value_lines
from app.evaluate.metric import Metric, Part
from app.generate.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One question.

    Attributes:
        id: its name.
        category: what it is about.
        messages: ending with a question.
        sampling: how it is answered.
        checks: of the answer; may be none.
    """

    id: str
    category: str
    messages: tuple[Message, ...]
    sampling: Sampling
    checks: tuple[Check, ...]

    def results(self, text: str) -> list[CheckResult]:
        """Every check of an answer."""
        return [run_check(check, text) for check in self.checks]


def read_prompts(path: Path, *, seed: int, max_tokens: int) -> list[Prompt]:
    """The prompts of a file.

    Args:
        path: of the JSON file.
        seed: of prompts that set none.
        max_tokens: of prompts that set none.

    Raises:
        ConfigError: naming every fault with its line.
    """
    remedy = "correct the lines named; src/app/evaluate/prompts.schema.json documents the form"
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(f"{path} cannot be read: {fault}", where="--prompts", remedy="name a JSON file") from fault
    except json.JSONDecodeError as fault:
        raise ConfigError(
            f"{path}:{fault.lineno}: {fault.msg} (column {fault.colno})", where="--prompts", remedy=remedy
        ) from fault
    lines = value_lines(text)
    found = list(_schema_faults(value)) or list(_meaning_faults(value))
    if found:
        located = sorted((_line(lines, where), f"{_name(where)}: {fault}") for where, fault in found)
        raise ConfigError(
            several(f"{path} is not a file of prompts", [f"{path}:{line}: {fault}" for line, fault in located]),
            where="--prompts",
            remedy=remedy,
        )
    shared = {"seed": seed, "max_tokens": max_tokens, **value.get("sampling", {})}
    return [
        Prompt(
            id=each["id"],
            category=each["category"],
            messages=_messages(each),
            sampling=_sampling({**shared, **each.get("sampling", {})}),
            checks=parse_checks(each.get("checks", {})),
        )
        for each in value["prompts"]
    ]


def _schema_faults(value: Any) -> Iterator[tuple[tuple[str | int, ...], str]]:
    from jsonschema import Draft202012Validator

    schema = json.loads(files("app.evaluate").joinpath("prompts.schema.json").read_text("utf-8"))
    for fault in Draft202012Validator(schema).iter_errors(value):
        where = tuple(fault.absolute_path)
        if fault.validator != "additionalProperties":
            yield where, fault.message
            continue
        known = list(fault.schema["properties"])
        for name in sorted(set(fault.instance) - set(known)):
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
            yield (*where, name), f"there is no {name!r} here; {hint}"


def _meaning_faults(value: Mapping[str, Any]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """What a schema cannot say."""
    seen: dict[str, int] = {}
    for index, each in enumerate(value["prompts"]):
        where = ("prompts", index)
        if seen.setdefault(each["id"], index) != index:
            yield (*where, "id"), f"the id {each['id']!r} is that of prompts[{seen[each['id']]}] too"
        messages = _messages(each)
        fault = role_fault(messages)
        if fault is None and messages[-1].role != "user":
            fault = "the last message is not the user's"
        if fault is not None:
            yield (*where, "messages"), fault
        try:
            parse_checks(each.get("checks", {}))
        except ValueError as broken:
            yield (*where, "checks", "regex"), f"not a regular expression: {broken}"


def _messages(each: Mapping[str, Any]) -> tuple[Message, ...]:
    return tuple(Message(role=message["role"], content=message["content"]) for message in each["messages"])


def _sampling(options: Mapping[str, Any]) -> Sampling:
    return Sampling(**{**options, "stop": tuple(options.get("stop", ()))})


def _line(lines: Mapping[tuple[str | int, ...], int], where: tuple[str | int, ...]) -> int:
    """The value's line, or that of the nearest part around it that is there."""
    while where not in lines:
        where = where[:-1]
    return lines[where]


def _name(where: tuple[str | int, ...]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where)
    return text.lstrip(".") or "the file"


def part(passed: bool | None) -> Part:
    """1 if the answer passed all of its checks; None where it has none."""
    return None if passed is None else (float(passed), 1.0)


PROMPTS_PASSED = Metric(
    name="prompts_passed",
    title="Benchmark prompts passed",
    better="higher",
    unit="share of prompts, 0 to 1",
    denominator="prompts with checks",
    excludes="prompts without checks",
    source="all checks of the prompt's own",
    part=part,
    binary=True,
)
