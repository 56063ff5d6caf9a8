"""Loss and gradient of a chunk of logits against float64, odd widths and uncounted rows included."""

import pytest
import torch

from app.kernels import triton_support
from app.kernels.softmax_loss import softmax_loss_, softmax_loss_triton_
from app.kernels.triton_support import INTERPRETED
from kernels.conftest import error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "words"), [(1, 1), (3, 100), (4, 4096), (5, 9001)])
def test_loss_and_gradient(rows: int, words: int, dtype: torch.dtype, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(words)
    logits = (20 * torch.randn(rows, words, generator=generator)).to(dtype).to(device)
    logits[0, : words // 2] = float("-inf")
    targets = torch.randint(words // 2, words, (rows,), generator=generator).to(device)
    targets[rows // 2] = -100 if rows > 1 else targets[0]
    exact = logits.double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(exact, targets, reduction="none")
    expected.sum().backward()
    assert exact.grad is not None
    untouched = logits.clone()
    compute = softmax_loss_ if triton_support.triton is None else softmax_loss_triton_
    for gradient in (False, True):
        losses = compute(logits, targets, gradient=gradient)
        torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-5, atol=1e-5)
        assert torch.equal(logits, untouched) != gradient or words == 1
    rounding = {torch.float32: 1e-5, torch.bfloat16: 8e-3 if INTERPRETED else 4e-3}[dtype]
    assert torch.isfinite(logits).all()
    assert error(logits, exact.grad) <= rounding or not exact.grad.any()
    assert not logits[targets < 0].any()
