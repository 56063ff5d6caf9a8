"""The tuned model as a Hugging Face folder: base plus adapter in 16 bits, written shard by shard."""

import json
from collections.abc import Iterator
from functools import partial
from math import prod
from pathlib import Path

import torch

from app.artifact import write_atomic
from app.card import model_card
from app.errors import ConfigError
from app.export.target import Advance, Blob, discard, partial_path, publish, write_blobs
from app.export.tuned import TunedModel, require_room, working_memory
from app.export.weights import NAMES, header_bytes, tensor_bytes

FLOATS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def pick_type(dtype: str, tuned: TunedModel) -> torch.dtype:
    """The type to store weights in; "auto" is the base checkpoint's.

    Raises:
        ConfigError: no float type; for 4 and 8 bits with the reason.
    """
    if dtype == "auto":
        return tuned.dtype
    if dtype in FLOATS:
        return FLOATS[dtype]
    few_bits = any(sign in dtype.lower() for sign in ("4", "8", "nf", "int"))
    reason = (
        ": rounding base plus adapter to 4 bits again lost 95 % of what had been learnt, because the adapter's changes "
        "are smaller than the steps between 4-bit values"
        if few_bits
        else ""
    )
    raise ConfigError(
        f"a merged model cannot be stored as {dtype!r}{reason}",
        where="--dtype",
        remedy=f"use auto, {', '.join(FLOATS)}; for a small file `export gguf --quant q4_k_m`, which is checked",
    )


def write_merged(tuned: TunedModel, target: Path, *, dtype: torch.dtype, shard_bytes: int, advance: Advance) -> Path:
    """Writes the folder beside its target (see `target.publish_folder`) and returns its path; continues a stopped one.

    Args:
        tuned: what to write.
        target: the folder it will become.
        dtype: of the stored weights.
        shard_bytes: at most so many bytes of weights in a file.
        advance: is told of bytes as they are done.

    Raises:
        MachineError: too little disk or memory.
    """
    work = partial_path(target)
    shards = list(_shards(tuned, dtype, shard_bytes))
    fingerprint = tuned.fingerprint(dtype=NAMES[dtype], shard_bytes=shard_bytes)
    note = work.with_name(work.name + ".json")
    if not note.is_file() or json.loads(note.read_text(encoding="utf-8")) != fingerprint:
        discard(target)
    names = [_shard_name(index, len(shards)) for index in range(len(shards))]
    written = sum(file.stat().st_size for file in work.iterdir()) if work.is_dir() else 0
    total = merged_bytes(tuned, dtype)
    require_room(target.parent, disk=total - written, memory=working_memory(tuned))
    work.mkdir(parents=True, exist_ok=True)
    write_atomic(note, json.dumps(fingerprint))
    for name, tensors in zip(names, shards, strict=True):
        file = work / name
        entries = [(tensor, dtype, tuned.places[tensor].shape) for tensor in tensors]
        blobs = [
            Blob(
                nbytes=len(rows) * tuned.places[tensor].columns * dtype.itemsize,
                produce=partial(_produce, tuned, tensor, rows, dtype),
            )
            for tensor in tensors
            for rows in tuned.blocks(tensor)
        ]
        if file.is_file():
            advance(sum(blob.nbytes for blob in blobs))
            continue
        write_blobs(file, header_bytes(entries, {"format": "pt"}), blobs, fingerprint=fingerprint, advance=advance)
        publish(file)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": total},
            "weight_map": {tensor: name for name, tensors in zip(names, shards, strict=True) for tensor in tensors},
        }
        (work / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    _write_rest(tuned, work, dtype)
    return work


def merged_bytes(tuned: TunedModel, dtype: torch.dtype) -> int:
    """Bytes of all weights in ``dtype``."""
    return tuned.parameters * dtype.itemsize


def _produce(tuned: TunedModel, name: str, rows: range, dtype: torch.dtype) -> memoryview:
    return tensor_bytes(tuned.weight(name, rows).to(dtype))


def _shards(tuned: TunedModel, dtype: torch.dtype, shard_bytes: int) -> Iterator[list[str]]:
    """Names of the tensors of each file, in the base's order."""
    shard: list[str] = []
    size = 0
    for name, place in tuned.places.items():
        nbytes = prod(place.shape) * dtype.itemsize
        if shard and size + nbytes > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(name)
        size += nbytes
    yield shard


def _shard_name(index: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def _write_rest(tuned: TunedModel, folder: Path, dtype: torch.dtype) -> None:
    """Configuration, tokenizer with chat template, generation defaults that stop where training did, model card."""
    from transformers import GenerationConfig

    config = type(tuned.config).from_dict({**tuned.config.to_dict(), "dtype": str(dtype).removeprefix("torch.")})
    config.architectures = tuned.config.architectures
    config.save_pretrained(folder)
    tuned.tokenizer.save_pretrained(folder)
    stops = tuned.tokenizer.convert_tokens_to_ids(list(tuned.family.stop_tokens))
    bos = tuned.tokenizer.bos_token_id
    generation = GenerationConfig(eos_token_id=stops, pad_token_id=tuned.tokenizer.pad_token_id, bos_token_id=bos)
    generation.save_pretrained(folder)
    card = model_card(tuned.run, tuned.manifest, tuned.adapter.config, kind="merged", exact=tuned.exact)
    (folder / "README.md").write_text(card, encoding="utf-8")
