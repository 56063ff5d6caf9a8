"""CUDA C++ compiled when it is first needed by NVRTC, a library that PyTorch's CUDA builds for Linux bring with them.

Triton decides which thread holds which element. A kernel that lives from deciding it itself is written in CUDA C++;
neither a toolkit nor a C++ compiler is needed.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch

try:
    from cuda.bindings import driver, nvrtc
except ImportError:  # Windows, macOS, CPU builds
    driver = nvrtc = None

HAS_NVRTC = nvrtc is not None

Argument = torch.Tensor | int | float | None
"""Of a kernel: a tensor for a pointer, None for a null pointer, int or float for 32 bits."""


def compile_cuda(file: str, capability: tuple[int, int], **macros: int) -> bytes:
    """Machine code of a file beside this one.

    Args:
        file: its name.
        capability: compute capability of the GPU it is for, as (8, 9).
        macros: what it leaves to be defined.

    Raises:
        RuntimeError: it does not compile; the compiler's messages.
    """
    source = (Path(__file__).parent / file).read_bytes()
    options = [f"--gpu-architecture=sm_{capability[0]}{capability[1]}", "--std=c++17"]
    options += [f"-D{name}={value}" for name, value in macros.items()]
    program = _checked(nvrtc.nvrtcCreateProgram(source, file.encode(), 0, [], []))
    (fault,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    if fault != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        log = b" " * _checked(nvrtc.nvrtcGetProgramLogSize(program))
        _checked(nvrtc.nvrtcGetProgramLog(program, log))
        raise RuntimeError(f"{file} does not compile:\n{log.decode()}")
    code: bytes = b" " * _checked(nvrtc.nvrtcGetCUBINSize(program))
    _checked(nvrtc.nvrtcGetCUBIN(program, code))
    return code


@cache
def _function(file: str, name: str, macros: tuple[tuple[str, int], ...], device: int) -> Any:
    code = compile_cuda(file, torch.cuda.get_device_capability(device), **dict(macros))
    # The module is never unloaded: CUDA graphs keep its functions.
    module = _checked(driver.cuModuleLoadData(code))
    return _checked(driver.cuModuleGetFunction(module, name.encode()))


def launch_cuda(file: str, name: str, *, blocks: int, warps: int, macros: dict[str, int], args: list[Argument]) -> None:
    """Launches an ``extern "C"`` kernel on the current stream; compiles it the first time, in some tenths of a second.

    Args:
        file: where it stands.
        name: the function's.
        blocks: thread blocks.
        warps: of each block.
        macros: see `compile_cuda`.
        args: the parameters in their order.
    """
    device = next(value.device for value in args if isinstance(value, torch.Tensor))
    function = _function(file, name, tuple(macros.items()), device.index)
    values = tuple(value.data_ptr() if isinstance(value, torch.Tensor) else value or 0 for value in args)
    types = tuple(_KINDS.get(type(value), ctypes.c_void_p) for value in args)
    stream = torch.cuda.current_stream(device).cuda_stream
    _checked(driver.cuLaunchKernel(function, blocks, 1, 1, 32 * warps, 1, 1, 0, stream, (values, types), 0))


_KINDS: dict[type, Any] = {int: ctypes.c_int, float: ctypes.c_float}


def _checked(result: tuple[Any, ...]) -> Any:
    """What a call of CUDA's bindings gives beside its fault code, which must be 0."""
    fault, *values = result
    if int(fault):
        raise RuntimeError(f"CUDA failed: {fault!r}")
    return values[0] if values else None
