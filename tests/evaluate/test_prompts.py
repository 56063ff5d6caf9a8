"""Benchmark prompts: the shipped file, checks, and faults with the line they are on."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import ConfigError
from app.evaluate.checks import parse_checks, run_check
from app.evaluate.json_lines import value_lines
from app.evaluate.prompts import Prompt, read_prompts

SHIPPED = Path(__file__).parents[2] / "configs" / "prompts.json"


def read(path: Path) -> list[Prompt]:
    return read_prompts(path, seed=42, max_tokens=99)


def faults(tmp_path: Path, text: str) -> str:
    path = tmp_path / "prompts.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read(path)
    return str(caught.value)


def test_the_shipped_file() -> None:
    prompts = {prompt.id: prompt for prompt in read(SHIPPED)}
    assert {prompt.category for prompt in prompts.values()} >= {"knowledge", "form", "code", "dialogue"}
    assert prompts["json"].sampling.max_tokens == 48  # its own
    assert prompts["capital"].sampling.max_tokens == 96  # the file's
    assert prompts["story"].sampling.seed == 7
    assert prompts["capital"].sampling.seed == 42  # the run's
    kinds = {check.kind for prompt in prompts.values() for check in prompt.checks}
    assert kinds == {"contains", "regex", "json_valid", "max_length", "reference"}
    assert [result.passed for result in prompts["json"].results('{"name": "Anna", "age": 31}')] == [True] * 3


def test_broken_json_is_named_by_line(tmp_path: Path) -> None:
    assert "prompts.json:3:" in faults(tmp_path, '{\n "prompts": [\n {"id": }\n]}')
    missing = tmp_path / "none.json"
    with pytest.raises(ConfigError, match="cannot be read"):
        read(missing)


def test_every_fault_with_its_line(tmp_path: Path) -> None:
    text = faults(
        tmp_path,
        """{
  "prompts": [
    {"id": "a", "category": "x", "messages": [{"role": "usr", "content": "q"}]},
    {
      "id": "b",
      "messages": [{"role": "user", "content": "q"}],
      "sampling": {
        "temperature": -1
      },
      "checks": {"max_lenght": 3}
    },
    {"id": "c", "category": "x", "messages": [{"role": "user", "content": "q"}], "checks": {"min_f1": 0.3}}
  ]
}""",
    )
    assert "prompts.json:3: prompts[0].messages[0].role: 'usr' is not one of" in text
    assert "prompts.json:4: prompts[1]: 'category' is a required property" in text
    assert "prompts.json:8: prompts[1].sampling.temperature: -1 is less than the minimum of 0" in text
    assert (
        "prompts.json:10: prompts[1].checks.max_lenght: there is no 'max_lenght' here; did you mean 'max_length'?"
        in text
    )
    assert "prompts.json:12: prompts[2].checks" in text


def test_what_a_schema_cannot_say(tmp_path: Path) -> None:
    text = faults(
        tmp_path,
        """{"prompts": [
  {"id": "a", "category": "x", "messages": [{"role": "user", "content": "q"}],
   "checks": {"regex": "("}},
  {"id": "a", "category": "x",
   "messages": [{"role": "assistant", "content": "q"}]},
  {"id": "b", "category": "x",
   "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
]}""",
    )
    assert "prompts.json:3: prompts[0].checks.regex: not a regular expression" in text
    assert "prompts.json:4: prompts[1].id: the id 'a' is that of prompts[0] too" in text
    assert "prompts.json:5: prompts[1].messages: turn 1 is 'assistant'" in text
    assert "prompts.json:7: prompts[2].messages: the last message is not the user's" in text


@pytest.mark.parametrize(
    ("checks", "text", "passed"),
    [
        ({"contains": ["Paris"]}, "it is PARIS.", True),
        ({"contains": ["Paris", "France"]}, "Paris", False),
        ({"regex": r"\b12\b"}, "= 12.", True),
        ({"regex": "^x$"}, "y", False),
        ({"json_valid": True}, ' {"a": [1]} ', True),
        ({"json_valid": True}, '```json\n{"a": 1}\n```', True),
        ({"json_valid": True}, 'Sure! {"a": 1}', False),
        ({"max_length": 2}, "one two", True),
        ({"max_length": 2}, "one two three", False),
        ({"reference": "Bonjour, mon ami."}, "bonjour mon ami", True),
        ({"reference": "Bonjour, mon ami.", "min_f1": 0.9}, "bonjour ami", False),
        ({"reference": "Bonjour, mon ami."}, "bonjour ami", True),
    ],
)
def test_checks(checks: dict[str, Any], text: str, passed: bool) -> None:
    results = [run_check(check, text) for check in parse_checks(checks)]
    assert all(result.passed for result in results) is passed
    assert all(result.detail for result in results)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60)
@given(_values, st.sampled_from([None, 1]), st.booleans())
def test_every_value_of_any_json_has_its_line(value: Any, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    lines = value_lines(text)
    paths = list(_paths(value))
    assert set(lines) == set(paths)
    numbers = [lines[path] for path in paths]  # in the order they are written
    assert numbers == sorted(numbers)
    if indent and paths:
        assert numbers == [_line_by_json(value, path, indent, ascii_only) for path in paths]


def _paths(value: Any, path: tuple[str | int, ...] = ()) -> Any:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _paths(inner, (*path, key))


def _line_by_json(value: Any, path: tuple[str | int, ...], indent: int, ascii_only: bool) -> int:
    """The line by another way: a marker put in the value's place is searched for."""
    marker = "\x00marker\x00"
    marked = _replaced(value, path, marker)
    text = json.dumps(marked, indent=indent, ensure_ascii=ascii_only)
    return text[: text.index(json.dumps(marker))].count("\n") + 1


def _replaced(value: Any, path: tuple[str | int, ...], marker: str) -> Any:
    if not path:
        return marker
    if isinstance(value, dict):
        return {key: _replaced(inner, path[1:], marker) if key == path[0] else inner for key, inner in value.items()}
    return [_replaced(inner, path[1:], marker) if key == path[0] else inner for key, inner in enumerate(value)]
