"""Several samples in one row of fixed length, so that no position of a batch is padding.

Samples stay apart: positions begin at 0 in each, and attention is block-diagonal (transformers, and the kernels here,
make the blocks from where positions begin anew when there is no attention mask).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from app.data.tokenize import Encoding


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """A packed row of T tokens.

    Attributes:
        input_ids: [T], padded at the end.
        trained: [T]; False on each sample's first token (the one before it belongs to another) and on padding.
        position_ids: [T], from 0 in each sample; the padding is a sample of its own.
        samples: how many there are.
        tokens: of them, without padding.
    """

    input_ids: list[int]
    trained: list[bool]
    position_ids: list[int]
    samples: int
    tokens: int


def pack(samples: Sequence[Encoding], capacity: int, *, pad_id: int) -> Packed:
    """One row of ``capacity`` tokens from samples that fit in it together."""
    input_ids: list[int] = []
    trained: list[bool] = []
    position_ids: list[int] = []
    for sample in samples:
        input_ids += sample.input_ids
        trained += [False, *sample.trained[1:]]
        position_ids += range(len(sample.input_ids))
    tokens = len(input_ids)
    padding = capacity - tokens
    assert padding >= 0
    if padding:
        input_ids += [pad_id] * padding
        trained += [False] * padding
        position_ids += range(padding)
    return Packed(input_ids=input_ids, trained=trained, position_ids=position_ids, samples=len(samples), tokens=tokens)


class PackedRows(Sequence[Packed]):
    """Packed rows, put together when asked for.

    Args:
        samples: a table of samples.
        bins: which of them share a row.
        capacity: tokens of a row.
        pad_id: of the token that fills it up.
    """

    def __init__(
        self, samples: Sequence[Encoding], bins: Sequence[Sequence[int]], capacity: int, *, pad_id: int
    ) -> None:
        self.samples, self.bins, self.capacity, self.pad_id = samples, bins, capacity, pad_id

    def __len__(self) -> int:
        return len(self.bins)

    @overload
    def __getitem__(self, index: int) -> Packed: ...
    @overload
    def __getitem__(self, index: slice) -> list[Packed]: ...
    def __getitem__(self, index: int | slice) -> Packed | list[Packed]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return pack([self.samples[number] for number in self.bins[index]], self.capacity, pad_id=self.pad_id)
