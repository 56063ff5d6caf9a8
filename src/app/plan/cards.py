"""Known GPUs: memory, bandwidth and arithmetic, each from the maker's own tables."""

import difflib
import re
from dataclasses import dataclass

from app.errors import MachineError

MIB = 2**20
LANE = {4: 1.969e9, 5: 3.938e9}
"""PCIe generation -> bytes per second of one lane each way (PCI-SIG base specifications 4.0 and 5.0, 128b/130b)."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One GPU model; rates are data-sheet peaks, which nothing reaches.

    Attributes:
        name: as the driver names it (NVML, ``torch.cuda.get_device_name``); GeForce sizes of one model share it.
        memory: bytes in all, as nvidia-smi prints them.
        bandwidth: of its memory, bytes per second.
        bf16: dense bfloat16 tensor operations per second, summed in float32.
        fp8: dense FP8 tensor operations per second, summed in float32; None where there are none (Ampere).
        pcie: bytes per second to and from the host, each way.
        source: where the figures are from.
        mma: share of ``bf16`` that is within reach of the instructions of earlier cards (``mma.sync``), in which flash
            attention 2 is written. Hopper's own (``wgmma``) alone reach the rest (arXiv 2402.13499: 62.9 % on average).
    """

    name: str
    memory: int
    bandwidth: float
    bf16: float
    fp8: float | None
    pcie: float
    source: str
    mma: float = 1.0


_PAGES = {
    "30": "NVIDIA GA102 architecture whitepaper (tensor rates), nvidia.com comparison of GeForce RTX 30 series",
    "40": "NVIDIA Ada architecture whitepaper (tensor rates), nvidia.com comparison of GeForce RTX 40 series",
    "50": "NVIDIA RTX Blackwell architecture whitepaper (tensor rates), nvidia.com comparison of GeForce RTX 50 series",
}


def _geforce(
    model: str, mib: int, bus_bits: int, gbps: float, cores: int, boost_mhz: int, pcie: tuple[int, int]
) -> Card:
    """A GeForce from what its comparison page lists.

    On these three generations the tensor cores do 4 operations a cycle for each CUDA core in bfloat16 (summed in
    float32) and, from Ada on, 8 in FP8: the whitepapers' tables (RTX 3090 71 TFLOP/s; RTX 4090 165.2 and 330.3;
    RTX 5090 209.5 and 419) are these products. Laptop GPUs clock as their power limit lets them: here the highest.

    Args:
        model: what stands behind "NVIDIA GeForce RTX ".
        mib: memory by nvidia-smi.
        bus_bits, gbps: width of the memory bus and rate of a pin.
        cores, boost_mhz: CUDA cores and their boost clock.
        pcie: generation and lanes.
    """
    generation = model[:2]
    cycles = cores * boost_mhz * 1e6
    laptop = ", laptop GPUs" if "Laptop" in model else ""
    return Card(
        name=f"NVIDIA GeForce RTX {model}",
        memory=mib * MIB,
        bandwidth=bus_bits / 8 * gbps * 1e9,
        bf16=4 * cycles,
        fp8=8 * cycles if generation != "30" else None,
        pcie=LANE[pcie[0]] * pcie[1],
        source=_PAGES[generation] + laptop,
    )


CARDS = (
    _geforce("3050", 8192, 128, 14, 2560, 1777, (4, 8)),
    _geforce("3050 Laptop GPU", 4096, 128, 12, 2048, 1740, (4, 8)),
    _geforce("3060", 12288, 192, 15, 3584, 1777, (4, 16)),
    _geforce("3060", 8192, 128, 15, 3584, 1777, (4, 16)),
    _geforce("3060 Laptop GPU", 6144, 192, 14, 3840, 1703, (4, 16)),
    _geforce("3060 Ti", 8192, 256, 14, 4864, 1665, (4, 16)),
    _geforce("3070", 8192, 256, 14, 5888, 1725, (4, 16)),
    _geforce("3070 Laptop GPU", 8192, 256, 14, 5120, 1620, (4, 16)),
    _geforce("3070 Ti", 8192, 256, 19, 6144, 1770, (4, 16)),
    _geforce("3080", 10240, 320, 19, 8704, 1710, (4, 16)),
    _geforce("3080", 12288, 384, 19, 8960, 1710, (4, 16)),
    _geforce("3080 Ti", 12288, 384, 19, 10240, 1665, (4, 16)),
    _geforce("3090", 24576, 384, 19.5, 10496, 1695, (4, 16)),
    _geforce("4050 Laptop GPU", 6141, 96, 16, 2560, 2370, (4, 8)),
    _geforce("4060", 8188, 128, 17, 3072, 2460, (4, 8)),
    _geforce("4060 Laptop GPU", 8188, 128, 16, 3072, 2370, (4, 8)),
    _geforce("4060 Ti", 8188, 128, 18, 4352, 2535, (4, 8)),
    _geforce("4060 Ti", 16380, 128, 18, 4352, 2535, (4, 8)),
    _geforce("4070", 12282, 192, 21, 5888, 2475, (4, 16)),
    _geforce("4070 Laptop GPU", 8188, 128, 16, 4608, 2175, (4, 8)),
    _geforce("4070 SUPER", 12282, 192, 21, 7168, 2475, (4, 16)),
    _geforce("4070 Ti", 12282, 192, 21, 7680, 2610, (4, 16)),
    _geforce("4070 Ti SUPER", 16376, 256, 21, 8448, 2610, (4, 16)),
    _geforce("4080", 16376, 256, 22.4, 9728, 2505, (4, 16)),
    _geforce("4080 Laptop GPU", 12282, 192, 18, 7424, 2280, (4, 16)),
    _geforce("4080 SUPER", 16376, 256, 23, 10240, 2550, (4, 16)),
    _geforce("4090", 24564, 384, 21, 16384, 2520, (4, 16)),
    _geforce("4090 Laptop GPU", 16376, 256, 18, 9728, 2040, (4, 16)),
    _geforce("5060", 8151, 128, 28, 3840, 2497, (5, 8)),
    _geforce("5060 Laptop GPU", 8151, 128, 24, 3328, 2497, (5, 8)),
    _geforce("5060 Ti", 16311, 128, 28, 4608, 2572, (5, 8)),
    _geforce("5060 Ti", 8151, 128, 28, 4608, 2572, (5, 8)),
    _geforce("5070", 12227, 192, 28, 6144, 2512, (5, 16)),
    _geforce("5070 Laptop GPU", 8151, 128, 24, 4608, 2347, (5, 8)),
    _geforce("5070 Ti", 16303, 256, 28, 8960, 2452, (5, 16)),
    _geforce("5080", 16303, 256, 30, 10752, 2617, (5, 16)),
    _geforce("5090", 32607, 512, 28, 21760, 2407, (5, 16)),
    Card(
        name="NVIDIA L4", memory=23034 * MIB, bandwidth=300e9, bf16=121e12, fp8=242e12, pcie=LANE[4] * 16,
        source="NVIDIA L4 data sheet (its rates with sparsity, halved)",
    ),
    Card(
        name="NVIDIA A100-SXM4-80GB", memory=81920 * MIB, bandwidth=2039e9, bf16=312e12, fp8=None, pcie=LANE[4] * 16,
        source="NVIDIA A100 data sheet",
    ),
    Card(
        name="NVIDIA A100-SXM4-40GB", memory=40960 * MIB, bandwidth=1555e9, bf16=312e12, fp8=None, pcie=LANE[4] * 16,
        source="NVIDIA A100 data sheet",
    ),
    Card(
        name="NVIDIA H100 80GB HBM3", memory=81559 * MIB, bandwidth=3350e9, bf16=989e12, fp8=1979e12,
        pcie=LANE[5] * 16, source="NVIDIA H100 data sheet, SXM (its rates with sparsity, halved)", mma=0.629,
    ),
    Card(
        name="NVIDIA H200", memory=143771 * MIB, bandwidth=4800e9, bf16=989e12, fp8=1979e12, pcie=LANE[5] * 16,
        source="NVIDIA H200 data sheet, SXM (its rates with sparsity, halved)", mma=0.629,
    ),
)  # fmt: skip
"""By generation and size; of several sizes of one model the first is what its bare name means."""


def find_cards(name: str) -> list[Card]:
    """Those that a driver's name or a short one may mean: ``rtx4060``, ``RTX 4060 laptop``, ``4060 ti 16gb``.

    Without a size these are all of the model's, the usual one first.

    Raises:
        MachineError: there is none; the message lists the nearest with their sizes.
    """
    models: dict[str, list[Card]] = {}
    for card in CARDS:
        models.setdefault(_key(card.name), []).append(card)
    key, size = _key(name), _SIZE.search(name.lower())
    if meant := [card for card in models.get(key, ()) if size is None or _has(card, int(size[1]))]:
        return meant
    close = difflib.get_close_matches(key, models, n=4, cutoff=0.5) or [_key("4060"), _key("4060 laptop"), _key("4090")]
    nearest = ", ".join(f"{short_name(card)} ({_gib(card):.0f} GB)" for match in close for card in models[match])
    raise MachineError(f"no GPU {name!r} is known", where="--gpu", remedy=f"the nearest known ones: {nearest}")


def find_card(name: str) -> Card:
    """The card that is meant by a driver's name or a short one, as by `find_cards`; the usual size if none is named."""
    return find_cards(name)[0]


def short_name(card: Card) -> str:
    """What people type for it, such as ``rtx4060-laptop``; with the size if it is not the model's usual one."""
    words = re.sub(r"^NVIDIA (GeForce )?| GPU$|[- ]SXM\d?|-?\d+GB| HBM\d\w*", "", card.name).split()
    if words[0] == "RTX":
        words[:2] = ["".join(words[:2])]
    usual = next(other for other in CARDS if _key(other.name) == _key(card.name))
    return "-".join(words if card is usual else [*words, f"{_gib(card):.0f}GB"]).lower()


_SIZE = re.compile(r"(\d+)[ _-]?gi?b")


def _gib(card: Card) -> float:
    return card.memory / 2**30


def _has(card: Card, size: int) -> bool:
    """Whether it is sold with ``size`` GB: error correction hides a sixteenth of an L4's from the driver."""
    return abs(_gib(card) - size) < 0.07 * size


def _key(name: str) -> str:
    """Letters and digits that tell models apart; a size does not."""
    plain = re.sub(rf"nvidia|geforce|gpu|rtx|sxm\d?|{_SIZE.pattern}|hbm\d\w*|[^a-z0-9]", "", name.lower())
    return plain.removesuffix("mobile") + "laptop" if plain.endswith("mobile") else plain
