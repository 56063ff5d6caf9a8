"""Safetensors files read and written one tensor at a time, so that a 7B model never lies in memory.

Tensors are read rather than mapped into memory: mapped pages count as the process's memory, and a 14 GB checkpoint
would look (and, under a memory limit, behave) like 14 GB. The format is 8 bytes of header length,
a JSON header, and the tensors' bytes (https://huggingface.co/docs/safetensors).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from app.errors import ModelError
from app.export.direct import read_direct
from app.hub import checkpoint_faults, is_local

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, kw_only=True)
class TensorPlace:
    """Where a tensor lies: its file, first byte, shape and type."""

    file: Path
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def rows(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def columns(self) -> int:
        """Elements of a row."""
        return prod(self.shape[1:])

    def read(self, rows: range | None = None) -> torch.Tensor:
        """The tensor, or some of its rows, in its own memory.

        Raises:
            ModelError: the file ends before the tensor does.
        """
        first, count = (rows.start, len(rows)) if rows else (0, self.rows)
        size = self.columns * self.dtype.itemsize
        buffer = read_direct(self.file, self.start + first * size, count * size)
        if len(buffer) < count * size:
            raise _damaged(self.file, "it ends inside a tensor")
        return torch.from_numpy(buffer).view(self.dtype).reshape((count, *self.shape[1:]) if rows else self.shape)


def read_index(file: Path) -> dict[str, TensorPlace]:
    """The tensors of a safetensors file, in the order they lie in it.

    Raises:
        ModelError: it is no safetensors file, or shorter than its header says.
    """
    size = file.stat().st_size
    with file.open("rb") as source:
        length = int.from_bytes(source.read(8), "little")
        if size < 8 or length > size - 8:
            raise _damaged(file, "its header is incomplete")
        try:
            header = json.loads(source.read(length))
        except ValueError as fault:
            raise _damaged(file, "its header is no JSON") from fault
    header.pop("__metadata__", None)
    places = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
        if entry["dtype"] not in DTYPES:
            raise _damaged(file, f"{name} has the type {entry['dtype']}, which no 16-bit checkpoint holds")
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        if end > size:
            raise _damaged(file, f"it ends inside {name}")
        places[name] = TensorPlace(
            file=file, start=start, shape=tuple(entry["shape"]), dtype=DTYPES[str(entry["dtype"])]
        )
    return places


def read_checkpoint(folder: Path) -> dict[str, TensorPlace]:
    """All tensors of a checkpoint folder, one file or sharded.

    Raises:
        ModelError: no safetensors, a shard is missing or damaged.
    """
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if index.is_file():
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        paths = [folder / name for name in files]
    elif single.is_file():
        paths = [single]
    else:
        raise ModelError(
            f"{folder} holds no model.safetensors (weights as pickle files are never loaded)",
            where="base model",
            remedy="use a checkpoint with safetensors, or convert it with transformers' save_pretrained",
        )
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ModelError(
            f"{folder} lacks {', '.join(missing)}",
            where="base model",
            remedy="download the checkpoint again; finished files are kept",
        )
    return {name: place for path in paths for name, place in read_index(path).items()}


def checkpoint_folder(base: str, *, revision: str | None) -> Path:
    """The base model's folder, from disk or the hub's cache.

    Raises:
        ModelError: it cannot be had.
    """
    if is_local(base):
        return Path(base).expanduser()
    from huggingface_hub import snapshot_download

    with checkpoint_faults(base, where="base model"):
        return Path(snapshot_download(base, revision=revision, allow_patterns=["*.safetensors", "*.json", "*.jinja"]))


def header_bytes(entries: Sequence[tuple[str, torch.dtype, tuple[int, ...]]], metadata: dict[str, str]) -> bytes:
    """A safetensors file's first bytes, for tensors that follow in this order without gaps."""
    header: dict[str, Any] = {"__metadata__": metadata}
    start = 0
    for name, dtype, shape in entries:
        end = start + prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's bytes, without a copy where it is contiguous."""
    raw: memoryview = tensor.contiguous().view(torch.uint8).reshape(-1).numpy().data
    return raw


def _damaged(file: Path, why: str) -> ModelError:
    return ModelError(
        f"{file} is damaged: {why}",
        where="base model",
        remedy="delete the file and download it again, or write the checkpoint again",
    )
