"""`python -m app runs` on runs of every kind: finished, running, stopped, dead, damaged."""

import json
import math
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.__main__ import main
from app.artifact import BaseModel, DataFingerprint, GoldenEncoding, Manifest, RunDirectory, Status

HOLD = """
import sys
from app.artifact import RunDirectory
with RunDirectory(sys.argv[1]).locked():
    print(flush=True)
    sys.stdin.read()
"""


def make_run(path: Path, status: Status, *, created: str = "2026-11-20T10:00:00+00:00", **result: Any) -> RunDirectory:
    """A run directory with a manifest and an adapter."""
    run = RunDirectory(path)
    run.create()
    run.write_manifest(
        Manifest(
            status=status,
            base=BaseModel(
                id="mistralai/Mistral-7B-Instruct-v0.3", revision=None, family="mistral", model_type="mistral",
                quantization="nf4", double_quant=True, dtype="bfloat16",
            ),
            golden=GoldenEncoding(template_hash="", special_ids={}, messages=[], input_ids=[], trained=[]),
            data=DataFingerprint(source="data", sha256={"val": "1"}, samples={"train": 9, "val": 1}),
            max_length=2048, seed=42, config={}, versions={}, git_commit=None, created=created, result=result,
            app_version="1",
        )
    )  # fmt: skip
    run.adapter.mkdir()
    (run.adapter / "adapter_model.safetensors").write_bytes(b"x" * 3_000_000)
    return run


def seal(run: RunDirectory, step: int, value: float | None) -> None:
    run.checkpoints.mkdir(exist_ok=True)
    text = json.dumps({"sha256": "", "bytes": 1, "step": step, "value": value})
    (run.checkpoints / f"step-{step:06d}.json").write_text(text)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a run of each kind; one of them is held by a process."""
    folder = tmp_path / "runs"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    memory = {"peak_memory": {"process": 2**30}}
    make_run(
        folder / "good", "finished", steps=120, best_val_loss=1.25, best_step=100, tokens_per_second=50.0, **memory
    )
    make_run(
        folder / "fast",
        "finished",
        steps=60,
        best_val_loss=1.5,
        tokens_per_second=90.0,
        created="2026-11-21T10:00:00+00:00",
    )
    make_run(folder / "halted", "stopped", steps=7)
    dead = make_run(folder / "killed", "running", steps=0)
    seal(dead, 50, 2.0)
    seal(dead, 100, 1.75)
    (dead.checkpoints / "step-000150.json").write_text("{")
    live = make_run(folder / "live", "running", steps=0)
    (folder / "torn").mkdir()
    (folder / "torn" / "manifest.json").write_text("{")
    (folder / "no-run").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(live.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "\n"
    yield Path("runs")
    process.send_signal(signal.SIGKILL)
    process.communicate()


def cells(text: str, name: str) -> list[str]:
    """The cells of a table's row."""
    (line,) = (line for line in text.splitlines() if name in line)
    return re.split(r" {2,}", line.strip())


def test_lists_every_run_with_its_state(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs"]) == 0
    shown = capsys.readouterr()
    states = {name: cells(shown.out, f"runs/{name} ")[1] for name in ("good", "fast", "halted", "killed", "live")}
    assert states == {"good": "finished", "fast": "finished", "halted": "stopped", "killed": "dead", "live": "running"}
    _, _, base, steps, loss, perplexity, size, age = cells(shown.out, "runs/good ")
    assert (base, steps, loss, perplexity, size) == ("Mistral-7B-Instruct-v0.3", "120", "1.2500", "3.490", "3.0 MB")
    assert age.endswith((" d", " h"))
    # A run that cannot write its end any more is read off its checkpoints.
    assert cells(shown.out, "runs/killed ")[3:5] == ["100", "1.7500"]
    assert cells(shown.out, "runs/halted ")[4] == "–"
    assert "no-run" not in shown.out
    assert "torn" in shown.err and "damaged" in shown.err
    assert main(["runs", "list", "--quiet"]) == 0
    assert capsys.readouterr().out.split()[0] == "runs/fast", "the newest first"


def test_shows_a_run_by_name_or_path(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "show", "good", "runs/killed"]) == 0
    shown = capsys.readouterr().out
    for text in ("9 train, 1 val", "perplexity 3.490 at step 100", "50 tokens/s", "1,024 MiB", "--ckpt_path last"):
        assert text in shown
    assert main(["runs", "show", "god", "nothing"]) == 2
    error = capsys.readouterr().err
    assert "did you mean good?" in error and "nothing" in error


def test_a_run_to_go_on_with_is_quoted(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "halted").rename(runs / "halted here")
    assert main(["runs", "show", "halted here"]) == 0
    assert "--config 'runs/halted here/config.yaml' --ckpt_path last" in capsys.readouterr().out


def test_removes_only_what_is_named_and_nobody_writes_to(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "rm", "good"]) == 2, "nobody can answer the question"
    assert main(["runs", "rm", "good", "live", "--yes"]) == 2
    assert "a process writes to" in capsys.readouterr().err
    assert main(["runs", "rm", "no-run", "--yes"]) == 2
    assert (runs / "good").is_dir() and (runs / "live").is_dir() and (runs / "no-run").is_dir()
    assert main(["runs", "rm", "good", "halted", "--yes"]) == 0
    assert "deleted 2 runs, 6.0 MB" in capsys.readouterr().out
    assert not (runs / "good").exists() and not (runs / "halted").exists() and (runs / "fast").is_dir()


def test_a_run_that_is_named_twice_is_removed_once(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "rm", "good", "runs/good", str((runs / "good").absolute()), "--yes"]) == 0
    assert "deleted 1 run, 3.0 MB" in capsys.readouterr().out
    assert not (runs / "good").exists()


def test_a_link_to_a_run_is_refused_before_anything_is_removed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "link").symlink_to((runs / "good").absolute())
    assert main(["runs", "rm", "fast", "link", "--yes"]) == 2
    error = capsys.readouterr().err
    assert f"runs/link leads to {(runs / 'good').absolute()}" in error and "name the run itself" in error
    assert (runs / "good").is_dir() and (runs / "fast").is_dir() and (runs / "link").is_symlink()


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("", 1), ("no", 1)])
def test_asks_before_it_removes(
    answer: str, status: int, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: print(question) or answer)
    assert main(["runs", "rm", "good"]) == status
    assert "delete runs/good (3.0 MB) for good?" in capsys.readouterr().out
    assert (runs / "good").exists() == bool(status)


@pytest.mark.parametrize(
    ("metric", "best"), [("val_loss", "good"), ("tokens_per_second", "fast"), ("peak_memory", "good")]
)
def test_names_the_best(metric: str, best: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "best", "--metric", metric, "--quiet"]) == 0
    assert capsys.readouterr().out == f"runs/{best}\n"


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_what_is_not_finite_is_not_the_best(value: float, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        made = {"created": f"2026-11-{22 + number}T10:00:00+00:00", "best_val_loss": value, "train_loss": value}
        make_run(runs / f"lost-{number}", "failed", **made)  # type: ignore[arg-type]
    assert main(["runs", "best", "--quiet"]) == 0
    assert capsys.readouterr().out == "runs/good\n"
    assert main(["runs", "best", "--metric", "train_loss"]) == 2
    assert "no run in runs has train_loss" in capsys.readouterr().err
    # One of its checkpoints may be good all the same.
    seal(RunDirectory(runs / "lost-1"), 50, value)
    seal(RunDirectory(runs / "lost-1"), 100, 1.0)
    assert main(["runs", "best", "--quiet"]) == 0
    assert capsys.readouterr().out == "runs/lost-1\n"


def test_what_cannot_be_compared_is_said(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "best"]) == 0
    assert capsys.readouterr().err == ""
    manifest = json.loads((runs / "fast" / "manifest.json").read_text())
    manifest["data"]["sha256"] = {"val": "other"}
    (runs / "fast" / "manifest.json").write_text(json.dumps(manifest))
    assert main(["runs", "best"]) == 0
    assert "do not compare" in capsys.readouterr().err
    assert main(["runs", "best", "--folder", "nowhere"]) == 2
    assert main(["runs", "bset"]) == 2
    assert "did you mean 'best'?" in capsys.readouterr().err
