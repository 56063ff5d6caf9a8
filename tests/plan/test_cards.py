"""The table of cards agrees with the published totals, and finds a card by what people call it."""

import pytest

from app.errors import MachineError
from app.plan.cards import CARDS, MIB, find_card, find_cards, short_name
from app.plan.gpu import imagined

PUBLISHED = {
    # Tensor TFLOP/s in bfloat16 and FP8 with float32 sums, and GB/s: GA102, Ada and Blackwell whitepapers, appendices.
    "rtx3070": (40.6, None, 448),
    "rtx3080": (59.5, None, 760),
    "rtx3090": (71.0, None, 936),
    "rtx4060-laptop": (29.1, 58.2, 256),
    "rtx4090": (165.2, 330.3, 1008),
    "rtx5080": (112.6, 225.1, 960),
    "rtx5090": (209.5, 419.0, 1792),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_derived_rates_are_the_published_ones(name: str) -> None:
    card = find_card(name)
    bf16, fp8, bandwidth = PUBLISHED[name]
    assert card.bf16 / 1e12 == pytest.approx(bf16, rel=0.005)
    assert (card.fp8 is None) == (fp8 is None)
    if card.fp8 is not None:
        assert card.fp8 / 1e12 == pytest.approx(fp8, rel=0.005)
    assert card.bandwidth / 1e9 == pytest.approx(bandwidth, rel=0.005)


def test_every_card_is_found_by_its_own_names() -> None:
    for card in CARDS:
        assert card in find_cards(card.name) and len({other.name for other in find_cards(card.name)}) == 1
        assert find_card(short_name(card)) is card
        assert imagined(card).card is card


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("rtx4060", "NVIDIA GeForce RTX 4060"),
        ("4060", "NVIDIA GeForce RTX 4060"),
        ("RTX 4060 laptop", "NVIDIA GeForce RTX 4060 Laptop GPU"),
        ("rtx4060_mobile", "NVIDIA GeForce RTX 4060 Laptop GPU"),
        ("GeForce RTX 4070 Ti Super", "NVIDIA GeForce RTX 4070 Ti SUPER"),
        ("h100", "NVIDIA H100 80GB HBM3"),
        ("A100", "NVIDIA A100-SXM4-80GB"),
    ],
)
def test_short_names_find_their_card(typed: str, meant: str) -> None:
    assert find_card(typed).name == meant


@pytest.mark.parametrize(
    ("typed", "mib"),
    [
        ("rtx5060ti", 16311),
        ("rtx5060ti-8gb", 8151),
        ("RTX 5060 Ti 16 GB", 16311),
        ("rtx4060ti_16gb", 16380),
        ("rtx4060-ti-8GiB", 8188),
        ("rtx3080-12gb", 12288),
        ("rtx3060-8gb", 8192),
        ("a100", 81920),
        ("a100-40gb", 40960),
        ("NVIDIA A100-SXM4-40GB", 40960),
        ("l4-24gb", 23034),
        ("h200 141gb", 143771),
    ],
)
def test_a_typed_size_is_the_cards(typed: str, mib: int) -> None:
    assert find_card(typed).memory == mib * MIB


@pytest.mark.parametrize("typed", ["rtx4060ti-12gb", "rtx4060-16gb", "a100-0gb"])
def test_a_size_that_is_not_made_is_refused_with_those_that_are(typed: str) -> None:
    with pytest.raises(MachineError, match=f"no GPU '{typed}' is known") as fault:
        find_card(typed)
    known = "a100 (80 GB), a100-40gb (40 GB)" if "a100" in typed else "rtx4060-ti (8 GB), rtx4060-ti-16gb (16 GB)"
    assert known in fault.value.remedy


def test_an_unknown_card_is_refused_with_the_nearest() -> None:
    with pytest.raises(MachineError, match="no GPU 'rtx4061'") as fault:
        find_card("rtx4061")
    assert "rtx4060" in fault.value.remedy
    with pytest.raises(MachineError, match="radeon") as fault:
        find_card("radeon 7900 xtx")
    assert "rtx4060" in fault.value.remedy
