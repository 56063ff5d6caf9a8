"""Products of few rows with NF4 weights: as exact as bfloat16 allows, and the same in any batch."""

import pytest
import torch

from app.kernels.nf4 import NF4Weight, dequantise_reference
from app.kernels.nf4_gemv import ROWS, StackedWeights, multiply, split_product
from app.kernels.triton_support import INTERPRETED
from kernels.conftest import DEVICE, error
from kernels.test_nf4 import quantised

# Rows of the members and their common width: one tile, tiles that hang over, several parts of K.
SHAPES = [((128,), 64), ((96, 40, 40), 192), ((130,), 1024)]


def stacked(rows: tuple[int, ...], columns: int, device: torch.device, *, rank: int, double: bool) -> StackedWeights:
    weights = [NF4Weight.of(quantised(count, columns, device, double=double)) for count in rows]
    result = StackedWeights.of([w for w in weights if w is not None], rank=rank, dtype=dtype(device))
    generator = torch.Generator().manual_seed(1)
    for adapter in (result.a, result.b):
        adapter.copy_(0.05 * torch.randn(adapter.shape, generator=generator))
    return result


def dtype(device: torch.device) -> torch.dtype:
    """The interpreter and the reference compute in float32, where errors of logic are not hidden by rounding."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def inputs(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(2)).to(device, dtype(device))


def room(weights: StackedWeights) -> torch.Tensor:
    """Poisoned: what is not written shows."""
    return torch.full((weights.splits * ROWS * weights.width,), float("nan"), device=weights.a.device)


def exact_product(x: torch.Tensor, weights: StackedWeights) -> torch.Tensor:
    """In float64, member by member."""
    outputs, start = [], 0
    for index, weight in enumerate(weights.weights):
        part = slice(start, start + weight.rows)
        a = weights.a[index * weights.rank : (index + 1) * weights.rank].double()
        outputs.append(x.double() @ (dequantise_reference(weight).double().t() + a.t() @ weights.b[:, part].double()))
        start += weight.rows
    return torch.cat(outputs, 1)


@pytest.fixture(params=["cuda", "triton"])
def kernel(request: pytest.FixtureRequest, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernel in CUDA C++, where there is a GPU, or the one in Triton."""
    which: str = request.param
    if which == "triton":
        monkeypatch.setattr("app.kernels.nf4_gemv.can_compile", lambda device: False)
    elif device.type == "cpu":
        pytest.skip("no GPU: test_nf4_cuda.py has its logic")
    return which


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("rank", [0, 5])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_product(
    rows: tuple[int, ...], columns: int, rank: int, double: bool, device: torch.device, kernel: str
) -> None:
    weights = stacked(rows, columns, device, rank=rank, double=double)
    assert (weights.pairs is not None) == (kernel == "cuda"), "the other kernel multiplies"
    x = inputs(3, columns, device)
    exact = exact_product(x, weights)
    found = split_product(x, weights, room(weights)).total()
    assert not found.isnan().any()
    assert error(found, exact) < (1e-5 if x.dtype == torch.float32 else 4e-3)
    if x.dtype == torch.bfloat16:
        naive = torch.mm(x, torch.cat([dequantise_reference(w) for w in weights.weights]).bfloat16().t())
        if rank == 0:
            assert error(found, exact) <= 1.2 * error(naive, exact)
    # The interpreter cuts off where a GPU rounds.
    assert error(multiply(x, weights), exact) < (0.02 if INTERPRETED or x.is_cuda else 1e-5)


def test_the_norm_is_applied_to_the_sum(device: torch.device) -> None:
    weights = stacked((64, 64), 192, device, rank=4, double=True)
    x = inputs(2, 192, device)
    squares = torch.tensor([[100.0, 40.0], [3.0, 1.0]], device=device)
    plain = split_product(x, weights, room(weights)).total()
    normed = split_product(x, weights, room(weights), squares=squares, eps=0.1).total()
    factor = torch.rsqrt(squares.sum(1, keepdim=True) / 192 + 0.1)
    torch.testing.assert_close(normed, plain * factor, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("kernel")
def test_a_row_is_the_same_to_the_bit_alone_and_among_others(device: torch.device) -> None:
    weights = stacked((130,), 1024, device, rank=4, double=True)
    x = inputs(ROWS, 1024, device)
    together = split_product(x, weights, room(weights)).values[:, 7].clone()
    for few in (x[7:8], x[3:9]):
        alone = split_product(few.contiguous(), weights, room(weights)).values[:, min(4, len(few) - 1)]
        if device.type == "cuda":
            assert torch.equal(together, alone)
        else:  # the reference's products round by shape
            torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_weights_that_do_not_belong_together_are_refused() -> None:
    narrow, wide = (NF4Weight.of(quantised(64, columns, DEVICE)) for columns in (64, 128))
    assert narrow is not None and wide is not None
    with pytest.raises(ValueError, match="cannot be fused"):
        StackedWeights.of([narrow, wide], rank=0, dtype=torch.float32)
