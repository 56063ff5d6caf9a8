"""A base model's NF4 form in the cache: later starts read 4 GB instead of 14 and quantise nothing.

The folder is one that ``save_pretrained`` wrote, with a list of its files' SHA-256 beside them. It lies under a key of
all it depends on: the checkpoint, how it was quantised, and by which versions.
"""

import json
import logging
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from app.cache import cache_folder, cache_key, content_hash, drop_unused
from app.hub import is_local

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

HASHES = "SHA256.json"
log = logging.getLogger(__name__)


def nf4_folder(
    base: str, config: "PretrainedConfig", *, device: torch.device, dtype: torch.dtype, double_quant: bool
) -> Path | None:
    """Where the NF4 form of this checkpoint lies or would lie; None where the checkpoint has no fixed identity.

    A local checkpoint is told by its files' names, sizes and times, since reading 14 GB is what is to be saved; one
    from the hub by its commit. CPU and GPU may round a scale differently, so each has its own.
    """
    if is_local(base):
        folder = Path(base).expanduser().resolve()
        files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json"))
        identity = [str(folder), *((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)]
    else:
        commit = getattr(config, "_commit_hash", None)
        if commit is None:
            return None
        identity = [base, commit]
    key = cache_key(
        identity=identity,
        device=device.type,
        dtype=str(dtype),
        double_quant=double_quant,
        versions=[version(name) for name in ("bitsandbytes", "transformers")],
    )
    return cache_folder("nf4") / key


def is_intact(folder: Path) -> bool:
    """Whether the folder is there and every file is, bit for bit, what was written."""
    try:
        expected = json.loads((folder / HASHES).read_text("utf-8"))
        if _hashes(folder) == expected:
            os.utime(folder)
            return True
    except (OSError, ValueError):
        return False
    log.warning("the NF4 copy in %s is damaged; the model is quantised again", folder)
    return False


def store(model: "PreTrainedModel", folder: Path) -> None:
    """Writes a freshly quantised model; the folder appears whole or not at all. A full disk costs only the copy.

    What another process has stored meanwhile stays: a third one may be reading it.
    """
    drop_unused(folder.parent)
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        model.save_pretrained(fresh, max_shard_size="1GB")
        (fresh / HASHES).write_text(json.dumps(_hashes(fresh)), "utf-8")
        if not is_intact(folder):
            shutil.rmtree(folder, ignore_errors=True)
            fresh.rename(folder)
    except OSError as fault:
        log.warning("the NF4 copy could not be stored and the next start will quantise again: %s", fault)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file, in threads: hashing leaves Python's lock, and one core does about 1.5 GB/s."""
    files = sorted(path for path in folder.iterdir() if path.name != HASHES)
    with ThreadPoolExecutor() as pool:
        return dict(zip([path.name for path in files], pool.map(content_hash, files), strict=True))
