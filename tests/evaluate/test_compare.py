"""Comparison of runs from what their evaluations left behind."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.artifact import RunDirectory
from app.errors import ConfigError, RunError
from app.evaluate.compare import Comparison, compare_runs, read_scores

ROWS = 60


def scores(shift: float, *, passed: int = 30, rows: str = "r1", tokens: str = "t1", base: str = "b1") -> dict[str, Any]:
    """A run whose losses are its base's less ``shift`` a token, and which passes the first ``passed`` of 60 prompts."""
    losses = [20.0 + (number * 7) % 13 for number in range(ROWS)]
    names = [str(number) for number in range(ROWS)]
    return {
        "fingerprints": {"rows": rows, "tokens": tokens, "questions": "q", "general": "g", "prompts": "p"},
        "seed": 42,
        "base": base,
        "metrics": {
            "perplexity": {
                "groups": names,
                "base": [[loss, 10] for loss in losses],
                "tuned": [[loss - 10 * shift, 10] for loss in losses],
            },
            "prompts_passed": {
                "groups": names,
                "base": [[0, 1]] * ROWS,
                "tuned": [[1 if number < passed else 0, 1] for number in range(ROWS)],
            },
        },
    }


def write(folder: Path, name: str, value: dict[str, Any]) -> str:
    reports = folder / name / "reports"
    reports.mkdir(parents=True)
    (reports / "evaluation-scores.json").write_text(json.dumps(value))
    return str(folder / name)


def told(found: Comparison) -> dict[tuple[str, str, str], str]:
    return {(duel.metric, Path(duel.first).name, Path(duel.second).name): duel.sentence for duel in found.duels}


def test_identical_runs_are_not_different_and_the_better_one_is_found(tmp_path: Path) -> None:
    a, twin, better = (
        write(tmp_path, name, scores(shift)) for name, shift in (("a", 0.1), ("twin", 0.1), ("better", 0.3))
    )
    found = compare_runs([a, twin, better, "base"])
    sentences = told(found)
    assert len(sentences) == 2 * 6
    assert sentences["perplexity", "a", "twin"] == f"no difference shown between {a} and {twin}, p = 1.00, n = 60"
    assert sentences["perplexity", "a", "better"].startswith(f"{better} better than {a}, p = 0.00")
    # The first may be the better one: then it is named first.
    assert sentences["perplexity", "better", "base"].startswith(f"{better} better than base, p = 0.00")
    assert sentences["prompts_passed", "a", "better"].startswith("no difference shown")
    assert sentences["prompts_passed", "a", "base"] == f"{a} better than base, p < 0.001, n = 60"
    duel = next(duel for duel in found.duels if duel.metric == "prompts_passed" and duel.second == "base")
    assert duel.difference.test == "McNemar"
    values = [each.value for each in found.estimates["perplexity"]]
    assert values[0] == values[1] > values[2] and values[3] > values[0]


def test_many_tests_are_corrected(tmp_path: Path) -> None:
    """Five more passed of sixty: p = 0.0625 by itself; six: 0.031, which three pairs of two metrics do not leave."""
    names = [write(tmp_path, f"r{passed}", scores(0.1, passed=passed)) for passed in (30, 36)]
    third = write(tmp_path, "third", scores(0.1, passed=33))
    alone = compare_runs(names, metrics=["prompts_passed"])
    assert alone.duels[0].p == pytest.approx(0.03125)
    assert "better" in alone.duels[0].sentence
    among = {(duel.metric, duel.first, duel.second): duel for duel in compare_runs([*names, third]).duels}
    assert among["prompts_passed", names[0], names[1]].sentence.startswith("no difference shown")


def test_other_pairs_of_question_and_answer_are_not_compared(tmp_path: Path) -> None:
    values = [scores(0.1), scores(0.2)]
    for value, pairs in zip(values, ("p1", "p2"), strict=True):
        value["fingerprints"]["pairs"] = pairs
        drawn = 32 - int(pairs[1])
        value["metrics"]["question_use"] = {
            "groups": [str(number) for number in range(drawn)], "base": [[1.0, 4]] * drawn, "tuned": [[2.0, 4]] * drawn
        }  # fmt: skip
    names = [write(tmp_path, f"r{number}", value) for number, value in enumerate(values)]
    found = compare_runs(names)
    assert {duel.metric for duel in found.duels} == {"perplexity", "prompts_passed"}
    assert any("Use of the question" in note for note in found.notes)
    for name in names:
        assert "question_use" in {duel.metric for duel in compare_runs([name, "base"]).duels}


def test_other_rows_are_refused(tmp_path: Path) -> None:
    a = write(tmp_path, "a", scores(0.1))
    other = write(tmp_path, "other", scores(0.1, rows="r2", base="b2"))
    with pytest.raises(RunError) as caught:
        compare_runs([a, other, "base"])
    assert f"{other} and {a} were evaluated on different held-out rows" in str(caught.value)
    assert "have different base models" in str(caught.value)


def test_other_tokenizers_are_compared_by_what_is_not_tokens(tmp_path: Path) -> None:
    a = write(tmp_path, "a", scores(0.1))
    other = write(tmp_path, "other", scores(0.1, tokens="t2"))
    found = compare_runs([a, other])
    assert {duel.metric for duel in found.duels} == {"prompts_passed"}
    assert "Perplexity" in found.notes[0]


def test_the_command_of_a_remedy_can_be_pasted(tmp_path: Path) -> None:
    with pytest.raises(RunError) as fault:
        read_scores(RunDirectory(tmp_path / "my run"))
    assert f"evaluate --run '{tmp_path / 'my run'}'" in fault.value.remedy


def test_faults(tmp_path: Path) -> None:
    a = write(tmp_path, "a", scores(0.1))
    damaged = write(tmp_path, "damaged", scores(0.1))
    (Path(damaged) / "reports" / "evaluation-scores.json").write_text("{")
    with pytest.raises(ConfigError, match="at least two"):
        compare_runs([a])
    with pytest.raises(ConfigError, match="twice"):
        compare_runs([a, a])
    with pytest.raises(ConfigError, match="no metric bleu"):
        compare_runs([a, "base"], metrics=["bleu"])
    with pytest.raises(RunError) as caught:
        compare_runs([a, damaged, str(tmp_path / "none"), "base"])
    assert "is damaged" in str(caught.value) and "none has not been evaluated" in str(caught.value)
