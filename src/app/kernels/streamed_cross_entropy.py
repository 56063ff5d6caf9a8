"""Cross entropy through an output head that lies in CPU memory, a part of the vocabulary at a time.

A tied head over 256,000 words takes 1.5 GB of a card whose model takes 4. Here its rows come over the bus in parts, the
next while the present one is multiplied. As in flash attention (arXiv 2205.14135) the softmax is kept up as parts come:
its largest logit, its sum, and the sum of weighted rows, which is the gradient. One pass; nothing is rounded more than
in `app.kernels.linear_cross_entropy`, which calls this.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from app.kernels.embedding import gather_rows

LOGITS = 2**24
"""Logits held at a time: 64 MiB in float32."""
WORDS = 8192
"""Rows of the head held at a time at most: 48 MiB of Gemma's, twice."""


def streamed_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, gradient: bool, words: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """Summed cross entropy of ``hidden @ weight.T`` against ``targets``, and its gradient.

    Args:
        hidden: [N, D].
        weight: [V, D], in pinned CPU memory; or anywhere, if ``hidden`` is on the CPU.
        targets: [N] int64; a negative one is not counted.
        gradient: whether the gradient of ``hidden`` is wanted.
        words: rows of ``weight`` at a time.

    Returns:
        A float32 scalar, in nats, and the gradient [N, D] or None.
    """
    rows = hidden.shape[0]
    words = words or max(256, min(WORDS, LOGITS // max(1, rows)))
    largest = hidden.new_full((rows, 1), float("-inf"), dtype=torch.float32)
    total = torch.zeros_like(largest)
    chosen = torch.zeros_like(largest)  # the target's logit
    weighted = torch.zeros_like(hidden, dtype=torch.float32) if gradient else None  # [N, D]
    counted = targets[:, None] >= 0
    target = targets[:, None].clamp_min(0)
    for start, part in _parts(weight, hidden.device, words):
        logits = F.linear(hidden, part).float()  # [N, v]
        inside = (target >= start) & (target < start + part.shape[0])
        place = (target - start).clamp(0, part.shape[0] - 1)
        chosen += logits.gather(-1, place) * inside
        before, largest = largest, torch.maximum(largest, logits.amax(-1, keepdim=True))
        shrink = torch.exp(before - largest)
        logits.sub_(largest).exp_()
        total = total * shrink + logits.sum(-1, keepdim=True)
        if weighted is not None:
            weighted.mul_(shrink).add_(logits.to(part.dtype) @ part)
    loss = ((total.log() + largest - chosen) * counted).sum()
    if weighted is None:
        return loss, None
    weighted.div_(total).sub_(gather_rows(weight, target[:, 0]))
    return loss, (weighted * counted).to(hidden.dtype)


def _parts(weight: Tensor, device: torch.device, words: int) -> Iterator[tuple[int, Tensor]]:
    """Stretches of rows on the device with their first row; each is valid until the next is asked for."""
    if weight.device == device:
        yield from ((start, weight[start : start + words]) for start in range(0, weight.shape[0], words))
        return
    buffers = [torch.empty(words, weight.shape[1], dtype=weight.dtype, device=device) for _ in range(2)]
    computing, copying = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    arrived: dict[int, torch.cuda.Event] = {}

    def fetch(start: int) -> None:
        # The buffer is free once the part before the present one has been multiplied.
        copying.wait_stream(computing)
        rows = weight[start : start + words]
        with torch.cuda.stream(copying):
            buffers[start // words % 2][: rows.shape[0]].copy_(rows, non_blocking=True)
            arrived[start] = torch.cuda.Event()
            arrived[start].record()

    fetch(0)
    for start in range(0, weight.shape[0], words):
        if start + words < weight.shape[0]:
            fetch(start + words)
        computing.wait_event(arrived.pop(start))
        yield start, buffers[start // words % 2][: min(words, weight.shape[0] - start)]
