"""Every fault of a user's: one clear message on stderr, status 2, no traceback, nothing lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from app.__main__ import main
from app.artifact import RunDirectory
from app.errors import first_line
from conftest import TinyCheckpoint
from support.fitting import arguments, write_csv


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Runs the command, which must end with status 2; returns its message."""
    capsys.readouterr()
    try:
        status = main(argv)
    except SystemExit as ended:
        status = ended.code  # type: ignore[assignment]
    message = capsys.readouterr().err
    assert status == 2
    assert "error: " in message
    assert "Traceback" not in message
    return message


@pytest.fixture
def options(tiny: TinyCheckpoint, tmp_path: Path) -> list[str]:
    data = write_csv(tmp_path / "questions.csv")
    return ["fit", *arguments(tiny("smollm2"), data, tmp_path / "run", model__family="smollm2")]


def test_unknown_option_and_yaml_key(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused([*options, "--model.rnak", "8"], capsys)
    assert "model.rnak" in message and "did you mean model.rank" in message
    config = tmp_path / "typo.yaml"
    config.write_text("trainer:\n  max_epoch: 3\n")
    message = refused([*options, "--config", str(config)], capsys)
    assert "trainer.max_epoch" in message and "trainer.max_epochs" in message


def test_missing_files(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "/no/such.yaml" in refused([*options, "--config", "/no/such.yaml"], capsys)
    assert "/no/such.csv" in refused([*options, "--data.path", "/no/such.csv"], capsys)
    assert "config.json" in refused([*options, "--model.base", str(Path(__file__).parent)], capsys)
    assert "no checkpoint" in refused([*options, "--ckpt_path", "last"], capsys)
    assert "manifest.json" in refused(["evaluate", "--run", "/no/such/run"], capsys)


def test_wrong_family(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    message = refused([*options, "--model.family", "gemma"], capsys)
    assert "model_type 'llama'" in message and "smollm2" in message
    assert "llama3" in refused([*options, "--model.family", "lama3"], capsys)


def test_values_out_of_range_and_of_wrong_type(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    message = refused([*options, "--model.rank", "0", "--model.lr", "-1"], capsys)
    assert "model.rank" in message and "model.lr" in message
    assert "model.rank" in refused([*options, "--model.rank", "eight"], capsys)
    assert "model.base" in refused(["fit"], capsys)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU")
def test_cuda_asked_for_but_absent(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "CUDA was asked for" in refused([*options, "--trainer.accelerator", "gpu"], capsys)


def test_run_directory_that_cannot_be_written(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file where the folder should go")
    assert "cannot be written" in refused([*options, "--run", str(blocked)], capsys)
    assert blocked.read_text() == "a file where the folder should go"


def test_damaged_weights(
    options: list[str], tiny: TinyCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A download that was cut off: the file is there, but short."""
    folder = tmp_path / "cut"
    folder.mkdir()
    for file in tiny("smollm2").iterdir():
        content = file.read_bytes()
        (folder / file.name).write_bytes(content[: len(content) // 2] if file.suffix == ".safetensors" else content)
    assert "damaged or incomplete" in refused([*options, "--model.base", str(folder)], capsys)


def test_hub_out_of_reach(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """HF_HUB_OFFLINE is set in all tests."""
    message = refused([*options, "--model.base", "organisation/no-such-model"], capsys)
    assert "organisation/no-such-model" in message and "local folder" in message


def test_hub_that_refuses_connections_is_found_out_at_once(tiny: TinyCheckpoint) -> None:
    code = (
        "from app.families import get_family\nfrom app.model.load import read_config\n"
        "from app.errors import ModelError\n"
        "try:\n    read_config('organisation/no-such-model', get_family('mistral'))\n"
        "except ModelError as fault:\n    print(fault)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert "the hub could not deliver it" in run.stdout
    assert "Retrying" not in run.stderr


def test_no_bitsandbytes_on_this_machine(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # its import now fails, as where no wheel exists
    message = refused(options, capsys)
    assert "bitsandbytes cannot be imported" in message and "quantization none" in message


def test_damaged_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory(tmp_path)
    run.manifest_path.write_text('{"schema": 1, "base": {')
    assert "damaged" in refused(["evaluate", "--run", str(tmp_path)], capsys)
    run.manifest_path.write_text('{"schema": 99}')
    assert "schema 99" in refused(["evaluate", "--run", str(tmp_path)], capsys)


def test_unknown_command_names_the_one_that_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'fit'" in refused(["fitt"], capsys)


def test_exceptions_that_say_nothing_are_named_by_their_kind() -> None:
    assert first_line(EOFError()) == "EOFError"
    assert first_line(ValueError("\n one \n two")) == "one "
