"""`python -m app evaluate` as typed: figures, gate, exit status, and the messages of faults."""

import json
from pathlib import Path

import pytest

from app.__main__ import main
from app.artifact import RunDirectory
from app.commands.evaluate import PROMPTS, prompts_file
from app.generate.engine import Engine
from conftest import TinyCheckpoint
from support.fitting import arguments, fit, write_csv

QUICK = ("--answers", "2", "--max_tokens", "4", "--prompts", "none", "--device", "cpu")


@pytest.fixture(scope="module")
def run(tiny: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("evaluate")
    data = write_csv(folder / "questions.csv", questions=160, group=2)
    directory = RunDirectory(folder / "run")
    fit(*arguments(tiny("smollm2"), data, directory.path, model__family="smollm2", model__lr=5e-3, validate_every=20))
    return directory


def test_figures_gate_and_status(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--run", str(run.path), *QUICK, "--fail-if", "perplexity>1e9"]) == 0
    shown = capsys.readouterr().out
    for text in ("Perplexity", "ROUGE-L", "forgetting", "better than its base", "report.html"):
        assert text in shown, text
    assert "failed" not in shown
    again = ["evaluate", "--run", str(run.path), *QUICK, "--fail-if", "perplexity>0.5", "forgetting>-1e9%"]
    assert main([*again, "--fail-if", "ended<0"]) == 1
    shown = capsys.readouterr().out
    assert "failed: perplexity>0.5" in shown and "failed: forgetting>-1e9%" in shown and "failed: ended" not in shown
    gate = json.loads((run.reports / "report.json").read_text())["gate"]
    assert [result["failed"] for result in gate] == [True, True, False]
    assert any((run.logs / "evaluation").iterdir())


def test_quiet_leaves_the_verdict_and_the_way_to_the_report(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--run", str(run.path), *QUICK, "--quiet", "--fail-if", "perplexity>0.5"]) == 1
    verdict, report, *failed = capsys.readouterr().out.splitlines()
    assert "its base: held-out perplexity" in verdict and report.endswith("reports/report.html")
    assert len(failed) == 1 and failed[0].startswith("failed: perplexity>0.5")


def test_speed_of_the_run_is_in_its_report(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    speed = ["--prompt_tokens", "8", "--new_tokens", "4", "--load", "2", "--repeats", "1", "--device", "cpu"]
    assert main(["benchmark", "--run", str(run.path), *speed]) == 0
    assert main(["evaluate", "--run", str(run.path), *QUICK]) == 0
    page = (run.reports / "report.html").read_text()
    assert "time to first token" in page and "peak memory" in page


def test_an_interruption_is_one_line_and_the_next_call_goes_on(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As ctrl-C does it, in the middle of the first answers."""
    real, calls = Engine.step, []

    def step(engine: Engine) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(engine)

    options = ["evaluate", "--run", str(run.path), *QUICK, "--answers", "3"]
    monkeypatch.setattr(Engine, "step", step)
    assert main(options) == 130
    found = capsys.readouterr().err
    assert "the same command goes on from here" in found and "Traceback" not in found
    kept = (run.reports / "evaluation-samples.jsonl").read_bytes()
    monkeypatch.setattr(Engine, "step", real)
    assert main(options) == 0
    assert (run.reports / "evaluation-samples.jsonl").read_bytes().startswith(kept)


def test_faults_are_one_message(run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, text in (
        (["evaluate", "--run", str(tmp_path)], "is not a run directory"),
        (["evaluate", "--run", str(run.path), "--fail-if", "perplexty>5"], "did you mean perplexity?"),
        (["evaluate", "--run", str(run.path), "--prompts", str(tmp_path / "none.json")], "cannot be read"),
        (["evaluate", "--run", str(run.path), "--answers", "-1"], "--answers is -1; it must be from 0"),
    ):
        assert main(options) == 2
        found = capsys.readouterr().err
        assert text in found and "remedy" in found and "Traceback" not in found


def test_which_prompts_are_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert prompts_file("none") is None
    assert prompts_file("my.json") == Path("my.json")
    monkeypatch.chdir(tmp_path)
    assert prompts_file("auto") is None
    PROMPTS.parent.mkdir()
    PROMPTS.write_text("{}")
    assert prompts_file("auto") == PROMPTS
