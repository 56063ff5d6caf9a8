"""Tokens/s of `fit` on one process and on several (DDP), as one table: how well more GPUs are used.

    python scripts/bench/random_checkpoint.py mistral --tokenizer tokenizer.json --output models/random-mistral
    python scripts/bench/scale.py --base models/random-mistral --family mistral --gpus 1 2 4

Each run is the whole command, preflight and saves included, on packed rows of --length tokens, one to a micro-batch;
speed is that of its last steps, after compilation and recording. Nobody needs to look on: a run that fails is a line of
the table. With --accelerator cpu processes take the place of GPUs.
"""

import argparse
import csv
import json
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def write_rows(path: Path, count: int, words: int) -> None:
    """Questions with long answers, enough of them for every step."""
    draw = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["question", "answer"])
        for number in range(count):
            writer.writerow([f"Question {number}?", " ".join(f"{draw.randrange(10**4)}" for _ in range(words))])


def measure(options: argparse.Namespace, count: int, data: Path, run: Path) -> tuple[float, float]:
    """Tokens/s of all processes and the first one's peak memory in GiB: medians of a run's second half.

    Raises:
        RuntimeError: it failed; with what it said last.
    """
    strategy = ["--config", str(ROOT / "configs" / "strategy" / "ddp.yaml")] if count > 1 else []
    settings = {
        "model.base": options.base, "model.family": options.family, "data.path": data, "run": run,
        "data.max_length": options.length, "data.packing": "true", "trainer.accelerator": options.accelerator,
        "trainer.devices": count, "trainer.accumulate_grad_batches": options.accumulate,
        "trainer.max_steps": options.steps, "validate_every": 10 * options.steps, "checkpoints.every": options.steps,
        "run_page.samples_every": 0,
    }  # fmt: skip
    given = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "app", "fit", *strategy, *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=options.timeout)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    lines = (run / "logs" / "metrics.jsonl").read_text("utf-8").splitlines()
    steps = [row for row in map(json.loads, lines) if "speed/tokens_per_second" in row]
    late = steps[len(steps) // 2 :]
    speed = statistics.median(row["speed/tokens_per_second"] for row in late)
    return speed, max(row["memory/process_peak_gib"] for row in late)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="a local checkpoint")
    parser.add_argument("--family", required=True)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2], help="processes; the first is the comparison")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--accumulate", type=int, default=4)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--accelerator", default="gpu")
    parser.add_argument("--timeout", type=float, default=540, help="seconds for each run")
    options = parser.parse_args()
    print("| GPUs | tokens/s | of linear | peak GiB per GPU |\n|---|---|---|---|")
    alone: float | None = None
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows.csv"
        micro_batches = options.steps * options.accumulate * max(options.gpus)
        write_rows(data, micro_batches * 10, options.length // 16)
        for count in options.gpus:
            try:
                speed, peak = measure(options, count, data, Path(folder) / f"run-{count}")
            except (RuntimeError, subprocess.TimeoutExpired) as fault:
                print(f"| {count} | failed: {fault} | | |", flush=True)
                continue
            alone = alone or speed / count
            print(f"| {count} | {speed:,.0f} | {speed / count / alone:.1%} | {peak:.2f} |", flush=True)


if __name__ == "__main__":
    main()
