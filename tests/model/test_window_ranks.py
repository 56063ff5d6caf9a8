"""The fast step's gradients on two processes: what their windows have added up is added up over both."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.multiprocessing.spawn import spawn

from app.families import get_family
from app.model.accelerate import swap_in
from app.model.fast_step import FastStep
from app.model.ladder import MemorySettings
from app.model.load import load_base
from app.model.lora import attach_lora
from app.model.window import Window
from conftest import TinyCheckpoint

WINDOW = 2


class Step:
    """A model and its window."""

    def __init__(self, checkpoint: str) -> None:
        torch.manual_seed(0)
        family = get_family("mistral")
        base = load_base(checkpoint, family, device=torch.device("cpu"), dtype=torch.float32, trainable=True)
        self.model = attach_lora(
            base, family, rank=4, alpha=8, dropout=0, targets=["all"], rslora=False, dora=False
        ).train()
        for name, parameter in self.model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        causal_lm: Any = self.model.get_base_model()
        acceleration = swap_in(causal_lm.get_decoder(), fp8=False)
        fast = FastStep(causal_lm, acceleration, trained, budget=None, optimizer="adamw", divisor=WINDOW)
        self.window = Window(
            lambda batch: fast(batch, step=0), trained, settings=MemorySettings, climb=lambda *fault: None
        )
        self.trained = trained


def batches() -> list[Any]:
    """Two windows of two micro-batches for each of two ranks: [1, 24] packed ids, unevenly trained."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for number in range(2 * WINDOW * 2):
        ids = torch.randint(0, 90, (1, 24), generator=generator)
        trained = torch.arange(24)[None] > 2 * number
        made.append({"input_ids": ids, "trained": trained, "position_ids": torch.arange(24)[None]})
    return made


def run_rank(rank: int, checkpoint: str, folder: str) -> None:
    """Saves the gradients after each window, as the optimizer would see them."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    pytest.MonkeyPatch().setattr("app.kernels.triton_support.triton", None)
    step = Step(checkpoint)
    mine, kept = batches()[rank::2], []
    for at in range(0, len(mine), WINDOW):
        for batch in mine[at : at + WINDOW]:
            step.window.add(batch)
        step.window.reduce(DDPStrategy())
        kept.append([parameter.grad.clone() for parameter in step.trained if parameter.grad is not None])
        step.window.close()
    torch.save(kept, f"{folder}/rank-{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_have_the_sum_of_their_windows_gradients(
    tiny: TinyCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = str(tiny("mistral"))
    spawn(run_rank, (checkpoint, str(tmp_path)), nprocs=2)
    monkeypatch.setattr("app.kernels.triton_support.triton", None)
    step, every = Step(checkpoint), batches()
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]
    for number, turn in enumerate(range(0, len(every), 2 * WINDOW)):
        for batch in every[turn : turn + 2 * WINDOW]:
            step.window.add(batch)
        assert len(ranks[0][number]) == len(step.trained)
        for ours, other, parameter in zip(*(kept[number] for kept in ranks), step.trained, strict=True):
            assert torch.equal(ours, other)
            torch.testing.assert_close(ours, parameter.grad, rtol=1e-4, atol=1e-5)
        step.window.close()
