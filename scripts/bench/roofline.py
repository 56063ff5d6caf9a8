"""What a training step would take on a card, kind of work by kind of work (`app.plan.speed`), beside an H100.

It is an estimate, not a measurement: caches, clocks under load and the driver's own memory use are left out.

    python scripts/bench/roofline.py
    python scripts/bench/roofline.py --gpu rtx4090 --family llama3
"""

import argparse

from app.families import all_families, get_family
from app.plan.cards import find_card
from app.plan.shapes import shape_of
from app.plan.speed import Precision, step_seconds, step_work

ATTENTION = ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj")
"""Computed again in the fast layers' backward pass where the MLP's results are kept or offloaded."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", default="rtx4060-laptop")
    parser.add_argument("--family", default="mistral", choices=list(all_families()))
    parser.add_argument("--tokens", type=int, default=2048)
    options = parser.parse_args()
    card, h100 = find_card(options.gpu), find_card("h100")
    family = get_family(options.family)
    shape = shape_of(family.config, family)
    again = sum(linear.weights for linear in shape.linears if linear.name in ATTENTION) * shape.layers
    share = again / shape.block_weights
    steps: dict[Precision, float] = {"fp8": share, "bf16": share, "plain": 1.0}
    for precision, recomputed in steps.items():
        work = step_work(
            shape, rows=1, length=options.tokens, trained=options.tokens, rank=16, precision=precision,
            recomputed=recomputed, attention_again=1.0,
        )  # fmt: skip
        print(
            f"\n{family.title}, {precision}, 1 x {options.tokens} tokens, {recomputed:.0%} of the products recomputed\n"
        )
        print(f"| work | limit | share of the limit | seconds: H100 | seconds: {card.name} |\n|---|---|---|---|---|")
        for part in work:
            seconds = f"{part.seconds(h100):.4f} | {part.seconds(card):.3f}"
            print(f"| {part.name} | {part.limit} | {part.share:.0%} | {seconds} |")
        speed = options.tokens / step_seconds(work, card)
        print(
            f"| together: {speed:,.0f} tokens/s | | | {step_seconds(work, h100):.4f} | {step_seconds(work, card):.2f} |"
        )


if __name__ == "__main__":
    main()
