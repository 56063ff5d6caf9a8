"""Looks at this machine: a check gathers what there is, runs what can be run, and lets `app.plan.checks` judge."""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from app.errors import first_line
from app.plan import checks
from app.plan.checks import Finding
from app.plan.gpu import driver_fault, present

HUB_TIMEOUT = 5.0


def examine(began: Callable[[str], object]) -> Iterator[Finding]:
    """Every check's findings, in order; one that breaks is a finding itself.

    Args:
        began: told the name of each check as it begins.
    """
    for name, check in CHECKS.items():
        began(name)
        try:
            yield from check()
        except Exception as fault:  # whatever breaks a library here is what the user came to learn
            remedy = "install the pinned packages again: pip install -r requirements.txt"
            yield Finding(check=name, state="fail", found=f"{type(fault).__name__}: {first_line(fault)}", remedy=remedy)


def python() -> list[Finding]:
    return [checks.judge_python(sys.version_info[:2], bits=64 if sys.maxsize > 2**32 else 32)]


def driver() -> list[Finding]:
    return [checks.judge_driver(present(), driver_fault())]


def torch_build() -> list[Finding]:
    import torch

    works = torch.cuda.is_available()
    architectures = torch.cuda.get_arch_list() if works else []
    return [checks.judge_torch(torch.__version__, torch.version.cuda, architectures, present(), works=works)]


def bitsandbytes() -> list[Finding]:
    """A 4-bit product with a gradient on the device that training would take."""
    import logging

    import torch

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import bitsandbytes as library
    from bitsandbytes import functional

    device = "GPU" if torch.cuda.is_available() else "CPU"
    where = torch.device("cuda" if device == "GPU" else "cpu")
    generator = torch.Generator().manual_seed(0)
    weight, inputs = (torch.randn(rows, 128, generator=generator).to(where, torch.bfloat16) for rows in (256, 32))
    inputs.requires_grad_()
    packed, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    product = library.matmul_4bit(inputs, packed, quant_state=state)
    product.float().sum().backward()
    decoded: Any = functional.dequantize_4bit(packed, state).float()
    exact, gradient = inputs.detach().float() @ decoded.t(), decoded.sum(dim=0).expand_as(inputs)
    assert inputs.grad is not None
    error = max(_relative(product.detach(), exact), _relative(inputs.grad, gradient))
    return [checks.judge_product(error, device=device, version=library.__version__)]


def triton() -> list[Finding]:
    """One of our kernels, compiled and compared with its reference."""
    import torch

    gpu, found, error = torch.cuda.is_available(), _version("triton", "triton-windows"), None
    if gpu and found is not None:
        from app.kernels.rms_norm import rms_norm

        hidden = torch.randn(64, 512, device="cuda", dtype=torch.bfloat16)
        weight = torch.ones(512, device="cuda", dtype=torch.bfloat16)
        ours = rms_norm(hidden, weight, 1e-6, unit_offset=False)[1].value
        error = _relative(ours, torch.nn.functional.rms_norm(hidden.float(), (512,), eps=1e-6))
    return [checks.judge_triton(found, error, gpu=gpu, windows=sys.platform == "win32")]


def compiler() -> list[Finding]:
    """The compiler that Triton would take, tried on an empty program."""
    names = (os.environ.get("CC"), "cc", "gcc", "clang", "cl")
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is not None and sys.platform != "win32":
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "empty.c"
            source.write_text("int main(void) { return 0; }\n")
            command = [found, str(source), "-o", str(source.with_suffix(""))]
            if subprocess.run(command, capture_output=True, timeout=60).returncode:
                found = None
    header = (Path(sysconfig.get_path("include")) / "Python.h").is_file()
    return [checks.judge_compiler(found, header=header, gpu=bool(present()))]


def disk() -> list[Finding]:
    """The folders that models, caches and runs go to; one finding for each disk."""
    home = Path.home() / ".cache"
    folders = [
        Path(os.environ.get("HF_HOME") or home / "huggingface"),
        Path(os.environ.get("APP_CACHE") or home / "app"),
        Path("runs"),
    ]
    findings: dict[int, Finding] = {}
    for folder in folders:
        there = folder.expanduser().absolute()
        while not there.exists():
            there = there.parent
        free, writable = shutil.disk_usage(there).free, os.access(there, os.W_OK)
        finding = checks.judge_disk(folder, free, writable=writable)
        key = there.stat().st_dev
        if key not in findings or finding.state == "fail":
            findings[key] = finding
    return list(findings.values())


def hub() -> list[Finding]:
    """One request to HF_ENDPOINT or the public hub, which must answer within seconds."""
    from huggingface_hub import constants, get_session, get_token, is_offline_mode

    fault = None
    if not is_offline_mode():
        try:
            get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
        except Exception as error:  # which HTTP library raises what depends on the hub client's version
            fault = first_line(error)
    return [checks.judge_hub(constants.ENDPOINT, fault, offline=is_offline_mode(), token=get_token() is not None)]


def wandb() -> list[Finding]:
    """A key in the environment or in netrc, where `wandb login` puts it; wandb itself takes seconds to import."""
    import netrc
    from urllib.parse import urlsplit

    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    key = bool(os.environ.get("WANDB_API_KEY"))
    for name in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        path = Path(name).expanduser() if name else None
        if path is not None and path.is_file():
            try:
                key = key or netrc.netrc(str(path)).authenticators(host) is not None
            except (netrc.NetrcParseError, OSError):
                continue
    return [checks.judge_wandb(host, key=key, installed=_version("wandb") is not None)]


def gpu_memory() -> list[Finding]:
    return [checks.judge_gpu_memory(gpu) for gpu in present()]


def spill() -> list[Finding]:
    """Under Windows, tries to allocate more than is free."""
    system = _system()
    beyond = None
    if system in ("Windows", "WSL"):
        import torch

        if torch.cuda.is_available():
            free, _ = torch.cuda.mem_get_info()
            try:
                torch.empty(free + 2**29, dtype=torch.uint8, device="cuda")
                beyond = True
            except torch.OutOfMemoryError:
                beyond = False
            torch.cuda.empty_cache()
    return [checks.judge_spill(system, beyond=beyond)]


CHECKS: dict[str, Callable[[], list[Finding]]] = {
    "Python": python,
    "GPU driver": driver,
    "torch": torch_build,
    "bitsandbytes": bitsandbytes,
    "Triton": triton,
    "compiler": compiler,
    "disk": disk,
    "hub": hub,
    "W&B": wandb,
    "GPU memory": gpu_memory,
    "memory spill": spill,
}


def _relative(ours: Any, exact: Any) -> float:
    return float((ours.float() - exact).norm() / exact.norm())


def _version(*packages: str) -> str | None:
    """Of the first that is installed."""
    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


def _system() -> Literal["Linux", "Windows", "WSL", "other"]:
    if sys.platform == "win32":
        return "Windows"
    if sys.platform != "linux":
        return "other"
    return "WSL" if "microsoft" in platform.release().lower() else "Linux"
