"""The folder of things that can be made again, and the keys under which they lie there.

It is ``$APP_CACHE``, or ``~/.cache/app``; what was not used for 30 days goes when something new is written.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from app.errors import MachineError

_KEPT_S = 30 * 24 * 3600.0


def cache_folder(kind: str) -> Path:
    """The folder of one kind of cached things, made if need be.

    Raises:
        MachineError: it cannot be written to.
    """
    folder = Path(os.environ.get("APP_CACHE") or Path.home() / ".cache" / "app") / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as fault:
        raise MachineError(
            f"the cache folder {folder} cannot be written: {fault.strerror}",
            where="APP_CACHE",
            remedy="set the environment variable APP_CACHE to a folder you may write to",
        ) from fault
    return folder


def cache_key(**parts: Any) -> str:
    """A hash of everything a cached thing depends on."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def content_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, or of the names and bytes of all files in a folder."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    inside = sorted(p for p in path.rglob("*") if p.is_file())
    return cache_key(files=[(str(p.relative_to(path)), content_hash(p)) for p in inside])


def drop_unused(folder: Path) -> None:
    """Removes what nobody opened for 30 days."""
    for old in folder.iterdir():
        try:
            if time.time() - old.stat().st_mtime > _KEPT_S:
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        except OSError:
            continue  # another process removed it, or owns it
