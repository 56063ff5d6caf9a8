"""Packing: every sample once, no row too long, nearly nothing wasted, and the same loss and gradients as unpacked."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from app.data.pack import PackedRows, pack
from app.data.packing import best_fit_decreasing, efficiency
from app.data.tokenize import Encoding
from app.families import Family
from app.model.loss import Batch, summed_loss
from app.model.varlen_attention import register_varlen_attention
from conftest import TinyCheckpoint


@settings(max_examples=200)
@given(st.lists(st.integers(1, 64), max_size=60), st.integers(64, 80))
def test_every_sample_lies_in_one_row_and_none_is_too_long(lengths: list[int], capacity: int) -> None:
    bins = best_fit_decreasing(lengths, capacity)
    assert sorted(number for row in bins for number in row) == list(range(len(lengths)))
    assert all(sum(lengths[number] for number in row) <= capacity for row in bins)
    fewest = math.ceil(sum(lengths) / capacity)
    assert len(bins) <= 11 / 9 * max(fewest, sum(length > capacity / 2 for length in lengths)) + 4


def best_fit_by_search(lengths: list[int], capacity: int) -> list[int]:
    """Rooms left by the same rule, looking at every bin."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
            rooms.append(min(fitting) - length)
        else:
            rooms.append(capacity - length)
    return sorted(rooms)


@settings(max_examples=100)
@given(st.lists(st.integers(1, 40), max_size=40))
def test_it_is_best_fit_decreasing(lengths: list[int]) -> None:
    bins = best_fit_decreasing(lengths, 40)
    assert sorted(40 - sum(lengths[n] for n in row) for row in bins) == best_fit_by_search(lengths, 40)


def test_alpaca_like_lengths_fill_97_percent() -> None:
    """Alpaca's 52,002 rows with a chat template: a log-normal around 90 tokens with a tail, as its histogram has."""
    chance = random.Random(0)
    lengths = [min(2048, max(20, round(chance.lognormvariate(4.5, 0.75)))) for _ in range(52_002)]
    bins = best_fit_decreasing(lengths, 2048)
    assert efficiency(lengths, bins, 2048) >= 0.97


def test_a_packed_row_restarts_positions_and_trains_nothing_across_a_border() -> None:
    samples = [
        Encoding(input_ids=[5, 6, 7], trained=[True, True, False]),
        Encoding(input_ids=[8, 9], trained=[False, True]),
    ]
    row = pack(samples, 8, pad_id=0)
    assert row.input_ids == [5, 6, 7, 8, 9, 0, 0, 0]
    assert row.position_ids == [0, 1, 2, 0, 1, 0, 1, 2]
    assert row.trained == [False, True, False, False, True, False, False, False]
    assert (row.samples, row.tokens) == (2, 5)
    assert pack(samples, 5, pad_id=0).position_ids == [0, 1, 2, 0, 1]


def samples(count: int = 7) -> list[Encoding]:
    chance = random.Random(3)
    rows = []
    for _ in range(count):
        length = chance.randrange(4, 40)
        start = chance.randrange(1, length)
        ids = [chance.randrange(3, 250) for _ in range(length)]
        rows.append(Encoding(input_ids=ids, trained=[number >= start for number in range(length)]))
    return rows


def padded(rows: list[Encoding]) -> Batch:
    width = max(len(row.input_ids) for row in rows)
    return {
        "input_ids": torch.tensor([row.input_ids + [0] * (width - len(row.input_ids)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(r.input_ids) + [0] * (width - len(r.input_ids)) for r in rows]),
        "trained": torch.tensor([row.trained + [False] * (width - len(row.trained)) for row in rows]),
    }


def packed(rows: list[Encoding], capacity: int) -> Batch:
    bins = best_fit_decreasing([len(row.input_ids) for row in rows], capacity)
    table = PackedRows(rows, bins, capacity, pad_id=0)
    assert len(table) < len(rows)
    return {
        "input_ids": torch.tensor([row.input_ids for row in table]),
        "position_ids": torch.tensor([row.position_ids for row in table]),
        "trained": torch.tensor([row.trained for row in table]),
    }


def loss_and_gradients(model: torch.nn.Module, batches: list[Batch]) -> tuple[float, int, dict[str, torch.Tensor]]:
    model.zero_grad()
    total, count = 0.0, 0
    for batch in batches:
        loss, tokens = summed_loss(model, batch)  # type: ignore[arg-type]
        loss.backward()
        total, count = total + loss.item(), count + int(tokens)
    return total, count, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", ["eager", "sdpa", "varlen"])
def test_packed_and_unpacked_give_the_same_loss_and_gradients(
    family: Family, tiny: TinyCheckpoint, attention: str
) -> None:
    register_varlen_attention()
    model = AutoModelForCausalLM.from_pretrained(tiny(family.name), attn_implementation=attention, dtype=torch.float64)
    model.train()
    model.get_output_embeddings().weight.requires_grad_(False)  # As in QLoRA; all other weights stand in for adapters.
    rows = samples()
    one = [padded([row]) for row in rows]
    alone = loss_and_gradients(model, one)
    for batches in ([packed(rows, 96)], [padded(rows)], [padded(rows[:2]), padded(rows[2:])]):
        loss, count, gradients = loss_and_gradients(model, batches)
        assert count == alone[1]
        assert loss == pytest.approx(alone[0], rel=1e-6)  # summed in float32
        assert gradients.keys() == alone[2].keys()
        for name, gradient in gradients.items():
            # Eager attention's softmax is float32 whatever the model's type: rounding of 1e-7, not of 1e-16.
            assert (gradient - alone[2][name]).norm() <= 1e-5 * alone[2][name].norm(), name
    # The comparison can fail: let the samples see one another.
    joined = packed(rows, 96)
    joined["position_ids"] = torch.arange(96).expand_as(joined["position_ids"])
    assert loss_and_gradients(model, [joined])[0] != pytest.approx(alone[0], rel=1e-4)
