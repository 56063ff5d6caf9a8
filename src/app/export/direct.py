"""Reading and writing past the page cache, as fast as the disk is.

An export touches more bytes than fit into memory, each of them once. Through the page cache every byte is copied once
more and needs a fresh page: writing 2.3 GB took 3 to 6 s, nearly all of it processor time, and 1.1 s past it; reading
as much that was not cached 3.2 and 1.3 s (ext4 on a virtual disk, 2026-11). What others have in the page cache stays
there. Where a system or file system has no such reads and writes, ordinary ones are used.
"""

import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from app.errors import MachineError

PAGE = 4096
"""Bytes that places, lengths and addresses must be a multiple of; no disk's blocks are larger."""

BUFFER = 16 << 20
"""Bytes per write."""


def read_direct(path: Path, start: int, length: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Bytes of a file, [length] or fewer where it ends before."""
    first = start // PAGE * PAGE
    size = -(-(start + length - first) // PAGE) * PAGE
    room = np.empty(size + PAGE, dtype=np.uint8)
    at = -room.ctypes.data % PAGE
    got = 0
    with os.fdopen(_open(path, os.O_RDONLY), "rb", buffering=0) as file:
        file.seek(first)
        while got < start + length - first:
            count = file.readinto(room.data[at + got : at + size])
            if not count:
                break
            got += count
    return room[at + start - first : at + min(got, start + length - first)]


class DirectWriter:
    """A file that grows from a given length on; what lies beyond is cut off. One buffer is filled, the other written.

    Args:
        path: an existing file.
        start: how many of its bytes stay.

    Raises:
        MachineError: by `write` and `sync`, where the disk is full or fails.
    """

    def __init__(self, path: Path, start: int) -> None:
        self._path = path
        self._at = start // PAGE * PAGE  # where the filled buffer's first byte belongs
        with path.open("r+b") as file:
            file.truncate(start)
            file.seek(self._at)
            head = file.read()
        # Mapped memory begins at a page's border, as direct writes must.
        self._filled, self._written = mmap.mmap(-1, BUFFER), mmap.mmap(-1, BUFFER)
        self._filled[: len(head)] = head
        self._used = len(head)
        self._handle = _open(path, os.O_RDWR)
        self._disk = ThreadPoolExecutor(1)
        self._under_way: Future[None] | None = None

    def write(self, data: memoryview) -> None:
        """Appends bytes; they may stay in memory until `sync`."""
        while len(data):
            part = data[: BUFFER - self._used]
            self._filled[self._used : self._used + len(part)] = part
            self._used += len(part)
            data = data[len(part) :]
            if self._used == BUFFER:
                self._wait()
                self._filled, self._written = self._written, self._filled
                self._under_way = self._disk.submit(self._put, self._written, self._at, BUFFER)
                self._at += BUFFER
                self._used = 0

    def sync(self) -> None:
        """Brings everything safely to the disk."""
        self._wait()
        whole = -(-self._used // PAGE) * PAGE
        self._filled[self._used : whole] = bytes(whole - self._used)
        self._put(self._filled, self._at, whole)
        os.ftruncate(self._handle, self._at + self._used)
        os.fsync(self._handle)

    def close(self) -> None:
        self._disk.shutdown()
        os.close(self._handle)

    def _wait(self) -> None:
        """Until the last write is done; raises what it raised, at every later call too: its bytes are not there."""
        if self._under_way is not None:
            self._under_way.result()
            self._under_way = None

    def _put(self, buffer: mmap.mmap, at: int, length: int) -> None:
        try:
            os.lseek(self._handle, at, os.SEEK_SET)
            with memoryview(buffer) as view:
                done = 0
                while done < length:
                    done += os.write(self._handle, view[done:length])
        except OSError as fault:
            raise MachineError(
                f"{self._path.parent} cannot be written: {fault.strerror}",
                where="--output",
                remedy="free some disk space and give the same command again, which goes on; or choose another disk",
            ) from fault


def _open(path: Path, access: int) -> int:
    flags = access | getattr(os, "O_BINARY", 0)
    try:
        return os.open(path, flags | getattr(os, "O_DIRECT", 0))
    except OSError:  # EINVAL of file systems that cannot; of any other fault the second attempt speaks
        return os.open(path, flags)
