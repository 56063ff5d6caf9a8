"""What is tried before the first step, and that it leaves no trace."""

from pathlib import Path

import pytest
import torch

from app.__main__ import main
from app.artifact import RunDirectory
from app.callbacks.preflight import step_in_place
from callbacks.conftest import Undisturbed
from support.faults import with_callback
from support.fitting import fit


def test_run_with_it_is_bit_for_bit_the_run_without(
    undisturbed: Undisturbed, run: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    """With dropout, whose random numbers it must put back. The undisturbed run had a preflight."""
    fit(*undisturbed.options(run, preflight="false"))
    assert "preflight" not in caplog.text
    assert undisturbed.is_equal(run)


def test_it_says_what_it_took(undisturbed: Undisturbed, run: RunDirectory, caplog: pytest.LogCaptureFixture) -> None:
    fit(*undisturbed.options(run, trainer__limit_train_batches=2, trainer__max_epochs=1))
    (said,) = [record.message for record in caplog.records if record.message.startswith("preflight: ")]
    for part in ("a step of 3 x ", "evaluation of 1 x ", "a save of ", "peak memory ", " GiB of "):
        assert part in said


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_optimizer_is_as_new_but_has_its_state(weight_decay: float) -> None:
    def trained(preflight: bool) -> torch.Tensor:
        torch.manual_seed(0)
        layer = torch.nn.Linear(5, 3)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=weight_decay)
        if preflight:
            layer(torch.ones(2, 5)).sum().backward()
            step_in_place(optimizer)
            assert optimizer.state and layer.weight.grad is None
        for _ in range(3):
            layer(torch.ones(2, 5)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return layer.weight.detach()

    assert torch.equal(trained(preflight=True), trained(preflight=False))


def test_long_row_at_hour_three_is_found_before_the_first_step(
    undisturbed: Undisturbed, run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One row is too long for the memory there is, and may not be cut: no step is taken at all."""
    fault = with_callback(tmp_path, "TooLittleMemory", training=120)
    assert main(["fit", *fault, *undisturbed.options(run)]) == 2
    said = capsys.readouterr().err
    assert "nothing is left to give up, after" in said and "training takes 2 of 3 rows at a time" in said
    assert "each layer is recomputed" in said and "--model.shorten_to" in said
    assert not list(run.checkpoints.glob("*.ckpt"))
