"""`python -m app compare` as typed."""

import json
from pathlib import Path

import pytest

from app.__main__ import main


def scores(folder: Path, name: str, loss: float) -> str:
    """An evaluated run of forty rows with that loss a token; its base has 2."""
    names = [str(number) for number in range(40)]
    value = {
        "fingerprints": dict.fromkeys(("rows", "tokens", "questions", "general", "prompts"), "x"),
        "seed": 42,
        "base": "b",
        "metrics": {
            "perplexity": {
                "groups": names,
                "base": [[20 + number % 3, 10] for number in range(40)],
                "tuned": [[10 * loss + number % 5, 10] for number in range(40)],
            }
        },
    }
    reports = folder / name / "reports"
    reports.mkdir(parents=True)
    (reports / "evaluation-scores.json").write_text(json.dumps(value))
    return name


def test_one_table_and_a_sentence_a_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    a, b, c = (scores(tmp_path, name, loss) for name, loss in (("a", 1.5), ("b", 1.0), ("c", 1.0)))
    assert main(["compare", "--runs", a, b, c, "base", "--output", "all.json"]) == 0
    shown = capsys.readouterr().out
    assert "b better than a, p < 0.001, n = 40" in shown or "b better than a, p = 0.00" in shown
    assert "no difference shown between b and c, p = 1.00, n = 40" in shown
    assert "a better than base" in shown
    assert "6 paired tests" in shown and "Holm" in shown
    written = json.loads((tmp_path / "all.json").read_text())
    assert written["names"] == ["a", "b", "c", "base"]
    assert len(written["duels"]) == 6
    assert main(["compare", "--quiet", "--runs", a, b]) == 0
    quiet = capsys.readouterr().out.split("\n")
    assert quiet[:2] == ["", "a and b"] and "b better than a" in quiet[2] and quiet[3:] == [""]


def test_faults_are_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, text in (
        ([], "at least two"),
        (["--runs", str(tmp_path / "none"), "base"], "has not been evaluated"),
        (["--runs", "a", "base", "--metrics"], "expected at least one argument"),
    ):
        try:
            status = main(["compare", *options])
        except SystemExit as end:
            status = end.code
        found = capsys.readouterr().err
        assert status == 2
        assert text in found and "Traceback" not in found
