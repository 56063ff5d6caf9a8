"""The cards of this machine as the driver's library (NVML) tells them: memory, and who uses it. No CUDA is started."""

from dataclasses import dataclass, field

from app.nvml import nvml
from app.plan.cards import CARDS, Card

DRIVER_RESERVE = 252 * 2**20
"""What the driver keeps of a card: an RTX 4060 of 8,188 MiB offers torch 7.75 GiB (its users' reports, Linux)."""


@dataclass(frozen=True, kw_only=True)
class GpuProcess:
    """A process on the card; ``used`` in bytes, None where the driver does not say (Windows)."""

    pid: int
    name: str
    used: int | None


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A card, here or imagined.

    Attributes:
        name: as the driver has it.
        total: bytes in all.
        reserved: of these, kept by the driver.
        used: of these, in use by processes.
        driver: its version, None for a card that is not here.
        cuda: the newest CUDA that the driver runs, as (major, minor).
        capability: (major, minor) of its architecture.
        processes: on it.
    """

    name: str
    total: int
    reserved: int
    used: int
    driver: str | None = None
    cuda: tuple[int, int] | None = None
    capability: tuple[int, int] | None = None
    processes: tuple[GpuProcess, ...] = field(default=())

    @property
    def free(self) -> int:
        """What is left for training."""
        return self.total - self.reserved - self.used

    @property
    def card(self) -> Card | None:
        """Its entry in the table of known cards; of those with its name, the one of its size."""
        named = [card for card in CARDS if card.name == self.name]
        return min(named, key=lambda card: abs(card.memory - self.total), default=None)


def imagined(card: Card) -> Gpu:
    """A card that is not here, with a desktop on it, which is assumed to take what `fit` leaves to it."""
    from app.model.fast_step import DESKTOP

    return Gpu(name=card.name, total=card.memory, reserved=DRIVER_RESERVE, used=DESKTOP)


def driver_fault() -> str | None:
    """What is wrong with an installed driver, such as a library of another version; None also where there is none."""
    import pynvml

    try:
        nvml()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return None
    except pynvml.NVMLError as fault:
        return str(fault)
    return None


def present() -> list[Gpu]:
    """The cards of this machine; none where NVML is missing or finds none."""
    import pynvml

    try:
        library = nvml()
    except pynvml.NVMLError:
        return []
    return [_read(library.nvmlDeviceGetHandleByIndex(index)) for index in range(library.nvmlDeviceGetCount())]


def _read(handle: object) -> Gpu:
    import pynvml

    # Version 2 tells what the driver keeps apart from what is used (480 MiB of an H100), as nvidia-smi does.
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    version = pynvml.nvmlSystemGetCudaDriverVersion()
    return Gpu(
        name=pynvml.nvmlDeviceGetName(handle),
        total=memory.total,
        reserved=memory.reserved,
        used=memory.used,
        driver=pynvml.nvmlSystemGetDriverVersion(),
        cuda=(version // 1000, version % 1000 // 10),
        capability=tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
        processes=tuple(_processes(handle)),
    )


def _processes(handle: object) -> list[GpuProcess]:
    import psutil
    import pynvml

    found = {}
    for ask in (pynvml.nvmlDeviceGetComputeRunningProcesses, pynvml.nvmlDeviceGetGraphicsRunningProcesses):
        try:
            for process in ask(handle):
                found[process.pid] = process.usedGpuMemory
        except pynvml.NVMLError:
            continue
    named = []
    for pid, used in found.items():
        try:
            name = psutil.Process(pid).name()
        except psutil.Error:
            name = "another user's"
        named.append(GpuProcess(pid=pid, name=name, used=used))
    return named
