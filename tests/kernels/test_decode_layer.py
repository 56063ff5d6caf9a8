"""What stands between a step's products, and attention to the cache: kernels against plain float32 arithmetic."""

import pytest
import torch

from app.kernels.cache_layer import CacheLayer, dequantised, quantise, store
from app.kernels.decode_attention import SplitMemory, cached_attention
from app.kernels.decode_layer import add_residual, gated, rotate_into_cache, square_parts
from app.kernels.glu import glu_reference
from app.kernels.nf4_gemv import split_product
from kernels.conftest import error
from kernels.test_nf4_gemv import dtype, inputs, room, stacked

SLOTS = torch.tensor([2, 0, 2], dtype=torch.int32)
POSITIONS = torch.tensor([90, 5, 91], dtype=torch.int32)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3}


def cache_layer(device: torch.device, *, heads: int, width: int, bits: int) -> CacheLayer:
    keys, values = (
        torch.randn(3, heads, 130, width, generator=torch.Generator().manual_seed(seed)).to(device) for seed in (3, 4)
    )
    if bits == 16:
        return CacheLayer(keys=keys.to(dtype(device)), values=values.to(dtype(device)))
    (keys, key_scales), (values, value_scales) = quantise(keys), quantise(values)
    return CacheLayer(keys=keys, values=values, key_scales=key_scales, value_scales=value_scales)


@pytest.mark.parametrize("width", [64, 320])
def test_residual(width: int, device: torch.device) -> None:
    weights = stacked((width,), 1024, device, rank=4, double=True)
    added = split_product(inputs(3, 1024, device), weights, room(weights))
    hidden = torch.randn(3, width, generator=torch.Generator().manual_seed(5)).to(device)
    factor = torch.linspace(0.5, 1.5, width, device=device)
    expected = hidden + added.total()
    x = torch.empty(3, width, dtype=dtype(device), device=device)
    squares = torch.full((3, square_parts(width)), float("nan"), device=device)
    add_residual(hidden, added, factor, x, squares)
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-5)
    assert error(x, expected * factor) < TOLERANCE[x.dtype]
    torch.testing.assert_close(squares.sum(1), expected.square().sum(1), rtol=1e-4, atol=1e-4)
    add_residual(hidden, None, factor, x, squares)
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gated(members: int, activation: str, device: torch.device) -> None:
    weights = stacked((320 // members,) * members, 192, device, rank=4, double=True)
    product = split_product(inputs(2, 192, device), weights, room(weights))
    out = torch.empty(2, 160, dtype=dtype(device), device=device)
    gated(product, activation, out)  # type: ignore[arg-type]
    assert error(out, glu_reference(product.total(), activation)) < TOLERANCE[out.dtype]  # type: ignore[arg-type]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("bits", [16, 8])
def test_rotation_into_the_cache(bits: int, fused: bool, device: torch.device) -> None:
    heads, key_heads, width, rotated = 4, 2, 48, 32  # partial rotation, as in Phi-4; a width that is no power of two
    sizes = (heads * width, key_heads * width, key_heads * width)
    weights = stacked((sum(sizes),) if fused else sizes, 128, device, rank=4, double=True)
    product = split_product(inputs(3, 128, device), weights, room(weights))
    angles = torch.randn(130, rotated // 2, generator=torch.Generator().manual_seed(6)).to(device)
    cos, sin = (torch.cat((part, part), 1).to(dtype(device)) for part in (angles.cos(), angles.sin()))
    cache = cache_layer(device, heads=key_heads, width=width, bits=bits)
    before = cache.keys.clone()
    queries = torch.empty(3, heads, width, dtype=dtype(device), device=device)
    rotate_into_cache(product, cos, sin, SLOTS.to(device), POSITIONS.to(device), queries, cache)

    whole = product.total().unflatten(1, (-1, width))
    at = POSITIONS.long().to(device)
    c, s = (table[at].float()[:, None, : rotated // 2] for table in (cos, sin))
    first, second = whole[:, : heads + key_heads, : rotated // 2], whole[:, : heads + key_heads, rotated // 2 : rotated]
    turned = torch.cat((first * c - second * s, second * c + first * s), -1)
    whole[:, : heads + key_heads, :rotated] = turned
    assert error(queries, whole[:, :heads]) < TOLERANCE[queries.dtype]
    for row, (slot, position) in enumerate(zip(SLOTS.tolist(), POSITIONS.tolist(), strict=True)):
        keys, values = (part[:, position] for part in dequantised(cache, slot, position + 1))
        tolerance = TOLERANCE[queries.dtype] + (0.008 if bits == 8 else 0)
        assert error(keys, whole[row, heads : heads + key_heads]) < tolerance
        assert error(values, whole[row, heads + key_heads :]) < tolerance
    assert torch.equal(cache.keys[1], before[1]), "another slot was written"
    assert torch.equal(cache.keys[2, :, :90], before[2, :, :90]), "another position was written"


@pytest.mark.parametrize("window", [None, 24])
@pytest.mark.parametrize("bits", [16, 8])
def test_attention(bits: int, window: int | None, device: torch.device) -> None:
    heads, key_heads, width = 6, 2, 48  # neither the group nor the width is a power of two
    cache = cache_layer(device, heads=key_heads, width=width, bits=bits)
    queries = torch.randn(3, heads, width, generator=torch.Generator().manual_seed(7)).to(device, dtype(device))
    out = torch.full((3, heads * width), float("nan"), dtype=queries.dtype, device=device)
    memory = SplitMemory.of(rows=3, heads=heads, head_dim=width, device=device)
    cached_attention(
        queries, cache, SLOTS.to(device), POSITIONS.to(device), out, scale=0.2, window=window, memory=memory
    )
    assert error(out, attend(queries, cache, SLOTS, POSITIONS, window)) < TOLERANCE[out.dtype]
    # The same by the kernel for prompts: 70 tokens of one slot, more than one block of them.
    many = torch.randn(70, heads, width, generator=torch.Generator().manual_seed(8)).to(device, dtype(device))
    slots, positions = torch.full((70,), 2, dtype=torch.int32), torch.arange(20, 90, dtype=torch.int32)
    out = torch.full((70, heads * width), float("nan"), dtype=queries.dtype, device=device)
    cached_attention(many, cache, slots.to(device), positions.to(device), out, scale=0.2, window=window)
    assert error(out, attend(many, cache, slots, positions, window)) < TOLERANCE[out.dtype]


def attend(
    queries: torch.Tensor, cache: CacheLayer, slots: torch.Tensor, positions: torch.Tensor, window: int | None
) -> torch.Tensor:
    """In float64, head by head."""
    group = queries.shape[1] // cache.keys.shape[1]
    rows = []
    for query, slot, position in zip(queries.double(), slots.tolist(), positions.tolist(), strict=True):
        keys, values = (part.double() for part in dequantised(cache, slot, position + 1))
        start = max(0, position + 1 - window) if window else 0
        heads = [
            torch.softmax(keys[head // group, start:] @ each * 0.2, 0) @ values[head // group, start:]
            for head, each in enumerate(query)
        ]
        rows.append(torch.cat(heads))
    return torch.stack(rows)


def test_int8_is_off_by_half_a_step_at_most() -> None:
    values = torch.randn(2, 5, 3, 32, generator=torch.Generator().manual_seed(9))
    values[0, 0, 0] = 0
    quantised, scale = quantise(values)
    assert (quantised * scale[..., None] - values).abs().amax() <= scale.amax() / 2 + 1e-6
    assert torch.equal(scale, values.abs().amax(-1) / 127)
    layer = CacheLayer(
        keys=torch.zeros(4, 3, 9, 32, dtype=torch.int8),
        values=torch.zeros(4, 3, 9, 32, dtype=torch.int8),
        key_scales=torch.zeros(4, 3, 9),
        value_scales=torch.zeros(4, 3, 9),
    )
    store(layer, torch.tensor([[3], [1]]), torch.arange(5).expand(2, 5), values, -values)
    torch.testing.assert_close(dequantised(layer, 3, 5)[0], values[0].transpose(0, 1), atol=0.02, rtol=0)
