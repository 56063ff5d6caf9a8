"""The order of rows: a function of (seed, epoch) and nothing else, so that a run can be resumed in it on any ranks."""

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

WINDOW = 16
"""Batches whose rows are sorted by length together: less padding, still random from batch to batch."""


class EpochBatchSampler(Sampler[list[int]]):
    """Batches of row numbers, shuffled anew each epoch, rows of like length together.

    Ranks take turns in one order, so the batches of a step are the same on any number of them. All get equally many:
    where the last turn has none left for a rank it gets an empty one, which trains nothing, instead of rows that
    another rank has too.

    Args:
        lengths: of each row, in tokens.
        batch_size: rows per batch.
        seed: of the order.
        epoch, batch: where to begin: ``batch`` batches of epoch ``epoch`` are done already, by all ranks together.
        rank, ranks: which of how many processes this one is.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        *,
        seed: int,
        epoch: int = 0,
        batch: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.rank, self.ranks = rank, ranks
        self.epoch = epoch
        self._begin = (epoch, batch)
        # Lightning calls set_epoch on `loader.batch_sampler.sampler` only (lightning 2.6, fabric/utilities/data.py).
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        """A rank's batches of a whole epoch, also when this one began in its middle: Lightning counts those done."""
        return -(-self.batches // self.ranks)

    @property
    def batches(self) -> int:
        """Of an epoch, of all ranks together."""
        return -(-len(self.lengths) // self.batch_size)

    def order(self, epoch: int) -> list[list[int]]:
        """All batches of an epoch, of all ranks."""
        generator = random.Random(f"{self.seed}:{epoch}")
        rows = list(range(len(self.lengths)))
        generator.shuffle(rows)
        window = self.batch_size * WINDOW
        batches = []
        for start in range(0, len(rows), window):
            part = sorted(rows[start : start + window], key=lambda row: (self.lengths[row], row))
            batches += [part[at : at + self.batch_size] for at in range(0, len(part), self.batch_size)]
        generator.shuffle(batches)
        return batches

    def __iter__(self) -> Iterator[list[int]]:
        epoch, done = self._begin
        yield from shard(self.order(self.epoch)[done if self.epoch == epoch else 0 :], self.rank, self.ranks)


def shard(batches: Sequence[list[int]], rank: int, ranks: int) -> list[list[int]]:
    """A rank's share of some batches: every ``ranks``-th, and an empty one where the others have one more."""
    mine = list(batches[rank::ranks])
    return mine + [[]] * (-(-len(batches) // ranks) - len(mine))
