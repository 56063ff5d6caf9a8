"""The pinned buffers of offloaded results: right views, reused by steps that are not larger."""

from typing import Any

import pytest
import torch

from app.model.activation_store import ActivationStore, LayerPlan


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> ActivationStore:
    """Without a GPU nothing can be pinned; ordinary memory takes its place."""
    if not torch.cuda.is_available():
        real = torch.empty

        def empty(*size: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
            return real(*size, **kwargs)

        monkeypatch.setattr(torch, "empty", empty)
    return ActivationStore([LayerPlan(hidden="offload")], torch.device("cpu"))


def test_views_hold_every_type(store: ActivationStore) -> None:
    values = (torch.randn(3, 5), torch.randn(7).bfloat16(), torch.randn(4, 4).to(torch.float8_e4m3fn))
    buffers = store._buffers((0, "hidden"), values)
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value)
    assert all(torch.equal(b.float(), v.float()) for b, v in zip(buffers, values, strict=True))
    assert all(b.dtype == v.dtype and b.shape == v.shape for b, v in zip(buffers, values, strict=True))


def test_smaller_steps_leave_a_recorded_graph_its_memory(store: ActivationStore) -> None:
    (large,) = store._buffers((0, "hidden"), (torch.randn(100),))
    (small,) = store._buffers((0, "hidden"), (torch.randn(10),))
    assert small.data_ptr() == large.data_ptr()
    (larger,) = store._buffers((0, "hidden"), (torch.randn(1000),))
    assert larger.shape == (1000,)


def test_without_a_gpu_offloading_is_keeping(store: ActivationStore) -> None:
    value = torch.randn(3)
    store.save(0, "hidden", value)
    loaded = store.load(0, "hidden")
    assert loaded is not None and loaded[0] is value
