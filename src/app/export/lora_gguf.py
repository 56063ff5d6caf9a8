"""The adapter alone as a GGUF file, to be put on any GGUF of the same base."""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from app.card import provenance
from app.errors import RunError, several
from app.export.adapter import Update, same_scale
from app.export.gguf_file import padding, written_header
from app.export.layout import make_layout, permuted
from app.export.target import Advance, Blob, write_blobs
from app.export.tuned import TunedModel
from app.export.weights import tensor_bytes


@dataclass(frozen=True, kw_only=True)
class LoraTensors:
    """What the file holds.

    Attributes:
        alpha: the file's one alpha; llama.cpp scales every update by alpha / rank.
        tensors: GGUF name -> float32 matrix; ``lora_a`` [r, in] and ``lora_b`` [out, r].
    """

    alpha: float
    tensors: dict[str, torch.Tensor]


def lora_tensors(tuned: TunedModel) -> LoraTensors:
    """The adapter in llama.cpp's names, row order and scaling.

    llama.cpp knows one alpha and scales by alpha / rank. The alpha that most updates need is written, which for rsLoRA
    is alpha * sqrt(rank); where an update needs another (alpha patterns, ranks that differ), its B is scaled.

    Raises:
        RunError: the adapter has parts that the format cannot say (DoRA, whole trained layers).
    """
    faults = [f"{name} was trained as a whole" for name in tuned.adapter.replaced]
    if any(update.magnitude is not None for update in tuned.adapter.updates.values()):
        faults.append("it is a DoRA adapter, whose magnitudes depend on the base weights")
    if faults:
        raise RunError(
            several("the adapter alone cannot be a GGUF file", faults),
            where="export lora-gguf",
            remedy="export the whole model: `export gguf` or `export merged`",
        )
    layout = make_layout(tuned.family, tuned.config, list(tuned.places))
    needed = {name: _alpha(update) for name, update in tuned.adapter.updates.items()}
    alpha = Counter(needed.values()).most_common(1)[0][0]
    tensors = {}
    for name, update in tuned.adapter.updates.items():
        b = update.b if same_scale(needed[name], alpha) else update.b * (needed[name] / alpha)  # [out, r]
        rows = layout.head_rows(name)
        tensors[f"{layout.names[name]}.lora_a"] = update.a
        tensors[f"{layout.names[name]}.lora_b"] = permuted(b, rows) if rows else b
    return LoraTensors(alpha=alpha, tensors=tensors)


def write_lora_gguf(tuned: TunedModel, target: Path, *, advance: Advance) -> Path:
    """Writes the file's partial form (see `target.publish`) and returns its path.

    Raises:
        RunError: the adapter has parts that the format cannot say.
    """
    from gguf import GGUFType, GGUFWriter

    content = lora_tensors(tuned)
    facts = provenance(tuned.run, tuned.manifest)
    head = target.with_name(f".{target.name}.header")
    target.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(head, tuned.family.gguf.architecture)
    try:
        writer.add_type(GGUFType.ADAPTER)
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", content.alpha)
        writer.add_name(f"{facts.name} LoRA")
        writer.add_license(facts.licence)
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, facts.base)
        writer.add_dataset_count(1)
        writer.add_dataset_name(0, facts.data)
        for name, tensor in content.tensors.items():
            writer.add_tensor_info(name, tuple(tensor.shape), np.dtype(np.float32), tensor.numel() * 4)
        header = written_header(writer, head)
    finally:
        writer.close()
        head.unlink(missing_ok=True)
    blobs = []
    for tensor in content.tensors.values():
        nbytes = tensor.numel() * 4
        blobs += [Blob(nbytes=nbytes, produce=partial(tensor_bytes, tensor)), *padding(nbytes)]
    return write_blobs(target, header, blobs, fingerprint=tuned.fingerprint(), advance=advance)


def _alpha(update: Update) -> float:
    """The alpha with which alpha / rank is the update's scale."""
    return round(update.scale * update.a.shape[0], 9)
