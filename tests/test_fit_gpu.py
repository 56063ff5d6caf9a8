"""What only a GPU shows: the 8-bit optimizer, the driver's memory figure, gradient checkpointing under NF4 on CUDA."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.__main__ import main
from app.artifact import RunDirectory
from app.data.records import prompt
from app.evaluate.heldout import open_heldout
from app.families import Family
from app.generate.engine import Engine
from app.generate.sampling import Sampling
from app.generate.session import Session, open_run
from app.kernels.linear_cross_entropy import linear_cross_entropy
from app.model.loss import summed_loss
from app.model.memory import read_memory
from conftest import ROOT, TinyCheckpoint
from support.fitting import arguments, fit, write_csv

pytestmark = pytest.mark.gpu


def heldout_loss(session: Session, batches: Iterable[Any]) -> float:
    """Nats per trained token."""
    total = count = 0.0
    with torch.no_grad():
        for batch in batches:
            on_device: Any = {name: value.to(session.causal_lm.device) for name, value in batch.items()}
            loss, tokens = summed_loss(session.causal_lm, on_device)
            total, count = total + float(loss), count + float(tokens)
    return total / count


@pytest.mark.parametrize(("kernels", "packing"), [("none", False), ("none", True), ("bf16", False), ("fp8", True)])
def test_whole_path_of_every_family(
    family: Family, tiny: TinyCheckpoint, tmp_path: Path, kernels: str, packing: bool
) -> None:
    """Fit from the family's own config, resume, evaluate and answer on the GPU; the CPU measures the same."""
    name = "quickstart" if family.name == "smollm2" else family.name
    run = RunDirectory(tmp_path / "run")
    data = write_csv(tmp_path / "questions.csv")
    config = ROOT / "configs" / f"{name}.yaml"
    options = arguments(
        tiny(family.name),
        data,
        run.path,
        config,
        trainer__limit_train_batches=6,
        trainer__accelerator="gpu",
        model__kernels=kernels,
        data__packing=str(packing).lower(),
    )
    fit(*options)
    manifest = run.read_manifest()
    peak = manifest.result["peak_memory"]
    assert peak["process"] > peak["reserved"] >= peak["allocated"] > 0
    assert manifest.result["steps"] > 0
    fit(*options, "--ckpt_path", "last", "--trainer.max_epochs", "2")
    assert main(["evaluate", "--run", str(run.path), "--answers", "2", "--max_tokens", "4"]) == 0

    losses = {}
    for device in ("cuda", "cpu"):
        session = open_run(run.path, device=device)  # type: ignore[arg-type]
        assert session.causal_lm.device.type == device
        losses[device] = heldout_loss(session, open_heldout(manifest).test_dataloader())
        answer = Engine(session).generate([prompt("What is 2 plus 6?")], Sampling(temperature=0, max_tokens=5))[0]
        assert answer.token_ids
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.01)


def test_memory_of_the_process_is_the_drivers() -> None:
    device = torch.device("cuda")
    before = read_memory(device)
    held = torch.ones(256 * 2**20, dtype=torch.uint8, device=device)
    after = read_memory(device)
    assert after.allocated - before.allocated == held.numel()
    assert after.process >= after.reserved >= after.allocated
    assert after.process - before.process >= 0.9 * (after.reserved - before.reserved)


@pytest.mark.parametrize(("rows", "words"), [(1, 2), (2047, 32_768), (513, 128_256), (77, 256_000)])
def test_chunked_loss_errs_no_more_than_plain_bfloat16(rows: int, words: int) -> None:
    generator = torch.Generator(device="cuda").manual_seed(0)
    hidden = torch.randn(rows, 512, device="cuda", generator=generator).bfloat16()
    weight = (torch.randn(words, 512, device="cuda", generator=generator) / 512**0.5).bfloat16()
    targets = torch.randint(words, (rows,), device="cuda", generator=generator)
    exact = hidden.float().requires_grad_()
    torch.nn.functional.cross_entropy(exact @ weight.float().T, targets, reduction="sum").backward()
    plain = hidden.clone().requires_grad_()
    torch.nn.functional.cross_entropy((plain @ weight.T).float(), targets, reduction="sum").backward()
    ours = hidden.clone().requires_grad_()
    linear_cross_entropy(ours, weight, targets).backward()

    def error(gradient: torch.Tensor | None) -> float:
        assert gradient is not None and exact.grad is not None
        return float((gradient.float() - exact.grad).norm() / exact.grad.norm())

    assert error(ours.grad) <= 1.2 * error(plain.grad) + 1e-6
