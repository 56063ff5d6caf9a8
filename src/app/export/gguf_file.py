"""The tuned model as one GGUF file, straight from base and adapter, one tensor at a time."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from app.card import provenance
from app.errors import ConfigError, ModelError
from app.export.layout import Layout, make_layout, rope_tensors, write_shape
from app.export.target import Advance, Blob, write_blobs
from app.export.tuned import TunedModel
from app.export.vocabulary import Vocabulary, read_vocabulary, write_vocabulary
from app.export.weights import tensor_bytes

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

Direct = Literal["f32", "f16", "bf16", "q8_0"]
DIRECT: tuple[Direct, ...] = ("f32", "f16", "bf16", "q8_0")
"""What is written here; all other types are made from such a file by llama.cpp."""

LARGEST_HALF = torch.finfo(torch.float16).max

ALIGNMENT = 32
"""Bytes; GGUF's default ``general.alignment``."""

FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
"""llama.cpp's ``llama_ftype``."""

FINGERPRINT = "app.fingerprint"
"""Key of what the file was made from; llama.cpp copies it into files it makes from this one."""

BITS = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A tensor of the file: its name there, its shape (as in the checkpoint), how it is stored, how it is made."""

    name: str
    source: str | None
    shape: tuple[int, ...]
    kind: "GGMLQuantizationType"
    value: torch.Tensor | None = None


def file_name(tuned: TunedModel, quant: str, *, name: str | None = None) -> str:
    """Model-Size-Quant.gguf, such as ``SmolLM2-135M-Q4_K_M.gguf``; ``name`` replaces the model's."""
    from gguf import naming_convention, size_label

    size = size_label(tuned.parameters, 0, 0, 0)
    model = name or " ".join(word for word in tuned.family.title.split() if not re.fullmatch(r"[\d.]+[BM]", word))
    return f"{naming_convention(model, None, None, None, size, quant)}.gguf"


def write_gguf(tuned: TunedModel, target: Path, *, quant: Direct, advance: Advance) -> Path:
    """Writes the file's partial form (see `target.publish`) and returns its path; continues a stopped one.

    Raises:
        ModelError: the model has tensors or a vocabulary that llama.cpp has no place for.
    """
    from gguf import GGUFWriter

    vocabulary = read_vocabulary(tuned.tokenizer, tuned.family, size=tuned.config.vocab_size)
    layout = make_layout(tuned.family, tuned.config, list(tuned.places))
    entries = list(_entries(tuned, layout, quant))
    head = target.with_name(f".{target.name}.header")
    target.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(head, tuned.family.gguf.architecture)
    try:
        header = _header(writer, head, tuned, vocabulary, entries, quant)
    finally:
        writer.close()
        head.unlink(missing_ok=True)
    blobs = [blob for entry in entries for blob in _blobs(tuned, layout, entry)]
    return write_blobs(target, header, blobs, fingerprint=tuned.fingerprint(quant=quant), advance=advance)


def weight_bytes(tuned: TunedModel, quant: str) -> int:
    """Bytes of the matrices in the file; other types than the direct ones are counted as 8 bits."""
    return int(tuned.parameters * BITS.get(quant, 8.5) / 8)


def gguf_bytes(tuned: TunedModel, quant: str) -> int:
    """At most how large the file will be: with vocabulary and float32 vectors."""
    return weight_bytes(tuned, quant) + (64 << 20)


def is_current(tuned: TunedModel, target: Path) -> bool:
    """Whether the file is there already, made from just these base weights and adapter."""
    from gguf import GGUFReader

    if not target.is_file():
        return False
    try:
        field = GGUFReader(target).get_field(FINGERPRINT)
    except (ValueError, IndexError, OSError):
        return False
    return field is not None and field.contents() == tuned.fingerprint()


def _entries(tuned: TunedModel, layout: Layout, quant: Direct) -> Iterable[Entry]:
    """What the file holds, in the base's order; vectors stay float32, as llama.cpp computes with them."""
    from gguf import GGMLQuantizationType

    kinds = {name: GGMLQuantizationType[name.upper()] for name in DIRECT}
    for name, value in rope_tensors(tuned.config):
        yield Entry(name=name, source=None, shape=tuple(value.shape), kind=kinds["f32"], value=value)
    for source, name in layout.names.items():
        shape = tuned.places[source].shape
        kind = kinds["f32" if len(shape) == 1 else quant]
        if quant == "q8_0" and shape[-1] % 32:
            kind = kinds["f32" if len(shape) == 1 else "f16"]
        yield Entry(name=name, source=source, shape=shape, kind=kind)


def _header(
    writer: "GGUFWriter", head: Path, tuned: TunedModel, vocabulary: Vocabulary, entries: list[Entry], quant: Direct
) -> bytes:
    from gguf import GGML_QUANT_VERSION, GGUFType, size_label

    facts = provenance(tuned.run, tuned.manifest)
    writer.add_type(GGUFType.MODEL)
    writer.add_name(facts.name)
    writer.add_size_label(size_label(tuned.parameters, 0, 0, 0))
    writer.add_license(facts.licence)
    writer.add_description(f"{tuned.family.title} fine-tuned; run {facts.run}; data {facts.data}")
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, facts.base)
    writer.add_dataset_count(1)
    writer.add_dataset_name(0, facts.data)
    writer.add_string(FINGERPRINT, tuned.fingerprint())
    writer.add_file_type(FILE_TYPES[quant])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    write_shape(writer, tuned.config)
    write_vocabulary(writer, tuned.tokenizer, tuned.family, vocabulary)
    for entry in entries:
        writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), _nbytes(entry), raw_dtype=entry.kind)
    return written_header(writer, head)


def written_header(writer: "GGUFWriter", head: Path) -> bytes:
    """What the writer was told, as the file's first bytes up to where tensors begin; ``head`` is its scratch file."""
    writer.write_header_to_file(head)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.flush()
    header = head.read_bytes()
    return header + bytes(-len(header) % ALIGNMENT)


def _nbytes(entry: Entry) -> int:
    from gguf import GGML_QUANT_SIZES

    block, size = GGML_QUANT_SIZES[entry.kind]
    return int(prod(entry.shape) // block * size)


def _blobs(tuned: TunedModel, layout: Layout, entry: Entry) -> Iterator[Blob]:
    """The tensor's bytes, a stretch of rows at a time."""
    nbytes = _nbytes(entry)
    if entry.value is not None:
        yield Blob(nbytes=nbytes, produce=partial(tensor_bytes, entry.value))
    else:
        assert entry.source is not None
        for rows in tuned.blocks(entry.source, unit=layout.head_rows(entry.source) or 1):
            produce = partial(_produce, tuned, layout, entry, rows)
            yield Blob(nbytes=nbytes * len(rows) // entry.shape[0], produce=produce)
    yield from padding(nbytes)


def padding(nbytes: int) -> Iterator[Blob]:
    """Zeros after so many bytes of a tensor, up to where the next may begin."""
    gap = -nbytes % ALIGNMENT
    if gap:
        yield Blob(nbytes=gap, produce=lambda: memoryview(bytes(gap)))


def _produce(tuned: TunedModel, layout: Layout, entry: Entry, rows: range) -> memoryview:
    assert entry.source is not None
    return packed(layout.arranged(entry.source, tuned.weight(entry.source, rows)), entry.kind, name=entry.source)


def packed(weight: torch.Tensor, kind: "GGMLQuantizationType", *, name: str) -> memoryview:
    """The weight's bytes as GGUF stores this type.

    Raises:
        ModelError: a value does not fit into float16.
    """
    from gguf import GGMLQuantizationType, quants

    if kind == GGMLQuantizationType.F32:
        return tensor_bytes(weight.float())
    if kind == GGMLQuantizationType.BF16:
        return tensor_bytes(weight.to(torch.bfloat16))
    if kind == GGMLQuantizationType.F16:
        # 25 times as fast as isfinite() on the result.
        low, high = (bound.item() for bound in torch.aminmax(weight))
        if not -LARGEST_HALF <= low <= high <= LARGEST_HALF:
            raise ModelError(
                f"{name} has values from {low:.3g} to {high:.3g}; float16 ends at {LARGEST_HALF:.0f}",
                where="--quant f16",
                remedy="export with --quant bf16; if values are nan, the adapter or the base is damaged",
            )
        return tensor_bytes(weight.to(torch.float16))
    raw: memoryview = quants.quantize(weight.float().numpy(), kind).reshape(-1).view(np.uint8).data
    return raw


def check_quants(quants: list[str], known: Iterable[str]) -> None:
    """Refuses unknown types, all at once.

    Raises:
        ConfigError: naming them and those there are.
    """
    names = list(known)
    unknown = [quant for quant in quants if quant not in names]
    if unknown or not quants:
        raise ConfigError(
            f"there is no GGUF type {', '.join(unknown) or '(none given)'}",
            where="--quant",
            remedy=f"use some of: {', '.join(names)}",
        )
