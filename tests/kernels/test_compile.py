"""Compilers are stricter than Triton's interpreter: kernels are compiled for GPUs that are not there."""

import importlib.util
import os
import subprocess
import sys

import pytest

from app.kernels.nvrtc import HAS_NVRTC, compile_cuda
from conftest import ROOT

COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from app.kernels.decode_attention import _attend_kernel
from app.kernels.decode_layer import _rotate_kernel
from app.kernels.fp8 import _append_kernel
from app.kernels.lora_stack import _stack_kernel
from app.kernels.rotary import _fused_gradient_kernel
from app.kernels.softmax_loss import _softmax_loss_kernel

def build(kernel, capability, types, **constants):
    types |= dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    assert "cubin" in compile(source, target=GPUTarget("cuda", capability, 32)).asm

members = range(3)
stack = {f"{name}{i}": kind for name, kind in (("a", "*fp32"), ("b", "*fp32"), ("scaling", "fp32"), ("rank", "i32"),
    ("rows", "i32")) for i in members} | {"a_out": "*bf16", "b_out": "*bf16"}
loss = {"logits": "*bf16", "targets": "*i64", "losses": "*fp32"}
cache = dict.fromkeys(("slots", "positions"), "*i32") | dict.fromkeys(
    ("queries", "out", "keys", "cache_keys", "cache_values", "cos", "sin", "b"), "*bf16") | dict.fromkeys(
    ("key_scales", "value_scales", "sums", "most", "mass"), "*fp32") | {"scale": "fp32"}
turned = dict.fromkeys(("cos", "sin", "of_q", "of_k", "of_v", "out"), "*bf16")
for capability in (80, 89, 90):  # Ampere, Ada, Hopper
    build(_stack_kernel, capability, stack, RANK=64, ROWS=64, ELEMENTS=1024)
    build(_softmax_loss_kernel, capability, loss, WORDS=32000, GRADIENT=True, BLOCK=4096)
    quantised = {"quantised": "*u8" if capability < 89 else "*fp8e4nv", "scale": "*fp32"}
    build(_fused_gradient_kernel, capability, turned | quantised, QUANTISE=capability >= 89, HEADS=48,
        GROUP=16, DIM=128)
    if capability >= 89:
        behind = {"fp8": "*fp8e4nv", "factor": "*bf16", "scale": "*fp32"}
        build(_append_kernel, capability, dict(behind), SPLIT=True, ROWS=16, COLUMNS=128)
        build(_append_kernel, capability, dict(behind), SPLIT=False, ROWS=16, COLUMNS=512)
    build(_rotate_kernel, capability, cache | {"values": "*fp32"}, SEPARATE=True, INT8=False, SPLITS=1, RANK=16,
        ROWS=16, BLOCK=128)
    build(_attend_kernel, capability, cache | {"values": "*bf16"}, GROUP=4, GROUP_BLOCK=16, INT8=False, SPLITS=16,
        KEYS=64, BLOCK=128)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_kernels_compile_for_each_generation() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT / "src")
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(not HAS_NVRTC, reason="needs CUDA's bindings")
@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0)])
def test_products_compile_for_each_generation(capability: tuple[int, int]) -> None:
    with pytest.raises(RuntimeError, match="TILES"):
        compile_cuda("nf4_gemv.cu", capability)
    macros = {"TILES": 1, "WARPS": 8, "UNROLL": 2, "NESTED": 1, "RESIDENT": 2}
    for halves in (1, 2):
        assert compile_cuda("nf4_gemv.cu", capability, HALVES=halves, **macros).startswith(b"\x7fELF")
