"""What a training step would take on a card, kind of work by kind of work, beside an H100: what `plan` adds up.

It is an estimate, not a measurement: caches, clocks under load and the driver's own memory use are left out. Each kind
of work keeps the share of its limit that it reached on an H100 (`app.plan.speed`). The step is the one that `fit` would
run with the family's configuration in the memory of that card.

    python scripts/bench/roofline.py
    python scripts/bench/roofline.py --gpu rtx4090 --family llama3
"""

import argparse
from pathlib import Path

from app.families import all_families, get_family
from app.plan.cards import find_card
from app.plan.estimate import micro_batch_seconds, micro_batch_work
from app.plan.gpu import imagined
from app.plan.memory import plan_memory
from app.plan.options import read_options
from app.plan.shapes import shape_of

CONFIGS = Path(__file__).parents[2] / "configs"
FAMILIES = [name for name in all_families() if (CONFIGS / f"{name}.yaml").exists()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", default="rtx4060-laptop")
    parser.add_argument("--family", default="mistral", choices=FAMILIES)
    parser.add_argument("--tokens", type=int, default=2048)
    arguments = parser.parse_args()
    card, h100 = find_card(arguments.gpu), find_card("h100")
    gpu, family = imagined(card), get_family(arguments.family)
    shape = shape_of(family.config, family)
    for kernels in ("fp8", "bf16", "none"):
        changes = {"model.kernels": kernels, "data.max_length": arguments.tokens}
        options = read_options([CONFIGS / f"{family.name}.yaml"], changes)
        memory = plan_memory(shape, family, options, gpu)
        print(f"\n{family.title}, {options.data['batch_size']} x {arguments.tokens} tokens: {memory.policy}\n")
        print(f"| work | limit | share of the limit | seconds: H100 | seconds: {card.name} |\n|---|---|---|---|---|")
        for part in micro_batch_work(shape, options, memory, arguments.tokens):
            seconds = f"{part.seconds(h100):.4f} | {part.seconds(card):.3f}"
            print(f"| {part.name} | {part.limit} | {part.share:.0%} | {seconds} |")
        here, there = (
            micro_batch_seconds(shape, options, each, memory, arguments.tokens) for each in (imagined(h100), gpu)
        )
        speed = options.data["batch_size"] * arguments.tokens / there
        print(f"| together: {speed:,.0f} tokens/s | | | {here:.4f} | {there:.2f} |")


if __name__ == "__main__":
    main()
