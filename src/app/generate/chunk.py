"""Which parts of which prompts are read next."""

from collections.abc import Sequence

from app.generate.forward import Row
from app.generate.request import Request


def next_chunk(unread: Sequence[Request], most: int) -> list[tuple[Request, Row]]:
    """The rows of the next pass over prompts, in the order of their requests.

    How a prompt is cut must not depend on its neighbours, since it decides how sums are rounded. Where rows are padded
    to one width, much shorter ones wait for a pass of their own.

    Args:
        unread: requests whose prompts are not all read.
        most: tokens of the pass, padding included.
    """
    rows: list[tuple[Request, Row]] = []
    width = 0
    for request in unread:
        ids = request.tokens[request.computed : request.computed + most]
        width = width or len(ids)
        if (len(rows) + 1) * width <= most and len(ids) <= width <= 2 * len(ids):
            last = request.computed + len(ids) == len(request.tokens)
            rows.append((request, Row(slot=request.slot, start=request.computed, ids=ids, scored=int(last))))
    return rows
