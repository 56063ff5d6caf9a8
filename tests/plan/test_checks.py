"""The doctor's conclusions from good and bad machines."""

from pathlib import Path
from typing import Any

import pytest

from app.plan import checks
from app.plan.checks import Finding
from app.plan.gpu import Gpu, GpuProcess

GIB = 2**30
ADA: dict[str, Any] = {
    "name": "NVIDIA GeForce RTX 4060 Laptop GPU", "total": 8188 * 2**20, "reserved": 252 * 2**20, "used": 300 * 2**20,
    "driver": "580.82", "cuda": (13, 0), "capability": (8, 9),
}  # fmt: skip
ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


def gpu(**changed: Any) -> Gpu:
    return Gpu(**{**ADA, **changed})


def torch_build(card: Gpu | None, *, built_for: str | None = "13.0", works: bool = True) -> Finding:
    return checks.judge_torch("2.13.0", built_for, ARCHITECTURES, [card] if card else [], works=works)


@pytest.mark.parametrize(
    ("finding", "state", "says"),
    [
        (checks.judge_python((3, 11), bits=64), "ok", "3.11"),
        (checks.judge_python((3, 10), bits=64), "fail", "3.11 or newer"),
        (checks.judge_python((3, 12), bits=32), "fail", "64-bit"),
        (checks.judge_driver([gpu()], None), "ok", "580.82"),
        (checks.judge_driver([], None), "warn", "nvidia-smi"),
        (checks.judge_driver([], "Driver/library version mismatch"), "fail", "reboot"),
        (torch_build(None, built_for=None), "ok", "CPU build"),
        (torch_build(gpu()), "ok", "CUDA 13.0"),
        (torch_build(gpu(), built_for=None), "fail", "CUDA build"),
        (torch_build(gpu(driver="535.1", cuda=(12, 2))), "fail", "update the driver"),
        # The same major version: minor versions run each other's programs.
        (torch_build(gpu(driver="525.1", cuda=(12, 0)), built_for="12.8"), "ok", "CUDA 12.8"),
        (torch_build(gpu(capability=(6, 1))), "fail", "sm_61"),
        (torch_build(gpu(capability=(13, 0))), "ok", "2.13.0"),
        (torch_build(gpu(capability=(7, 5))), "warn", "float16"),
        (torch_build(gpu(), works=False), "fail", "cannot use"),
        (checks.judge_product(0.004, device="GPU", version="0.50"), "ok", "0.4%"),
        (checks.judge_product(0.3, device="GPU", version="0.50"), "fail", "requirements.txt"),
        (checks.judge_product(float("nan"), device="GPU", version="0.50"), "fail", "nan"),
        (checks.judge_triton("3.6", 0.001, gpu=True, windows=False), "ok", "agrees"),
        (checks.judge_triton("3.6", None, gpu=True, windows=False), "warn", "did not compile"),
        (checks.judge_triton("3.6", 0.5, gpu=True, windows=False), "warn", "off by 50"),
        (checks.judge_triton(None, None, gpu=True, windows=True), "warn", "triton-windows"),
        (checks.judge_triton(None, None, gpu=False, windows=False), "ok", "not installed"),
        (checks.judge_compiler("/usr/bin/cc", header=True, gpu=True), "ok", "/usr/bin/cc"),
        (checks.judge_compiler("/usr/bin/cc", header=False, gpu=True), "warn", "python3-dev"),
        (checks.judge_compiler(None, header=False, gpu=True), "warn", "gcc"),
        (checks.judge_compiler(None, header=False, gpu=False), "ok", "none"),
        (checks.judge_disk(Path("models"), 200 * 10**9, writable=True), "ok", "200 GB"),
        (checks.judge_disk(Path("models"), 9 * 10**9, writable=True), "warn", "HF_HOME"),
        (checks.judge_disk(Path("models"), 10**8, writable=True), "fail", "HF_HOME"),
        (checks.judge_disk(Path("models"), 200 * 10**9, writable=False), "fail", "cannot be written"),
        (checks.judge_hub("https://hub", None, offline=False, token=True), "ok", "logged in"),
        (checks.judge_hub("https://hub", None, offline=False, token=False), "ok", "hf auth login"),
        (checks.judge_hub("https://hub", "timed out", offline=False, token=True), "warn", "HF_ENDPOINT"),
        (checks.judge_hub("https://hub", None, offline=True, token=True), "warn", "HF_HUB_OFFLINE"),
        (checks.judge_wandb("api.wandb.ai", key=True, installed=True), "ok", "api.wandb.ai"),
        (checks.judge_wandb("api.wandb.ai", key=False, installed=True), "warn", "wandb login"),
        (checks.judge_wandb("api.wandb.ai", key=False, installed=False), "warn", "pip install"),
        (checks.judge_gpu_memory(gpu()), "ok", "7.5 of 8.0 GiB free"),
        (checks.judge_spill("Linux", beyond=None), "ok", "none"),
        (checks.judge_spill("Windows", beyond=True), "warn", "Sysmem Fallback"),
        (checks.judge_spill("WSL", beyond=False), "ok", "refused"),
    ],
)  # fmt: skip
def test_conclusion(finding: Finding, state: str, says: str) -> None:
    assert finding.state == state
    assert says in f"{finding.found} {finding.remedy}"
    if state != "ok":
        assert finding.remedy, "whatever is not ok has a remedy"


def test_names_who_uses_the_card() -> None:
    processes = [GpuProcess(pid=10 + i, name=f"game{i}", used=i * GIB) for i in range(7)]
    finding = checks.judge_gpu_memory(gpu(used=6 * GIB, processes=(*processes, GpuProcess(pid=9, name="x", used=None))))
    assert finding.state == "warn"
    assert "game6 (16) 6.0 GiB, game5 (15)" in finding.found and "and 3 more" in finding.found
