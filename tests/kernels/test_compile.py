"""Triton's compiler is stricter than its interpreter: kernels are compiled for GPUs that are not there."""

import importlib.util
import os
import subprocess
import sys

import pytest

from conftest import ROOT

COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from app.kernels.lora_stack import _stack_kernel
from app.kernels.softmax_loss import _softmax_loss_kernel

def build(kernel, capability, types, **constants):
    types |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature={name: types[name] for name in kernel.arg_names}, constexprs=constants)
    assert "cubin" in compile(source, target=GPUTarget("cuda", capability, 32)).asm

members = range(3)
stack = {f"{name}{i}": kind for name, kind in (("a", "*fp32"), ("b", "*fp32"), ("scaling", "fp32"), ("rank", "i32"),
    ("rows", "i32")) for i in members} | {"a_out": "*bf16", "b_out": "*bf16", "columns": "i32", "b_programs": "i32"}
loss = {"logits": "*bf16", "targets": "*i64", "losses": "*fp32"}
for capability in (80, 89, 90):  # Ampere, Ada, Hopper
    build(_stack_kernel, capability, stack, RANK=64, ROWS=64, ELEMENTS=1024)
    build(_softmax_loss_kernel, capability, loss, WORDS=32000, GRADIENT=True, BLOCK=4096)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_kernels_compile_for_each_generation() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT / "src")
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
