"""How long Mistral-7B takes to load in 4 bits, from a checkpoint of its shape with random weights.

Every loader has been imported, CUDA has been started, and the files are in the page cache: what is left is reading,
quantising and moving. transformers quantises the 16-bit checkpoint at every start. This application does at its first,
and stores the result with its hashes; later starts check those and read it.

    python scripts/bench/load.py                 # writes 14 GB to the temporary folder, about a minute
    python scripts/bench/load.py FOLDER          # a 16-bit Mistral that is there already
"""

import gc
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from apart import send, take


def seconds(load: Callable[[], Any], wait: Callable[[], None]) -> float:
    wait()
    begun = perf_counter()
    model = load()
    wait()
    taken = perf_counter() - begun
    del model
    gc.collect()
    return taken


def measure(folder: Path, cache: Path) -> list[dict[str, Any]]:
    import os

    import torch
    from random_checkpoint import write_checkpoint
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from app.families import get_family
    from app.model.load import load_base, pick_device

    if not (folder / "config.json").exists():
        write_checkpoint("mistral", folder)
    os.environ["APP_CACHE"] = str(cache)
    device = pick_device("auto")
    torch.zeros(1, device=device)
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip

    def theirs() -> Any:
        return AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=config, dtype=torch.bfloat16, device_map={"": device}
        )

    def ours() -> Any:
        return load_base(str(folder), get_family("mistral"), device=device, dtype=torch.bfloat16, trainable=True)

    starts = {"transformers, from 16 bits": theirs, "app, first start": ours, "app, later starts": ours}
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    return [{"what": what, "seconds": seconds(load, wait)} for what, load in starts.items()]


def load_table(rows: list[dict[str, Any]] | str) -> str:
    if isinstance(rows, str):
        return f"loading: {rows}"
    lines = ["| loading mistral in 4 bits | seconds |", "|---|---|"]
    return "\n".join(lines + [f"| {row['what']} | {row['seconds']:.1f} |" for row in rows])


def main() -> None:
    given = take()
    (named,) = (sys.argv[1:] if given is None else given) or [""]
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(Path(named or Path(scratch) / "model"), Path(scratch) / "cache")
    print(load_table(rows)) if given is None else send(rows)


if __name__ == "__main__":
    main()
