"""`python -m app plan` as people type it."""

import subprocess
import sys
from pathlib import Path

import pytest

from app.__main__ import main
from app.commands.plan import fit_options
from app.plan.gpu import present
from conftest import ROOT

MISTRAL = ["plan", "--config", str(ROOT / "configs" / "mistral.yaml"), "--gpu", "rtx4060-laptop"]
PLAIN = [*MISTRAL, "--model.kernels", "none"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of its own: data that was prepared in the checkout would be counted."""
    monkeypatch.chdir(tmp_path)


def test_says_every_part_and_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(PLAIN) == 0
    shown = capsys.readouterr().out
    for text in (
        "weights", "adapters", "gradients", "optimizer", "activations kept", "logits", "CUDA context", "peak", "free",
        "NVIDIA GeForce RTX 4060 Laptop GPU", "policy: plain layers, each recomputed", "tokens/s",
        "for a million tokens", "base model from the hub", "fits: a peak of",
    ):  # fmt: skip
        assert text in shown, text
    assert "\x1b[" not in shown, "no colours where there is no terminal"
    assert main(MISTRAL) == 0
    shown = capsys.readouterr().out
    assert "policy: FP8 kernels, 32 layers: inputs" in shown and "pinned CPU memory" in shown


def test_options_of_fit_change_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*MISTRAL, "--quiet"]) == 0
    before = capsys.readouterr().out
    assert main([*MISTRAL, "--quiet", "--model.rank", "64", "--data.max_length=1024"]) == 0
    after = capsys.readouterr().out
    assert before.count("\n") == after.count("\n") == 1
    assert before != after
    assert main([*MISTRAL, "--quiet", "--change", "model.rank=64", "data.max_length=1024"]) == 0
    assert capsys.readouterr().out == after


def test_what_does_not_fit_exits_1_and_says_what_would(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PLAIN, "--data.max_length", "8192"]) == 1
    shown = capsys.readouterr().out
    assert "does not fit" in shown
    length = shown.split("--data.max_length ")[1].split(")")[0]
    assert main([*PLAIN, "--quiet", "--data.max_length", length]) == 0
    capsys.readouterr()
    assert main([*MISTRAL, "--model.kernels", "fp8", "--model.memory_budget", "3GiB"]) == 1
    assert "does not fit in 3,072 MiB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan"], "no configuration was named"),
        ([*MISTRAL, "--gpu", "rtx4061"], "no GPU 'rtx4061' is known"),
        ([*MISTRAL, "--gpu", "rtx4060-16gb"], "no GPU 'rtx4060-16gb' is known"),
        ([*MISTRAL, "--model.optimizer", "sgd"], "model.optimizer is 'sgd', not one of"),
        ([*MISTRAL, "--data.batch_size", "0"], "data.batch_size is 0"),
        ([*MISTRAL, "--model.targets", "[q_porj]"], "no layer of the model is called 'q_porj'"),
        ([*MISTRAL, "--model.bse", "x"], "did you mean model.base?"),
        ([*MISTRAL, "--model.base", "/"], "cannot be loaded"),
        ([*MISTRAL, "--change", "rank"], "write it as model.rank=8"),
        ([*MISTRAL, "--gpus", "rtx4060"], "did you mean gpu?"),
    ],
)
def test_faults_are_one_message_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(arguments)
    except SystemExit as ended:
        status = int(ended.code or 0)
    assert status == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(bool(present()), reason="this machine has a GPU to plan for")
def test_without_a_gpu_one_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(MISTRAL[:3]) == 2
    assert "--gpu rtx4060-laptop" in capsys.readouterr().err


def test_the_plain_plan_loads_no_model_library() -> None:
    program = (
        "import sys; from app.__main__ import main; main(sys.argv[1:])\n"
        "heavy = {'lightning', 'transformers', 'peft', 'bitsandbytes', 'datasets'}\n"
        "print('loaded:', *sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *PLAIN], capture_output=True, text=True, check=True, cwd=Path(ROOT)
    )
    assert not done.stdout.split("loaded:")[1].split()


def test_options_of_fit_become_changes() -> None:
    assert fit_options(["--config", "a", "--model.rank", "8", "--gpu=x", "--data.path=p", "--run", "runs/a"]) == [
        "--config", "a", "--change", "model.rank=8", "--gpu=x", "--change", "data.path=p", "--change", "run=runs/a",
    ]  # fmt: skip
