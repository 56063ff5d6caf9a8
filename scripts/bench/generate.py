"""Speed of the generation engine beside transformers' own generate, in one run on one model.

    python scripts/bench/generate.py --base models/SmolLM2-135M-Instruct --family smollm2
    python scripts/bench/generate.py --run runs/mistral --prompt 128 --new 256 --long 2048
    python scripts/bench/generate.py --table      # a 7B shape on a GPU, with more peers: generate_table.py

Every system works on the same loaded model: NF4, with the run's adapter or a random one of rank 16. Greedy, stop
tokens ignored, so that all write the same number of tokens. The systems take turns and each figure is the best of
``--rounds``. On a CPU it counts processor seconds, which other programs disturb less than the clock, divided by
threads; on a GPU, seconds of the clock. Outputs are compared too: in bfloat16 a batch's shape decides between near
ties, so that some texts part ways.
"""

import argparse
import dataclasses
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from generate_table import SYSTEMS, run_table

from app.data.records import prompt
from app.data.tokenize import encode
from app.generate.engine import Engine
from app.generate.sampling import Sampling
from app.generate.session import Session, open_base, open_run

Texts = list[list[int]]
System = Callable[[Texts, list[int]], Texts]
"""Prompts and how many tokens to write after each -> what was written."""

SOURCE = (
    "The cache holds one slot for every request. A request that joins takes the first free slot, and when one leaves, "
    "the last slot moves into its place. Prompts are read in chunks of 512 tokens between the tokens of the others."
)


def main() -> None:
    arguments = parse()
    run_table(arguments) if arguments.table else compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Every workload on one loaded model."""
    session = with_adapter(open_run(arguments.run) if arguments.run else open_base(arguments.base, arguments.family))
    device = next(session.model.parameters()).device
    systems = {
        "app": ours(session, speculate=False, slots=arguments.batch),
        "app, drafting": ours(session, speculate=True, slots=arguments.batch),
        "transformers, sdpa": partial(theirs, session, "sdpa", arguments.batch, {}),
        "transformers, eager": partial(theirs, session, "eager", arguments.batch, {}),
        "transformers, prompt lookup": partial(theirs, session, "sdpa", 1, {"prompt_lookup_num_tokens": 10}),
    }
    alone, batch, pairs = [*list(systems)[:4]], [*list(systems)[:4]], list(systems)
    rng = random.Random(0)

    def ids(length: int) -> list[int]:
        return [rng.randrange(1000, 8000) for _ in range(length)]

    def question(text: str) -> list[int]:
        return encode(prompt(text), session.tokenizer, session.family, answer_next=True).input_ids

    size, new = arguments.prompt, arguments.new
    lengths = [rng.randrange(size // 8, size) for _ in range(3 * arguments.batch)]
    wanted = [rng.randrange(new // 8, new) for _ in lengths]
    workloads: list[tuple[str, list[str], Texts, list[int]]] = [
        (f"1 request: {size} + {new}", alone, [ids(size)], [new]),
        (
            f"{arguments.batch} requests: {size} + {new}",
            batch,
            [ids(size) for _ in range(arguments.batch)],
            [new] * arguments.batch,
        ),
        (f"{len(lengths)} requests of mixed lengths", batch, [ids(n) for n in lengths], wanted),
        (
            f"reading a prompt of {arguments.long}",
            ["app", "transformers, sdpa", "transformers, eager"],
            [ids(arguments.long)],
            [1],
        ),
        (
            f"quoting a source: {new}",
            pairs,
            [question(f"Repeat this text three times, word for word:\n{SOURCE}")],
            [new],
        ),
        (f"free text: {new}", pairs, [question("Tell a story about a fisherman and the sea.")], [new]),
    ]
    print(f"{session.family.title} on {device.type}, {torch.get_num_threads()} threads; ratios to transformers, sdpa")
    for name, which, prompts, counts in workloads:
        if arguments.only not in name:
            continue
        measured = measure({key: systems[key] for key in which}, prompts, counts, arguments.rounds, device)
        tokens = sum(map(len, prompts)) if counts == [1] else sum(counts)
        peer = measured["transformers, sdpa"]
        print(f"\n{name:<34}{'tokens/s':>10}{'ratio':>8}{'same texts':>12}")
        for key, (seconds, texts) in measured.items():
            same = sum(mine == other for mine, other in zip(texts, peer[1], strict=True))
            print(f"  {key:<32}{tokens / seconds:>10.1f}{peer[0] / seconds:>8.2f}{same:>9}/{len(texts)}", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--base", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--family", default="smollm2")
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--new", type=int, default=64, help="tokens")
    parser.add_argument("--long", type=int, default=1024, help="tokens of the prompt that is only read")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="the table of generate_table.py; the rest is its own")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--shape", default="mistral")
    parser.add_argument(
        "--unsloth-path", default="", help="folder with Unsloth, if it is not installed beside the rest"
    )
    parser.add_argument("--timeout", type=int, default=600, help="seconds")
    parser.add_argument("--only", default="", help="only workloads whose name holds this")
    return parser.parse_args()


def with_adapter(session: Session) -> Session:
    """The session with a random adapter if it has none: an adapter is what costs time, not what it learnt."""
    if session.manifest is not None:
        return session
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=list(session.family.lora_targets))
    return dataclasses.replace(session, model=get_peft_model(session.model, lora).eval())


def ours(session: Session, *, speculate: bool, slots: int) -> System:
    engine = Engine(session, slots=slots, context=4096, speculate=speculate)

    def run(prompts: Texts, counts: list[int]) -> Texts:
        attention(session, "auto")
        options = [Sampling(max_tokens=count, ignore_stop=True) for count in counts]
        return [list(answer.token_ids) for answer in engine.generate(prompts, options)]

    return run


def theirs(
    session: Session, kind: str, batch: int, options: dict[str, int], prompts: Texts, counts: list[int]
) -> Texts:
    """transformers' generate, in left-padded batches, each as long as its longest answer."""
    attention(session, kind)
    pad = session.tokenizer.pad_token_id
    texts: Texts = []
    for start in range(0, len(prompts), batch):
        part, wanted = prompts[start : start + batch], counts[start : start + batch]
        width = max(map(len, part))
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in part], device=session.model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in part], device=session.model.device)
        with torch.inference_mode():
            out = session.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max(wanted),
                min_new_tokens=max(wanted),
                do_sample=False,
                pad_token_id=pad,
                **options,
            )
        texts += [row[:count] for row, count in zip(out[:, width:].tolist(), wanted, strict=True)]
    return texts


def attention(session: Session, kind: str) -> None:
    """Chooses transformers' attention; "auto" is the one the application loads models with."""
    if kind == "auto":
        kind = "sdpa" if session.model.device.type == "cuda" else "eager"
    session.model.get_base_model().set_attn_implementation(kind)


def measure(
    systems: dict[str, System], prompts: Texts, counts: list[int], rounds: int, device: torch.device
) -> dict[str, tuple[float, Texts]]:
    """Best seconds, and the texts, of each system; they take turns, so that a slow minute hits all."""
    best = dict.fromkeys(systems, float("inf"))
    texts: dict[str, Texts] = {}
    for system in systems.values():
        system(prompts[:1], [2])
    for _ in range(rounds):
        for name, system in systems.items():
            start = now(device)
            texts[name] = system(prompts, counts)
            best[name] = min(best[name], now(device) - start)
    return {name: (best[name], texts[name]) for name in systems}


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time() / torch.get_num_threads()


if __name__ == "__main__":
    main()
