"""Training speed and memory of this application and its peers, on the same work, in one table.

Each system runs in a process of its own on the model shape named, with random weights (speed and memory do not depend
on their values): NF4 with double quantisation, LoRA on all linear layers, AdamW, every position trained. Memory is what
NVML (nvidia-smi) reads for the card at its highest during the training steps. Two shorter tables follow: what the
optimizers take for a step (`optimizers.py`), and what loading the model takes (`load.py`).

    python scripts/bench/train.py --table                          # every row, about six minutes
    python scripts/bench/train.py --systems fp8 bf16 --batches 1   # some of them
"""

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from importlib.machinery import PathFinder
from itertools import count, product
from pathlib import Path
from typing import Any

from apart import Apart, MemoryWatch, send, take
from load import load_table
from optimizers import optimizer_table
from shapes import SHAPES, TARGETS, add_adapters, build_base, save_checkpoint

# Fixed segments lost 600 MiB to gaps between tensors of different sizes, growing ones 270 (H100, 2026-11).
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
SYSTEMS = {"plain": "peft", "unsloth": "unsloth", "bf16": "triton", "fp8": "triton"}
"""System -> the package it needs."""
PEERS = ("plain", "unsloth")


@dataclass(frozen=True)
class Case:
    """Batches of one system and shape that are measured one after the other."""

    system: str
    shape: str
    batches: list[int]
    length: int = 2048
    optimizer: str = "adamw"
    steps: int | None = None


def run_one(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures one system at each batch size."""
    import torch

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    started = time.perf_counter()
    model = load_unsloth(args) if args.system == "unsloth" else add_adapters(build_base(args.shape, device), args.rank)
    if args.system == "plain":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    setup = time.perf_counter() - started
    times = {"setup_s": setup, "load_s": getattr(args, "load_s", None)}
    return [measure(model, batch, args, device) | times for batch in args.batches]


def load_unsloth(args: argparse.Namespace) -> Any:
    import torch
    from unsloth import FastLanguageModel

    torch.zeros(1, device="cuda")
    begun = time.perf_counter()
    model, _ = FastLanguageModel.from_pretrained(
        args.checkpoint, max_seq_length=args.length, dtype=torch.bfloat16, load_in_4bit=True
    )
    torch.cuda.synchronize()
    args.load_s = time.perf_counter() - begun
    model = FastLanguageModel.get_peft_model(
        model, r=args.rank, lora_alpha=2 * args.rank, lora_dropout=0, bias="none", target_modules=TARGETS[:7],
        use_gradient_checkpointing="unsloth",
    )  # fmt: skip
    FastLanguageModel.for_training(model)
    return model


def measure(model: Any, batch: int, args: argparse.Namespace, device: str) -> dict[str, Any]:
    """Median step of one batch size, and the card's memory at its highest meanwhile."""
    import torch

    from app.model.optimizer import build_optimizer

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = build_optimizer(args.optimizer, parameters, lr=1e-5, weight_decay=0.0, device=torch.device(device))
    peer, note = args.system in PEERS, ""
    ids = torch.randint(1, model.get_input_embeddings().weight.shape[0], (batch, args.length), device=device)
    if peer:

        def step() -> Any:
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            return loss.detach()
    else:
        step, note = fast_step(model, parameters, ids, args)
    watch = None
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        watch = MemoryWatch()
        watch.start()
    times = []
    for _ in range(args.warmup + args.steps):
        begun = time.perf_counter()
        loss = step()
        optimizer.step()
        optimizer.zero_grad(set_to_none=peer)
        loss = float(loss)  # waits for the GPU
        times.append(time.perf_counter() - begun)
    measured = sorted(times[args.warmup :])
    seconds = measured[len(measured) // 2]
    peak = watch.stop() if watch else 0.0
    if args.profile:
        profile(step, args.profile)
    return {
        "system": args.system, "shape": args.shape, "batch": batch, "length": args.length,
        "tokens_per_second": batch * args.length / seconds, "step_ms": seconds * 1e3,
        "spread_ms": (measured[-1] - measured[0]) * 1e3, "first_steps_s": sum(times[: args.warmup]), "peak_mib": peak,
        "allocated_mib": torch.cuda.max_memory_allocated() / 2**20,
        "reserved_mib": torch.cuda.memory_reserved() / 2**20, "loss": loss, "note": note,
    }  # fmt: skip


def fast_step(model: Any, parameters: list[Any], ids: Any, args: argparse.Namespace) -> tuple[Any, str]:
    """This application's step: fast layers, memory plan by budget, the whole pass as one CUDA graph."""
    import torch

    from app.kernels.linear_cross_entropy import linear_cross_entropy
    from app.model.accelerate import accelerate
    from app.model.budget import fit_to_budget, offload_embeddings
    from app.model.fast_step import STATE_BYTES
    from app.model.memory_plan import describe_plans
    from app.model.step_graph import StepGraph

    acceleration = accelerate(model.get_base_model(), args.system)
    assert acceleration is not None
    if not args.keep_embeddings:
        offload_embeddings(model.get_base_model())
    base = model.get_base_model()

    def loss(input_ids: Any) -> Any:
        states = base.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state
        targets = torch.nn.functional.pad(input_ids[:, 1:], (0, 1), value=-100).flatten()
        total = linear_cross_entropy(states.flatten(0, 1), base.get_output_embeddings().weight, targets)
        return total / (input_ids.shape[0] * (input_ids.shape[1] - 1))

    graph = StepGraph(loss, parameters)
    plans = fit_to_budget(
        base, acceleration, rows=ids.shape[0], length=args.length, budget=args.budget[ids.shape[0]] * 2**20,
        state_bytes=STATE_BYTES[args.optimizer] * sum(p.numel() for p in parameters), device=ids.device,
        offload=not args.no_offload,
    )  # fmt: skip
    number = count()

    def step() -> Any:
        acceleration.begin_step(next(number))
        return _eager(loss, ids) if args.eager else graph({"input_ids": ids})

    return step, describe_plans(plans)


def _eager(loss: Any, ids: Any) -> Any:
    value = loss(ids)
    value.backward()
    return value.detach()


def profile(step: Any, rows: int) -> None:
    """Prints where the GPU's time goes."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as record:
        step()
        torch.cuda.synchronize()
    print(record.key_averages().table(sort_by="self_cuda_time_total", row_limit=rows, max_name_column_width=70))


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| system | shape | batch x length | tokens/s | step (ms) | peak (MiB) | plan |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        if "skipped" in r:
            lines.append(f"| {r['system']} | {r['shape']} | {r['batch']} x {r['length']} | {r['skipped']} | | | |")
            continue
        lines.append(
            f"| {r['system']} | {r['shape']} | {r['batch']} x {r['length']} | {r['tokens_per_second']:,.0f} | "
            f"{r['step_ms']:.1f} ± {r['spread_ms'] / 2:.1f} | {r['peak_mib']:,.0f} | {r['note']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="the whole table: all systems, shapes and lengths")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--shapes", nargs="+", default=["mistral"], choices=SHAPES)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--length", type=int, default=2048, help="tokens of a row")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument(
        "--budgets",
        nargs="+",
        type=int,
        default=[7150, 0],
        help="MiB for this application, by batch; 0 is a tenth more than Unsloth took in this run (7761 without it)",
    )
    parser.add_argument("--optimizer", choices=["adamw", "adamw_8bit"], default="adamw")
    parser.add_argument("--no-offload", action="store_true", help="leave nothing in CPU memory")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=4)
    parser.add_argument("--timeout", type=float, default=240.0, help="seconds for one system")
    parser.add_argument("--eager", action="store_true", help="no CUDA graph")
    parser.add_argument("--keep-embeddings", action="store_true", help="leave the input embeddings on the GPU")
    parser.add_argument("--profile", type=int, default=0, help="rows of the profiler's table")
    parser.add_argument(
        "--unsloth-path", default="", help="folder with Unsloth, if it is not installed beside the rest"
    )
    parser.add_argument(
        "--checkpoint", default="", help="folder with the 4-bit model for Unsloth; made if there is none"
    )
    parser.add_argument("--load", default="", help="folder with a 16-bit model for load.py; made if there is none")
    parser.add_argument("--save", default="", help=argparse.SUPPRESS)
    given = take()
    args = parser.parse_args(given)
    args.budgets += args.budgets[-1:] * (len(args.batches) - len(args.budgets))
    if given is None:
        run_all(args)
    elif args.save:
        save_checkpoint(args.shapes[0], Path(args.save))
        send([])
    else:
        args.system, args.shape = args.systems[0], args.shapes[0]
        args.budget = dict(zip(args.batches, args.budgets, strict=False))
        send(run_one(args))


def budget(batch: int, args: argparse.Namespace, results: list[dict[str, Any]]) -> int:
    """MiB that this application may take: what was asked for, or a tenth more than Unsloth took."""
    asked = dict(zip(args.batches, args.budgets, strict=False)).get(batch, 0)
    peaks = [r["peak_mib"] for r in results if r["system"] == "unsloth" and r["batch"] == batch and "peak_mib" in r]
    return int(asked or (1.1 * peaks[0] if peaks else 7761))


def cases(args: argparse.Namespace) -> list[Case]:
    """What is measured, in order."""
    if not args.table:
        groups = [Case(*pair, args.batches, args.length, args.optimizer) for pair in product(args.systems, args.shapes)]
    else:
        groups = [Case(system, "mistral", [1, 4]) for system in ("unsloth", "fp8", "bf16")]
        groups += [Case("fp8", "mistral", [1], 16384, "adamw_8bit", steps=3)]
        groups += [Case("fp8", shape, [1]) for shape in ("llama3", "gemma", "phi3")]
        groups += [Case("plain", "mistral", [1, 4])]
    # Peers take all sizes in one process; each of ours starts anew, because its plan counts what is in use.
    return [
        replace(case, batches=batches)
        for case in groups
        for batches in ([case.batches] if case.system in PEERS else [[batch] for batch in case.batches])
    ]


def run_all(args: argparse.Namespace) -> None:
    """Every system in its own process, and the tables; where it is interrupted, of what there is."""
    results: list[dict[str, Any]] = []
    try:
        with tempfile.TemporaryDirectory() as scratch:
            measure_all(args, Path(scratch), results)
    finally:
        print(table(sorted(results, key=lambda row: list(SYSTEMS).index(row["system"]))), flush=True)
    if args.table:
        optimizers, loads = (Apart(Path(__file__).with_name(name)) for name in ("optimizers.py", "load.py"))
        print("", optimizer_table(optimizers.run([], args.timeout)), sep="\n", flush=True)
        loaded = loads.run([args.load], args.timeout)
        unsloth = [{"what": "Unsloth, from 4 bits", "seconds": r["load_s"]} for r in results if r.get("load_s")]
        print("", load_table([*unsloth[:1], *loaded] if isinstance(loaded, list) else loaded), sep="\n")


def measure_all(args: argparse.Namespace, scratch: Path, results: list[dict[str, Any]]) -> None:
    """Adds each case's results as they come."""
    todo = cases(args)
    waiting = start(todo[0], args)
    for case, following in zip(todo, [*todo[1:], None], strict=True):
        if case.system == "unsloth" and not args.checkpoint and waiting is not None:
            args.checkpoint = str(scratch)
            Apart(Path(__file__)).run([f"--shapes={case.shape}", f"--save={scratch}"], args.timeout)
        process, waiting = waiting, start(following, args)
        outcome = process.run(arguments(case, args, results), args.timeout) if process else None
        if not isinstance(outcome, list):
            reason = outcome or f"{SYSTEMS[case.system]} is not installed"
            row = {"system": case.system, "shape": case.shape, "length": case.length, "skipped": reason}
            outcome = [row | {"batch": batch} for batch in case.batches]
        results += outcome
        print(json.dumps(outcome), flush=True)


def start(case: Case | None, args: argparse.Namespace) -> Apart | None:
    """A process that imports what this case needs; None where that is not installed, and after the last case."""
    if case is None:
        return None
    folders = [args.unsloth_path] if case.system == "unsloth" and args.unsloth_path else []
    if PathFinder.find_spec(SYSTEMS[case.system], [*folders, *sys.path]) is None:
        return None
    # Unsloth must come before all that it patches.
    return Apart(Path(__file__), folders, first="unsloth" if case.system == "unsloth" else "")


def arguments(case: Case, args: argparse.Namespace, results: list[dict[str, Any]]) -> list[str]:
    """What the process of a case is told."""
    told = ["--systems", case.system, "--shapes", case.shape, "--batches", *map(str, case.batches)]
    told += ["--budgets", *(str(budget(batch, args, results)) for batch in case.batches)]
    told += [f"--length={case.length}", f"--optimizer={case.optimizer}", f"--checkpoint={args.checkpoint}"]
    told += [f"--{name}={getattr(args, name)}" for name in ("rank", "warmup", "profile")]
    told += [f"--steps={case.steps or args.steps}"]
    switches = ("eager", "keep_embeddings", "no_offload")
    return told + [f"--{name.replace('_', '-')}" for name in switches if getattr(args, name)]


if __name__ == "__main__":
    main()
