"""Evaluation of a real run, base against tuned, from the run directory alone."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from app.artifact import RunDirectory
from app.errors import ConfigError, RunError
from app.evaluate import measure as measuring
from app.evaluate import suite
from app.evaluate.compare import compare_runs
from app.evaluate.heldout import heldout_rows, open_heldout
from app.evaluate.report import check_report
from support.page import Page

Evaluate = Callable[..., dict]


@pytest.fixture(scope="module")
def run(trained: RunDirectory, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return copy(trained, tmp_path_factory.mktemp("suite"))


@pytest.fixture(scope="module")
def report(run: RunDirectory, evaluate: Evaluate) -> dict:
    return evaluate(run, fail_if=["perplexity>1e6", "forgetting>-1e9%"])


def copy(run: RunDirectory, folder: Path) -> RunDirectory:
    return RunDirectory(shutil.copytree(run.path, folder / "run"))


def metric(report: dict, name: str) -> dict:
    return next(each for each in report["metrics"] if each["name"] == name)


def test_the_gain_is_measured_on_rows_held_out(run: RunDirectory, report: dict) -> None:
    perplexity = metric(report, "perplexity")
    assert report["split"] == "test"
    assert perplexity["tuned"]["value"] < perplexity["base"]["value"]
    assert perplexity["tuned"]["low"] < perplexity["tuned"]["value"] < perplexity["tuned"]["high"]
    assert perplexity["verdict"] == "better"
    assert report["headline"]["level"] == "good"
    module = open_heldout(run.read_manifest())
    rows = heldout_rows(module, "test")
    assert perplexity["tuned"]["n"] == len(rows) == len(module.rows["test"])
    assert perplexity["tuned"]["groups"] == len({row.conversation.group for row in rows}) < len(rows)
    assert perplexity["tuned"]["denominator"] == sum(sum(row.encoding.trained) for row in rows)
    buckets = report["by_length"]
    assert sum(bucket["tuned"]["n"] for bucket in buckets) == len(rows)
    losses = sum(math.log(bucket["tuned"]["value"]) * bucket["tuned"]["denominator"] for bucket in buckets)
    assert math.exp(losses / perplexity["tuned"]["denominator"]) == pytest.approx(perplexity["tuned"]["value"])


def test_report_holds_everything_that_was_promised(report: dict) -> None:
    assert metric(report, "rouge_l")["tuned"]["n"] == len(report["examples"]) == 4
    assert {example["place"] for example in report["examples"]} == {"best", "worst"}
    assert report["examples"][0]["question"].startswith("What is")
    assert metric(report, "general_passed")["tuned"]["n"] == 30
    assert report["forgetting"]["low"] <= report["forgetting"]["value"] <= report["forgetting"]["high"]
    assert [prompt["id"] for prompt in report["prompts"]] == ["any", "json"]
    assert report["prompts"][0]["tuned"]["checks"][0]["passed"]
    assert {"train/loss", "val/loss", "lr", "speed/tokens_per_second", "memory/process_gib"} <= set(report["curves"])
    assert [result["failed"] for result in report["gate"]] == [False, True]
    assert report["environment"]["device"].startswith("CPU")
    assert report["configuration"]["model"]["rank"] == 16


def test_the_page_needs_nothing_but_itself(run: RunDirectory, report: dict) -> None:
    source = (run.reports / "report.html").read_text("utf-8")
    page = Page(source)
    assert not page.fetches and not page.links
    assert "url(" not in source and "@import" not in source
    assert "prefers-color-scheme:dark" in source and 'name="viewport"' in source
    for text in ("better than its base", "Forgetting", "Loss, nats per trained token", "Benchmark prompts", "Holm"):
        assert text in page.text, text
    assert "<b>anything</b>" in page.text  # shown as written, not as markup
    for example in report["examples"]:
        if example["place"] == "best":
            assert example["reference"] in page.text
    assert not re.search(r"\bnan\b|None|Infinity", page.text.split("Configuration of the run")[0])


def test_a_second_evaluation_opens_no_model_and_finds_the_same(
    run: RunDirectory, report: dict, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "open_run", lambda *_, **__: pytest.fail("the model was opened"))
    again = evaluate(run)
    assert again["metrics"] == report["metrics"]
    assert again["gate"] == []
    assert json.loads((run.reports / "report.json").read_text()) == again


@pytest.mark.parametrize("after", [1, 30])
def test_an_interrupted_evaluation_goes_on_and_ends_as_if_it_had_not_been(
    run: RunDirectory,
    report: dict,
    evaluate: Evaluate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    """Stopped while rows are scored, and while questions are answered: nothing is measured twice."""
    stopped = copy(run, tmp_path)
    lines = (stopped.reports / suite.SAMPLES).read_bytes().splitlines(keepends=True)
    first_answer = next(number for number, line in enumerate(lines) if b'"answer:' in line)
    kept = lines[: after + 1 if after == 1 else first_answer + after]
    (stopped.reports / suite.SAMPLES).write_bytes(b"".join(kept) + b'{"model": "base", "ta')
    counted = []
    real = measuring.Journal.add
    monkeypatch.setattr(measuring.Journal, "add", lambda self, *what: (counted.append(what[:3]), real(self, *what))[1])
    again = evaluate(stopped)
    names = ("name", "base", "tuned", "difference", "p", "verdict")
    assert [{n: m[n] for n in names} for m in again["metrics"]] == [{n: m[n] for n in names} for m in report["metrics"]]
    # A batch in which one row was missing is measured as a whole: at most its other rows come again.
    assert len(lines) - len(kept) <= len(counted) <= len(lines) - len(kept) + 3
    assert len(set(counted)) == len(counted)


def test_identical_runs_are_not_different(run: RunDirectory, report: dict, evaluate: Evaluate, tmp_path: Path) -> None:
    twin = copy(run, tmp_path)
    shutil.rmtree(twin.reports)
    evaluate(twin)
    found = compare_runs([str(run.path), str(twin.path), "base"])
    between = [duel for duel in found.duels if duel.second == str(twin.path)]
    assert len(between) >= 10
    assert all(duel.sentence.startswith("no difference shown") and duel.p == 1 for duel in between)
    against = next(duel for duel in found.duels if duel.metric == "perplexity" and duel.second == "base")
    assert "better than base" in against.sentence


def test_changed_data_is_refused(run: RunDirectory, tmp_path: Path) -> None:
    manifest = run.read_manifest()
    changed = tmp_path / "questions.csv"
    changed.write_text(Path(manifest.data.source).read_text() + 'row-99,"What is new?","This row is.",group-99\n')
    with pytest.raises(RunError, match="has changed since the run was trained"):
        open_heldout(manifest, data=str(changed))


def test_moved_data_is_found_by_option_and_parts_can_be_left_out(
    run: RunDirectory, evaluate: Evaluate, tmp_path: Path
) -> None:
    moved = shutil.copy(run.read_manifest().data.source, tmp_path / "questions.csv")
    found = evaluate(copy(run, tmp_path), data=str(moved), answers=0, general=False, prompts=None)
    assert {each["name"] for each in found["metrics"]} == {"perplexity", "token_accuracy", "question_use"}
    assert found["forgetting"] is None and found["examples"] == [] and found["prompts"] == []


def test_a_gate_on_what_is_not_measured_is_refused_before_anything_is(run: RunDirectory, evaluate: Evaluate) -> None:
    with pytest.raises(ConfigError, match="rouge_l is not measured here"):
        evaluate(run, answers=0, fail_if=["rouge_l<0.3"])


def test_the_schema_holds_values_to_their_kinds(report: dict) -> None:
    check_report(report)
    first, *others = report["metrics"]
    with pytest.raises(AssertionError, match=r"metrics\[0\].verdict"):
        check_report({**report, "metrics": [{**first, "verdict": "great"}, *others]})
