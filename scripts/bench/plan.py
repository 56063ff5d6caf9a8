"""What `plan` says beside what `fit` then takes, family by family, part by part.

Each family runs in a process of its own: `fit` itself with the family's configuration, on rows of exactly
``data.max_length`` tokens, with validation and checkpoints; only the base's weights are random, made on the device in
the shape of the family's config.json. Memory is what the driver counts for the process (NVML).

    python scripts/bench/plan.py                                      # four families, under three minutes on an H100
    python scripts/bench/plan.py --families mistral --kernels bf16    # the fast layers
    python scripts/bench/plan.py --tiny                               # on a CPU: what does not depend on a GPU
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from app.families import get_family
from app.plan.cards import find_card
from app.plan.gpu import Gpu
from app.plan.memory import MemoryPlan, plan_memory
from app.plan.options import read_options
from app.plan.shapes import shape_of

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # as `python -m app` does
ROOT = Path(__file__).parents[2]
FAMILIES = ("mistral", "llama3", "gemma", "phi3")
MIB = 2**20
STEPS, WINDOW = 3, 2
RESIDENT = ("weights", "embeddings, head, norms", "adapters", "gradients", "optimizer")


def changes(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Options of `fit` that differ from the family's configuration."""
    changed = {
        "model.base": str(folder / "base"),
        "model.kernels": args.kernels,
        "data.path": str(folder / "data"),
        "data.too_long": "truncate",
        "run": str(folder / "run"),
        "trainer.max_epochs": 1,
        "trainer.accumulate_grad_batches": WINDOW,
        "validate_every": 2,
        "checkpoints.every": 2,
    }
    if args.length:
        changed["data.max_length"] = args.length
    if args.tiny:
        changed |= {"data.max_length": 64, "model.optimizer": "adamw", "trainer.accelerator": "cpu"}
    return changed


def model_config(args: argparse.Namespace, family: str) -> dict[str, Any]:
    """The family's config.json, or one so small that a CPU trains it."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.tiny import SHAPE

    facts = get_family(family).config
    if not args.tiny:
        return dict(facts)
    head_dim = {"head_dim": 32} if "head_dim" in facts else {}
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    return {**facts, **SHAPE, **head_dim, **ids, "vocab_size": 1024}


def run_one(args: argparse.Namespace, family: str) -> dict[str, Any]:
    """Trains and measures in this process."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from app.__main__ import main as app
    from app.model import module
    from app.model.memory import read_memory

    device = torch.device("cpu" if args.tiny else "cuda", None if args.tiny else 0)
    seen: dict[str, Any] = {"family": family}
    if device.type == "cuda":
        torch.zeros(1, device=device)
        seen["bare process"] = read_memory(device).process

    def random_base(*_: Any, **__: Any) -> Any:
        base = build(model_config(args, family), device)
        quantised = {id(part) for layer in base.modules() if hasattr(layer, "quant_state") for part in (layer.weight,)}
        seen["weights"] = sum(
            layer.weight.nbytes + sum(v.nbytes for v in scales(layer.weight.quant_state) if v is not None)
            for layer in base.modules()
            if hasattr(layer, "quant_state")
        )
        seen["embeddings, head, norms"] = sum(p.nbytes for p in base.parameters() if id(p) not in quantised)
        return base

    def after_step(optimizer: Any, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        seen["adapters"] = sum(p.nbytes for p in parameters)
        seen["gradients"] = sum(p.grad.nbytes for p in parameters if p.grad is not None)
        states = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
        # bitsandbytes' maps from codes to values are shared by all parameters.
        seen["optimizer"] = sum({v.data_ptr(): v.nbytes for v in states if v.dim() > 0}.values())

    module.load_base = random_base  # type: ignore[assignment]
    register_optimizer_step_post_hook(after_step)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(args, family, folder)
        options = [part for key, value in changes(args, folder).items() for part in (f"--{key}", str(value))]
        status = app(["fit", "--config", str(ROOT / "configs" / f"{family}.yaml"), *options])
        assert status == 0, f"fit ended with {status}"
        manifest = json.loads((folder / "run" / "manifest.json").read_text("utf-8"))
        checkpoint = max((folder / "run" / "checkpoints").glob("step-*.ckpt"))
        seen |= {"peak": manifest["result"]["peak_memory"], "checkpoint": checkpoint.stat().st_size}
        seen["tokens/s"] = manifest["result"]["tokens_per_second"]
    if device.type == "cuda":
        now = read_memory(device)
        seen |= {"outside torch": now.process - now.reserved, "gpu": torch.cuda.get_device_name(device)}
        # Validation may be what needs most: the manifest's peaks are those of training steps.
        seen["whole run"] = {
            "allocated": torch.cuda.max_memory_allocated(),
            "reserved": torch.cuda.max_memory_reserved(),
        }
    return seen


def scales(state: Any) -> list[Any]:
    """The tensors of bitsandbytes' quantisation state."""
    second = [state.offset, state.state2.absmax, state.state2.code] if state.nested else []
    return [state.absmax, state.code, *second]


def build(config: dict[str, Any], device: Any) -> Any:
    """The random model; what drawing it took is given back, as a checkpoint that is read needs none of it."""
    import torch
    from shapes import SHAPES, build_base
    from transformers import AutoConfig

    made = AutoConfig.for_model(**config)
    SHAPES["planned"] = (type(made).__name__, {name: value for name, value in config.items() if name != "model_type"})
    base = build_base("planned", str(device))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return base


def write_inputs(args: argparse.Namespace, family: str, folder: Path) -> None:
    """A base folder with config.json and a tokenizer of the family's kind, and prepared rows that fill the length."""
    import random

    from app.data.records import Conversation, Message, dump_line

    config = model_config(args, family)
    from support.tiny_tokenizer import tiny_tokenizer

    (folder / "base").mkdir()
    tiny_tokenizer(get_family(family)).save_pretrained(folder / "base")
    (folder / "base" / "config.json").write_text(json.dumps(config))
    (folder / "data").mkdir()
    draw = random.Random(0)
    for split, rows in (("train", STEPS * WINDOW), ("val", 1)):
        lines = [
            dump_line(
                Conversation(
                    id=f"{split}-{row}",
                    group=f"{split}-{row}",
                    messages=(
                        Message(role="user", content=f"Which numbers come in row {row}?"),
                        Message(role="assistant", content=" ".join(str(draw.random()) for _ in range(4000))),
                    ),
                    file="random",
                    line=row,
                )
            )
            for row in range(rows)
        ]
        (folder / "data" / f"{split}.jsonl").write_text("".join(lines), "utf-8")


def planned(args: argparse.Namespace, family: str, name: str) -> MemoryPlan:
    """The plan for the card that was measured, with nothing else on it."""
    options = read_options([ROOT / "configs" / f"{family}.yaml"], changes(args, Path()))
    facts = get_family(family)
    gpu = Gpu(name=name, total=find_card(name).memory, reserved=0, used=0)
    return plan_memory(shape_of(model_config(args, family), facts), facts, options, gpu)


def report(family: str, plan: MemoryPlan, seen: dict[str, Any], *, gpu: bool) -> list[str]:
    """Lines of the table: each part, and the peak."""
    sizes = {part.name: part.bytes for part in plan.parts}
    sizes.setdefault("embeddings, head, norms", sizes.get("head, norms", sizes.get("norms", 0)))
    rows = [(name, sizes[name], seen[name]) for name in RESIDENT]
    if gpu:
        peak, resident = seen["peak"], sum(seen[name] for name in RESIDENT)
        resident -= seen["optimizer"] if plan_is_paged(plan) else 0  # managed memory is not torch's
        rows += [
            ("activations", sizes["activations kept"] + sizes["work in progress"], peak["allocated"] - resident),
            ("allocator slack", sizes["allocator slack"], peak["reserved"] - peak["allocated"]),
            # cuBLAS's workspaces, which the plan counts here, are among torch's own: in "activations".
            ("CUDA context", sizes["CUDA context"], peak["process"] - peak["reserved"]),
            ("**peak**", plan.peak, peak["process"]),
        ]
    return [
        f"| {family} | {name} | {ours / MIB:,.1f} | {theirs / MIB:,.1f} | "
        + (f"{ours / theirs - 1:+.1%} |" if theirs else "|")
        for name, ours, theirs in rows
    ]


def plan_is_paged(plan: MemoryPlan) -> bool:
    return any(part.name == "optimizer" and part.note.startswith("paged") for part in plan.parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--kernels", default="none", choices=("none", "bf16", "fp8"))
    parser.add_argument("--length", type=int, default=0, help="tokens of a row, if not the configuration's")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--timeout", type=float, default=150.0, help="seconds for one family")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print("RESULT " + json.dumps(run_one(args, args.families[0])))
        return
    lines = ["| family | part | plan (MiB) | measured (MiB) | deviation |", "|---|---|---|---|---|"]
    for family in args.families:
        command = [sys.executable, __file__, "--one", *sys.argv[1:], "--families", family]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=args.timeout)
        except subprocess.TimeoutExpired:
            lines.append(f"| {family} | failed: not done after {args.timeout:.0f} s | | | |")
            continue
        result = next((line[7:] for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
        if result is None:
            print(done.stdout[-2000:], done.stderr[-4000:], file=sys.stderr)
            lines.append(f"| {family} | failed: exit status {done.returncode} | | | |")
            continue
        print(result, flush=True)
        seen = json.loads(result)
        plan = planned(args, family, seen.get("gpu", "rtx4060"))
        lines += report(family, plan, seen, gpu=not args.tiny)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
