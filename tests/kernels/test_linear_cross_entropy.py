"""The chunked loss against its definition in float64, odd shapes included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.kernels.linear_cross_entropy import linear_cross_entropy, reference


def inputs(rows: int, width: int, words: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=generator)
    weight = torch.randn(words, width, generator=generator) / width**0.5
    targets = torch.randint(words, (rows,), generator=generator)
    return hidden, weight, targets


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(0, 33),
    width=st.integers(1, 40),
    words=st.integers(2, 300),
    chunk=st.integers(1, 5000),
    seed=st.integers(0, 2**16),
)
def test_loss_and_gradient_equal_float64(rows: int, width: int, words: int, chunk: int, seed: int) -> None:
    hidden, weight, targets = inputs(rows, width, words, seed)
    exact = hidden.double().requires_grad_()
    reference_loss = torch.nn.functional.cross_entropy(exact @ weight.double().T, targets, reduction="sum")
    (3 * reference_loss).backward()
    ours = hidden.clone().requires_grad_()
    loss = linear_cross_entropy(ours, weight, targets, chunk_elements=chunk)
    (3 * loss).backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), reference_loss, rtol=1e-5, atol=1e-5)
    assert ours.grad is not None and exact.grad is not None
    torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)


def test_bfloat16_errs_no_more_than_the_plain_computation() -> None:
    hidden, weight, targets = inputs(257, 96, 1001, seed=1)
    exact = hidden.bfloat16().double().requires_grad_()
    torch.nn.functional.cross_entropy(exact @ weight.bfloat16().double().T, targets, reduction="sum").backward()
    gradients = []
    for function in (reference, linear_cross_entropy):
        ours = hidden.bfloat16().requires_grad_()
        function(ours, weight.bfloat16(), targets).backward()
        assert ours.grad is not None and exact.grad is not None
        gradients.append(float((ours.grad.double() - exact.grad).norm() / exact.grad.norm()))
    plain, chunked = gradients
    assert chunked <= 1.2 * plain


def test_no_gradient_is_computed_where_none_is_wanted() -> None:
    hidden, weight, targets = inputs(5, 8, 11, seed=2)
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, targets)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, reference(hidden, weight, targets))


def test_trained_head_is_refused() -> None:
    hidden, weight, targets = inputs(5, 8, 11, seed=3)
    with pytest.raises(AssertionError, match="frozen"):
        linear_cross_entropy(hidden, weight.requires_grad_(), targets)
