"""The arithmetic of a plain step against the very layers it counts, run on torch's meta device in their full size."""

import math
from collections.abc import Iterable
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.functional import QuantState
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from app.families import Family, get_family
from app.kernels.linear_cross_entropy import CHUNK_ELEMENTS
from app.model.lora import attach_lora
from app.plan.plain_step import plain_step
from app.plan.shapes import shape_of
from support.live_bytes import LiveBytes

LAYERS = 2


class FlashAttention(torch.autograd.Function):
    """What CUDA's flash attention keeps and makes, without its arithmetic, which needs a GPU."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query.transpose(1, 2).contiguous()).transpose(1, 2)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **_: Any) -> tuple[Tensor, None]:
    return FlashAttention.apply(query, key, value).transpose(1, 2).contiguous(), None  # type: ignore[no-untyped-call]


AttentionInterface.register("shapes", attend)


def quantised(linear: nn.Linear) -> nn.Module:
    """bitsandbytes' layer in place of a linear layer, on the meta device."""
    layer: Any = bnb.nn.Linear4bit(
        linear.in_features, linear.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4",
        device="meta",
    )  # fmt: skip
    size = linear.in_features * linear.out_features

    def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    second = QuantState(absmax=meta(-(-size // 64 // 256)), blocksize=256, code=meta(256), dtype=torch.float32)
    weight = bnb.nn.Params4bit(meta(size // 2, 1, dtype=torch.uint8), requires_grad=False, quant_type="nf4")
    weight.bnb_quantized = True
    weight.quant_state = QuantState(
        absmax=meta(size // 64, dtype=torch.uint8), shape=torch.Size((linear.out_features, linear.in_features)),
        code=meta(16), blocksize=64, quant_type="nf4", dtype=torch.bfloat16, offset=meta(), state2=second,
    )  # fmt: skip
    weight.module, layer.weight, layer.quant_state = layer, weight, weight.quant_state
    return layer  # type: ignore[no-any-return]


def decoded_weight(operation: str, arguments: Any) -> int:
    """On a GPU bitsandbytes decodes the whole weight inside its product of many rows."""
    return 2 * math.prod(arguments[2]) if "gemm_4bit" in operation else 0


def measured(
    family: Family, config: dict[str, Any], *, rows: int, length: int, targets: Iterable[str], checkpointing: bool
) -> int:
    """The most that a forward and backward pass of the decoder holds besides the model and its gradients."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**config), dtype=torch.bfloat16, attn_implementation="shapes"
        )
        for path, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and "lm_head" not in path:
                model.set_submodule(path, quantised(module))
        model.requires_grad_(False)
        adapted = attach_lora(
            model, family, rank=8, alpha=16, dropout=0, targets=list(targets), rslora=False, dora=False
        ).train()
        if checkpointing:
            adapted.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
        for parameter in adapted.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        ids = torch.zeros(rows, length, dtype=torch.int64)
        gradients = [p.grad for p in adapted.parameters() if p.grad is not None]
        with LiveBytes([*adapted.parameters(), *adapted.buffers(), *gradients, ids], decoded_weight) as live:
            decoder = adapted.get_base_model().get_decoder()
            decoder(input_ids=ids, use_cache=False).last_hidden_state.sum().backward()
    return live.peak


@pytest.mark.parametrize(
    ("rows", "length", "targets", "checkpointing", "tolerance"),
    [
        (1, 2048, ["all"], True, 0.01),
        (2, 1024, ["all"], True, 0.01),
        (1, 512, ["all"], True, 0.05),
        (3, 1024, ["all"], False, 0.05),
        (1, 2048, ["o_proj"], True, 0.07),
        (1, 2048, ["o_proj", "down_proj"], False, 0.07),
    ],
)
def test_agrees_with_the_layers_themselves(
    family: Family, rows: int, length: int, targets: list[str], checkpointing: bool, tolerance: float
) -> None:
    config = {**family.config, "num_hidden_layers": LAYERS, "sliding_window": None}
    names = family.lora_targets if targets == ["all"] else targets
    step = plain_step(
        shape_of(config, family), rows=rows, length=length, adapted=names, checkpointing=checkpointing,
        chunk_elements=CHUNK_ELEMENTS,
    )  # fmt: skip
    found = measured(family, config, rows=rows, length=length, targets=targets, checkpointing=checkpointing)
    assert step.saved + step.block == pytest.approx(found, rel=tolerance)


def test_a_mask_and_held_scores_cost_more() -> None:
    family = get_family("mistral")
    shape = shape_of(family.config, family)

    def peak(**changed: Any) -> int:
        options = {"rows": 2, "length": 1024, "adapted": family.lora_targets, "chunk_elements": CHUNK_ELEMENTS}
        return plain_step(shape, **{**options, **changed}).peak

    plain = peak()
    assert plain < peak(padded=True) < peak(eager=True)
    assert plain < peak(dropout=True) < peak(checkpointing=False)
    assert peak(adapted=()) < plain
