"""Where kernels are tested: the references on the CPU, the kernels in Triton's interpreter or on a GPU."""

import pytest
import torch

from app.kernels.triton_support import INTERPRETED

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(params=["reference", "kernel"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device on which the fast path runs ("kernel"), or the CPU with the fast path switched off ("reference")."""
    if request.param == "kernel":
        if DEVICE.type == "cpu" and not INTERPRETED:
            pytest.skip("neither a GPU nor Triton's interpreter (pip install triton)")
        return DEVICE
    monkeypatch.setattr("app.kernels.triton_support.triton", None)
    return torch.device("cpu")


def error(value: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative error in the Frobenius norm; NaN never passes a comparison."""
    return float((value.double().cpu() - exact.double().cpu()).norm() / exact.double().norm())
