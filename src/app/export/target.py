"""Files and folders that are whole or not there: written beside the target, continued after a stop, placed at once.

A file grows as ``.NAME.partial`` with a journal of how many tensors are safely on disk; the same command takes it up
again if nothing it is made from has changed. Only the finished file gets its name.
"""

import ctypes
import json
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from app.artifact import sha256_text, write_atomic
from app.export.direct import DirectWriter

SYNC_BYTES = 1 << 30
"""Bytes between two journal entries: what a power cut can cost."""

MAKERS = 2
"""Threads that make blobs: one reads while the other computes."""

AHEAD = 32 << 20
"""Bytes made or in the making while others are written; one blob for each maker where blobs are larger."""

Advance = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Blob:
    """A stretch of a file, best of a few megabytes: what lies in the processor's cache is made fastest.

    Attributes:
        nbytes: its length.
        produce: makes its bytes, when their turn comes.
    """

    nbytes: int
    produce: Callable[[], memoryview]


def partial_path(target: Path) -> Path:
    """Where the target grows."""
    return target.with_name(f".{target.name}.partial")


def write_blobs(target: Path, header: bytes, blobs: Sequence[Blob], *, fingerprint: str, advance: Advance) -> Path:
    """Writes header and blobs to the target's partial file, or finishes one that was begun; returns its path.

    The next blobs are made while one is written.

    Args:
        target: the file this will become (see `publish`).
        header: its first bytes.
        blobs: the rest, in order.
        fingerprint: of everything the blobs are made from.
        advance: is told of bytes as they are done.

    Raises:
        MachineError: the disk is full or fails.
    """
    partial = partial_path(target)
    journal = partial.with_name(partial.name + ".json")
    sizes = [blob.nbytes for blob in blobs]
    identity = sha256_text(fingerprint + header.hex() + repr(sizes))
    target.parent.mkdir(parents=True, exist_ok=True)
    done = _done(journal, identity) if partial.is_file() else 0
    start = len(header) + sum(sizes[:done])
    if not done or partial.stat().st_size < start:
        done, start = 0, len(header)
        partial.write_bytes(header)
    advance(start)
    out = DirectWriter(partial, start)
    unsynced = 0
    try:
        for blob, data in _ahead(blobs[done:]):
            assert len(data) == blob.nbytes, f"{len(data)} bytes where {blob.nbytes} were announced"
            out.write(data)
            done += 1
            unsynced += blob.nbytes
            advance(blob.nbytes)
            if unsynced >= SYNC_BYTES:
                out.sync()
                _note(journal, identity, done)
                unsynced = 0
    finally:
        try:
            out.sync()
            _note(journal, identity, done)
        finally:
            out.close()
    return partial


def publish(target: Path) -> None:
    """Gives the finished partial file its name, in one step."""
    partial = partial_path(target)
    partial.replace(target)
    partial.with_name(partial.name + ".json").unlink(missing_ok=True)
    _sync_folder(target.parent)


def discard(target: Path) -> None:
    """Removes a partial file or folder and its journal."""
    partial = partial_path(target)
    if partial.is_dir():
        shutil.rmtree(partial)
    else:
        partial.unlink(missing_ok=True)
    partial.with_name(partial.name + ".json").unlink(missing_ok=True)


def publish_folder(target: Path) -> None:
    """Puts the finished partial folder in the target's place; the old one is there until the new one is.

    On Linux the two are exchanged in one step (renameat2); elsewhere the old folder is moved aside first.
    """
    partial = partial_path(target)
    for file in sorted(partial.iterdir()):
        _sync_file(file)
    if not target.exists():
        partial.rename(target)
    elif _exchange(partial, target):
        shutil.rmtree(partial)
    else:
        old = target.with_name(f".{target.name}.old")
        target.rename(old)
        partial.rename(target)
        shutil.rmtree(old)
    partial.with_name(partial.name + ".json").unlink(missing_ok=True)
    _sync_folder(target.parent)


def _ahead(blobs: Sequence[Blob]) -> Iterator[tuple[Blob, memoryview]]:
    """Each blob with its bytes, in order; AHEAD bytes of them are made in other threads while one is written."""
    rest, coming, under_way = deque(blobs), deque[tuple[Blob, Future[memoryview]]](), 0
    # A blob is too small to be shared out, so that each maker computes in its own thread alone.
    with ThreadPoolExecutor(MAKERS, initializer=torch.set_num_threads, initargs=(1,)) as makers:
        try:
            while rest or coming:
                while rest and (len(coming) < MAKERS or under_way + rest[0].nbytes <= AHEAD):
                    blob = rest.popleft()
                    under_way += blob.nbytes
                    coming.append((blob, makers.submit(blob.produce)))
                blob, future = coming.popleft()
                data = future.result()
                under_way -= blob.nbytes
                yield blob, data
        finally:
            for _, future in coming:
                future.cancel()


def _note(journal: Path, identity: str, done: int) -> None:
    write_atomic(journal, json.dumps({"identity": identity, "done": done}))


def _done(journal: Path, identity: str) -> int:
    try:
        value = json.loads(journal.read_text(encoding="utf-8"))
        return int(value["done"]) if value["identity"] == identity else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _exchange(left: Path, right: Path) -> bool:
    """Swaps two names in one step; False where the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of linux/fcntl.h and linux/fs.h
    return bool(renameat2(here, os.fsencode(left), here, os.fsencode(right), exchange) == 0)


def _sync_file(path: Path) -> None:
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
