"""Generation of a 7B shape on one GPU beside its peers: every system in its own process, one table.

    python scripts/bench/generate.py --table                                # Mistral's shape, about two minutes
    python scripts/bench/generate.py --table --unsloth-path FOLDER

Random weights in NF4 with double quantisation and a random adapter of rank 16 on all linear layers: speed does not
depend on their values. Greedy, 128 tokens of prompt, stop tokens ignored. The processes load side by side and measure
one after the other. Peers write fewer tokens, since they are slow: their speed does not depend on how many.
"""

import argparse
import fcntl
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from shapes import TARGETS, add_adapters, build_base, word_tokenizer

PROMPT, NEW, PEER_NEW, LONG, BATCH = 128, 256, 48, 2048, 16
SYSTEMS = {
    "app": "this application",
    "transformers": "transformers generate + peft",
    "batching": "transformers continuous batching + peft",
    "unsloth": "Unsloth for_inference",
}
# An RTX 4060 laptop's memory, from its data sheet, bytes a second.
LAPTOP = 256e9


def run_table(args: argparse.Namespace) -> None:
    """Starts the systems, waits for them and prints the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "lock").touch()
        started = {system: start(system, folder, args) for system in SYSTEMS if system in args.systems}
        results = {}
        for system, process in started.items():
            out, _ = process.communicate(timeout=args.timeout)
            lines = [line for line in out.splitlines() if line.startswith("{")]
            results[system] = json.loads(lines[-1]) if lines else {"failed": out.strip().splitlines()[-1:]}
            print(system, results[system], flush=True)
    print(table(results))


def start(system: str, folder: Path, args: argparse.Namespace) -> "subprocess.Popen[str]":
    extra = [args.unsloth_path] if system == "unsloth" and args.unsloth_path else []
    path = os.pathsep.join([*extra, os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, __file__, "--system", system, "--shape", args.shape, "--folder", str(folder)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=sys.stderr, text=True, env={**os.environ, "PYTHONPATH": path}
    )


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown; a dash is what a system does not do or did not finish."""
    kinds = {
        "one": "batch 1, tokens/s",
        "seconds": f"{NEW} tokens, seconds with the prompt",
        "many": f"{BATCH} concurrent, tokens/s",
        "read": f"prompt of {LONG}, ms",
    }
    lines = ["", "| system | " + " | ".join(kinds.values()) + " |", "|---" * (len(kinds) + 1) + "|"]
    for system, result in results.items():
        cells = [f"{result[kind]:,.2f}" if kind in result else "–" for kind in kinds]
        lines.append(f"| {SYSTEMS[system]} | " + " | ".join(cells) + " |")
    if "bytes" in results.get("app", {}):
        lines += ["", projection(results["app"])]
    return "\n".join(lines)


def projection(ours: dict[str, float]) -> str:
    """What the measured step says of an RTX 4060 laptop: an estimate, not a measurement.

    There the weights take 12 times as long to read. What does not shrink with bandwidth (launches, the small kernels'
    latencies) is taken as it was measured here: the step minus the time its products took at this card's rate.
    """
    limit = LAPTOP / ours["bytes"]
    fixed = max(ours["step"] - ours["products"], 0.0)
    step = ours["bytes"] / (LAPTOP * 0.92) + fixed
    tokens = 1 / step
    return (
        f"RTX 4060 laptop, projected: {ours['bytes'] / 1e9:.2f} GB a token at 256 GB/s allow {limit:.1f} tokens/s; "
        f"with 92 % of the bandwidth and {fixed * 1e3:.2f} ms beside the products {tokens:.1f} ({tokens / limit:.0%} "
        f"of the limit). {NEW} tokens in under 3 s need {NEW / 3 / tokens:.2f} tokens a step."
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--system", required=True)
    parser.add_argument("--shape", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    measured = {"app": measure_app, "transformers": measure_transformers, "batching": measure_batching,
                "unsloth": measure_unsloth}[args.system]  # fmt: skip
    print(json.dumps(measured(args)), flush=True)


def alone(folder: Path) -> Any:
    """Waits until no other process measures; the lock goes with the process."""
    lock = (folder / "lock").open()
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def prompts(count: int, length: int) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(1000, 8000) for _ in range(length)] for _ in range(count)]


def best(run: Callable[[], Any], rounds: int = 3) -> float:
    """Seconds of the fastest round."""
    import torch

    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return min(times)


def measure_app(args: argparse.Namespace) -> dict[str, float]:
    import torch

    from app.families import get_family
    from app.generate.engine import Engine
    from app.generate.sampling import Sampling
    from app.generate.session import Session

    model = add_adapters(build_base(args.shape, "cuda"), 16).eval()
    family = get_family(args.shape)
    session = Session(model=model, tokenizer=word_tokenizer(model.config.vocab_size), family=family, manifest=None)
    lock = alone(args.folder)
    options = Sampling(max_tokens=NEW, ignore_stop=True)
    one = Engine(session, slots=1, context=LONG + NEW)
    many = Engine(session, slots=BATCH, context=PROMPT + NEW + 1)
    answers = [one.generate(prompts(1, PROMPT), options)[0] for _ in range(4)]
    many.generate(prompts(BATCH, PROMPT), options)
    seconds = best(lambda: one.generate(prompts(1, PROMPT), options))
    batch = best(lambda: many.generate(prompts(BATCH, PROMPT), options))
    one.generate(prompts(1, LONG), Sampling(max_tokens=1))
    read = best(lambda: one.generate(prompts(1, LONG), Sampling(max_tokens=1)))
    step, weights = step_and_weights(model)
    sizes = [w.a.nbytes + w.b.nbytes + sum(m.packed.nbytes + m.absmax.nbytes for m in w.weights) for w in weights]
    products = time_products(weights)
    head = model.get_output_embeddings().weight.nbytes
    del lock
    return {
        "one": max(answer.tokens_per_second for answer in answers),
        "seconds": seconds,
        "many": BATCH * NEW / batch,
        "read": read * 1e3,
        "bytes": float(sum(sizes) + head),
        "step": step,
        "products": products + head / 2.6e12,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30,
    }


def step_and_weights(model: Any) -> tuple[float, list[Any]]:
    """Seconds of a step of one row, as the engine takes it, and the weights it reads."""
    import torch

    from app.generate.cache import SlotCache
    from app.generate.decoder import Decoder
    from app.generate.sampling import Sampling
    from app.generate.steps import Steps

    device = torch.device("cuda")
    config = model.get_base_model().config
    cache = SlotCache(config, slots=1, context=PROMPT + NEW, dtype=torch.bfloat16, device=device)
    with torch.inference_mode():
        decoder = Decoder(model.get_base_model(), cache)
        decoder.use(("default",))
    steps = Steps(decoder, slots=1, device=device)

    def write() -> None:
        for _ in range(50):
            steps.write([(1, 0, PROMPT + NEW // 2)], [Sampling()], [0.0], keep_scores=False)

    write()
    return best(write) / 50, decoder.weights


def time_products(linears: list[Any]) -> float:
    """Seconds of one row's products with all weights, in a CUDA graph as in a step."""
    import torch

    from app.kernels.nf4_gemv import split_product

    out = torch.empty(max(w.splits * w.width for w in linears), device="cuda")
    inputs = {w.a.shape[1]: torch.randn(1, w.a.shape[1], device="cuda", dtype=w.a.dtype) for w in linears}

    def run() -> None:
        for weights in linears:
            split_product(inputs[weights.a.shape[1]], weights, out)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return best(graph.replay, 5)


def measure_transformers(args: argparse.Namespace) -> dict[str, float]:
    model = add_adapters(build_base(args.shape, "cuda"), 16).eval()
    return measure_generate(model, args)


def measure_generate(model: Any, args: argparse.Namespace) -> dict[str, float]:
    """One request, and a long prompt, by `generate`."""
    import torch

    ids, long = (torch.tensor(prompts(1, length), device="cuda") for length in (PROMPT, LONG))

    def write(ids: Any, tokens: int) -> None:
        with torch.inference_mode():
            model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), min_new_tokens=tokens, max_new_tokens=tokens,
                do_sample=False, pad_token_id=0,
            )  # fmt: skip

    write(ids, 4)
    lock = alone(args.folder)
    first = best(lambda: write(ids, 1), 2)
    seconds = best(lambda: write(ids, PEER_NEW), 1)
    write(long, 1)
    read = best(lambda: write(long, 1))
    del lock
    rate = (PEER_NEW - 1) / (seconds - first)
    return {"one": rate, "seconds": first + (NEW - 1) / rate, "read": read * 1e3}


def measure_batching(args: argparse.Namespace) -> dict[str, float]:
    import torch
    from transformers import GenerationConfig

    model = add_adapters(build_base(args.shape, "cuda"), 16).eval().get_base_model()
    lock = alone(args.folder)
    # Its end-of-sequence id lies outside the vocabulary, so that all write as many.
    config = GenerationConfig(max_new_tokens=PEER_NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)

    def write(count: int) -> float:
        with torch.no_grad():  # its thread writes to what this one made, which inference mode forbids
            begun = time.time()
            answers = model.generate_batch(
                prompts(count, PROMPT), generation_config=config, record_timestamps=True
            ).values()
        assert all(len(answer.generated_tokens) == PEER_NEW for answer in answers)
        stamps = [stamp for answer in answers for stamp in answer.timestamps]
        # From the first token to the last: capturing its graphs and reading the prompts are left out.
        return (
            (len(stamps) - count) / (max(stamps) - min(stamps)) if stamps else count * PEER_NEW / (time.time() - begun)
        )

    result = {"one": write(1), "many": write(BATCH)}
    del lock
    return result


def measure_unsloth(args: argparse.Namespace) -> dict[str, float]:
    if PathFinder.find_spec("unsloth") is None:
        return {}
    folder = args.folder / "checkpoint"
    folder.mkdir()
    # Made by a process of its own: this one must hold nothing of the GPU.
    subprocess.run(
        [sys.executable, "-c", "import sys; sys.path[0] = sys.argv[1]; from pathlib import Path; from shapes import "
         "save_checkpoint; save_checkpoint(sys.argv[2], Path(sys.argv[3]))", Path(__file__).parent, args.shape, folder],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    import torch
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(
        str(folder), max_seq_length=LONG + NEW, dtype=torch.bfloat16, load_in_4bit=True
    )
    model = FastLanguageModel.get_peft_model(
        model, r=16, lora_alpha=32, lora_dropout=0, bias="none", target_modules=TARGETS[:7]
    )
    FastLanguageModel.for_inference(model)
    return measure_generate(model, args)


if __name__ == "__main__":
    main()
