"""Which samples share a row: best-fit decreasing, on lengths alone."""

from collections.abc import Sequence


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of sample numbers, no sum of lengths over ``capacity``: the longest first, each into the fullest it fits.

    Johnson et al. 1974 (doi 10.1137/0203025): at most 11/9 of the fewest bins possible, plus 4. A bit set of the rooms
    left makes each step a few operations on one integer: 2 million samples take seconds.
    """
    bins: list[list[int]] = []
    with_room: dict[int, list[int]] = {}
    rooms = 0
    for sample in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        length = lengths[sample]
        assert 0 < length <= capacity, "samples longer than a row are dropped or cut before packing"
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            chosen = with_room[room].pop()
            if not with_room[room]:
                rooms &= ~(1 << room)
        else:
            room, chosen = capacity, len(bins)
            bins.append([])
        bins[chosen].append(sample)
        left = room - length
        if left:
            with_room.setdefault(left, []).append(chosen)
            rooms |= 1 << left
    return bins


def efficiency(lengths: Sequence[int], bins: Sequence[Sequence[int]], capacity: int) -> float:
    """The share of all positions that hold a sample's token and not padding."""
    return sum(lengths) / (len(bins) * capacity) if bins else 0.0
