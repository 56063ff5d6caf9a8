"""The ladder on a GPU whose memory ends early, and the optimizer that exists on GPUs alone."""

import csv
import math
from pathlib import Path

import pytest
import torch

from app.artifact import RunDirectory
from app.callbacks.preflight import step_in_place
from app.model.optimizer import OptimizerName, build_optimizer
from support.faults import with_callback
from support.fitting import arguments, fit

pytestmark = pytest.mark.gpu


def write_long_questions(path: Path) -> Path:
    """Rows of about 450 tokens of SmolLM2's, a tenth of them trained: the layers take the memory, hardly the head."""
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["id", "question", "answer", "group"])
        for number in range(40):
            parts = " plus ".join(str(number + part) for part in range(90))
            answer = f"It begins with {number}." + " A sum adds one number to another." * 5
            writer.writerow([f"row-{number}", f"What is {parts}?", answer, f"group-{number // 4}"])
    return path


def short_run(base: Path, folder: Path, name: str, **changes: object) -> list[str]:
    """Options of three steps of 8 rows."""
    return arguments(
        base,
        write_long_questions(folder / "rows.csv"),
        folder / name,
        model__family="smollm2",
        model__gradient_checkpointing=False,
        data__batch_size=8,
        trainer__accelerator="gpu",
        trainer__limit_train_batches=3,
        trainer__accumulate_grad_batches=1,
        **changes,  # type: ignore[arg-type]  # config, the one named option, is not among them
    )


def finished(base: Path, folder: Path, name: str, *, mebibytes: int | None, kernels: str) -> tuple[float, list[str]]:
    """The loss of those steps, and what was changed on the way."""
    fault = with_callback(folder, "LimitGPU", mebibytes=mebibytes) if mebibytes is not None else []
    fit(*fault, *short_run(base, folder, name, model__kernels=kernels))
    manifest = RunDirectory(folder / name).read_manifest()
    assert manifest.status == "finished" and manifest.result["steps"] == 3
    return manifest.result["train_loss"], [adaptation.change for adaptation in manifest.adaptations]


@pytest.mark.parametrize(
    ("mebibytes", "expected"), [(1500, ["training takes"]), (250, ["training takes", "each layer is recomputed"])]
)
def test_less_memory_gives_the_same_steps(smollm2: Path, tmp_path: Path, mebibytes: int, expected: list[str]) -> None:
    """SmolLM2's plain layers save 1.1 MiB a token: 8 rows take 4 GiB, one 0.5, and one that is recomputed about 0.1."""
    loss, changes = finished(smollm2, tmp_path, "free", mebibytes=None, kernels="none")
    assert not changes
    less, changes = finished(smollm2, tmp_path, "capped", mebibytes=mebibytes, kernels="none")
    assert less == pytest.approx(loss, rel=1e-2)
    for words in expected:
        assert any(change.startswith(words) for change in changes), changes


def test_fast_kernels_climb_too(smollm2: Path, tmp_path: Path) -> None:
    """They keep 0.34 MiB a token on a card whose driver says that it is empty: 8 rows take 1.2 GiB, two 0.3."""
    loss, changes = finished(smollm2, tmp_path, "free", mebibytes=None, kernels="bf16")
    assert not changes
    less, changes = finished(smollm2, tmp_path, "capped", mebibytes=600, kernels="bf16")
    assert less == pytest.approx(loss, rel=1e-2)
    assert changes and all(change.startswith("training takes") for change in changes), changes


def test_every_rung_runs(smollm2: Path, tmp_path: Path) -> None:
    """Where nothing but shorter rows helps, the steps are taken recomputed, from CPU memory and cut."""
    fault = with_callback(tmp_path, "TooLittleMemory", training=300)
    options = short_run(smollm2, tmp_path, "run", model__shorten_to=64, model__kernels="none")
    fit(*fault, *options)
    manifest = RunDirectory(tmp_path / "run").read_manifest()
    assert manifest.status == "finished" and manifest.result["steps"] == 3
    last = manifest.adaptations[-1].memory
    assert (last["rows"], last["recompute"], last["offload"]) == (1, True, True) and 64 <= last["length"] <= 300
    assert math.isfinite(manifest.result["train_loss"])


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
