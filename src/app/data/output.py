"""A folder that is either the old one or the whole new one."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.errors import ConfigError, MachineError

FILES = ("train.jsonl", "val.jsonl", "test.jsonl", "rejected.jsonl", "report.json", "report.html")


@contextmanager
def replaced_folder(output: Path | None) -> Iterator[Path]:
    """A fresh folder beside ``output`` that takes its place when the block ends well, and vanishes otherwise.

    Args:
        output: the folder to replace; it may hold nothing but what prepare writes. None keeps nothing.

    Raises:
        ConfigError: the folder holds other files, or is a file.
        MachineError: it cannot be written, or the disk is full.
    """
    if output is None:
        with tempfile.TemporaryDirectory(prefix="prepare-") as name:
            yield Path(name)
        return
    # A symbolic link stays one: what it points to is replaced.
    target = output.expanduser().resolve()
    _check_target(target, output)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        fresh = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.{os.getpid()}."))
    except OSError as fault:
        raise _cannot_write(output, fault) from fault
    try:
        yield fresh
        for file in fresh.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        fresh.chmod(0o777 & ~_umask())
        _swap(fresh, target)
    except OSError as fault:
        raise _cannot_write(output, fault) from fault
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _check_target(target: Path, output: Path) -> None:
    if target.is_file():
        raise ConfigError(f"{output} is a file", where="--output", remedy="name a folder")
    foreign = sorted(p.name for p in target.iterdir() if p.name not in FILES) if target.is_dir() else []
    if foreign:
        raise ConfigError(
            f"{output} holds other files: {', '.join(foreign[:5])}",
            where="--output",
            remedy="name a new folder, or one that prepare wrote: its content is replaced as a whole",
        )


def _swap(fresh: Path, target: Path) -> None:
    if not target.exists():
        fresh.rename(target)
        return
    old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.{os.getpid()}."))
    target.rename(old / "old")
    try:
        fresh.rename(target)
    except OSError:
        (old / "old").rename(target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _sweep(target: Path) -> None:
    """Removes what runs that were killed left behind: their process is gone."""
    for left in target.parent.glob(f".{target.name}.*.*"):
        number = left.name.removeprefix(f".{target.name}.").partition(".")[0]
        if number.isdigit() and not Path(f"/proc/{number}").exists() and Path("/proc").is_dir():
            shutil.rmtree(left, ignore_errors=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _cannot_write(output: Path, fault: OSError) -> MachineError:
    return MachineError(
        f"{output} cannot be written: {fault.strerror or fault}",
        where="--output",
        remedy="free some disk space, or choose a folder you may write to",
    )
