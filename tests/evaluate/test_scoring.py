"""Likelihoods of given tokens: against whole logits, in any batch, and never more logits than a chunk."""

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.text import Perplexity as TorchmetricsPerplexity

from app.data.tokenize import Encoding
from app.evaluate import scoring
from app.evaluate.scoring import BATCH_TOKENS, length_batches, score
from app.generate.session import Session
from conftest import TinyCheckpoint
from support.opening import open_plain


@pytest.fixture(scope="module")
def session(tiny: TinyCheckpoint) -> Session:
    return open_plain(tiny("smollm2"), "smollm2")


@pytest.fixture(scope="module")
def rows(session: Session) -> list[Encoding]:
    generator = torch.Generator().manual_seed(3)
    made = []
    for length in (5, 31, 12, 1, 24):
        ids = torch.randint(0, session.causal_lm.config.vocab_size, (length,), generator=generator).tolist()
        trained = (torch.rand(length, generator=generator) < 0.6).tolist()
        made.append(Encoding(input_ids=ids, trained=trained))
    return made


def test_perplexity_is_that_of_torchmetrics(session: Session, rows: list[Encoding]) -> None:
    """From whole logits, row by row, by another implementation."""
    metric = TorchmetricsPerplexity(ignore_index=-100)
    right = 0
    for row in rows:
        ids, trained = torch.tensor([row.input_ids]), torch.tensor([row.trained])
        with torch.no_grad():
            logits = session.causal_lm(input_ids=ids).logits.float()
        labels = torch.where(trained, ids, -100)[:, 1:]
        if labels.numel():
            metric.update(logits[:, :-1], labels)
            right += int(((logits[:, :-1].argmax(-1) == ids[:, 1:]) & trained[:, 1:]).sum())
    found = score(session.causal_lm, rows, pad_id=0)
    loss, tokens = sum(each.loss for each in found), sum(each.tokens for each in found)
    assert torch.tensor(loss / tokens).exp().item() == pytest.approx(float(metric.compute()), rel=1e-5)
    assert tokens == sum(sum(row.trained[1:]) for row in rows)
    assert sum(each.right for each in found) == right
    assert [each.length for each in found] == [len(row.input_ids) for row in rows]


def test_the_batch_does_not_matter(session: Session, rows: list[Encoding]) -> None:
    together = score(session.causal_lm, rows, pad_id=0)
    alone = [score(session.causal_lm, [row], pad_id=1)[0] for row in rows]
    for first, second in zip(together, alone, strict=True):
        assert first.loss == pytest.approx(second.loss, rel=1e-4)
        assert (first.tokens, first.right) == (second.tokens, second.right)


def test_no_more_logits_than_a_chunk_exist(
    session: Session, rows: list[Encoding], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = score(session.causal_lm, rows, pad_id=0)
    vocabulary = int(session.causal_lm.config.vocab_size)
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if function is F.linear and result.shape[-1] == vocabulary:
                largest = max(largest, result.numel())
            return result

    monkeypatch.setattr(scoring, "CHUNK_ELEMENTS", 3 * vocabulary)
    with Watch():
        chunked = score(session.causal_lm, rows, pad_id=0)
    assert largest == 3 * vocabulary
    assert [each.loss for each in chunked] == pytest.approx([each.loss for each in whole], rel=1e-5)


def test_rows_without_a_scored_token(session: Session) -> None:
    (found,) = score(session.causal_lm, [Encoding(input_ids=[3, 4], trained=[True, False])], pad_id=0)
    assert (found.loss, found.tokens, found.right) == (0, 0, 0)


@given(st.lists(st.integers(1, 3 * BATCH_TOKENS), max_size=40), st.integers(1, 16))
def test_batches_hold_every_row_once_longest_first_and_within_bounds(lengths: list[int], size: int) -> None:
    batches = list(length_batches(lengths, size))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    flat = [lengths[index] for batch in batches for index in batch]
    assert flat == sorted(flat, reverse=True)
    for batch in batches:
        assert len(batch) <= size
        assert len(batch) == 1 or len(batch) * lengths[batch[0]] <= BATCH_TOKENS


@pytest.mark.gpu
def test_a_gpu_gives_the_same(session: Session, rows: list[Encoding]) -> None:
    expected = score(session.causal_lm, rows, pad_id=0)
    moved = copy.deepcopy(session.causal_lm).to("cuda")
    for first, second in zip(expected, score(moved, rows, pad_id=0), strict=True):
        assert first.loss == pytest.approx(second.loss, rel=1e-3)
        assert first.tokens == second.tokens
