"""The chunked loss against its definition in float64, odd shapes included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.kernels.linear_cross_entropy import linear_cross_entropy, reference
from app.kernels.streamed_cross_entropy import streamed_cross_entropy
from app.model.step_graph import StepGraph


def inputs(rows: int, width: int, words: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=generator)
    weight = torch.randn(words, width, generator=generator) / width**0.5
    targets = torch.randint(words, (rows,), generator=generator)
    return hidden, weight, targets


@settings(max_examples=40)
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


@settings(max_examples=40)
@given(
    rows=st.integers(0, 33),
    width=st.integers(1, 40),
    vocabulary=st.integers(2, 300),
    words=st.integers(1, 320),
    seed=st.integers(0, 2**16),
)
def test_head_in_parts_equals_the_whole(rows: int, width: int, vocabulary: int, words: int, seed: int) -> None:
    hidden, weight, targets = inputs(rows, width, vocabulary, seed)
    hidden *= 10  # parts whose largest logits differ much
    targets[::3] = -1
    exact = hidden.double().requires_grad_()
    masked = targets.masked_fill(targets < 0, -100)
    expected = torch.nn.functional.cross_entropy(exact @ weight.double().T, masked, reduction="sum", ignore_index=-100)
    expected.backward()
    loss, gradient = streamed_cross_entropy(hidden, weight, targets, gradient=True, words=words)
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=1e-4)
    assert gradient is not None and exact.grad is not None
    torch.testing.assert_close(gradient.double(), exact.grad, rtol=1e-4, atol=1e-5)
    assert streamed_cross_entropy(hidden, weight, targets, gradient=False)[1] is None


@pytest.mark.gpu
@pytest.mark.parametrize(("rows", "words"), [(1, 300), (2047, 32_003), (77, 256_000)])
def test_head_in_cpu_memory_errs_no_more_than_plain_bfloat16(rows: int, words: int) -> None:
    hidden, weight, targets = inputs(rows, 512, words, seed=4)
    hidden, weight, targets = hidden.cuda().bfloat16(), weight.bfloat16(), targets.cuda()
    exact = hidden.float().requires_grad_()
    torch.nn.functional.cross_entropy(exact @ weight.cuda().float().T, targets, reduction="sum").backward()
    errors = []
    for head in (weight.cuda(), weight.pin_memory()):
        ours = hidden.clone().requires_grad_()
        # As in training: from inside a CUDA graph, twice, with the head's parts copied on a stream of their own.
        graph = StepGraph(lambda hidden, head=head, leaf=ours: linear_cross_entropy(leaf, head, targets), [ours])  # type: ignore[misc, arg-type]
        for _ in range(3):
            graph({"hidden": hidden})
        assert ours.grad is not None and exact.grad is not None and not graph._broken
        errors.append(float((ours.grad.float() / 3 - exact.grad).norm() / exact.grad.norm()))
    assert errors[1] <= 1.2 * errors[0] + 1e-6


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
