"""Conditions under which an evaluation fails, for CI: ``perplexity>5.0``, ``forgetting>5%``."""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from app.errors import ConfigError, several

_FORM = re.compile(
    r"\s*(?P<name>[A-Za-z][\w-]*)\s*(?P<sign>[<>]=?)\s*(?P<number>[-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*(?P<percent>%?)\s*"
)
_SIGNS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Fails if the tuned model's ``name`` stands in that relation to ``bound``."""

    text: str
    name: str
    sign: str
    bound: float


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """A condition held against a value; None, which fails too, where nothing could be measured."""

    condition: str
    value: float | None
    failed: bool


def parse_conditions(texts: Sequence[str], measured: Sequence[str]) -> list[Condition]:
    """Conditions as typed.

    Args:
        texts: such as "perplexity>5.0"; a percentage is a hundredth.
        measured: names of what this evaluation measures.

    Raises:
        ConfigError: naming everything that cannot be read.
    """
    conditions, faults = [], []
    for text in texts:
        match = _FORM.fullmatch(text)
        number = _number(match["number"]) if match else None
        if match is None or number is None:
            faults.append(f"{text!r} is not NAME>NUMBER or NAME<NUMBER, such as perplexity>5.0 or forgetting>5%")
            continue
        name = match["name"].lower().replace("-", "_")
        if name not in measured:
            close = get_close_matches(name, measured, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(measured)}"
            faults.append(f"{text!r}: {match['name']} is not measured here; {hint}")
            continue
        bound = number / 100 if match["percent"] else number
        conditions.append(Condition(text=text.strip(), name=name, sign=match["sign"], bound=bound))
    if faults:
        raise ConfigError(
            faults[0] if len(faults) == 1 else several("conditions that cannot be checked", faults),
            where="--fail-if",
            remedy='write for instance --fail-if "perplexity>5.0" --fail-if "forgetting>5%"',
        )
    return conditions


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def check_gate(conditions: Sequence[Condition], values: Mapping[str, float | None]) -> list[GateResult]:
    """Every condition against the tuned model's values."""
    results = []
    for condition in conditions:
        value = values.get(condition.name)
        failed = value is None or _SIGNS[condition.sign](value, condition.bound)
        results.append(GateResult(condition=condition.text, value=value, failed=failed))
    return results
