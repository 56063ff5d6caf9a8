"""What a process really uses of a device: torch's view, and the driver's, which is what nvidia-smi shows."""

import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import psutil
import torch

from app.nvml import nvml


@dataclass(frozen=True, kw_only=True)
class MemoryReading:
    """Bytes in use now.

    Attributes:
        allocated: held by live tensors; on a CPU the resident set of the process.
        reserved: taken from the driver by torch's allocator; on a CPU the same as ``allocated``.
        process: the driver's figure for this process, CUDA context and libraries included; on a CPU the resident set.
    """

    allocated: int
    reserved: int
    process: int


def read_memory(device: torch.device) -> MemoryReading:
    """What this process uses of ``device``."""
    if device.type != "cuda":
        resident = psutil.Process().memory_info().rss
        return MemoryReading(allocated=resident, reserved=resident, process=resident)
    return MemoryReading(
        allocated=torch.cuda.memory_allocated(device),
        reserved=torch.cuda.memory_reserved(device),
        process=driver_memory(device),
    )


def driver_memory(device: torch.device) -> int:
    """Bytes the driver counts for this process, as nvidia-smi prints them.

    In some containers and under Windows' WDDM the driver names no processes; then it is what the whole card uses.
    """
    library = nvml()
    try:
        processes = library.nvmlDeviceGetComputeRunningProcesses(nvml_handle(device))
    except library.NVMLError:
        processes = []
    own = [process.usedGpuMemory for process in processes if process.pid == os.getpid()]
    if own and own[0]:
        return int(own[0])
    free, total = torch.cuda.mem_get_info(device)
    return total - free


@cache
def nvml_handle(device: torch.device) -> Any:
    """The driver's handle of the card, looked up once: memory is read at every micro-batch."""
    # NVML numbers cards by PCI bus and ignores CUDA_VISIBLE_DEVICES: the card is found by its UUID.
    return nvml().nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
