"""How fast and how small is an export? ``python scripts/bench/export.py --work FOLDER [--converter SCRIPT]``

Makes a random checkpoint of Mistral 7B's shape (``--layers`` fewer for a smaller disk) with a rank-16 adapter on all
linear layers, and measures, each in its own process: copying the checkpoint file by file (the disk's speed), `export
merged`, `export gguf --quant f16`, and, where its path is given, llama.cpp's convert_hf_to_gguf.py on the merged one.
Printed per step: seconds, bytes written per second, and the process's peak memory as the kernel counted it (ru_maxrss,
mapped pages of files included). Needs three times the checkpoint's size on disk; cleans up after itself.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

RANK = 16
SHARD = 5_000_000_000


def make_base(folder: Path, layers: int) -> None:
    """A sharded bfloat16 checkpoint with every weight random, written tensor by tensor."""
    import torch

    from app.export.weights import header_bytes, tensor_bytes
    from app.families import get_family
    from support.tiny_tokenizer import tiny_tokenizer

    family = get_family("mistral")
    config = {
        **family.config,
        "num_hidden_layers": layers,
        "architectures": ["MistralForCausalLM"],
        "dtype": "bfloat16",
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    tiny_tokenizer(family).save_pretrained(folder)
    noise = torch.randn(4096 * 14336 + 65536, generator=torch.Generator().manual_seed(42)).mul_(0.02).bfloat16()
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    for name, shape in shapes(config):
        size = sum(2 * torch.Size(entry[1]).numel() for entry in shards[-1])
        if size + 2 * torch.Size(shape).numel() > SHARD:
            shards.append([])
        shards[-1].append((name, shape))
    weight_map = {}
    for number, entries in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with (folder / file).open("wb") as out:
            out.write(header_bytes([(name, torch.bfloat16, shape) for name, shape in entries], {"format": "pt"}))
            for index, (name, shape) in enumerate(entries):
                weight_map[name] = file
                left, start = torch.Size(shape).numel(), 97 * index
                while left:
                    piece = noise[start : start + left]
                    out.write(tensor_bytes(piece))
                    left, start = left - len(piece), 0
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def shapes(config: dict[str, object]) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Mistral checkpoint's tensors."""
    width, inner, vocabulary = (int(str(config[key])) for key in ("hidden_size", "intermediate_size", "vocab_size"))
    key_value = width * int(str(config["num_key_value_heads"])) // int(str(config["num_attention_heads"]))
    found: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (vocabulary, width))]
    for layer in range(int(str(config["num_hidden_layers"]))):
        block = f"model.layers.{layer}."
        found += [(f"{block}self_attn.{part}_proj.weight", (width, width)) for part in "qo"]
        found += [(f"{block}self_attn.{part}_proj.weight", (key_value, width)) for part in "kv"]
        found += [(f"{block}mlp.{part}_proj.weight", (inner, width)) for part in ("gate", "up")]
        found += [(f"{block}mlp.down_proj.weight", (width, inner))]
        found += [(f"{block}{part}_layernorm.weight", (width,)) for part in ("input", "post_attention")]
    return [*found, ("model.norm.weight", (width,)), ("lm_head.weight", (vocabulary, width))]


def make_run(run: Path, base: Path) -> None:
    """A run directory whose adapter changes every linear layer."""
    import torch
    from safetensors.torch import save_file

    from app.artifact import BaseModel, DataFingerprint, Manifest, RunDirectory
    from app.data.tokenize import golden_encoding, load_tokenizer
    from app.families import get_family

    family = get_family("mistral")
    directory = RunDirectory(run)
    directory.adapter.mkdir(parents=True)
    tensors = {}
    for name, shape in shapes(json.loads((base / "config.json").read_text())):
        if "_proj" in name:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(RANK, shape[1]) * 0.01
            tensors[f"{module}.lora_B.weight"] = torch.randn(shape[0], RANK) * 0.01
    save_file(tensors, directory.adapter / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 32,
        "bias": "none",
        "target_modules": list(family.lora_targets),
    }
    (directory.adapter / "adapter_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(str(base), family)
    directory.write_manifest(
        Manifest(
            status="finished",
            base=BaseModel(
                id=str(base),
                revision=None,
                family="mistral",
                model_type="mistral",
                quantization="nf4",
                double_quant=True,
                dtype="bfloat16",
            ),
            golden=golden_encoding(tokenizer, family),
            data=DataFingerprint(source="random", sha256={}, samples={}),
            max_length=2048,
            seed=42,
            config={},
            versions={},
            git_commit=None,
            created="2026-11-22T00:00:00Z",
            app_version="0",
        )
    )


def measure(title: str, command: list[str], written: Path) -> None:
    """Runs a command and prints its time, its writing speed and its peak memory."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    errors = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status) != 0:
        print(f"{title}: failed\n{errors[-2000:]}")
        return
    files = [written] if written.is_file() else [file for file in written.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    print(
        f"{title:<34} {seconds:7.1f} s  {size / 1e9:6.2f} GB written  {size / 1e6 / seconds:6.0f} MB/s  "
        f"{usage.ru_utime + usage.ru_stime:6.1f} CPU s  peak {usage.ru_maxrss * 1024 / 1e9:5.2f} GB",
        flush=True,
    )


COPY = """
import os, shutil, sys
from pathlib import Path
source, target = map(Path, sys.argv[1:])
target.mkdir(parents=True)
for file in source.iterdir():
    with file.open("rb") as read, (target / file.name).open("wb") as write:
        shutil.copyfileobj(read, write, 1 << 24)
        write.flush()
        os.fsync(write.fileno())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="an empty or new folder on the disk to measure")
    parser.add_argument("--layers", type=int, default=32, help="32 is Mistral 7B: 14.5 GB a copy")
    parser.add_argument("--converter", type=Path, help="llama.cpp's convert_hf_to_gguf.py, to compare with")
    parser.add_argument("--keep", action="store_true", help="leave the files in --work")
    options = parser.parse_args()
    work: Path = options.work
    base, run = work / "base", work / "run"
    try:
        make_base(base, options.layers)
        make_run(run, base)
        python = sys.executable
        measure("copy of the base (disk's speed)", [python, "-c", COPY, str(base), str(work / "copy")], work / "copy")
        shutil.rmtree(work / "copy")
        export = [python, "-m", "app", "export"]
        common = ["--run", str(run), "--verify", "false"]
        merged, gguf = work / "merged", work / "gguf"
        measure("export gguf --quant f16", [*export, "gguf", *common, "--output", str(gguf)], gguf)
        shutil.rmtree(gguf, ignore_errors=True)
        measure("export merged", [*export, "merged", *common, "--output", str(merged)], merged)
        if options.converter:
            other = work / "converter.gguf"
            command = [python, str(options.converter), str(merged), "--outtype", "f16", "--outfile", str(other)]
            measure("convert_hf_to_gguf.py (merged->f16)", command, other)
    finally:
        if not options.keep:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
