"""Grouped attention against transformers' eager one."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from transformers.models.llama.modeling_llama import eager_attention_forward

from app.families import Family
from app.generate.attention import NAME, _attend, attention_instead, register_grouped_attention
from support.opening import open_plain

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "groups", "count"), [(4, 4, 1), (9, 3, 1), (8, 2, 7)])
def test_it_is_eager_attention(heads: int, groups: int, count: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, n, t, 16, dtype=dtype) for n, t in ((heads, count), (groups, 32), (groups, 32)))
    mask = torch.zeros(2, 1, count, 32, dtype=dtype).masked_fill_(torch.rand(2, 1, count, 32) < 0.3, float("-inf"))
    module = torch.nn.Module().eval()
    module.num_key_value_groups = heads // groups  # type: ignore[assignment]
    expected, _ = eager_attention_forward(module, query, key, value, mask, scaling=0.25)
    found, weights = _attend(module, query, key, value, mask, scaling=0.25)
    assert weights is None
    torch.testing.assert_close(found, expected)


def test_a_model_has_it_within_and_its_own_before_and_after(tiny: "Callable[[str], Path]", family: Family) -> None:
    model = open_plain(tiny(family.name), family.name).model
    register_grouped_attention()
    seen = []
    model.get_decoder().layers[0].register_forward_hook(lambda *_: seen.append(model.config._attn_implementation))
    ids = torch.arange(20, 40)[None]
    mask = torch.zeros(1, 1, 20, 20).masked_fill_(torch.ones(20, 20).triu(1).bool(), torch.finfo(torch.float32).min)
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).logits
        with pytest.raises(ZeroDivisionError), attention_instead(model.config, of="eager", name=NAME):
            torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, expected)
            _ = 1 / 0
        model(input_ids=ids, attention_mask=mask)
    model.set_attn_implementation("sdpa")
    with torch.inference_mode(), attention_instead(model.config, of="eager", name=NAME):
        model(input_ids=ids, attention_mask=mask)
    assert seen == ["eager", "grouped", "eager", "sdpa"]
