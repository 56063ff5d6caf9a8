"""The order of rows: every row once an epoch, the same for the same seed, and resumable anywhere."""

from hypothesis import given
from hypothesis import strategies as st

from app.data.sampler import EpochBatchSampler

LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=200)


@given(lengths=LENGTHS, batch_size=st.integers(1, 9), seed=st.integers(0, 99), epoch=st.integers(0, 5))
def test_every_row_once(lengths: list[int], batch_size: int, seed: int, epoch: int) -> None:
    sampler = EpochBatchSampler(lengths, batch_size, seed=seed)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert len(batches) == len(sampler)
    assert all(len(batch) <= batch_size for batch in batches)


@given(lengths=LENGTHS, batch_size=st.integers(1, 9), data=st.data())
def test_resumed_order_is_the_rest_of_the_order(lengths: list[int], batch_size: int, data: st.DataObject) -> None:
    whole = EpochBatchSampler(lengths, batch_size, seed=7)
    epoch = data.draw(st.integers(0, 3))
    done = data.draw(st.integers(0, len(whole)))
    whole.set_epoch(epoch)
    resumed = EpochBatchSampler(lengths, batch_size, seed=7, epoch=epoch, batch=done)
    assert list(resumed) == list(whole)[done:]
    whole.set_epoch(epoch + 1)
    resumed.set_epoch(epoch + 1)
    assert list(resumed) == list(whole)


def test_epochs_and_seeds_differ() -> None:
    lengths = list(range(1, 101))
    orders = [EpochBatchSampler(lengths, 4, seed=seed).order(epoch) for seed in (1, 2) for epoch in (0, 1)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


def test_rows_of_like_length_share_a_batch() -> None:
    lengths = [1, 1000] * 64
    batches = EpochBatchSampler(lengths, 8, seed=0).order(0)
    assert all(len({lengths[row] for row in batch}) == 1 for batch in batches)


@given(lengths=LENGTHS, ranks=st.integers(1, 5), before=st.integers(1, 5), data=st.data())
def test_ranks_share_each_turn_of_the_one_order(
    lengths: list[int], ranks: int, before: int, data: st.DataObject
) -> None:
    """Also from where another number of ranks has stopped: nothing twice, nothing left out, equally many each."""
    whole = EpochBatchSampler(lengths, 3, seed=7).order(0)
    done = before * data.draw(st.integers(0, len(whole) // before))
    shares = [list(EpochBatchSampler(lengths, 3, seed=7, batch=done, rank=rank, ranks=ranks)) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    turns = [batch for turn in zip(*shares, strict=True) for batch in turn]
    rest = whole[done:]
    assert turns[: len(rest)] == rest
    assert len(turns) - len(rest) < ranks and not any(turns[len(rest) :])
