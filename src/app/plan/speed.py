"""How long a training step takes on a card that is not here: kind of work by kind of work, the written roofline.

Each kind of work keeps the share of its limit that it reached on an H100 (data-sheet arithmetic, or the bandwidth of a
copy). It is an estimate, not a measurement: caches, clocks under load and a laptop's power limit are left out.
`scripts/bench/roofline.py` prints it for one step beside the times it was taken from.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from app.plan.cards import Card
from app.plan.shapes import ModelShape

Precision = Literal["plain", "bf16", "fp8"]
COPY_SHARE = 0.9
"""Of the data sheet's bandwidth, what a copy on the card reaches (H100: 3.03 of 3.35 TB/s, 2026-11)."""
COPY_FROM_HOST = 0.76
"""Of the bus's rate, what a copy from pinned memory reaches: about 12 GB/s on PCIe 4.0 x8 (RTX 4060)."""

SHARES: dict[str, float] = {
    "products bf16": 726 / 989,
    "products fp8": 0.75,
    "attention forward": 0.329,
    "attention backward": 0.285,
    "head": 0.724,
    "decoding bf16": 0.87,
    "decoding fp8": 0.68,
    "decoding plain": 0.59,
    "float32 products": 0.8,
    "elementwise": 0.85,
}
"""Kind of work -> share of its limit on an H100 (scripts/bench/train.py --profile, 2026-11-22). Attention is flash
attention 2, which smaller cards run too: 168 and 486 us for 2,048 tokens and 32 heads of 128. In FP8 the products reach
0.75 of the data sheet in a whole step."""
PLAIN_LAUNCH = 74e-6
"""Seconds in which Python launches one operation of the plain layers: 0.69 s for the 9,300 of a Mistral-7B step of one
row, whose arithmetic takes half as long (H100, 2026-11)."""
PLAIN_OPERATIONS = 292
"""Launched by one block's forward, recomputed forward and backward pass (counted on torch's meta device)."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """One kind of work in a step.

    Attributes:
        name: of the kind.
        limit: what bounds it.
        amount: operations, or bytes moved.
        share: of the limit that it reaches.
    """

    name: str
    limit: Literal["bf16", "fp8", "mma", "bandwidth", "bus"]
    amount: float
    share: float

    def seconds(self, card: Card) -> float:
        """On a card; FP8 work runs in bf16 where there is none."""
        copy = COPY_SHARE * card.bandwidth
        rates = {
            "bf16": card.bf16,
            "fp8": card.fp8 or card.bf16,
            "mma": card.mma * card.bf16,
            "bandwidth": copy,
            "bus": card.pcie,
        }
        return self.amount / (self.share * rates[self.limit])


def step_work(
    shape: ModelShape,
    *,
    rows: int,
    length: int,
    trained: int,
    rank: int,
    precision: Precision,
    recomputed: float,
    attention_again: float,
) -> list[Work]:
    """The work of one micro-batch's forward and backward pass.

    Args:
        shape: of the model.
        rows, length: of the micro-batch.
        trained: positions at which the head is applied.
        rank: of the adapters.
        precision: the plain layers, or the fast ones in bf16 or FP8.
        recomputed: share of a forward pass's products that is done again.
        attention_again: share of the layers whose attention is.
    """
    tokens, weights = rows * length, shape.block_weights
    passes = 2 + recomputed
    # The causal half of the square of positions; the backward pass takes 2.5 times as much (five products for two).
    attention = shape.layers * 2.0 * rows * length**2 * shape.query_width
    head = 2 * 2.0 * trained * shape.width * shape.vocabulary
    fp8 = precision == "fp8"
    products = Work(
        name="frozen products", limit="fp8" if fp8 else "bf16", amount=passes * 2.0 * tokens * weights,
        share=SHARES["products fp8" if fp8 else "products bf16"],
    )  # fmt: skip
    # A weight is read as 4 bits and a scale and written in 16 or 8.
    decoded = passes * (1.516 if fp8 else 2.516) * weights
    return [
        products,
        Work(name="decoding NF4", limit="bandwidth", amount=decoded, share=SHARES[f"decoding {precision}"]),
        Work(
            name="attention",
            limit="mma",
            amount=(1 + attention_again) * attention,
            share=SHARES["attention forward"],
        ),
        Work(name="attention's gradient", limit="mma", amount=2.5 * attention, share=SHARES["attention backward"]),
        Work(name="output head", limit="bf16", amount=head, share=SHARES["head"]),
        *_streamed_head(shape, precision),
        *_elementwise(shape, tokens, rank=rank, precision=precision, recomputed=recomputed),
    ]


def _streamed_head(shape: ModelShape, precision: Precision) -> Iterable[Work]:
    """The fast step leaves a head that shares the embeddings in CPU memory and reads it once a micro-batch."""
    if shape.tied and precision != "plain":
        size = 2.0 * shape.vocabulary * shape.width
        yield Work(name="head over the bus", limit="bus", amount=size, share=COPY_FROM_HOST)


def _elementwise(
    shape: ModelShape, tokens: int, *, rank: int, precision: Precision, recomputed: float
) -> Iterable[Work]:
    """Norms, gates, rotations, sums, and the adapters: bound by what they read and write."""
    if precision != "plain":
        # 39 ms of 118 GB in Mistral-7B's step of 2,048 tokens, most of it at the two widths.
        moved = 97.8 * shape.layers * tokens * (shape.width + shape.inner)
        yield Work(name="norms, gates, LoRA, sums", limit="bandwidth", amount=moved, share=1.0)
        return
    # Bytes that all operations but products read and write, counted on the meta device: Mistral-7B's block 6.2 MB a
    # token with recomputation, 4.4 without, Gemma-7B's 8.3; the adapters' float32 products 1.3 more.
    share = 0.72 + 0.28 * recomputed
    moved = share * shape.layers * tokens * (580 * shape.width + 264 * shape.inner)
    yield Work(name="norms, gates, casts, sums", limit="bandwidth", amount=moved, share=SHARES["elementwise"])
    adapters = 0.21 * moved * max(1.0, rank / 64)
    yield Work(name="adapters in float32", limit="bandwidth", amount=adapters, share=SHARES["float32 products"])


def step_seconds(work: Iterable[Work], card: Card) -> float:
    """Of one micro-batch, if nothing overlaps."""
    return sum(part.seconds(card) for part in work)


def launch_seconds(shape: ModelShape, *, recomputed: float) -> float:
    """What Python needs for the plain layers of one micro-batch, however fast the card is."""
    return PLAIN_LAUNCH * PLAIN_OPERATIONS * shape.layers * (0.72 + 0.28 * recomputed)
