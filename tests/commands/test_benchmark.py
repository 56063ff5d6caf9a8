"""`python -m app benchmark` as typed, on a base model."""

import json
from pathlib import Path

import pytest

from app.__main__ import main
from conftest import TinyCheckpoint

QUICK = ("--prompt_tokens", "8", "--new_tokens", "4", "--load", "2", "--repeats", "2", "--device", "cpu")


def test_a_base_model(tiny: TinyCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "speed.json"
    source = ("--base", str(tiny("smollm2")), "--family", "smollm2")
    assert main(["benchmark", *source, *QUICK, "--speculate", "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    for text in ("time to first token", "latency of 4 tokens", "under load", "peak memory", "GiB"):
        assert text in shown, text
    assert main(["benchmark", *source, *QUICK, "--output", str(output), "--quiet"]) == 0
    assert capsys.readouterr().out == f"figures: {output}\n"
    assert main(["benchmark", *source, *QUICK, "--quiet"]) == 0
    assert "time to first token" in capsys.readouterr().out, "written nowhere, they are all there is"
    written = json.loads(output.read_text())
    assert written["speculate"] is False
    assert {each["name"]: len(each["values"]) for each in written["measurements"]}["decode"] == 2


def test_faults_are_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, text in (
        ([], "name either a run or a base model"),
        (["--base", "x"], "--base needs --family"),
        (["--run", str(tmp_path)], "is not a run directory"),
    ):
        assert main(["benchmark", *options]) == 2
        found = capsys.readouterr().err
        assert text in found and "remedy" in found and "Traceback" not in found
