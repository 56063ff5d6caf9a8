"""The ladder on a GPU whose memory ends early, and the optimizer that exists on GPUs alone."""

from pathlib import Path

import pytest
import torch

from app.artifact import RunDirectory
from app.callbacks.preflight import step_in_place
from app.model.optimizer import OptimizerName, build_optimizer
from support.faults import with_callback
from support.fitting import arguments, fit, write_csv

pytestmark = pytest.mark.gpu


def finished(base: Path, folder: Path, name: str, *, mebibytes: int | None, kernels: str) -> tuple[float, list[str]]:
    """The loss of three steps of 2 x 8 rows, and what was changed on the way."""
    fault = with_callback(folder, "LimitGPU", mebibytes=mebibytes) if mebibytes is not None else []
    options = arguments(
        base,
        write_csv(folder / "rows.csv"),
        folder / name,
        model__family="smollm2",
        model__gradient_checkpointing=False,
        model__kernels=kernels,
        data__batch_size=8,
        trainer__accelerator="gpu",
        trainer__limit_train_batches=3,
        trainer__accumulate_grad_batches=1,
    )
    fit(*fault, *options)
    manifest = RunDirectory(folder / name).read_manifest()
    assert manifest.status == "finished" and manifest.result["steps"] == 3
    return manifest.result["train_loss"], [adaptation.change for adaptation in manifest.adaptations]


@pytest.mark.parametrize(
    ("mebibytes", "expected"), [(600, ["training takes"]), (90, ["training takes", "each layer is recomputed"])]
)
def test_less_memory_gives_the_same_steps(smollm2: Path, tmp_path: Path, mebibytes: int, expected: list[str]) -> None:
    """SmolLM2 saves about 0.7 MiB a token without recomputation: 8 rows of 150 tokens take 0.9 GiB, one takes 0.1."""
    loss, changes = finished(smollm2, tmp_path, "free", mebibytes=None, kernels="none")
    assert not changes
    less, changes = finished(smollm2, tmp_path, "capped", mebibytes=mebibytes, kernels="none")
    assert less == pytest.approx(loss, rel=1e-2)
    for words in expected:
        assert any(change.startswith(words) for change in changes), changes


def test_fast_kernels_climb_too(smollm2: Path, tmp_path: Path) -> None:
    loss, _ = finished(smollm2, tmp_path, "free", mebibytes=None, kernels="bf16")
    less, changes = finished(smollm2, tmp_path, "capped", mebibytes=250, kernels="bf16")
    assert less == pytest.approx(loss, rel=1e-2)
    assert changes


@pytest.mark.parametrize("name", ["paged_adamw_8bit", "adamw_8bit", "adamw"])
def test_preflight_leaves_the_optimizer_as_new(name: OptimizerName) -> None:
    def trained(preflight: bool) -> torch.Tensor:
        device = torch.device("cuda")
        generator = torch.Generator(device=device).manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(256, 64, device=device, generator=generator))
        optimizer = build_optimizer(name, [weight], lr=0.1, weight_decay=0.1, device=device)
        if preflight:
            weight.grad = torch.ones_like(weight)
            step_in_place(optimizer)
            assert optimizer.state and weight.grad is None
        for _ in range(5):
            weight.grad = torch.randn(weight.shape, device=device, generator=generator)
            optimizer.step()
        return weight.detach()

    assert torch.equal(trained(preflight=True), trained(preflight=False))
