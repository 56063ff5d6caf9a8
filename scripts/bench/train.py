"""Training speed and memory of this application and its peers, on the same work, in one table.

Each system runs in a process of its own on the model shape named, with random weights (speed and memory do not depend
on their values): NF4 with double quantisation, LoRA on all linear layers, AdamW, every position trained. Memory is what
NVML (nvidia-smi) reads for the card at its highest during the training steps.

    python scripts/bench/train.py                                  # the whole table
    python scripts/bench/train.py --systems fp8 bf16 --batches 1   # some of it
"""

import argparse
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from operator import sub
from pathlib import Path
from typing import Any

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": (
        "MistralConfig",
        {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "sliding_window": None,
         "max_position_embeddings": 32768, "rope_theta": 1e6},
    ),
    "llama3": (
        "LlamaConfig",
        {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192, "rope_theta": 5e5},
    ),
    "gemma": (
        "GemmaConfig",
        {"vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
         "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256, "max_position_embeddings": 8192},
    ),
    "phi3": (
        "Phi3Config",
        {"vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
         "sliding_window": 2047, "pad_token_id": 0},
    ),
    "tiny": (
        "MistralConfig",
        {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": None},
    ),
}  # fmt: skip
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj"]
SYSTEMS = {"plain": "peft", "unsloth": "unsloth", "bf16": "triton", "fp8": "triton"}
"""System -> the package it needs."""


def build_base(shape: str, device: str) -> Any:
    """A model of that shape with random weights, its linear layers in NF4, made layer by layer on the device."""
    import bitsandbytes as bnb
    import torch
    import transformers

    name, values = SHAPES[shape]
    config = getattr(transformers, name)(**values)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    for path, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and "lm_head" not in path:
            linear = bnb.nn.Linear4bit(
                module.in_features, module.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4",
                compress_statistics=True, device="meta",
            )  # fmt: skip
            weight = torch.randn(module.out_features, module.in_features, dtype=torch.bfloat16, device=device) * 0.02
            linear.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4").to(device)
            linear.weight.module = linear
            linear.quant_state = linear.weight.quant_state
            model.set_submodule(path, linear)
    for module in model.modules():
        for key, value in list(module._parameters.items()):
            if value is not None and value.is_meta:
                made = torch.ones if value.dim() == 1 else torch.randn
                filled = made(value.shape, dtype=value.dtype, device=device) * (1.0 if value.dim() == 1 else 0.02)
                module._parameters[key] = torch.nn.Parameter(filled, requires_grad=False)
        if hasattr(module, "scalar_embed_scale"):
            module.embed_scale = torch.tensor(module.scalar_embed_scale, device=device)
    decoder = model.get_decoder()
    decoder.rotary_emb = type(decoder.rotary_emb)(config=config).to(device)
    model.tie_weights()
    return model.requires_grad_(False)


def add_adapters(model: Any, rank: int) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model

    names = {path.rsplit(".", 1)[-1] for path, _ in model.named_modules()} & set(TARGETS)
    adapted = get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=sorted(names), task_type="CAUSAL_LM")
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    return adapted.train()


class MemoryWatch(threading.Thread):
    """The card's used memory at its highest, as NVML reads it, sampled every 2 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        import pynvml

        pynvml.nvmlInit()
        self._read = lambda: pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used
        self._done = threading.Event()
        self.peak = 0

    def run(self) -> None:
        while not self._done.wait(0.002):
            self.peak = max(self.peak, self._read())

    def stop(self) -> float:
        """The peak in MiB."""
        self._done.set()
        self.join()
        return max(self.peak, self._read()) / 2**20


def run_one(args: argparse.Namespace) -> dict[str, Any]:
    """Measures one system; the result goes to the caller as a JSON line."""
    import torch

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    started = time.perf_counter()
    note = ""
    if args.system == "unsloth":
        from unsloth import FastLanguageModel

        model, _ = FastLanguageModel.from_pretrained(
            args.checkpoint, max_seq_length=args.length, dtype=torch.bfloat16, load_in_4bit=True
        )
        model = FastLanguageModel.get_peft_model(
            model, r=args.rank, lora_alpha=2 * args.rank, lora_dropout=0, bias="none",
            target_modules=TARGETS[:7], use_gradient_checkpointing="unsloth",
        )  # fmt: skip
        FastLanguageModel.for_training(model)
    else:
        model = add_adapters(build_base(args.shape, device), args.rank)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    vocabulary = model.get_base_model().config.vocab_size
    ids = torch.randint(1, vocabulary, (args.batch, args.length), device=device)
    if args.system in ("plain", "unsloth"):
        if args.system == "plain":
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()

        def step() -> Any:
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            return loss.detach()
    else:
        step, note = fast_step(model, parameters, ids, args)
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = -sub(*torch.cuda.mem_get_info()) if device == "cuda" else 0
    loaded = time.perf_counter() - started
    watch = MemoryWatch() if device == "cuda" else None
    if watch:
        watch.start()
    times = []
    for _ in range(args.warmup + args.steps):
        if device == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        loss = step()
        optimizer.step()
        optimizer.zero_grad(set_to_none=args.system in ("plain", "unsloth"))
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    measured = sorted(times[args.warmup :])
    seconds = measured[len(measured) // 2]
    peak = watch.stop() if watch else 0.0
    if args.profile:
        profile(step, args.profile)
    return {
        "system": args.system, "shape": args.shape, "batch": args.batch, "length": args.length,
        "tokens_per_second": args.batch * args.length / seconds, "step_ms": seconds * 1e3,
        "spread_ms": (measured[-1] - measured[0]) * 1e3, "first_steps_s": sum(times[: args.warmup]),
        "peak_mib": peak, "allocated_mib": torch.cuda.max_memory_allocated() / 2**20,
        "reserved_mib": torch.cuda.memory_reserved() / 2**20, "before_mib": before / 2**20,
        "loss": float(loss), "setup_s": loaded, "note": note,
    }  # fmt: skip


def fast_step(model: Any, parameters: list[Any], ids: Any, args: argparse.Namespace) -> tuple[Any, str]:
    """This application's step: fast layers, memory plan by budget, the whole pass as one CUDA graph."""
    import torch

    from app.kernels.linear_cross_entropy import linear_cross_entropy
    from app.model.accelerate import accelerate
    from app.model.budget import fit_to_budget, offload_embeddings
    from app.model.memory_plan import describe_plans
    from app.model.step_graph import StepGraph

    acceleration = accelerate(model, args.system)
    assert acceleration is not None
    if not args.keep_embeddings:
        offload_embeddings(model)
    base = model.get_base_model()

    def loss(input_ids: Any) -> Any:
        states = base.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state
        targets = torch.nn.functional.pad(input_ids[:, 1:], (0, 1), value=-100).flatten()
        total = linear_cross_entropy(states.flatten(0, 1), base.get_output_embeddings().weight, targets)
        return total / (input_ids.shape[0] * (input_ids.shape[1] - 1))

    graph = StepGraph(loss, parameters)
    plans = fit_to_budget(
        acceleration, parameters, rows=args.batch, length=args.length, budget=args.budget * 2**20,
        state_bytes=sum(8 * p.numel() for p in parameters), device=ids.device,
        offload=not args.no_offload,
    )  # fmt: skip
    run = (lambda: graph({"input_ids": ids})) if not args.eager else (lambda: _eager(loss, ids))
    return run, describe_plans(plans)


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


def save_checkpoint(shape: str, folder: Path, tokenizer: str) -> None:
    """The random model as a 4-bit checkpoint, for systems that only load from disk."""
    import shutil

    from safetensors.torch import save_file
    from transformers import BitsAndBytesConfig

    model = build_base(shape, "cuda")
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    config["architectures"] = [type(model).__name__]
    config["quantization_config"] = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="bfloat16"
    ).to_dict()
    (folder / "config.json").write_text(json.dumps(config))
    for file in Path(tokenizer).glob("*"):
        if file.name.startswith(("tokenizer", "special", "vocab", "merges")):
            shutil.copy(file, folder)


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


def run_apart(arguments: list[str], timeout: float) -> dict[str, Any]:
    """One system in its own process."""
    command = [sys.executable, __file__, "--one", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=os.environ)
    except subprocess.TimeoutExpired:
        return {"skipped": f"took over {timeout:.0f} s"}
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("RESULT "):
            return dict(json.loads(line[7:]))
    print(done.stdout[-1500:], done.stderr[-3000:], file=sys.stderr)
    return {"skipped": "failed: " + (done.stderr.strip().splitlines() or ["no output"])[-1][:120]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--shapes", nargs="+", default=["mistral"], choices=SHAPES)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--length", type=int, default=2048, help="tokens of a row")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--budget", type=int, default=7150, help="MiB of GPU memory for this application")
    parser.add_argument("--no-offload", action="store_true", help="leave nothing in CPU memory")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=4)
    parser.add_argument("--timeout", type=float, default=240.0, help="seconds for one system")
    parser.add_argument("--eager", action="store_true", help="no CUDA graph")
    parser.add_argument("--keep-embeddings", action="store_true", help="leave the input embeddings on the GPU")
    parser.add_argument("--profile", type=int, default=0, help="rows of the profiler's table")
    parser.add_argument("--tokenizer", default="models/SmolLM2-135M-Instruct", help="any tokenizer, for peers")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        args.system, args.shape, args.batch = args.systems[0], args.shapes[0], args.batches[0]
        print("RESULT " + json.dumps(run_one(args)))
        return
    results = []
    passed = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in
              ("length", "rank", "budget", "steps", "warmup", "profile")]  # fmt: skip
    passed += [f"--{name.replace('_', '-')}" for name in ("eager", "keep_embeddings", "no_offload") if getattr(args, name)]
    with contextlib.ExitStack() as stack:
        for shape in args.shapes:
            checkpoint = None
            for system in args.systems:
                missing = importlib.util.find_spec(SYSTEMS[system]) is None
                for batch in args.batches:
                    row = {"system": system, "shape": shape, "batch": batch, "length": args.length}
                    if missing:
                        results.append(row | {"skipped": f"{SYSTEMS[system]} is not installed"})
                        continue
                    extra = ["--systems", system, "--shapes", shape, "--batches", str(batch), *passed]
                    if system == "unsloth":
                        if checkpoint is None:
                            checkpoint = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                            save_checkpoint(shape, checkpoint, args.tokenizer)
                        extra += ["--checkpoint", str(checkpoint)]
                    results.append(row | run_apart(extra, args.timeout))
                    print(json.dumps(results[-1]), flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
