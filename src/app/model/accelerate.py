"""Swaps fast decoder layers into a loaded peft model, per instance: the modules and parameters stay what they were.

bitsandbytes' ``Params4bit`` keep holding the frozen weights and peft's modules the adapters, so saving, loading and
generation work as before; only the decoder's ``forward`` of this one model object is replaced, and every call that the
fast layers do not cover (a key-value cache, padding on the left) goes to the original one.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import MethodType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.kernels.attention import Documents, Heads, has_flash
from app.kernels.fp8 import quantise_rows, scaled_product
from app.kernels.frozen_linear import FrozenLinear, WeightScales
from app.kernels.glu import Activation
from app.kernels.lora_stack import LoraPair
from app.kernels.nf4 import NF4Weight
from app.kernels.rms_norm import rms_norm, rms_norm_backward
from app.kernels.triton_support import triton, use_triton
from app.model.activation_store import ActivationStore, LayerPlan
from app.model.fast_layer import FastLayer, Norm, Positions
from app.model.lean_lora import lean_adapters
from app.model.varlen_attention import packed_documents, whole_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Kernels = Literal["none", "bf16", "fp8", "auto"]


class NotCoveredError(Exception):
    """The model has something that the fast layers do not compute; says what."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Acceleration:
    """What was swapped in.

    Attributes:
        layers: the fast layers.
        store: their activation store.
        scales: of the frozen weights where products with them run in FP8, else None.
        undo: puts the original forward back.
    """

    layers: list[FastLayer]
    store: ActivationStore
    scales: WeightScales | None
    undo: Callable[[], None]

    @property
    def fp8(self) -> bool:
        """Whether products with frozen weights run in FP8."""
        return self.scales is not None

    def begin_step(self, step: int) -> None:
        """Before the micro-batches of an optimizer step, by its number."""
        if self.scales is not None:
            self.scales.move(step)

    def set_plans(self, plans: list[LayerPlan]) -> None:
        """Another memory plan, from the next forward pass on."""
        assert len(plans) == len(self.layers)
        self.store.plans = plans


def has_fp8(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the device multiplies FP8 matrices (Ada, Hopper and later), and gives ``dtype``: bfloat16 alone."""
    capable = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)
    return capable and dtype == torch.bfloat16 and multiplies_rows(device)


@cache
def multiplies_rows(device: torch.device) -> bool:
    """Whether torch multiplies FP8 rows that have a scale each; tried, because not every build does on every card.

    Torch for Windows is built without that product (pytorch/pytorch#194606), and cuBLAS has had none for some cards of
    the Blackwell family (pytorch/pytorch#192707).
    """
    rows = quantise_rows(torch.ones(32, 32, dtype=torch.bfloat16, device=device))
    try:
        assert rows.fp8 is not None
        product = scaled_product(rows, rows.fp8, torch.ones(1, 32, device=device), torch.bfloat16)
    except RuntimeError:
        return False
    return bool(product.isfinite().all())


def accelerate(causal_lm: "PreTrainedModel", kernels: Kernels = "auto") -> Acceleration | None:
    """Swaps the fast layers in; None, with one warning, where they cannot serve this model or machine.

    Args:
        causal_lm: a bitsandbytes NF4 model of the Llama, Mistral, Gemma or Phi-3 architecture with peft's layers in it.
        kernels: "none" leaves the model as it is; "bf16" multiplies in the model's own type; "fp8" multiplies with
            the frozen weights in FP8; "auto" is fp8 on a GPU that has it, because adapters trained so are within half a
            percent of bf16's held-out perplexity (`app.kernels.fp8`), bf16 on others, and on a CPU the plain layers
            with lean adapters (`app.model.lean_lora`), without a word.
    """
    decoder: Any = causal_lm.get_decoder()
    parameter = decoder.norm.weight
    if kernels == "none":
        return None
    if kernels == "auto" and parameter.device.type == "cpu":
        lean_adapters(causal_lm)
        return None
    try:
        if triton is None or not use_triton(parameter):
            raise NotCoveredError("Triton is not installed, or there is no GPU")
        if parameter.is_cuda and parameter.dtype.itemsize != 2:
            raise NotCoveredError("flash attention computes in 16 bits, and model.dtype is float32")
        if parameter.is_cuda and not has_flash(parameter.device):
            raise NotCoveredError(f"{torch.cuda.get_device_name()} has no flash attention")
        fp8 = has_fp8(parameter.device, parameter.dtype)
        if kernels == "fp8" and parameter.is_cuda and not fp8:
            raise NotCoveredError(f"{torch.cuda.get_device_name()} has no FP8 products that give {parameter.dtype}")
        return swap_in(decoder, fp8=kernels == "fp8" or (kernels == "auto" and fp8))
    except NotCoveredError as reason:
        warnings.warn(f"model.kernels {kernels}: {reason}; training goes on with the plain layers", stacklevel=2)
        return None


def swap_in(decoder: Any, *, fp8: bool) -> Acceleration:
    """Replaces the forward of a transformers decoder (``model.get_decoder()``).

    Raises:
        NotCoveredError: a layer is of another kind.
    """
    count = len(decoder.layers)
    store = ActivationStore([LayerPlan()] * count, decoder.norm.weight.device)
    layers = [_fast_layer(layer, decoder.config, index, store, fp8=fp8) for index, layer in enumerate(decoder.layers)]
    final_norm, original = read_norm(decoder.norm), decoder.forward

    def forward(
        self: nn.Module,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        documents: Documents | None = None,
        **kwargs: Any,
    ) -> Any:
        """[B, T] token ids (or [B, T, D] embeddings) -> hidden states [B, T, D]; see transformers' own."""
        covered = use_cache is False and past_key_values is None and not kwargs
        if covered and not self.training and attention_mask is not None:
            covered = attention_mask.dim() == 2 and bool(attention_mask[:, 0].all())
        if not covered:
            return original(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                use_cache=use_cache,
                **kwargs,
                **({} if documents is None else {"documents": documents}),
            )
        from transformers.modeling_outputs import BaseModelOutputWithPast

        hidden = decoder.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # [B, T, D]
        rows, length = hidden.shape[:2]
        positions = _positions(decoder, hidden, position_ids, documents)
        flat = hidden.flatten(0, 1)
        store.begin()
        for layer in layers:
            flat = layer(flat, positions)
        if torch.is_grad_enabled():
            store.prefetch(len(layers) - 1)  # while the head computes
        normed: Tensor = _FinalNorm.apply(flat, final_norm)  # type: ignore[no-untyped-call]
        return BaseModelOutputWithPast(last_hidden_state=normed.unflatten(0, (rows, length)))

    def undo() -> None:
        decoder.forward = original

    decoder.forward = MethodType(forward, decoder)
    frozen = [linear for layer in layers for linear in (layer.qkv, layer.output, layer.gate_up, layer.down)]
    return Acceleration(layers=layers, store=store, scales=WeightScales(frozen) if fp8 else None, undo=undo)


def _positions(decoder: Any, hidden: Tensor, position_ids: Tensor | None, documents: Documents | None) -> Positions:
    rows, length = hidden.shape[:2]
    if position_ids is None:
        position_ids = torch.arange(length, device=hidden.device)[None]
        documents = documents or whole_rows(rows, length, hidden.device)
    elif documents is None:
        # During a graph's capture the values cannot be looked at; 64 documents to a row of 2,048 are 32 tokens each.
        capturing = hidden.is_cuda and torch.cuda.is_current_stream_capturing()
        documents = packed_documents(position_ids, capacity=max(rows, rows * length // 32) if capturing else None)
    cos, sin = decoder.rotary_emb(hidden, position_ids=position_ids)  # [1 or B, T, R]
    cos, sin = (table.expand(rows, -1, -1).flatten(0, 1).contiguous() for table in (cos, sin))
    return Positions(cos=cos, sin=sin, documents=documents)


def _fast_layer(layer: Any, config: Any, index: int, store: ActivationStore, *, fp8: bool) -> FastLayer:
    attention, mlp = layer.self_attn, layer.mlp
    heads = Heads(
        queries=config.num_attention_heads,
        keys=config.num_key_value_heads,
        head_dim=attention.head_dim,
        window=getattr(config, "sliding_window", None),
    )
    if abs(attention.scaling - heads.head_dim**-0.5) > 1e-9:
        raise NotCoveredError(f"attention is scaled by {attention.scaling}")
    if getattr(config, "resid_pdrop", 0.0) or config.attention_dropout:
        raise NotCoveredError("the base model has dropout")
    dtype = layer.input_layernorm.weight.dtype

    def linear(*modules: nn.Module) -> FrozenLinear:
        weights, adapters = zip(*map(_member, modules), strict=True)
        return FrozenLinear(weights, adapters, dtype=dtype, fp8=fp8)

    fused_qkv = hasattr(attention, "qkv_proj")
    fused_gate_up = hasattr(mlp, "gate_up_proj")
    return FastLayer(
        index=index,
        attention_norm=read_norm(layer.input_layernorm),
        mlp_norm=read_norm(layer.post_attention_layernorm),
        qkv=linear(attention.qkv_proj) if fused_qkv else linear(attention.q_proj, attention.k_proj, attention.v_proj),
        output=linear(attention.o_proj),
        gate_up=linear(mlp.gate_up_proj) if fused_gate_up else linear(mlp.gate_proj, mlp.up_proj),
        down=linear(mlp.down_proj),
        heads=heads,
        activation=read_activation(mlp.activation_fn if fused_gate_up else mlp.act_fn),
        store=store,
    )


def _member(module: Any) -> tuple[NF4Weight, LoraPair | None]:
    """The frozen weight and the adapter of a linear layer, with or without peft's wrapper around it."""
    base = getattr(module, "base_layer", module)
    weight = NF4Weight.of(getattr(base, "weight", None))
    if weight is None:
        raise NotCoveredError(f"a {type(base).__name__} does not hold NF4 weights in blocks of 64")
    if base.bias is not None:
        raise NotCoveredError("a linear layer has a bias")
    if base is module:
        return weight, None
    if len(module.active_adapters) != 1 or module.merged or module.disable_adapters:
        raise NotCoveredError("other than exactly one adapter is active")
    (name,) = module.active_adapters
    if not isinstance(module.lora_dropout[name], nn.Identity):
        raise NotCoveredError("LoRA has dropout (set model.dropout to 0)")
    if name in module.lora_magnitude_vector:
        raise NotCoveredError("DoRA adapters")
    if module.lora_A[name].bias is not None or module.lora_B[name].bias is not None:
        raise NotCoveredError("adapters with a bias")
    pair = LoraPair(a=module.lora_A[name].weight, b=module.lora_B[name].weight, scaling=module.scaling[name])
    return weight, pair


def read_norm(module: Any) -> Norm:
    """The norm's weight, epsilon and kind; Gemma's factor is 1 + weight, seen from what the module makes of ones."""
    weight = module.weight.detach()
    eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    with torch.no_grad():
        factor = module(torch.ones_like(weight)[None])[0].float()
    unit_offset = bool((factor - weight).abs().sum() > (factor - weight - 1).abs().sum())
    return Norm(weight=weight, eps=eps, unit_offset=unit_offset)


def read_activation(module: Callable[[Tensor], Tensor]) -> Activation:
    """Which of the two gates the module is, seen from its values."""
    x = torch.linspace(-4, 4, 65)
    if torch.allclose(module(x), functional.silu(x), atol=1e-6):
        return "silu"
    if torch.allclose(module(x), functional.gelu(x, approximate="tanh"), atol=1e-6):
        return "gelu_tanh"
    raise NotCoveredError(f"the MLP's activation is {module}")


class _FinalNorm(torch.autograd.Function):
    """The decoder's last norm: saves its input, where transformers' own saves three float32 copies of it."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, norm: Norm) -> Tensor:
        ctx.save_for_backward(hidden)
        ctx.norm = norm
        return rms_norm(hidden, norm.weight, norm.eps, unit_offset=norm.unit_offset)[1].value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (hidden,), norm = ctx.saved_tensors, ctx.norm
        zeros = torch.zeros_like(hidden)
        return rms_norm_backward(
            grad, hidden, norm.weight, norm.eps, unit_offset=norm.unit_offset, residual_grad=zeros
        ), None
