"""The kill test itself, small: two kills of a tiny model, by the script that proves it on a real one."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from conftest import TinyCheckpoint
from support.fitting import write_csv


@pytest.mark.slow
def test_nothing_is_lost_by_kills(
    script: Callable[[str], ModuleType], tiny: TinyCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_csv(tmp_path / "questions.csv")
    options = ["--kills", "2", "--steps", "8", "--every", "1", "--max_length", "512"]
    status = script("kill_test").main([*options, "--base", str(tiny("smollm2")), "--data", str(data)])
    said = capsys.readouterr().out
    assert status == 0, said
    assert "2 of 2 bit-equal" in said and "NO" not in said


def test_differences_are_seen(script: Callable[[str], ModuleType]) -> None:
    """The comparison itself: nested states that differ in one number, one name or one place."""
    import torch

    equal = script("kill_test").equal
    state = {"a": [torch.arange(3), {"b": (1, None)}], "c": "text"}
    assert equal(state, {"a": [torch.arange(3), {"b": (1, None)}], "c": "text"})
    assert not equal(state, {"a": [torch.tensor([0, 1, 3]), {"b": (1, None)}], "c": "text"})
    assert not equal(state, {"a": [torch.arange(3), {"b": (1, 0)}], "c": "text"})
    assert not equal(state, {"a": [torch.arange(3)], "c": "text"})
    assert not equal(state, {**state, "d": 1})
