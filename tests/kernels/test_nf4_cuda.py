"""The product in CUDA C++, compiled for the CPU with as much of CUDA as it needs: its logic without a GPU."""

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.kernels import nf4_cuda
from app.kernels.nf4 import dequantise_reference
from conftest import ROOT
from kernels.conftest import error
from kernels.test_nf4 import quantised

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")

SOURCE = ROOT / "src" / "app" / "kernels" / "nf4_gemv.cu"
# The two instructions that only a GPU has.
INSTEAD = {
    r'asm\("mma.*?\)\);': "multiply_tiles(of, upper0, lower0, upper1, lower1, row0, row1);",
    r'asm volatile\("ld.*?\)\);': "value = *(const uint2*)at;",
}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Compiles the kernel with macros, for the CPU."""
    folder = tmp_path_factory.mktemp("cuda")
    source = SOURCE.read_text()
    for pattern, replacement in INSTEAD.items():
        source, found = re.subn(pattern, replacement, source, flags=re.DOTALL)
        assert found == 1
    built: dict[tuple[tuple[str, int], ...], Any] = {}

    def compiled(**macros: int) -> Any:
        key = tuple(macros.items())
        if key not in built:
            path = folder / f"{len(built)}.cpp"
            header = Path(__file__).with_name("cuda_on_cpu.h")
            launch = (
                "template <typename... A> void start(int blocks, int warps, A... a) {"
                " run([=] { product(a...); }, blocks, 32 * warps); }\n"
            )
            path.write_text(f'#include "{header}"\n{source}\n{launch}{_entry(source)}')
            library = path.with_suffix(".so")
            flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-w"]
            flags += [f"-D{name}={value}" for name, value in macros.items()]
            subprocess.run(["g++", *flags, str(path), "-o", str(library)], check=True)
            built[key] = ctypes.CDLL(str(library))
        return built[key]

    return compiled


def _entry(source: str) -> str:
    """A C function with the kernel's parameters, after the number of blocks and of warps."""
    found = re.search(r"product\((.*?)\)\s*\{", re.sub(r"//.*", "", source[source.index('extern "C"') :]), re.DOTALL)
    assert found is not None
    parameters = found[1].replace("__restrict__", "")
    names = ", ".join(part.split()[-1].lstrip("*") for part in parameters.split(","))
    return f'extern "C" void launch(int blocks, int warps, {parameters}) {{ start(blocks, warps, {names}); }}'


@pytest.fixture
def on_cpu(build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """`app.kernels.nf4_cuda` launches what was built for the CPU."""

    def launch(file: str, name: str, *, blocks: int, warps: int, macros: dict[str, int], args: list[Any]) -> None:
        kinds = {int: ctypes.c_int, float: ctypes.c_float}
        values = [
            ctypes.c_void_p(value.data_ptr() if isinstance(value, torch.Tensor) else None)
            if value is None or isinstance(value, torch.Tensor)
            else kinds[type(value)](value)
            for value in args
        ]
        build(**macros).launch(blocks, warps, *values)

    monkeypatch.setattr(nf4_cuda, "launch_cuda", launch)


# Members, their width, adapters' rows in all: tiles that hang over; an odd number of blocks; fewer blocks than warps.
@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize(
    ("counts", "columns", "adapters"), [((32,), 2048, 16), ((40, 9, 17), 192, 48), ((16, 33), 128, 0)]
)
def test_product(counts: tuple[int, ...], columns: int, adapters: int, double: bool) -> None:
    cpu = torch.device("cpu")
    weights = [quantised(count, columns, cpu, double=double) for count in counts]
    members = [nf4_cuda.NF4Weight.of(weight) for weight in weights]
    assert all(member is not None for member in members)
    known = [member for member in members if member is not None]
    pairs = torch.cartesian_prod(known[0].code, known[0].code).bfloat16()
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(16, columns, generator=generator).bfloat16()
    a = torch.randn(adapters, columns, generator=generator).bfloat16()
    squares = columns * torch.rand(16, 40, generator=generator)
    frozen = torch.cat([dequantise_reference(member) for member in known])
    exact = x.double() @ torch.cat((frozen.double(), a.double())).t()
    exact /= (squares.double().sum(1, keepdim=True) / columns + 0.5).sqrt()
    naive = torch.mm(x, frozen.bfloat16().t())
    allowed = max(2e-3, 1.2 * error(naive, x.double() @ frozen.double().t()))
    results = []
    for rows in (1, 5, 16):
        out = torch.full((rows, exact.shape[1]), float("nan"))
        nf4_cuda.multiply_few(x[:rows].contiguous(), known, pairs, a, out, squares=squares[:rows].contiguous(), eps=0.5)
        assert error(out[:, : len(frozen)], exact[:rows, : len(frozen)]) < allowed
        assert adapters == 0 or error(out[:, len(frozen) :], exact[:rows, len(frozen) :]) < 1e-5
        results.append(out[0])
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.usefixtures("on_cpu")
def test_without_a_norm_nothing_is_divided() -> None:
    weight = nf4_cuda.NF4Weight.of(quantised(16, 64, torch.device("cpu"), double=True))
    assert weight is not None
    x, out = torch.ones(1, 64, dtype=torch.bfloat16), torch.empty(1, 16)
    pairs = torch.cartesian_prod(weight.code, weight.code).bfloat16()
    a = torch.empty(0, 64, dtype=torch.bfloat16)
    nf4_cuda.multiply_few(x, [weight], pairs, a, out, squares=None, eps=0.0)
    torch.testing.assert_close(out[0], dequantise_reference(weight).sum(1), rtol=0.01, atol=0.01)


def test_where_the_kernel_cannot_be_compiled_a_warning_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: int) -> bytes:
        raise RuntimeError("nf4_gemv.cu does not compile: no such architecture")

    monkeypatch.setattr(nf4_cuda, "HAS_NVRTC", True)
    monkeypatch.setattr(nf4_cuda, "compile_cuda", fails)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (13, 0))
    device = torch.device("cuda", 7)
    assert not nf4_cuda.can_compile(device) and not nf4_cuda.can_compile(device)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no such architecture" in caplog.text
