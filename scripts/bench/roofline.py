"""What a training step measured on an H100 would take on a smaller GPU, kind of work by kind of work.

Each kind keeps the share of its limit that it reached on the H100 (data-sheet arithmetic, or the bandwidth of a copy).
It is an estimate, not a measurement: caches, clocks under load and the driver's own memory use are left out.

    python scripts/bench/roofline.py
"""

from dataclasses import dataclass

TOKENS = 2048
WEIGHTS = 6.98e9
"""Of Mistral-7B's linear layers without the head."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Dense data-sheet rates in operations per second, and bytes per second of a copy (read and written)."""

    name: str
    bf16: float
    fp8: float
    bandwidth: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """One kind of work in a step: ``amount`` operations or bytes, and the seconds it took on the H100."""

    name: str
    limit: str
    amount: float
    seconds: float


H100 = Gpu(name="H100 SXM", bf16=989e12, fp8=1979e12, bandwidth=3.03e12)
RTX_4060_LAPTOP = Gpu(name="RTX 4060 laptop", bf16=29e12, fp8=58e12, bandwidth=0.9 * 256e9)

ATTENTION = 32 * 2.0 * TOKENS**2 * 4096
"""Causal attention's forward pass over 32 layers; the backward pass takes 2.5 times as much."""
PRODUCTS = 2 * 2.0 * TOKENS * WEIGHTS
RECOMPUTED = 32 * 2.0 * TOKENS * 4096 * (6144 + 4096)
"""Query, key, value and output projections, computed again in the backward pass."""

# Profile of one step of 1 x 2048 in FP8 on an H100 (scripts/bench/train.py --profile, 2026-11-22); bf16 products and
# flash attention 2, which is what an RTX 4060 runs, from their own timings that day.
COMMON = (
    Work(name="attention (flash attention 2)", limit="bf16", amount=3.5 * ATTENTION, seconds=32 * (168 + 486) * 1e-6),
    Work(name="attention again", limit="bf16", amount=ATTENTION, seconds=32 * 168e-6),
    Work(name="output head", limit="bf16", amount=2 * 2.0 * TOKENS * 4096 * 32000, seconds=1.5e-3),
    Work(name="norms, gates, LoRA, sums", limit="bandwidth", amount=39e-3 * 3.03e12, seconds=39e-3),
)
STEPS = {
    "fp8": (
        Work(name="frozen products", limit="fp8", amount=PRODUCTS, seconds=38.5e-3),
        Work(name="products again", limit="fp8", amount=RECOMPUTED, seconds=38.5e-3 * RECOMPUTED / PRODUCTS),
        Work(name="decoding NF4", limit="bandwidth", amount=2 * 1.516 * WEIGHTS, seconds=10.3e-3),
        *COMMON,
    ),
    "bf16": (
        Work(name="frozen products", limit="bf16", amount=PRODUCTS, seconds=PRODUCTS / 726e12),
        Work(name="products again", limit="bf16", amount=RECOMPUTED, seconds=RECOMPUTED / 726e12),
        Work(name="decoding NF4", limit="bandwidth", amount=2 * 2.516 * WEIGHTS, seconds=2 * 2.516 * WEIGHTS / 2.63e12),
        *COMMON,
    ),
}


def main() -> None:
    for precision, step in STEPS.items():
        print(f"\n{precision}, 1 x {TOKENS} tokens, MLP results kept or offloaded\n")
        print("| work | limit | share of the limit on the H100 | seconds on the RTX 4060 laptop |\n|---|---|---|---|")
        total = 0.0
        for work in step:
            share = work.amount / work.seconds / getattr(H100, work.limit)
            seconds = work.amount / (share * getattr(RTX_4060_LAPTOP, work.limit))
            total += seconds
            print(f"| {work.name} | {work.limit} | {share:.0%} | {seconds:.3f} |")
        print(f"| together: {TOKENS / total:,.0f} tokens/s | | | {total:.2f} |")


if __name__ == "__main__":
    main()
