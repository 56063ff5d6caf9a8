"""`python -m app init`: what it writes is what `fit` takes and `plan` says fits."""

from pathlib import Path

import pytest
import yaml

from app.__main__ import main
from app.errors import MachineError
from app.families import get_family
from app.plan.cards import find_card
from app.plan.gpu import Gpu
from app.plan.signatures import SIGNATURES, signature
from app.plan.starter import argument_texts, make_starter, trainer_texts

OPTIONS = ["init", "--gpu", "rtx4060-laptop", "--yes"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("family", ["mistral", "gemma"])
def test_fit_takes_it_as_written(family: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*OPTIONS, "--family", family, "--data", "my data.csv", "--run", "runs/first"]) == 0
    assert "fits: a peak of" in capsys.readouterr().out
    written = yaml.safe_load((folder / f"{family}.yaml").read_text("utf-8"))
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", f"{family}.yaml", "--print_config"])
    assert ended.value.code == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    for section, value in written.items():
        if isinstance(value, dict):
            assert value.items() <= resolved[section].items()
        else:
            assert resolved[section] == value
    assert (resolved["run"], resolved["data"]["path"], resolved["model"]["family"]) == (
        "runs/first", "my data.csv", family,
    )  # fmt: skip
    assert main(["plan", "--config", f"{family}.yaml", "--gpu", "rtx4060-laptop", "--quiet"]) == 0


def test_every_option_is_there_with_the_codes_own_comment(folder: Path) -> None:
    assert main(OPTIONS) == 0
    text = (folder / "mistral.yaml").read_text("utf-8")
    for section in ("model", "data"):
        for name in signature(*SIGNATURES[section]):
            if section == "model" or name not in ("base", "family", "revision", "seed"):
                assert f"\n  {name}: " in text or f"\n  # {name}: null" in text
    assert "  # LoRA's rank.\n  rank: 16\n" in text
    assert f"  # {trainer_texts()['max_epochs']}\n  max_epochs: 3\n" in text
    assert argument_texts("Does.\n\n    Args:\n        a: one\n            and a half.\n") == {"a": "one and a half."}


def test_less_free_memory_never_makes_longer_rows() -> None:
    family, card, lengths = get_family("gemma"), find_card("rtx4060"), []
    for used in range(0, 4000, 800):
        gpu = Gpu(name=card.name, total=card.memory, reserved=0, used=used * 2**20)
        try:
            starter = make_starter(family=family, base=family.base_models[0], data="data", run="run", gpu=gpu)
        except MachineError:
            lengths.append(0)
            continue
        assert starter.estimate.fits
        lengths.append(yaml.safe_load(starter.text)["data"]["max_length"])
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == 2048 and lengths[-1] == 0


def test_asks_in_a_terminal(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answers = iter(["no-such-family", "phi3", "", "", "runs/asked", "asked.yaml"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda *_: next(answers))
    assert main(["init", "--gpu", "rtx4060-laptop"]) == 0
    assert "model family" in capsys.readouterr().out
    written = yaml.safe_load((folder / "asked.yaml").read_text("utf-8"))
    assert (written["model"]["base"], written["run"]) == ("microsoft/Phi-3-mini-4k-instruct", "runs/asked")

    def gone(*_: object) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", gone)
    assert main(["init", "--gpu", "rtx4060-laptop"]) == 130


def test_faults_are_one_message(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "mistral.yaml").write_text("mine")
    assert main(OPTIONS) == 2
    assert "exists already" in capsys.readouterr().err and (folder / "mistral.yaml").read_text() == "mine"
    assert main([*OPTIONS, "--family", "mistrl", "--overwrite"]) == 2
    assert main([*OPTIONS, "--overwrite", "--gpu", "rtx3050-laptop"]) == 2
    assert "choose a smaller base model" in capsys.readouterr().err
    assert (folder / "mistral.yaml").read_text() == "mine"
    assert main([*OPTIONS, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("folder", "folder is a folder"),
        ("file/x.yaml", "file/x.yaml cannot be written"),
        ("/proc/x.yaml", "/proc/x.yaml cannot be written"),
        (f"{'long' * 100}.yaml", "cannot be written"),
    ],
)
def test_a_file_that_cannot_be_written_is_one_message(
    output: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "folder").mkdir()
    (folder / "file").write_text("mine")
    for more in ([], ["--overwrite"]):
        assert main([*OPTIONS, "--output", output, *more]) == 2
        error = capsys.readouterr().err
        assert message in error and "--output" in error and "remedy: name a file" in error
    assert {path.name for path in folder.iterdir()} == {"folder", "file"}


def test_commands_that_it_shows_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*OPTIONS, "--output", "my configs/[a] b.yaml"]) == 0
    assert capsys.readouterr().out.count("--config 'my configs/[a] b.yaml'") == 2
