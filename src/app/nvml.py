"""The driver's library (NVML), which tells what cards hold and who uses them; no CUDA is started by it."""

from functools import cache
from typing import Any


@cache
def nvml() -> Any:
    """The pynvml module, ready to be asked; opened once a process and left open, as asking is frequent.

    Raises:
        pynvml.NVMLError: there is no driver, or one of another version than its library.
    """
    import pynvml

    pynvml.nvmlInit()
    return pynvml
