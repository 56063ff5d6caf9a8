"""The run's page: training does not notice it, and it holds what training did, also after a resume."""

import json
import logging
import re
import shutil

import pytest

from app.__main__ import main
from app.artifact import RunDirectory
from app.callbacks.checkpoint_files import STEP_FILES
from app.pages.history import read_rows
from app.pages.run import metrics_path, page_path, samples_path
from callbacks.conftest import Undisturbed, curve
from support.fitting import fit


def steps(run: RunDirectory, name: str) -> dict[int, float]:
    return {row["step"]: row[name] for row in read_rows(metrics_path(run)) if name in row}


def test_training_is_the_same_to_the_bit_without_it(undisturbed: Undisturbed, run: RunDirectory) -> None:
    answers = read_rows(samples_path(undisturbed.run))
    assert {row["step"] for row in answers} > {0} and len({row["prompt"] for row in answers}) == 3
    fit(*undisturbed.options(run, run_page__enabled=False))
    assert undisturbed.is_equal(run)
    assert not page_path(run).exists() and not metrics_path(run).exists()


def test_it_holds_what_was_logged_and_stands_still_at_the_end(undisturbed: Undisturbed) -> None:
    run = undisturbed.run
    for name in ("train/loss", "lr", "val/loss", "speed/tokens_per_second", "memory/process_gib"):
        assert steps(run, name) == pytest.approx(curve(run, name))
    page = page_path(run).read_text()
    assert 'http-equiv="refresh"' not in page and ">finished<" in page
    assert page.count("<polyline") >= 6
    for link in re.findall(r'href="([^"]+)"', page):
        assert link == "data:," or (run.path / link).exists()
    assert not re.search(r'(src|href)="(https?:)?//', page) and "<script" not in page


def test_a_resume_drops_what_came_after_its_step(undisturbed: Undisturbed, run: RunDirectory) -> None:
    shutil.copytree(undisturbed.run.path, run.path)
    older = sorted(run.checkpoints.glob(STEP_FILES))[-2]
    with metrics_path(run).open("a") as out:
        out.write('{"step": 99, "train/loss": 0.5}\n{"step": 100, "tra')  # cut off by a kill
    fit(*undisturbed.options(run, ckpt_path=older, run_page__interval=0))
    rows = read_rows(metrics_path(run))
    assert [row["step"] for row in rows] == [row["step"] for row in read_rows(metrics_path(undisturbed.run))]
    assert steps(run, "train/loss") == steps(undisturbed.run, "train/loss")
    assert read_rows(samples_path(run)) == read_rows(samples_path(undisturbed.run))


def test_prompts_of_ones_own_and_too_little_memory_for_answers(
    undisturbed: Undisturbed, run: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from app.generate import cache

    free = iter([10**9])
    monkeypatch.setattr(cache, "_free_memory", lambda device: next(free, 0))  # after the first time there is none
    options = undisturbed.options(run, trainer__max_epochs=1, run_page__prompts=json.dumps(["Why?", "How <b>so</b>?"]))
    with caplog.at_level(logging.WARNING, logger="app"):
        fit(*options)
    assert [(row["step"], row["prompt"]) for row in read_rows(samples_path(run))] == [
        (0, "Why?"),
        (0, "How <b>so</b>?"),
    ]
    (notice,) = [record.message for record in caplog.records if "left out" in record.message]
    assert "GiB" in notice
    assert "How &lt;b&gt;so&lt;/b&gt;?" in page_path(run).read_text()


def test_prompts_that_are_too_long_are_refused(
    undisturbed: Undisturbed, run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    options = undisturbed.options(run, run_page__prompts=json.dumps(["word " * 600, "short", "other " * 700]))
    assert main(["fit", *options]) == 2
    said = capsys.readouterr().err
    assert said.count("tokens\n") == 2 and "run_page.prompts" in said and "short" not in said.split("remedy")[0]


def test_a_run_that_fails_says_so(undisturbed: Undisturbed, run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.model.module import QLoRAModule

    def fails(*args: object) -> None:
        raise RuntimeError("the card fell off the bus")

    monkeypatch.setattr(QLoRAModule, "on_before_optimizer_step", fails)
    with pytest.raises(RuntimeError):
        main(["fit", *undisturbed.options(run)])
    page = page_path(run).read_text()
    assert ">failed<" in page and "refresh" not in page


@pytest.mark.gpu
@pytest.mark.parametrize("kernels", ["none", "bf16"])
def test_answers_are_written_on_a_gpu_too(
    kernels: str, undisturbed: Undisturbed, run: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"model__dropout": 0.0, "model__kernels": kernels, "trainer__accelerator": "gpu"}
    with caplog.at_level(logging.WARNING, logger="app"):
        fit(*undisturbed.options(run, trainer__max_epochs=1, **options))
    asked = {row["step"] for row in read_rows(samples_path(run))}
    assert 0 in asked and len(asked) > 2
    assert not [record for record in caplog.records if "left out" in record.message]
