"""Norm, gated activation, rotary embedding and look-up against float64, odd shapes included."""

from typing import Literal

import pytest
import torch

from app.kernels.embedding import gather_rows
from app.kernels.fp8 import Rows, quantise_rows
from app.kernels.glu import glu, glu_backward, glu_reference
from app.kernels.rms_norm import rms_norm, rms_norm_backward, rms_norm_reference
from app.kernels.rotary import fused_gradient, rotate_
from app.kernels.triton_support import INTERPRETED
from kernels.conftest import error

ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 8e-3 if INTERPRETED else 4e-3}
"""Relative error of one rounding, with room for float32 sums: bfloat16's is 2^-9 at most, 1.7e-3 in the mean.

Triton's interpreter cuts off where a GPU rounds, which errs twice as much."""
DTYPES = pytest.mark.parametrize("dtype", ROUNDING)
FP8_ERROR = 0.1 if INTERPRETED else 0.03
"""e4m3 rounds to 4 binary digits: 2.7 % in the mean."""


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@DTYPES
@pytest.mark.parametrize("unit_offset", [False, True])
@pytest.mark.parametrize(("tokens", "width"), [(1, 1), (3, 100), (5, 576)])
def test_rms_norm(tokens: int, width: int, unit_offset: bool, dtype: torch.dtype, device: torch.device) -> None:
    hidden, added, grad, past = (random(tokens, width, seed=i).to(dtype).to(device) for i in range(4))
    weight = (1 + 0.1 * random(width)).to(dtype).to(device)
    total, normed = rms_norm(hidden, weight, 1e-5, unit_offset=unit_offset, room=128, added=added)
    assert error(total, hidden.double() + added.double()) < ROUNDING[dtype]
    leaf = total.double().requires_grad_()
    exact = rms_norm_reference(leaf, weight.double(), 1e-5, unit_offset=unit_offset, rounded=torch.float64)
    assert error(normed.value, exact.detach()) < 2 * ROUNDING[dtype], "Llama's norm rounds twice"
    assert normed.fp8 is not None and normed.scale is not None
    assert error(normed.fp8[:, :width].float() * normed.scale, exact.detach()) < FP8_ERROR
    exact.backward(grad.double())
    back = rms_norm_backward(grad, total, weight, 1e-5, unit_offset=unit_offset, residual_grad=past)
    assert leaf.grad is not None
    assert error(back, leaf.grad + past) < 3 * ROUNDING[dtype]


@DTYPES
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize(("tokens", "width"), [(1, 1), (3, 100), (2, 5000)])
def test_glu(
    tokens: int, width: int, activation: Literal["silu", "gelu_tanh"], dtype: torch.dtype, device: torch.device
) -> None:
    gate_up, grad = random(tokens, 2 * width).to(dtype).to(device), random(tokens, width, seed=1).to(dtype).to(device)
    leaf = gate_up.double().requires_grad_()
    exact = glu_reference(leaf, activation)
    exact.backward(grad.double())
    assert leaf.grad is not None
    out, kept = glu(gate_up, activation, room=128, keep=True)
    assert error(out.value, exact.detach()) < ROUNDING[dtype]
    assert out.fp8 is not None and out.scale is not None and kept.fp8 is not None and kept.scale is not None
    assert error(out.fp8[:, :width].float() * out.scale, exact.detach()) < FP8_ERROR
    assert error(kept.fp8.float() * kept.scale, gate_up.double()) < FP8_ERROR
    value, back = glu_backward(grad, Rows(value=gate_up), activation, room=128)
    assert torch.equal(value, out.value)
    assert error(back.value, leaf.grad) < ROUNDING[dtype]
    assert back.fp8 is not None and back.scale is not None
    assert error(back.fp8[:, : 2 * width].float() * back.scale, leaf.grad) < FP8_ERROR
    value, back = glu_backward(grad, kept, activation)
    assert error(value, exact.detach()) < 2 * FP8_ERROR and error(back.value, leaf.grad) < 2 * FP8_ERROR


@DTYPES
@pytest.mark.parametrize(("heads", "head_dim", "rotated"), [(1, 2, 2), (5, 96, 96), (3, 64, 32)])
def test_rotary(heads: int, head_dim: int, rotated: int, dtype: torch.dtype, device: torch.device) -> None:
    angles = torch.cat([random(7, rotated // 2)] * 2, dim=1)
    cos, sin = angles.cos().to(device), angles.sin().to(device)
    before = random(7, (heads + 2) * head_dim).to(dtype).to(device)
    after = before.clone()
    rotate_(after, cos, sin, head_dim=head_dim, count=heads)
    view = before.double().unflatten(1, (heads + 2, head_dim))[:, :heads, :rotated]
    first, second = view.chunk(2, dim=-1)
    exact = view * cos.double()[:, None] + torch.cat((-second, first), dim=-1) * sin.double()[:, None]
    whole = before.double().unflatten(1, (heads + 2, head_dim)).clone()
    whole[:, :heads, :rotated] = exact
    assert error(after, whole.flatten(1)) < ROUNDING[dtype]
    rotate_(after, cos, sin, head_dim=head_dim, count=heads, inverse=True)
    assert error(after, before.double()) < 2 * ROUNDING[dtype], "the transpose of a rotation undoes it"


@DTYPES
@pytest.mark.parametrize(("queries", "keys", "head_dim", "rotated"), [(1, 1, 2, 2), (4, 2, 64, 64), (3, 1, 96, 48)])
def test_gradient_of_the_fused_projection(
    queries: int, keys: int, head_dim: int, rotated: int, dtype: torch.dtype, device: torch.device
) -> None:
    """As cuDNN gives them the gradients lie row by row, [rows, T, heads, head_dim], seen with heads first."""
    angles = torch.cat([random(6, rotated // 2)] * 2, dim=1)
    cos, sin = angles.cos().to(dtype).to(device), angles.sin().to(dtype).to(device)
    parts = [
        random(6, heads + 1, head_dim, seed=heads).to(dtype).to(device)[:, :heads] for heads in (queries, keys, keys)
    ]
    exact = torch.cat([part.flatten(1) for part in parts], dim=1).double()
    rotate_(exact, cos.double(), sin.double(), head_dim=head_dim, count=queries + keys, inverse=True)
    found = fused_gradient(*parts, cos, sin, room=128)
    assert error(found.value, exact) < ROUNDING[dtype]
    assert found.fp8 is not None and found.scale is not None
    assert error(found.fp8[:, : exact.shape[1]].float() * found.scale, exact) < FP8_ERROR
    plain = fused_gradient(*parts, cos, sin)
    assert plain.fp8 is None and torch.equal(plain.value, found.value)


def test_rows_in_fp8(device: torch.device) -> None:
    value = (random(9, 77) * torch.logspace(-6, 6, 9)[:, None]).to(device)
    value[3] = 0
    rows = quantise_rows(value)
    assert rows.fp8 is not None and rows.scale is not None
    back = rows.fp8.float() * rows.scale
    assert torch.isfinite(back).all()
    for row in range(9):
        assert row == 3 or error(back[row], value[row]) < FP8_ERROR, "each row has its own scale"


def test_gather(device: torch.device) -> None:
    table = random(11, 70)
    table = table.pin_memory() if device.type == "cuda" else table
    ids = torch.tensor([[3, 1, 10], [0, 9, 3]], device=device)
    assert torch.equal(gather_rows(table, ids).cpu(), table[ids.cpu()])
