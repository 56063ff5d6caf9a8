import pytest
import torch
from transformers import LlamaConfig, Phi3Config

from app.errors import ConfigError, MachineError
from app.generate.cache import SlotCache, longest_context, plan_context

CPU = torch.device("cpu")
CONFIG = LlamaConfig(
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_size=32, max_position_embeddings=64
)


def test_rows_read_and_write_their_own_slots_only() -> None:
    cache = SlotCache(CONFIG, slots=4, context=8, dtype=torch.float32, device=CPU)
    new = torch.arange(1.0, 2 * 2 * 3 * 8 + 1).view(2, 2, 3, 8)  # [B, H, Q, D]
    # The first row has two real tokens, from position 4; its third is padding.
    cache.aim([3, 1], torch.tensor([[4, 5, 8], [0, 1, 2]]), 6)
    keys, values = cache.update(new, -new, 1)
    assert keys.shape == (2, 2, 6, 8)
    assert torch.equal(keys[0, :, 4:6], new[0, :, :2])
    assert torch.equal(values[1, :, :3], -new[1])
    assert not cache.blocks[0].keys.any(), "another layer was written"
    assert not cache.blocks[1].keys[[0, 2]].any(), "another slot was written"
    assert not keys[0, :, :4].any()
    assert not keys[1, :, 3:].any()


def test_neighbouring_slots_are_read_without_a_copy() -> None:
    cache = SlotCache(CONFIG, slots=4, context=8, dtype=torch.float32, device=CPU)
    cache.aim([1, 2], torch.tensor([[0], [0]]), 1)
    keys, _ = cache.update(torch.ones(2, 2, 1, 8), torch.ones(2, 2, 1, 8), 0)
    assert keys.untyped_storage().data_ptr() == cache.blocks[0].keys.untyped_storage().data_ptr()


def test_move_copies_what_a_slot_holds() -> None:
    cache = SlotCache(CONFIG, slots=2, context=8, dtype=torch.float32, device=CPU)
    blocks = [block for layer in cache.blocks for block in (layer.keys, layer.values)]
    for block in blocks:
        block[1] = torch.randn(block[1].shape)
    cache.move(1, 0, 5)
    for block in blocks:
        assert torch.equal(block[0, :, :5], block[1, :, :5])
        assert not block[0, :, 5:].any()


@pytest.mark.parametrize(("slots", "context"), [(0, 16), (1, 1), (1, 65), (2, -4)])
def test_impossible_sizes_are_refused(slots: int, context: int) -> None:
    with pytest.raises(ConfigError, match=r"slots is 0|context is"):
        plan_context(CONFIG, slots=slots, context=context, dtype=torch.float32, device=CPU)


def test_a_cache_that_does_not_fit_is_refused_and_the_default_fits() -> None:
    huge = LlamaConfig(num_hidden_layers=80, hidden_size=8192, max_position_embeddings=2**30)
    with pytest.raises(MachineError, match="GiB"):
        plan_context(huge, slots=64, context=2**24, dtype=torch.bfloat16, device=CPU)
    assert 2 <= plan_context(huge, slots=1, context=None, dtype=torch.bfloat16, device=CPU) < 2**24
    assert plan_context(CONFIG, slots=1, context=None, dtype=torch.bfloat16, device=CPU) == 64


def test_an_8_bit_cache_holds_nearly_twice_as_much_and_reads_back_nearly_the_same() -> None:
    huge = LlamaConfig(num_hidden_layers=80, hidden_size=8192, head_dim=128, max_position_embeddings=2**30)
    whole, half = (
        plan_context(huge, slots=1, context=None, dtype=torch.bfloat16, device=CPU, bits=bits) for bits in (16, 8)
    )
    # Other programs may change what is free meanwhile; 132 bytes a vector against 256 are 1.94 times as many.
    assert 1.7 < half / whole < 2.2
    cache = SlotCache(CONFIG, slots=2, context=8, dtype=torch.float32, device=CPU, bits=8)
    new = torch.randn(1, 2, 3, 8, generator=torch.Generator().manual_seed(0))
    cache.aim([1], torch.tensor([[0, 1, 2]]), 3)
    keys, values = cache.update(new, -new, 0)
    # Half a step of a 127th of the largest element.
    assert ((keys - new).abs() <= new.abs().amax(-1, keepdim=True) / 254 + 1e-6).all()
    assert ((values + new).abs() <= new.abs().amax(-1, keepdim=True) / 254 + 1e-6).all()
    cache.move(1, 0, 3)
    cache.aim([0], torch.tensor([[3]]), 4)
    assert torch.equal(cache.update(new[:, :, :1], new[:, :, :1], 0)[0][:, :, :3], keys)


def test_longrope_models_stay_within_their_original_length() -> None:
    factors = [1.0] * 16
    rope = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, "rope_theta": 10000.0}
    config = Phi3Config(
        hidden_size=128,
        num_attention_heads=4,
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        rope_parameters=rope,
    )
    assert longest_context(config) == 4096
