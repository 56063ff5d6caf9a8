"""FP8 weights under scales that move: no step is worse than another, and over the steps the errors cancel."""

import pytest
import torch

from app.kernels.fp8 import dither, quantise_rows
from app.kernels.frozen_linear import FrozenLinear, WeightScales
from app.kernels.nf4 import NF4Weight, dequantise_reference
from app.kernels.triton_support import use_triton
from kernels.conftest import error
from kernels.test_nf4 import quantised

STEPS = 48


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
            forward.append(layer.decode(fp8=True).float() * layer.row_scales.t())
            backward.append(layer.decode_transposed().float() * layer.column_scales.t())
            assert torch.equal(forward[-1], backward[-1].t())
            assert 0.02 < error(forward[-1], exact) < 0.03
        assert error(torch.stack(forward).mean(0), exact) < 0.004


def test_a_product_takes_the_scale_of_its_step(device: torch.device) -> None:
    layer = FrozenLinear([weight(48, 192, device)], [None], dtype=torch.bfloat16, fp8=True)
    scales = WeightScales([layer])
    x = quantise_rows(torch.randn(32, 192, generator=torch.Generator().manual_seed(0)).bfloat16().to(device))
    exact = x.value.float() @ dequantise_reference(layer.weights[0]).t()
    for step in (0, 1, 2, 1000, 123457):
        scales.move(step)
        assert error(layer.forward(x, layer.decode(fp8=True), None)[0], exact) < 0.05
