"""Do the fast layers train as the plain ones do? Real data, the small real model, the whole `fit`, on a GPU.

Every run is `python -m app fit` from the same seed on the same packed rows. Three things are compared: plain peft's
loss curve with the bf16 layers', beside how far two plain runs come apart that differ only in their attention kernel
(what bfloat16's rounding does to a curve); and, over several seeds, the held-out perplexity of adapters trained in FP8
and in bf16, both measured with plain layers.

    python scripts/get_model.py && python scripts/make_stdlib_dataset.py
    python -m app prepare data/stdlib/functions.csv --output data/quickstart --val_fraction 0.1 --test_fraction 0.1
    python scripts/bench/curves.py --output build/curves

writes curves.json and curves.png, and prints the table.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SYSTEMS = {
    "plain": ["--model.kernels", "none"],
    "plain, SDPA": ["--model.kernels", "none", "--model.attention", "sdpa"],
    "bf16": ["--model.kernels", "bf16"],
    "fp8": ["--model.kernels", "fp8"],
}
FIRST_SEED_ONLY = ("plain", "plain, SDPA")


def run_one(args: argparse.Namespace) -> dict[str, Any]:
    """One fit: its training loss step by step, and the held-out loss of its last adapter with plain layers."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from app.__main__ import main as app
    from app.artifact import RunDirectory

    run = RunDirectory(args.output)
    status = app(
        [
            "fit", "--config", str(ROOT / "configs" / "quickstart.yaml"), *SYSTEMS[args.system], "--run", str(run.path),
            "--overwrite", "true", "--model.base", str(args.base), "--data.path", str(args.data),
            "--data.packing", "true", "--data.max_length", "1024", "--data.batch_size", "1",
            "--seed_everything", str(args.seed), "--trainer.max_epochs", "100", "--trainer.max_steps", str(args.steps),
            "--trainer.limit_train_batches", "1.0", "--validate_every", str(args.steps),
        ]
    )  # fmt: skip
    assert status == 0
    events = EventAccumulator(str(run.logs / "tensorboard"))
    events.Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    seconds = run.read_manifest().result["seconds"]
    return {"losses": losses, "seconds": seconds, "heldout": heldout_loss(run)}


def heldout_loss(run: Any) -> float:
    """Nats per trained token of the validation and test splits, by transformers' own layers."""
    import torch

    from app.evaluate.heldout import open_heldout
    from app.generate.session import open_run
    from app.model.loss import summed_loss

    session, data = open_run(run.path), open_heldout(run.read_manifest())
    total = count = 0.0
    with torch.no_grad():
        for loader in (data.val_dataloader(), data.test_dataloader()):
            for batch in loader:
                batch = {name: value.to(session.causal_lm.device) for name, value in batch.items()}
                loss, tokens = summed_loss(session.causal_lm, batch)  # type: ignore[arg-type]
                total, count = total + loss.item(), count + int(tokens)
    return total / count


def run_apart(system: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    folder = args.output / f"{system.replace(', ', '-')}-{seed}"
    command = [sys.executable, __file__, "--one", "--system", system, "--seed", str(seed), "--output", str(folder)]
    command += [f"--{name}={getattr(args, name)}" for name in ("base", "data", "steps")]
    done = subprocess.run(command, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            result = {"system": system, "seed": seed, **json.loads(line[7:])}
            print(f"{system}, seed {seed}: held-out perplexity {math.exp(result['heldout']):.4f}", flush=True)
            return result
    raise SystemExit(f"{system}, seed {seed} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def report(results: list[dict[str, Any]], args: argparse.Namespace) -> str:
    curves = {result["system"]: result["losses"] for result in results if result["seed"] == args.seeds[0]}
    lines = [f"| from seed {args.seeds[0]}, against plain | mean difference of the loss | largest |", "|---|---|---|"]
    for system in [name for name in SYSTEMS if name != "plain"]:
        gaps = [abs(ours - plain) for ours, plain in zip(curves[system], curves["plain"], strict=True)]
        lines.append(f"| {system}, {len(gaps)} steps | {statistics.mean(gaps):.5f} | {max(gaps):.5f} |")
    lines += ["", "| held-out perplexity after training in | " + " | ".join(f"seed {s}" for s in args.seeds) + " |"]
    lines.append("|---" * (len(args.seeds) + 1) + "|")
    heldout = {(result["system"], result["seed"]): result["heldout"] for result in results}
    for system in ("bf16", "fp8"):
        lines.append(
            f"| {system} | " + " | ".join(f"{math.exp(heldout[system, seed]):.4f}" for seed in args.seeds) + " |"
        )
    changes = [math.expm1(heldout["fp8", seed] - heldout["bf16", seed]) for seed in args.seeds]
    lines.append("| fp8 against bf16 | " + " | ".join(f"{change:+.3%}" for change in changes) + " |")
    return "\n".join(lines)


def plot(results: list[dict[str, Any]], args: argparse.Namespace) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    curves = {result["system"]: result["losses"] for result in results if result["seed"] == args.seeds[0]}
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 6), layout="constrained")
    for system, losses in curves.items():
        steps = range(1, len(losses) + 1)
        above.plot(steps, losses, label=system, linewidth=1)
        if system != "plain":
            below.plot(steps, [a - b for a, b in zip(losses, curves["plain"], strict=True)], label=system, linewidth=1)
    above.set_ylabel("training loss (nats per token)")
    below.set_ylabel("difference from plain")
    below.set_xlabel("optimizer step")
    above.legend()
    below.legend()
    figure.savefig(args.output / "curves.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=ROOT / "models" / "SmolLM2-135M-Instruct")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "quickstart")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "curves")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=4, help="fits at a time")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--system", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.base, args.data = args.base.resolve(), args.data.resolve()
    if args.one:
        print("RESULT " + json.dumps(run_one(args)))
        return
    args.output.mkdir(parents=True, exist_ok=True)
    wanted = [
        (system, seed)
        for seed in args.seeds
        for system in SYSTEMS
        if seed == args.seeds[0] or system not in FIRST_SEED_ONLY
    ]
    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lambda pair: run_apart(*pair, args), wanted))
    (args.output / "curves.json").write_text(json.dumps(results), encoding="utf-8")
    plot(results, args)
    print(report(results, args))


if __name__ == "__main__":
    main()
