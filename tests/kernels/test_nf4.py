"""NF4 decoding: bit-equal to bitsandbytes, in both orientations, odd shapes included."""

import bitsandbytes as bnb
import pytest
import torch

from app.kernels.fp8 import quantise_rows, scaled_product
from app.kernels.nf4 import FP8, NF4Weight, dequantise, dequantise_fp8, dequantise_fp8_transposed, dequantise_reference
from app.kernels.triton_support import INTERPRETED
from kernels.conftest import DEVICE, error

SHAPES = [(1, 64), (7, 192), (130, 64), (33, 576), (257, 128)]


def quantised(rows: int, columns: int, device: torch.device, *, double: bool = True) -> bnb.nn.Params4bit:
    generator = torch.Generator().manual_seed(rows)
    weight = 0.02 * torch.randn(rows, columns, generator=generator)
    return bnb.nn.Params4bit(weight.bfloat16(), requires_grad=False, quant_type="nf4", compress_statistics=double).to(
        device
    )


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_bit_equal_to_bitsandbytes(rows: int, columns: int, double: bool, device: torch.device) -> None:
    parameter = quantised(rows, columns, device, double=double)
    expected = bnb.functional.dequantize_4bit(parameter.data, parameter.quant_state)
    weight = NF4Weight.of(parameter)
    assert weight is not None
    out = torch.full((rows, columns), float("nan"), dtype=torch.bfloat16, device=device)
    dequantise(weight, out)
    if INTERPRETED:  # the interpreter cuts off where a GPU rounds: compared before the rounding
        exact = dequantise(weight, torch.empty(rows, columns, device=device))
        assert torch.equal(exact.bfloat16(), expected)
        assert error(out, expected) < 8e-3
    else:
        assert torch.equal(out, expected)
    assert weight.packed.data_ptr() == parameter.data_ptr(), "the weights stay bitsandbytes' own"


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_fp8_both_orientations(rows: int, columns: int, device: torch.device) -> None:
    weight = NF4Weight.of(quantised(rows, columns, device))
    assert weight is not None
    inverse_scale = 448.0 / weight.block_scales().abs().max()
    straight = dequantise_fp8(weight, inverse_scale, torch.empty(rows, columns, dtype=FP8, device=device))
    wide = torch.zeros(columns, rows + 3, dtype=FP8, device=device)
    dequantise_fp8_transposed(weight, inverse_scale, wide[:, 1 : rows + 1])
    assert torch.equal(wide[:, 1 : rows + 1].t().float(), straight.float())
    assert not wide[:, 0].float().any() and not wide[:, rows + 1 :].float().any(), "nothing else is written"
    # e4m3 rounds to 4 binary digits: 2.7 % in the mean; the interpreter cuts off.
    assert error(straight.float() / inverse_scale, dequantise_reference(weight)) < (0.15 if INTERPRETED else 0.03)


def test_product_is_as_exact_as_fp8_operands_allow(device: torch.device) -> None:
    weight = NF4Weight.of(quantised(256, 128, device))
    assert weight is not None
    exact = dequantise_reference(weight)
    scale = weight.block_scales().abs().max() / 448.0
    x = torch.randn(48, 128, generator=torch.Generator().manual_seed(0)).bfloat16().to(device)
    rows = quantise_rows(x)
    fp8 = dequantise_fp8(weight, scale.reciprocal(), torch.empty(256, 128, dtype=FP8, device=device))
    out = scaled_product(rows, fp8, scale.expand(1, 256).contiguous(), torch.bfloat16)
    assert rows.fp8 is not None and rows.scale is not None
    operands = (rows.fp8.float() * rows.scale) @ (fp8.float() * scale).t()
    assert error(out, operands) < 0.01
    assert error(out, x.float() @ exact.t()) < 0.1


def test_layouts_that_are_not_handled_are_told_apart() -> None:
    assert NF4Weight.of(torch.zeros(4, 64)) is None
    fp4 = bnb.nn.Params4bit(torch.randn(64, 64).bfloat16(), requires_grad=False, quant_type="fp4").to(DEVICE)
    assert NF4Weight.of(fp4) is None
