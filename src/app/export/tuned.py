"""The tuned model as a stream of weights: base checkpoint, adapter, and nothing in between."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from app.artifact import Manifest, RunDirectory, sha256_text
from app.data.tokenize import check_golden, load_tokenizer
from app.errors import ConfigError, MachineError, ModelError
from app.export.adapter import Adapter, read_adapter
from app.export.target import AHEAD, MAKERS
from app.export.weights import TensorPlace, checkpoint_folder, read_checkpoint
from app.families import Family, get_family
from app.model.load import read_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BLOCK = 1 << 20
"""Elements computed with at once: in float32 4 MB, which stay in the processor's cache. A merge of whole tensors, each
step of which went through memory, took five times as long (25 and 5 s for 14.5 GB on one core, 2026-11)."""

OVERHEAD = 1 << 30
"""Bytes of memory that Python, torch and transformers take beside the weights (0.6 GiB seen on CPU, 2026-11)."""

NF4_BLOCK = 64
"""Weights per scale, bitsandbytes' default, which BitsAndBytesConfig cannot change."""


@dataclass(frozen=True, kw_only=True)
class TunedModel:
    """A run's model, weight by weight.

    Attributes:
        run: the run directory.
        manifest: the run's.
        family: of the base.
        base: the base model's folder.
        config: the base's configuration, as transformers reads it.
        tokenizer: the run's, checked against the golden encoding.
        places: where the base's tensors lie, in file order.
        adapter: the run's.
        exact: whether the base weights are rounded to NF4 first, which is what the adapter was trained on.
    """

    run: RunDirectory
    manifest: Manifest
    family: Family
    base: Path
    config: Any
    tokenizer: "PreTrainedTokenizerFast"
    places: dict[str, TensorPlace]
    adapter: Adapter
    exact: bool

    def blocks(self, name: str, *, unit: int = 1) -> Iterator[range]:
        """The tensor's rows in stretches of about BLOCK elements and a multiple of ``unit`` rows.

        NF4's scales are themselves rounded around their mean over the tensor: with ``exact`` it stays in one piece.
        """
        place = self.places[name]
        step = max(BLOCK // place.columns // unit, 1) * unit
        if self.exact and self.quantized(name):
            step = place.rows
        for start in range(0, place.rows, step):
            yield range(start, min(start + step, place.rows))

    def weight(self, name: str, rows: range | None = None) -> torch.Tensor:
        """The tuned weight, or one of its `blocks`: float32 where the adapter changed it, else as the base holds it."""
        if name in self.adapter.replaced:
            return self.adapter.replaced[name].read(rows)
        weight = self.places[name].read(rows)
        if self.exact and self.quantized(name):
            weight = nf4_rounded(
                weight, dtype=getattr(torch, self.manifest.base.dtype), double_quant=self.manifest.base.double_quant
            )
        update = self.adapter.updates.get(name)
        return weight if update is None else update.applied(weight, rows)

    def quantized(self, name: str) -> bool:
        """Whether training held this weight in NF4: every linear layer of a block, never embeddings and head."""
        return ".layers." in name and len(self.places[name].shape) == 2

    @property
    def parameters(self) -> int:
        return sum(prod(place.shape) for place in self.places.values())

    @property
    def largest(self) -> int:
        """Elements of the largest stretch that is computed with at once."""
        return max(len(rows) * place.columns for name, place in self.places.items() for rows in self.blocks(name))

    @property
    def title(self) -> str:
        """What people call the base: the last part of its hub id or folder."""
        return self.manifest.base.id.rstrip("/").split("/")[-1]

    @property
    def dtype(self) -> torch.dtype:
        """The type the base checkpoint's matrices are stored in."""
        return next(place.dtype for place in self.places.values() if len(place.shape) == 2)

    def fingerprint(self, **options: Any) -> str:
        """A hash that differs whenever an export with these options would: base files, adapter, options."""
        files = sorted({place.file for place in self.places.values()})
        adapter = self.run.adapter / "adapter_model.safetensors"
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in (*files, adapter)]
        return sha256_text(repr((stats, self.adapter.config, self.exact, sorted(options.items()))))


def open_tuned(run: Path, *, exact: bool = False) -> TunedModel:
    """Opens a run for export; reads headers and the adapter, no base weight.

    Raises:
        RunError: no run directory, no adapter, or one that does not fit the base.
        ModelError: the base cannot be had, or is itself quantised.
        ConfigError: ``exact`` for a run that was not quantised.
    """
    directory = RunDirectory(run)
    manifest = directory.read_manifest()
    folder = directory.require_adapter()
    base = manifest.base
    if exact and base.quantization == "none":
        raise ConfigError(
            "--exact merges into the 4-bit weights that the adapter was trained on, but this run had 16-bit ones",
            where="--exact",
            remedy="leave it out: the ordinary merge is already exact",
        )
    family = get_family(base.family)
    config = read_config(base.id, family, revision=base.revision)
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"{base.id} is stored quantised; adding the adapter and rounding again to 4 bits would lose what was "
            "trained (95 % of the gain, measured)",
            where="base model",
            remedy="merge into the 16-bit checkpoint it was made from; `export gguf` makes small files",
        )
    tokenizer = load_tokenizer(base.id, family, revision=base.revision)
    check_golden(manifest.golden, tokenizer, family)
    checkpoint = checkpoint_folder(base.id, revision=base.revision)
    places = read_checkpoint(checkpoint)
    adapter = read_adapter(folder)
    adapter.check(places, tied=bool(config.tie_word_embeddings))
    return TunedModel(
        run=directory,
        manifest=manifest,
        family=family,
        base=checkpoint,
        config=config,
        tokenizer=tokenizer,
        places=places,
        adapter=adapter,
        exact=exact,
    )


def nf4_rounded(weight: torch.Tensor, *, dtype: torch.dtype, double_quant: bool) -> torch.Tensor:
    """The weight after NF4 quantisation and back, as a freshly loaded 4-bit model computes with it (same shape).

    Never taken from a model that has run: on CPUs with AVX512-BF16 bitsandbytes repacks the weights at the first
    forward, and dequantising them then gives other numbers.
    """
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(
        weight.to(dtype), blocksize=NF4_BLOCK, compress_statistics=double_quant, quant_type="nf4"
    )
    rounded: torch.Tensor = functional.dequantize_4bit(packed, state)
    return rounded


def working_memory(tuned: TunedModel) -> int:
    """Bytes of memory an export needs: what lies ready, what each maker works with, and OVERHEAD."""
    return AHEAD + MAKERS * 4 * 4 * tuned.largest + OVERHEAD


def require_room(folder: Path, *, disk: int, memory: int) -> None:
    """Refuses early what would fail late.

    Args:
        folder: where the export goes (need not exist yet).
        disk, memory: bytes needed.

    Raises:
        MachineError: too little of either, with both figures.
    """
    import shutil

    import psutil

    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    available = psutil.virtual_memory().available
    gib = 1024**3
    if disk > free:
        raise MachineError(
            f"the export needs {disk / gib:.1f} GiB of disk; {free / gib:.1f} GiB are free at {folder}",
            where="--output",
            remedy="free some space, or choose another disk with --output FOLDER",
        )
    if memory > available:
        raise MachineError(
            f"the export needs {memory / gib:.1f} GiB of memory; {available / gib:.1f} GiB are available",
            remedy="close other programs; the need is that of the largest single tensor and cannot be lowered",
        )
