"""The quickstart's training step on a CPU beside the plain peft + bitsandbytes step, on the same batches and adapters.

Both take turns in one process on one thread, and the figure is CPU seconds, so that other work on the machine and its
number of cores change little. Plain is transformers' model as loaded (SDPA), peft's LoRA, the model's own loss over all
positions; both in NF4 with double quantisation, the same adapters on all linear layers, AdamW.

    python scripts/get_model.py && python scripts/make_stdlib_dataset.py
    python scripts/bench/cpu_step.py
"""

import argparse
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from app.data.module import SFTDataModule
from app.families import get_family
from app.model.lean_lora import lean_adapters
from app.model.load import load_base, pick_dtype
from app.model.lora import attach_lora
from app.model.loss import summed_loss

LORA: dict[str, Any] = {"rank": 16, "alpha": 32, "dropout": 0.0, "targets": ["all"], "rslora": False, "dora": False}
Step = Callable[[Any], torch.Tensor]


def plain_step(model: Any) -> Step:
    """Transformers' loss over every position, untrained ones ignored."""

    def step(batch: Any) -> torch.Tensor:
        labels = batch["input_ids"].masked_fill(~batch["trained"], -100)
        loss: torch.Tensor = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels
        ).loss
        return loss

    return step


def our_step(model: Any) -> Step:
    """What QLoRAModule.training_step does on a CPU."""
    causal_lm = model.get_base_model()
    lean_adapters(causal_lm)

    def step(batch: Any) -> torch.Tensor:
        loss, tokens = summed_loss(causal_lm, batch)
        return loss / tokens

    return step


def build(base: Path, *, attention: Any) -> Any:
    torch.manual_seed(0)
    family = get_family("smollm2")
    device = torch.device("cpu")
    model = load_base(
        str(base), family, device=device, dtype=pick_dtype("auto", device), attention=attention, trainable=True
    )
    return attach_lora(model, family, **LORA).train()


def measure(steps: dict[str, tuple[Any, Step]], batches: Iterable[Any]) -> dict[str, list[tuple[int, float, float]]]:
    """Tokens, CPU seconds and loss of every step; all systems take each batch before the next."""
    optimizers = {
        name: torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-4)
        for name, (model, _) in steps.items()
    }
    figures: dict[str, list[tuple[int, float, float]]] = {name: [] for name in steps}
    for batch in batches:
        for name, (_, step) in steps.items():
            begun = time.process_time()
            loss = step(batch)
            loss.backward()
            optimizers[name].step()
            optimizers[name].zero_grad()
            figures[name].append((int(batch["attention_mask"].sum()), time.process_time() - begun, loss.item()))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("models/SmolLM2-135M-Instruct"))
    parser.add_argument("--data", type=Path, default=Path("data/stdlib/functions.csv"))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--profile", type=int, default=0, help="rows of the profiler's table, of our step")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = SFTDataModule(str(args.data), str(args.base), "smollm2", max_length=192, batch_size=8)
    data.setup("fit")
    batches = [batch for batch, _ in zip(data.train_dataloader(), range(args.steps + 1), strict=False)]
    plain, ours = build(args.base, attention="sdpa"), build(args.base, attention="auto")
    steps = {"plain peft + bitsandbytes": (plain, plain_step(plain)), "quickstart": (ours, our_step(ours))}
    figures = measure(steps, batches)
    print("| CPU step (8 rows, 1 thread) | tokens per CPU-second | seconds a step | last loss |\n|---|---|---|---|")
    speed = {}
    for name, rows in figures.items():
        tokens, seconds = (sum(row[column] for row in rows[1:]) for column in (0, 1))
        speed[name] = tokens / seconds
        print(f"| {name} | {speed[name]:.0f} | {seconds / (len(rows) - 1):.2f} | {rows[-1][2]:.4f} |")
    first, second = speed.values()
    print(f"\n{second / first:.2f} times as fast, {args.steps} steps after one that is not counted")
    if args.profile:
        with torch.profiler.profile() as record:
            our_step(ours)(batches[0]).backward()
        print(record.key_averages().table(sort_by="self_cpu_time_total", row_limit=args.profile))


if __name__ == "__main__":
    main()
