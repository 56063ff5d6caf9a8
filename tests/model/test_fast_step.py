"""The accelerated step where memory runs out."""

import weakref
from typing import Any

import pytest
import torch

from app.families import get_family
from app.model.accelerate import swap_in
from app.model.fast_step import FastStep
from app.model.load import load_base
from app.model.lora import attach_lora
from app.model.step_graph import StepGraph
from conftest import TinyCheckpoint


def test_failed_pass_gives_its_memory_back_before_anything_is_allocated(
    tiny: TinyCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a card with 600 MiB what 8 rows had saved stayed, and then not even one row fitted."""
    monkeypatch.setattr("app.kernels.triton_support.triton", None)
    family = get_family("mistral")
    base = load_base(str(tiny("mistral")), family, device=torch.device("cpu"), dtype=torch.float32, trainable=True)
    model = attach_lora(base, family, rank=4, alpha=8, dropout=0, targets=["all"], rslora=False, dora=False).train()
    causal_lm: Any = model.get_base_model()
    acceleration = swap_in(causal_lm.get_decoder(), fp8=False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def fast_step() -> FastStep:
        return FastStep(causal_lm, acceleration, trained, budget=None, optimizer="adamw", divisor=1)

    saved: list[weakref.ref[torch.Tensor]] = []
    save = acceleration.store.save

    def save_until_full(layer: int, name: Any, *tensors: torch.Tensor) -> None:
        if layer == len(acceleration.layers) - 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        save(layer, name, *tensors)
        saved.extend(weakref.ref(tensor) for tensor in tensors if name == "hidden")

    monkeypatch.setattr(acceleration.store, "save", save_until_full)
    ids = torch.randint(0, 90, (2, 24))
    with pytest.raises(torch.OutOfMemoryError):
        fast_step()({"input_ids": ids, "trained": ids.bool()}, step=0)
    assert saved and all(each() is not None for each in saved), "they are the failed pass's to give back"

    left = []

    def made(*args: Any, **options: Any) -> StepGraph:
        left.extend(each() for each in saved)
        return StepGraph(*args, **options)

    monkeypatch.setattr("app.model.fast_step.StepGraph", made)
    fast_step()
    assert left and not any(each is not None for each in left)
