"""What the doctor concludes from what it found: functions of plain values, a finding each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.plan.gpu import Gpu

State = Literal["ok", "warn", "fail"]
GIB = 2**30
PYTHON = (3, 11)
ROOM = 20e9
"""Bytes for one 7B model, its NF4 form and a run: below this the disk is short."""
TOLERANCE = 0.02
"""Of a 4-bit product against the same product of the decoded weights: rounding to 16 bits."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report.

    Attributes:
        check: what was looked at.
        state: ok; warn: something will not work or be slow; fail: training will not work.
        found: what there is.
        remedy: what to do about it.
    """

    check: str
    state: State
    found: str
    remedy: str = ""


def judge_python(version: tuple[int, int], *, bits: int) -> Finding:
    """Python's version and width."""
    found = f"{version[0]}.{version[1]}, {bits} bits"
    if version < PYTHON or bits != 64:
        needed = ".".join(map(str, PYTHON))
        return Finding(check="Python", state="fail", found=found, remedy=f"install 64-bit Python {needed} or newer")
    return Finding(check="Python", state="ok", found=found)


def judge_driver(gpus: Sequence[Gpu], fault: str | None) -> Finding:
    """NVIDIA's driver and the cards it finds."""
    if fault is not None:
        remedy = "reboot after a driver update; else install the driver again"
        return Finding(check="GPU driver", state="fail", found=fault, remedy=remedy)
    if not gpus:
        remedy = "a 7B model needs an NVIDIA GPU; install its driver (`nvidia-smi` must work)"
        return Finding(
            check="GPU driver", state="warn", found="no NVIDIA GPU: everything runs on the CPU", remedy=remedy
        )
    cards = ", ".join(f"{gpu.name} ({gpu.total / GIB:.1f} GiB)" for gpu in gpus)
    return Finding(check="GPU driver", state="ok", found=f"{gpus[0].driver}: {cards}")


def judge_torch(
    version: str, built_for: str | None, architectures: Sequence[str], gpus: Sequence[Gpu], *, works: bool
) -> Finding:
    """torch's build against driver and card.

    A driver runs programs of its own CUDA major version and older ones; of a newer minor version too
    (CUDA compatibility guide, "minor version compatibility").

    Args:
        version: of torch.
        built_for: the CUDA that torch was built for, "13.0"; None for a CPU build.
        architectures: that its kernels are compiled for, "sm_90".
        gpus: of this machine.
        works: whether torch sees a usable GPU.
    """
    found = f"{version}, " + (f"CUDA {built_for}" if built_for else "a CPU build")
    if not gpus:
        return Finding(check="torch", state="ok", found=found)
    gpu = gpus[0]
    if built_for is None:
        remedy = "install torch's CUDA build: the command for your system is on pytorch.org"
        return Finding(check="torch", state="fail", found=f"{found}, but there is a {gpu.name}", remedy=remedy)
    major = int(built_for.split(".")[0])
    if gpu.cuda is not None and gpu.cuda[0] < major:
        newest = f"{gpu.cuda[0]}.{gpu.cuda[1]}"
        remedy = f"update the driver, or install a torch built for CUDA {gpu.cuda[0]}"
        found += f"; driver {gpu.driver} runs CUDA {newest} at most"
        return Finding(check="torch", state="fail", found=found, remedy=remedy)
    if gpu.capability is not None and not _compiled_for(gpu.capability, architectures):
        remedy = "install a torch whose release notes name this architecture"
        found += f"; no kernels for {gpu.name} (sm_{gpu.capability[0]}{gpu.capability[1]})"
        return Finding(check="torch", state="fail", found=found, remedy=remedy)
    if not works:
        remedy = (
            "reboot; in a container start it with --gpus all; see `python -c 'import torch; torch.zeros(1).cuda()'`"
        )
        return Finding(check="torch", state="fail", found=f"{found}, but it cannot use {gpu.name}", remedy=remedy)
    if gpu.capability is not None and gpu.capability < (8, 0):
        remedy = "training runs in float16; watch for losses that are not finite"
        return Finding(check="torch", state="warn", found=f"{found}; {gpu.name} has no bfloat16", remedy=remedy)
    return Finding(check="torch", state="ok", found=found)


def _compiled_for(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Kernels run on their own major version from their minor version up; ``compute_`` ones on everything newer."""
    for name in architectures:
        kind, _, digits = name.partition("_")
        number = int("".join(filter(str.isdigit, digits)))
        major, minor = divmod(number, 10)
        if (major, minor) <= capability and (major == capability[0] or kind == "compute"):
            return True
    return not architectures


def judge_product(error: float, *, device: str, version: str) -> Finding:
    """bitsandbytes' 4-bit product against the same by decoded weights; ``error`` is relative."""
    found = f"{version}, 4-bit product on the {device} off by {error:.1%}"
    if not error <= TOLERANCE:
        remedy = "install the pinned torch and bitsandbytes together: pip install -r requirements.txt"
        return Finding(check="bitsandbytes", state="fail", found=found, remedy=remedy)
    return Finding(check="bitsandbytes", state="ok", found=found)


def judge_triton(version: str | None, error: float | None, *, gpu: bool, windows: bool) -> Finding:
    """Triton, which only the fast kernels need.

    Args:
        version: None where it is not installed.
        error: of one of our kernels against its reference; None where none could run.
        gpu: whether there is one.
        windows: whose package has another name.
    """
    if not gpu:
        return Finding(check="Triton", state="ok", found=f"{version or 'not installed'}; used on a GPU only")
    if version is None:
        remedy = f"pip install {'triton-windows' if windows else 'triton'}; until then model.kernels none trains"
        return Finding(check="Triton", state="warn", found="not installed: no fast kernels", remedy=remedy)
    if error is None or not error <= TOLERANCE:
        found = f"{version}: " + ("a kernel did not compile" if error is None else f"a kernel is off by {error:.1%}")
        remedy = "see the compiler's line; until then model.kernels none trains"
        return Finding(check="Triton", state="warn", found=found, remedy=remedy)
    return Finding(check="Triton", state="ok", found=f"{version}, a kernel compiled and agrees")


def judge_compiler(compiler: str | None, *, header: bool, gpu: bool) -> Finding:
    """A C compiler with Python's headers: Triton compiles a launcher for each kernel."""
    state: State = "warn" if gpu else "ok"
    if compiler is None:
        remedy = (
            "Debian: apt install gcc; Windows: Visual Studio's build tools; only model.kernels bf16 and fp8 need it"
        )
        return Finding(check="compiler", state=state, found="none", remedy=remedy if gpu else "")
    if not header:
        remedy = "Debian: apt install python3-dev; only model.kernels bf16 and fp8 need it"
        return Finding(check="compiler", state=state, found=f"{compiler}, no Python.h", remedy=remedy if gpu else "")
    return Finding(check="compiler", state="ok", found=compiler)


def judge_disk(folder: Path, free: int, *, writable: bool) -> Finding:
    """Room for models and runs."""
    found = f"{free / 1e9:,.0f} GB free in {folder}"
    if not writable:
        remedy = "choose another folder (HF_HOME, APP_CACHE, --run), or ask for the right to write"
        return Finding(check="disk", state="fail", found=f"{folder} cannot be written", remedy=remedy)
    if free < ROOM:
        remedy = "a 7B model takes 14.5 GB, its 4-bit form 4: free some, or set HF_HOME and APP_CACHE to another disk"
        return Finding(check="disk", state="fail" if free < 1e9 else "warn", found=found, remedy=remedy)
    return Finding(check="disk", state="ok", found=found)


def judge_hub(endpoint: str, fault: str | None, *, offline: bool, token: bool) -> Finding:
    """Whether models can be fetched.

    Args:
        endpoint: HF_ENDPOINT, or the public hub.
        fault: what kept it from answering.
        offline: HF_HUB_OFFLINE is set.
        token: whether there is a login.
    """
    if offline:
        remedy = "unset HF_HUB_OFFLINE to fetch models; what is in the cache works"
        return Finding(check="hub", state="warn", found="HF_HUB_OFFLINE is set", remedy=remedy)
    if fault is not None:
        remedy = "check the connection or set HF_ENDPOINT to a mirror; local folders and cached models work"
        return Finding(check="hub", state="warn", found=f"{endpoint} does not answer: {fault}", remedy=remedy)
    if not token:
        remedy = "gated models (Llama, Gemma) need `hf auth login`"
        return Finding(check="hub", state="ok", found=f"{endpoint} answers; not logged in", remedy=remedy)
    return Finding(check="hub", state="ok", found=f"{endpoint} answers; logged in")


def judge_wandb(host: str, *, key: bool, installed: bool) -> Finding:
    """A login at Weights & Biases, which only ``wandb: online`` needs."""
    if not installed:
        return Finding(check="W&B", state="warn", found="not installed", remedy="pip install wandb to log there")
    if not key:
        remedy = "`wandb login`, only for `wandb: online`; offline and off need none"
        return Finding(check="W&B", state="warn", found=f"no login for {host}", remedy=remedy)
    return Finding(check="W&B", state="ok", found=f"a key for {host}")


def judge_gpu_memory(gpu: Gpu) -> Finding:
    """What is free on a card, and who has the rest."""
    found = f"{gpu.free / GIB:.1f} of {gpu.total / GIB:.1f} GiB free on {gpu.name}"
    users = [
        f"{process.name} ({process.pid})" + (f" {process.used / GIB:.1f} GiB" if process.used else "")
        for process in sorted(gpu.processes, key=lambda process: process.used or 0, reverse=True)
    ]
    if users:
        found += "; in use by " + ", ".join(users[:5]) + (f" and {len(users) - 5} more" if len(users) > 5 else "")
    if gpu.used > GIB:
        remedy = "close what you can; `python -m app plan` counts what is in use"
        return Finding(check="GPU memory", state="warn", found=found, remedy=remedy)
    return Finding(check="GPU memory", state="ok", found=found)


def judge_spill(system: Literal["Linux", "Windows", "WSL", "other"], *, beyond: bool | None) -> Finding:
    """Windows' driver may put what does not fit the card into main memory: no error, and training at a crawl.

    Args:
        system: of the machine.
        beyond: whether more could be allocated than is free; None where that was not tried.
    """
    check = "memory spill"
    if beyond:
        remedy = "NVIDIA Control Panel, Manage 3D settings, CUDA - Sysmem Fallback Policy: Prefer No Sysmem Fallback"
        found = f"{system}: the driver gives more memory than the card has, from main memory"
        return Finding(check=check, state="warn", found=found, remedy=remedy)
    if system in ("Windows", "WSL"):
        found = f"{system}: " + ("no GPU to try it on" if beyond is None else "off: what does not fit is refused")
        return Finding(check=check, state="ok", found=found)
    return Finding(check=check, state="ok", found="this driver has none")
