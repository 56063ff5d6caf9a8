"""FP8 weights under scales that move: no step is worse than another, and over the steps the errors cancel."""

from functools import partial

import pytest
import torch
from torch import nn

from app.kernels.fp8 import dither, quantise_rows
from app.kernels.frozen_linear import FrozenLinear, WeightScales
from app.kernels.lora_stack import LoraPair
from app.kernels.nf4 import NF4Weight, dequantise_reference
from app.kernels.triton_support import INTERPRETED, use_triton
from kernels.conftest import error
from kernels.test_nf4 import quantised

STEPS = 48
FACTOR_ERROR = 0.1 if INTERPRETED else 0.03
"""One side of an adapter's product is rounded to e4m3's 4 binary digits, the other hardly."""


def weight(rows: int, columns: int, device: torch.device) -> NF4Weight:
    found = NF4Weight.of(quantised(rows, columns, device))
    assert found is not None
    if found.packed.device.type == "cpu" and use_triton(found.packed):
        pytest.skip("Triton's interpreter cuts off where a GPU rounds")
    return found


def test_factors_fill_the_octave_and_depend_on_the_step_alone() -> None:
    factors = sorted(dither(step) for step in range(STEPS))
    assert dither(0) == 1.0 and factors[-1] < 2.0
    ratios = [after / before for before, after in zip(factors, [*factors[1:], 2.0], strict=True)]
    assert max(ratios) < 2 ** (2.7 / STEPS), "no gap is much wider than an even spacing"
    assert [dither(step) for step in range(5)] == [dither(step) for step in range(5)]


def test_rounding_errors_cancel_over_the_steps(device: torch.device) -> None:
    """Weights of two widths whose scales lie in one tensor, as a model's do."""
    members = [[weight(48, 192, device), weight(16, 192, device)], [weight(192, 64, device)]]
    layers = [FrozenLinear(each, [None] * len(each), dtype=torch.float32, fp8=True) for each in members]
    scales = WeightScales(layers)
    for each, layer in zip(members, layers, strict=True):
        exact = torch.cat([dequantise_reference(member) for member in each])
        forward, backward = [], []
        for step in range(STEPS):
            scales.move(step)
            forward.append(layer.decode(None, fp8=True).float() * layer.row_scales.t())
            backward.append(layer.decode_transposed(None).float() * layer.column_scales.t())
            assert torch.equal(forward[-1], backward[-1].t())
            assert 0.02 < error(forward[-1], exact) < 0.03
        assert error(torch.stack(forward).mean(0), exact) < 0.004


@pytest.mark.parametrize(("members", "rank"), [(1, 5), (2, 16), (3, 48)])
def test_adapters_are_part_of_the_product(members: int, rank: int, device: torch.device) -> None:
    """Both ways, in rooms of 128 and 384 columns; two results in bfloat16 are subtracted, which adds to the error."""
    weights = [weight(64, 192, device) for _ in range(members)]
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator)
    adapters = [
        LoraPair(
            a=nn.Parameter(draw(rank, 192).to(device) / 192**0.5),
            b=nn.Parameter(draw(64, rank).to(device) * 3e-3),
            scaling=2.0,
        )
        for _ in weights
    ]
    with_them = FrozenLinear(weights, adapters, dtype=torch.bfloat16, fp8=True)
    without = FrozenLinear(weights, [None] * members, dtype=torch.bfloat16, fp8=True)
    lora = with_them.stack()
    assert lora is not None and with_them.room == (128 if members * rank < 64 else 384) and without.room == 0
    x, grad = (draw(32, width).bfloat16().to(device) for width in (192, 64 * members))

    out, projected = with_them.forward(quantise_rows(x, room=with_them.room), with_them.decode(lora, fp8=True), lora)
    frozen, none = without.forward(quantise_rows(x), without.decode(None, fp8=True), None)
    assert projected is not None and none is None
    exact = projected.float() @ lora.b.float().t()
    assert error(out.float() - frozen.float(), exact) < FACTOR_ERROR + 4e-3 * float(frozen.norm() / exact.norm())

    to_input, projected_grad = with_them.backward(
        quantise_rows(grad, room=with_them.room), with_them.decode_transposed(lora), lora
    )
    frozen, none = without.backward(quantise_rows(grad), without.decode_transposed(None), None)
    assert projected_grad is not None and none is None
    exact = projected_grad.float() @ lora.a.float()
    assert error(to_input.float() - frozen.float(), exact) < FACTOR_ERROR + 4e-3 * float(frozen.norm() / exact.norm())


def test_a_product_takes_the_scale_of_its_step(device: torch.device) -> None:
    layer = FrozenLinear([weight(48, 192, device)], [None], dtype=torch.bfloat16, fp8=True)
    scales = WeightScales([layer])
    x = quantise_rows(torch.randn(32, 192, generator=torch.Generator().manual_seed(0)).bfloat16().to(device))
    exact = x.value.float() @ dequantise_reference(layer.weights[0]).t()
    for step in (0, 1, 2, 1000, 123457):
        scales.move(step)
        assert error(layer.forward(x, layer.decode(None, fp8=True), None)[0], exact) < 0.05
