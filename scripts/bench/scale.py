"""What more GPUs, longer rows and larger models cost: three tables, on random weights made on the GPU.

    python scripts/bench/scale.py ddp --tokenizer tokenizer.json --gpus 1 2 4     # tokens/s and efficiency
    python scripts/bench/scale.py fsdp --tokenizer tokenizer.json --gpus 2        # 70B shape, its base in shards
    python scripts/bench/scale.py memory                                          # against length and model size

`ddp` and `fsdp` run the whole `python -m app fit`, preflight and saves included, in which only the loading of weights
is replaced; speed is that of its last steps, after compilation and recording. Rows are packed, one to a micro-batch.
Runs on one GPU go side by side, a card each. `memory` runs the fast training step alone, in bf16, with every
intermediate result recomputed and with all of them kept. A run that fails is a line of its table. With --accelerator
cpu, processes take the place of GPUs: `--sizes tiny` shows that all of it works.
"""

import argparse
import csv
import json
import os
import queue
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FAMILY = "mistral"
REDUCTION = "reduction of gradients in ms:"
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32,
    },
    "1b": {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_key_value_heads": 4,
        "head_dim": 64,
    },
    "3b": {
        "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
    },
    "7b": {},
    "13b": {
        "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
        "num_key_value_heads": 40,
    },
    "70b": {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
    },
}  # fmt: skip
"""What differs from Mistral-7B: the dimensions of TinyLlama, Llama-3.2-3B, Llama-2-13B and Llama-2-70B."""


def configuration(size: str) -> Any:
    from transformers import AutoConfig

    from app.families import get_family

    return AutoConfig.for_model(**{**get_family(FAMILY).config, **SIZES[size]})


def write_base(size: str, tokenizer: Path, folder: Path) -> None:
    """A checkpoint without weights: configuration and tokenizer."""
    from transformers import PreTrainedTokenizerFast

    configuration(size).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_file=str(tokenizer)).save_pretrained(folder)


def write_rows(path: Path, count: int, words: int) -> None:
    """Questions with long answers, enough of them for every step."""
    draw = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["question", "answer"])
        for number in range(count):
            writer.writerow([f"Question {number}?", " ".join(f"{draw.randrange(10**4)}" for _ in range(words))])


def fit_at_random(arguments: list[str]) -> int:
    """`python -m app fit` on random weights; Lightning starts the other processes with the same command line.

    Says at the end how many ms a step spent on the reduction of gradients, waiting for other ranks included.
    """
    import torch
    from shapes import random_model

    import app.model.module
    from app.__main__ import main as application
    from app.kernels.attention import has_flash
    from app.model.load import forbid_cpu_repacking, read_config
    from app.model.varlen_attention import NAME, register_varlen_attention
    from app.model.window import Window

    def load_base(base: str, family: Any, *, device: Any, mapped: bool, **_: Any) -> Any:
        register_varlen_attention()
        attention = NAME if has_flash(device) else "eager"
        model = random_model(read_config(base, family), device, attention=attention, mapped=mapped)
        model.is_loaded_in_4bit = True  # peft asks for it
        forbid_cpu_repacking(model)
        return model

    reduce, seconds = Window.reduce, [0.0]

    def timed(window: Window, strategy: Any) -> None:
        torch.cuda.is_available() and torch.cuda.synchronize()
        begun = time.perf_counter()
        reduce(window, strategy)
        torch.cuda.is_available() and torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)

    app.model.module.load_base = load_base
    setattr(Window, "reduce", timed)  # noqa: B010  # mypy forbids assigning methods
    status = application(["fit", *arguments])
    print(REDUCTION, 1e3 * statistics.median(seconds[len(seconds) // 2 :]))
    return status


def measure_fit(
    options: argparse.Namespace, folder: Path, size: str, gpus: int, kernels: str, card: int
) -> dict[str, Any]:
    """Tokens/s of all processes (median of a run's second half), the first one's peak memory in GiB, and the time that
    its reduction of gradients takes in a step.

    Raises:
        RuntimeError: it failed; with what it said last.
    """
    run = folder / f"{size}-{options.table}-{kernels}-{gpus}"
    strategy = ["--config", str(ROOT / "configs" / "strategy" / f"{options.table}.yaml")] if gpus > 1 else []
    settings = {
        "model.base": folder / size, "model.family": FAMILY, "model.kernels": kernels, "data.path": folder / "rows.csv",
        "run": run, "data.max_length": options.length, "data.packing": "true", "trainer.accelerator":
        options.accelerator, "trainer.devices": gpus, "trainer.accumulate_grad_batches": options.accumulate,
        "trainer.max_steps": options.steps, "trainer.limit_val_batches": 2, "validate_every": 10 * options.steps,
        "checkpoints.every": options.steps, "run_page.samples_every": 0,
    }  # fmt: skip
    given = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, __file__, "fit", *strategy, *given]
    environment = os.environ if gpus > 1 else os.environ | {"CUDA_VISIBLE_DEVICES": str(card)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=options.timeout)
    if options.output:
        log = f"{done.stdout}\n{done.stderr}"
        (options.output / f"{run.name}.log").write_text(log[-(10**6) :], "utf-8")
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    lines = (run / "logs" / "metrics.jsonl").read_text("utf-8").splitlines()
    steps = [row for row in map(json.loads, lines) if "speed/tokens_per_second" in row]
    late = steps[len(steps) // 2 :]
    return {
        "speed": statistics.median(row["speed/tokens_per_second"] for row in late),
        "peak": max(row["memory/process_peak_gib"] for row in late),
        "reduction_ms": float(done.stdout.rsplit(REDUCTION, 1)[1].split()[0]),
        "losses": [row["train/loss"] for row in steps],
    }


def table_of_fits(options: argparse.Namespace, folder: Path) -> None:
    """Runs every case and prints its line; efficiency is against the first number of GPUs of the same kernels."""
    (size,) = options.sizes
    write_base(size, options.tokenizer, folder / size)
    write_rows(folder / "rows.csv", options.steps * options.accumulate * max(options.gpus) * 10, options.length // 16)
    cards: queue.Queue[int] = queue.Queue()
    for card in range(1 if options.accelerator == "cpu" else max(options.gpus)):
        cards.put(card)

    def run(case: tuple[int, str]) -> dict[str, Any]:
        card = cards.get()
        try:
            return measure_fit(options, folder, size, *case, card)
        except (RuntimeError, subprocess.TimeoutExpired) as fault:
            return {"failed": str(fault)[:200]}
        finally:
            cards.put(card)

    print("| model | kernels | GPUs | tokens/s | of linear | peak GiB per GPU | reduction (ms) |")
    print("|---|---|---|---|---|---|---|")
    cases = [(gpus, kernels) for gpus in options.gpus for kernels in options.kernels]
    alone: dict[str, float] = {}
    with ThreadPoolExecutor(cards.qsize()) as pool:
        side_by_side = dict(zip(cases, pool.map(run, [case for case in cases if case[0] == 1]), strict=False))
    for case in cases:
        gpus, kernels = case
        result = side_by_side.get(case) or run(case)
        record(options, {"size": size, "gpus": gpus, "kernels": kernels, "table": options.table, **result})
        if "failed" in result:
            print(f"| {size} | {kernels} | {gpus} | failed: {result['failed']} | | | |", flush=True)
            continue
        each = alone.setdefault(kernels, result["speed"] / gpus)
        print(
            f"| {size} | {kernels} | {gpus} | {result['speed']:,.0f} | {result['speed'] / gpus / each:.1%} | "
            f"{result['peak']:.2f} | {result['reduction_ms']:.1f} |",
            flush=True,
        )


def record(options: argparse.Namespace, row: dict[str, Any]) -> None:
    if options.output:
        with (options.output / "scale.jsonl").open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")


def table_of_memory(options: argparse.Namespace) -> None:
    """Peak memory of the process and tokens/s for every size and length, one model after the other."""
    import torch
    from shapes import random_model

    from app.families import get_family
    from app.model.accelerate import swap_in
    from app.model.activation_store import LayerPlan
    from app.model.budget import offload_embeddings
    from app.model.lora import attach_lora

    device = torch.device("cuda" if options.accelerator == "gpu" else "cpu")
    print("| model | length | results | tokens/s | peak GiB |\n|---|---|---|---|---|")
    for size in options.sizes:
        model: Any = attach_lora(
            random_model(configuration(size), device), get_family(FAMILY), rank=16, alpha=32, dropout=0,
            targets=["all"], rslora=False, dora=False,
        ).train()  # fmt: skip
        causal_lm = model.get_base_model()
        acceleration = swap_in(causal_lm.get_decoder(), fp8=False)
        offload_embeddings(causal_lm)
        kept = LayerPlan(attention="keep", middle="keep", gate_up="keep")
        for length in options.lengths:
            for name, plan in {"recomputed": LayerPlan(), "kept": kept}.items():
                acceleration.set_plans([plan] * len(acceleration.layers))
                try:
                    speed, peak = measure_step(model, length, device)
                except torch.OutOfMemoryError:
                    print(f"| {size} | {length} | {name} | | out of memory |", flush=True)
                    continue
                record(options, {"size": size, "length": length, "results": name, "speed": speed, "peak": peak})
                print(f"| {size} | {length} | {name} | {speed:,.0f} | {peak:.2f} |", flush=True)
        del model, causal_lm, acceleration


def measure_step(model: Any, length: int, device: Any) -> tuple[float, float]:
    """Tokens/s (median of four) and peak GiB of a step of one row, recorded as a graph, with 8-bit AdamW."""
    import gc

    import torch

    from app.kernels.linear_cross_entropy import linear_cross_entropy
    from app.model.memory import read_memory
    from app.model.optimizer import build_optimizer
    from app.model.step_graph import StepGraph

    gc.collect()
    causal_lm = model.get_base_model()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kind = "adamw_8bit" if device.type == "cuda" else "adamw"
    optimizer = build_optimizer(kind, parameters, lr=1e-5, weight_decay=0.0, device=device)
    ids = torch.randint(1, 1000, (1, length), device=device)
    synchronise: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def loss(input_ids: Any, position_ids: Any) -> Any:
        states = causal_lm.get_decoder()(input_ids=input_ids, position_ids=position_ids, use_cache=False)
        targets = torch.nn.functional.pad(input_ids[:, 1:], (0, 1), value=-100).flatten()
        head = causal_lm.get_output_embeddings().weight
        return linear_cross_entropy(states.last_hidden_state.flatten(0, 1), head, targets) / length

    graph = StepGraph(loss, parameters)
    seconds = []
    for _ in range(6):  # the first runs eagerly, the second is recorded
        begun = time.perf_counter()
        graph({"input_ids": ids, "position_ids": torch.arange(length, device=device)[None]})
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        synchronise()
        seconds.append(time.perf_counter() - begun)
    now = read_memory(device)
    reserved = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else now.reserved
    for parameter in parameters:
        parameter.grad = None
    graph.release()
    return length / statistics.median(seconds[2:]), (now.process + reserved - now.reserved) / 2**30


def main() -> int:
    if sys.argv[1:2] == ["fit"]:
        return fit_at_random(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["ddp", "fsdp", "memory"])
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json of the Mistral family; not for memory")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, help="default: 7b, for fsdp 70b; several for memory only")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2], help="processes; the first is the comparison")
    parser.add_argument("--kernels", nargs="+", help="default: bf16, for fsdp none")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a row")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048], help="for memory")
    parser.add_argument("--accumulate", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--accelerator", default="gpu")
    parser.add_argument("--timeout", type=float, default=540, help="seconds for each run")
    parser.add_argument("--output", type=Path, help="folder for every run's words and figures")
    options = parser.parse_args()
    options.sizes = options.sizes or ["70b" if options.table == "fsdp" else "7b"]
    options.kernels = options.kernels or ["none" if options.table == "fsdp" else "bf16"]
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
    if options.table == "memory":
        table_of_memory(options)
        return 0
    if options.tokenizer is None:
        parser.error("--tokenizer is needed")
    with tempfile.TemporaryDirectory() as folder:
        table_of_fits(options, Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
