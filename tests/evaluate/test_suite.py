"""Evaluation of a real run, base against tuned, from the run directory alone."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.progress import Progress
from torchmetrics.text import Perplexity as TorchmetricsPerplexity

from app.__main__ import main
from app.artifact import RunDirectory
from app.errors import RunError
from app.evaluate.heldout import open_heldout
from app.evaluate.perplexity import measure_perplexity
from app.evaluate.rouge import measure_rouge
from app.evaluate.suite import evaluate_run
from app.generate.session import open_run
from conftest import TinyCheckpoint
from support.fitting import arguments, fit, write_csv


@pytest.fixture(scope="module")
def run(tiny: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("evaluated")
    data = write_csv(folder / "questions.csv")
    directory = RunDirectory(folder / "run")
    fit(*arguments(tiny("smollm2"), data, directory.path, model__family="smollm2", model__lr=5e-3, validate_every=20))
    return directory


def test_command_writes_the_report_and_shows_the_gain(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--run", str(run.path), "--answers", "3", "--max_tokens", "8"]) == 0
    assert "perplexity" in capsys.readouterr().out
    report = json.loads((run.reports / "evaluation.json").read_text())
    assert report["split"] == "test"
    assert report["tuned"]["perplexity"]["perplexity"] < report["base"]["perplexity"]["perplexity"]
    assert report["tuned"]["perplexity"]["tokens"] == report["base"]["perplexity"]["tokens"] > 0
    assert report["tuned"]["rouge"]["answers"] == len(report["examples"]) == 3
    assert report["examples"][0]["question"].startswith("What is")


def test_perplexity_is_that_of_torchmetrics(run: RunDirectory) -> None:
    """From whole logits, by another implementation, over the same trained tokens."""
    module = open_heldout(run.read_manifest(), batch_size=2)
    session = open_run(run.path, device="cpu")
    metric = TorchmetricsPerplexity(ignore_index=-100)
    batches = list(module.test_dataloader())
    for batch in batches:
        labels = torch.where(batch["trained"], batch["input_ids"], -100)
        with torch.no_grad():
            logits = session.causal_lm(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        metric.update(logits[:, :-1].float(), labels[:, 1:])
    measured = measure_perplexity(session, batches)
    assert measured.perplexity == pytest.approx(float(metric.compute()), rel=0.01)
    assert measured.rows == len(module.rows["test"])


def test_batch_size_does_not_change_the_result(run: RunDirectory) -> None:
    session = open_run(run.path, device="cpu")
    results = [
        measure_perplexity(session, open_heldout(run.read_manifest(), batch_size=size).test_dataloader())
        for size in (1, 5)
    ]
    assert results[0].tokens == results[1].tokens
    assert results[0].loss == pytest.approx(results[1].loss, rel=0.01)


def test_changed_data_is_refused(run: RunDirectory, tmp_path: Path) -> None:
    manifest = run.read_manifest()
    changed = tmp_path / "questions.csv"
    changed.write_text(Path(manifest.data.source).read_text() + 'row-99,"What is new?","This row is.",group-99\n')
    with pytest.raises(RunError, match="has changed since the run was trained"):
        open_heldout(manifest, data=str(changed))


def test_moved_data_is_found_by_option(run: RunDirectory, tmp_path: Path) -> None:
    moved = shutil.copy(run.read_manifest().data.source, tmp_path / "questions.csv")
    with Progress(disable=True) as progress:
        evaluation = evaluate_run(run.path, data=str(moved), answers=0, device="cpu", progress=progress)
    assert evaluation.tuned.rouge is None


def test_rouge_by_hand() -> None:
    scores = measure_rouge(["the cat sat", "nothing shared"], ["the cat sat on the mat", "other words"])
    assert scores.rouge1 == pytest.approx((2 * 1.0 * 0.5 / 1.5 + 0) / 2)
    assert scores.rouge_l == pytest.approx(scores.rouge1)
    assert scores.answers == 2
