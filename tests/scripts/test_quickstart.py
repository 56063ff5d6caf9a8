"""The quickstart does each step once, again when its inputs change, and goes on after an interruption."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from rich.console import Console

from app.artifact import BaseModel, DataFingerprint, GoldenEncoding, Manifest, RunDirectory
from app.errors import ConfigError

ROOT = Path(__file__).parents[2]
APPEND = "import sys; open(sys.argv[1], 'a').write('x'); sys.exit(int(sys.argv[2]))"


@pytest.fixture
def quickstart(script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, in an empty folder with one input file."""
    monkeypatch.chdir(tmp_path)
    Path("input.txt").write_text("one", encoding="utf-8")
    return script("quickstart")


def appending(quickstart: ModuleType, *, status: int = 0) -> Any:
    """A step that adds an "x" to result.txt each time it really runs."""
    return quickstart.Step(
        title="append", command=("-c", APPEND, "result.txt", str(status)), inputs=("input.txt",), result="result.txt"
    )


def runs_of(quickstart: ModuleType, step: Any) -> int:
    quickstart.do(step, "runs/none", Console(quiet=True))
    return len(Path("result.txt").read_text(encoding="utf-8"))


def test_a_step_is_done_once(quickstart: ModuleType):
    step = appending(quickstart)
    assert runs_of(quickstart, step) == 1
    assert runs_of(quickstart, step) == 1


def test_a_step_is_done_again_when_input_command_result_or_record_changed(quickstart: ModuleType):
    step = appending(quickstart)
    assert runs_of(quickstart, step) == 1
    Path("input.txt").write_text("two", encoding="utf-8")
    assert runs_of(quickstart, step) == 2
    other = quickstart.dataclasses.replace(step, command=(*step.command, "another"))
    assert runs_of(quickstart, other) == 3
    assert runs_of(quickstart, step) == 4
    Path("result.txt").write_text("by somebody else", encoding="utf-8")
    assert runs_of(quickstart, step) == len("by somebody else") + 1
    Path("result.txt").unlink()
    assert runs_of(quickstart, step) == 1
    quickstart.RECORDS.write_text("{ damaged", encoding="utf-8")
    assert runs_of(quickstart, step) == 2
    assert runs_of(quickstart, step) == 2


def test_a_step_that_failed_is_done_again_and_its_status_is_passed_on(quickstart: ModuleType):
    step = appending(quickstart, status=2)
    assert quickstart.do(step, "runs/none", Console(quiet=True)) == 2
    assert quickstart.read_records()["result.txt"].made is None
    assert runs_of(quickstart, step) == 2


def test_records_of_other_steps_stay(quickstart: ModuleType):
    step = appending(quickstart)
    quickstart.remember(quickstart.dataclasses.replace(step, result="other.txt"), quickstart.Record(fingerprint="f"))
    runs_of(quickstart, step)
    assert set(quickstart.read_records()) == {"other.txt", "result.txt"}


@pytest.mark.parametrize(
    ("checkpoints", "same_inputs", "made", "expected"),
    [
        ((), True, None, ()),
        (("step-000032.ckpt", "best.ckpt"), True, None, ("--ckpt_path", "last")),
        (("best.ckpt",), True, None, ("--overwrite", "true")),
        (("step-000032.ckpt",), False, None, ("--overwrite", "true")),
        (("step-000032.ckpt",), True, "sha256", ("--overwrite", "true")),
    ],
)
def test_an_interrupted_training_goes_on_and_a_changed_one_begins_again(
    quickstart: ModuleType, checkpoints: tuple[str, ...], same_inputs: bool, made: str | None, expected: tuple[str, ...]
):
    run = RunDirectory("runs/r")
    run.checkpoints.mkdir(parents=True)
    for name in checkpoints:
        (run.checkpoints / name).touch()
    fit = quickstart.Step(title="fit", command=("-m", "app", "fit"), inputs=("input.txt",), result="adapter")
    record = quickstart.Record(fingerprint=quickstart.fingerprint(fit) if same_inputs else "other", made=made)
    assert quickstart.resumption(fit, record, "runs/r") == expected
    prepare = quickstart.dataclasses.replace(fit, command=("-m", "app", "prepare"))
    assert quickstart.resumption(prepare, record, "runs/r") == ()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_waits_for_the_command_to_save_and_is_reported(quickstart: ModuleType, tmp_path: Path):
    saving = (
        "import pathlib, signal, time\n"
        "def save(*_):\n    time.sleep(1)\n    pathlib.Path('saved').touch()\n    raise SystemExit(0)\n"
        "signal.signal(signal.SIGINT, save)\npathlib.Path('ready').touch()\ntime.sleep(60)\n"
    )
    outer = f"import runpy, sys; q = runpy.run_path({quickstart.__file__!r}); sys.exit(q['call'](['-c', {saving!r}]))"
    process = subprocess.Popen([sys.executable, "-c", outer], start_new_session=True)
    while not Path("ready").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == quickstart.INTERRUPTED
    assert Path("saved").exists()


@pytest.mark.parametrize(("text", "epochs"), [(None, None), ("", None), ("1", None), ("3", 3), (" 12 ", 12)])
def test_epochs_of_the_environment(
    quickstart: ModuleType, monkeypatch: pytest.MonkeyPatch, text: str | None, epochs: int | None
):
    monkeypatch.delenv("EPOCHS", raising=False)
    if text is not None:
        monkeypatch.setenv("EPOCHS", text)
    assert quickstart.epochs_asked_for() == epochs


@pytest.mark.parametrize("text", ["0", "-1", "three", "1.5"])
def test_no_number_of_epochs_is_a_clear_fault(quickstart: ModuleType, monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.setenv("EPOCHS", text)
    with pytest.raises(ConfigError, match=text):
        quickstart.epochs_asked_for()


def test_the_steps_fit_together_and_fit_the_config(quickstart: ModuleType):
    config = yaml.safe_load((ROOT / quickstart.CONFIG).read_text(encoding="utf-8"))
    assert config["run"] == "runs/quickstart"
    assert config["model"]["base"] == quickstart.MODEL
    assert config["data"]["path"] == quickstart.DATA
    for epochs, run in ((None, "runs/quickstart"), (3, "runs/quickstart-3-epochs")):
        way = quickstart.steps(epochs, run)
        made = {Path(step.result) for step in way}
        for step in way:
            for name in step.inputs:
                # The splits are written with the report of their folder.
                of_prepare = Path(name).parent == Path(quickstart.DATA)
                assert of_prepare or Path(name) in made or (ROOT / name).is_file(), name
        assert (run in way[3].command) == (epochs is not None)


def test_the_closing_table_says_what_came_of_it(quickstart: ModuleType):
    run = RunDirectory("runs/r")
    run.create()
    base = BaseModel(
        id="m", revision=None, family="smollm2", model_type="llama", quantization="nf4", double_quant=True, dtype="d"
    )
    golden = GoldenEncoding(template_hash="", special_ids={}, messages=[], input_ids=[], trained=[])
    data = DataFingerprint(source="d", sha256={}, samples={})
    run.write_manifest(
        Manifest(
            status="finished", base=base, golden=golden, data=data, max_length=8, seed=42, config={}, versions={},
            git_commit=None, created="", app_version="0",
            result={"samples": 512, "tokens_per_second": 345.6, "peak_memory": {"process": 3 * 2**30}},
        )
    )  # fmt: skip
    report = {
        "headline": {"verdict": "better than its base"},
        "forgetting": {"value": 0.031},
        "metrics": [
            {"name": name, "base": {"value": before}, "tuned": {"value": after, "n": n, "denominator": tokens}}
            for name, before, after, n, tokens in (
                ("perplexity", 8.0, 4.0, 168, 6639.0),
                ("rouge_l", 0.25, 0.5, 24, 24.0),
            )
        ],
    }
    console = Console(width=100, file=io.StringIO())
    console.print(quickstart.closing_table("runs/r", report, 312.0))
    shown = console.file.getvalue()
    for part in (
        "8.00 before, 4.00 after (-50%)",
        "6,639 answer tokens in 168 functions",
        "0.250 before, 0.500 after",
        "512 rows, 346 tokens/s",
        "3.00 GiB",
        "5.2 minutes",
        "better than its base",
        "+3.1%",
        "runs/r/reports/report.html",
        "tensorboard --logdir runs/r/logs",
    ):
        assert part in shown, shown


def test_answers_are_shown_whole_or_cut_and_never_as_markup(quickstart: ModuleType):
    long = "\n".join(f"line {number}" for number in range(100))
    example = {"id": "m.f", "question": "Write f.", "base": "[bold]x[/nonsense]", "tuned": long, "reference": "def f"}
    console = Console(width=80, file=io.StringIO())
    quickstart.show_answers([example], console)
    shown = console.file.getvalue()
    assert "[bold]x[/nonsense]" in shown
    lines = [line.strip() for line in shown.splitlines()]
    assert lines[lines.index("line 0") :][: quickstart.EXAMPLE_LINES + 1] == [
        *(f"line {number}" for number in range(quickstart.EXAMPLE_LINES)),
        "…",
    ]


def test_a_wrong_number_of_epochs_ends_the_script_with_one_message(quickstart: ModuleType):
    found = subprocess.run(
        [sys.executable, quickstart.__file__], env={**os.environ, "EPOCHS": "many"}, capture_output=True, text=True
    )
    assert found.returncode == 2
    assert "Traceback" not in found.stderr
    assert "'many'" in found.stderr
    assert found.stdout == ""
