"""The model's layers as generation runs them on a GPU: a few fused kernels each instead of transformers' modules.

`Decoder.write` is a step of up to 16 single tokens in ten kernels a layer, all shapes fixed and nothing read back, so
that a CUDA graph can hold it. `Decoder.read` takes a prompt: weights are decoded once and multiplied in 16 bits.
Weights and adapters stay where bitsandbytes and peft put them; adapters are copied in the model's type beside them.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from app.generate.adapter import is_plain
from app.generate.cache import SlotCache
from app.kernels.cache_layer import CacheLayer, store
from app.kernels.decode_attention import SplitMemory, cached_attention
from app.kernels.decode_layer import add_residual, gated, rotate_into_cache, square_parts
from app.kernels.glu import Activation, glu
from app.kernels.nf4 import NF4Weight
from app.kernels.nf4_gemv import ROWS, PartialSums, StackedWeights, multiply, split_product
from app.kernels.rotary import rotate_
from app.model.accelerate import NotCoveredError, read_activation, read_norm
from app.model.fast_layer import Norm

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, eq=False)
class _Linear:
    """Linear layers that take the same input: transformers' modules (or peft's around them) and their weights."""

    modules: tuple[Any, ...]
    weights: StackedWeights

    def use(self, names: tuple[str, ...]) -> None:
        """Copies the adapter of that name in, or zeros where there is none."""
        weights, rank, start = self.weights, self.weights.rank, 0
        weights.a.zero_()
        weights.b.zero_()
        for index, (module, member) in enumerate(zip(self.modules, weights.weights, strict=True)):
            for name in names:
                if name not in getattr(module, "lora_A", ()):
                    continue
                down, up = module.lora_A[name].weight, module.lora_B[name].weight  # [r, K], [N, r]
                weights.a[index * rank :][: len(down)] = down
                weights.b[: len(down), start : start + member.rows] = up.t() * module.scaling[name]
            start += member.rows


@dataclass(frozen=True, kw_only=True, eq=False)
class _Layer:
    attention_norm: Norm
    qkv: _Linear
    output: _Linear
    mlp_norm: Norm
    gate_up: _Linear
    down: _Linear
    activation: Activation
    scale: float
    cache: CacheLayer

    @property
    def linears(self) -> tuple[_Linear, ...]:
        return self.qkv, self.output, self.gate_up, self.down


class Decoder:
    """A Llama, Mistral, Gemma or Phi-3 model in NF4 over a slot cache.

    Args:
        model: the transformers model, with or without peft's layers in it.
        cache: of its keys and values.

    Raises:
        NotCoveredError: it has something that these kernels do not compute.
    """

    def __init__(self, model: "PreTrainedModel", cache: SlotCache) -> None:
        decoder: Any = model.get_decoder()
        config = model.config
        self._embed = decoder.embed_tokens
        self._head = model.get_output_embeddings().weight  # [V, D]
        self._dtype, device = self._head.dtype, self._head.device
        if self._dtype != torch.bfloat16 and device.type == "cuda":
            raise NotCoveredError(f"the kernels compute in bfloat16, the model in {self._dtype}")
        if getattr(config, "final_logit_softcapping", None) or getattr(config, "resid_pdrop", 0.0):
            raise NotCoveredError("the model caps its scores or has dropout")
        self._adapted = _adapted_modules(model)
        self.rank = max((rank for module in self._adapted for rank in module.r.values()), default=0)
        self._layers = [
            self._read_layer(layer, block) for layer, block in zip(decoder.layers, cache.blocks, strict=True)
        ]
        known = {id(module) for layer in self._layers for linear in layer.linears for module in linear.modules}
        if any(id(module) not in known for module in self._adapted):
            raise NotCoveredError("there are adapters outside of the decoder's linear layers")
        self._final_norm = read_norm(decoder.norm)
        self._factors = [self._factor(layer.attention_norm) for layer in self._layers]
        self._mlp_factors = [self._factor(layer.mlp_norm) for layer in self._layers]
        self._factors.append(self._factor(self._final_norm))
        # All positions' angles, in the type transformers computes with; the last one is for padding.
        places = torch.arange(cache.context, device=device)[None]
        tables = decoder.rotary_emb(torch.empty(0, dtype=self._dtype, device=device), position_ids=places)
        self._cos, self._sin = (table[0].contiguous() for table in tables)  # [context, rotated]
        self._heads = config.num_attention_heads
        self._head_dim = cache.blocks[0].keys.shape[3]
        self._window: int | None = getattr(config, "sliding_window", None)
        self._make_room(config.hidden_size, device)

    def _make_room(self, width: int, device: torch.device) -> None:
        """Memory that the kernels of a step write to, the same at every step."""
        linears = [linear.weights for layer in self._layers[:1] for linear in layer.linears]
        queries = self._heads * self._head_dim
        inner = self._layers[0].down.weights.weights[0].columns
        shapes = {"hidden": (ROWS, width), "squares": (ROWS, square_parts(width))}
        self._hidden, self._squares = (torch.zeros(shape, device=device) for shape in shapes.values())
        self._x = torch.zeros(ROWS, width, dtype=self._dtype, device=device)
        self._queries = torch.zeros(ROWS, self._heads, self._head_dim, dtype=self._dtype, device=device)
        self._attended = torch.zeros(ROWS, queries, dtype=self._dtype, device=device)
        self._gated = torch.zeros(ROWS, inner, dtype=self._dtype, device=device)
        self._partial = torch.zeros(max(w.splits * ROWS * w.width for w in linears), device=device)
        self._split = SplitMemory.of(rows=ROWS, heads=self._heads, head_dim=self._head_dim, device=device)

    @property
    def weights(self) -> list[StackedWeights]:
        """All that a step reads of the layers, in its order."""
        return [linear.weights for layer in self._layers for linear in layer.linears]

    def use(self, names: tuple[str, ...]) -> None:
        """Answers with these adapters from now on; none: with the base.

        Raises:
            NotCoveredError: they need a forward pass of their own (several at once, DoRA, a bias), or more room.
        """
        for name in names:
            if len(names) > 1 or not all(is_plain(m, name) for m in self._adapted if name in m.lora_A):
                raise NotCoveredError(f"the adapters {', '.join(names)} are not one plain LoRA")
            if any(module.r[name] > self.rank for module in self._adapted if name in module.r):
                raise NotCoveredError(f"the adapter {name} came later and has a higher rank than those before")
        for layer in self._layers:
            for linear in layer.linears:
                linear.use(names)

    def write(self, ids: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """Scores after single tokens, which are written into the cache.

        Rows of one slot may follow each other: all keys are in the cache before any row attends.

        Args:
            ids: one token per row. # [R], R <= 16
            slots, positions: where each stands, int32. # [R]

        Returns:
            scores, float32; rows beyond R are meaningless. # [16, V]
        """
        rows = ids.shape[0]
        hidden, squares, x = self._hidden[:rows], self._squares[:rows], self._x[:rows]
        queries, attended, act = self._queries[:rows], self._attended[:rows], self._gated[:rows]
        hidden.copy_(self._embed(ids))
        add_residual(hidden, None, self._factors[0], x, squares)

        def product(x: Tensor, linear: _Linear, norm: Norm | None = None) -> PartialSums:
            return split_product(
                x,
                linear.weights,
                self._partial,
                squares=squares if norm is not None else None,
                eps=norm.eps if norm is not None else 0.0,
            )

        for index, layer in enumerate(self._layers):
            fused = product(x, layer.qkv, layer.attention_norm)
            rotate_into_cache(fused, self._cos, self._sin, slots, positions, queries, layer.cache)
            cached_attention(
                queries,
                layer.cache,
                slots,
                positions,
                attended,
                scale=layer.scale,
                window=self._window,
                memory=self._split,
            )
            add_residual(hidden, product(attended, layer.output), self._mlp_factors[index], x, squares)
            gated(product(x, layer.gate_up, layer.mlp_norm), layer.activation, act)
            add_residual(hidden, product(act, layer.down), self._factors[index + 1], x, squares)
        # The norm's division comes after the product, as in every other one. Always 16 rows: a library chooses its
        # algorithm by their number, and a row's scores must not depend on its neighbours.
        mean = self._squares.sum(1, keepdim=True) / hidden.shape[1]
        return _product(self._x, self._head).mul_(torch.rsqrt(mean + self._final_norm.eps))

    def read(self, ids: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """Reads part of a prompt into the cache.

        Args:
            ids: tokens that follow each other; the last one may be repeated, at its position. # [T]
            slots: their slot, T times, int32. # [T]
            positions: theirs, int32. # [T]

        Returns:
            scores after the last one, float32. # [V]
        """
        cos, sin = self._cos[positions], self._sin[positions]
        hidden: Tensor = self._embed(ids)
        added: Tensor | None = None
        for layer in self._layers:
            key_heads = layer.cache.keys.shape[1]
            hidden, x = layer.attention_norm(hidden, added=added)
            fused = multiply(x.value, layer.qkv.weights)
            rotate_(fused, cos, sin, head_dim=self._head_dim, count=self._heads + key_heads)
            query, key, value = fused.unflatten(1, (-1, self._head_dim)).split((self._heads, key_heads, key_heads), 1)
            store(layer.cache, slots[None], positions[None], key[None], value[None])
            attended = x.value.new_empty(ids.shape[0], self._heads * self._head_dim)
            cached_attention(query, layer.cache, slots, positions, attended, scale=layer.scale, window=self._window)
            added = multiply(attended, layer.output.weights)
            hidden, x = layer.mlp_norm(hidden, added=added)
            act, _ = glu(multiply(x.value, layer.gate_up.weights), layer.activation)
            added = multiply(act.value, layer.down.weights)
        assert added is not None
        normed = self._final_norm(hidden[-1:].contiguous(), added=added[-1:].contiguous())[1].value
        return _product(nn.functional.pad(normed, (0, 0, 0, ROWS - 1)), self._head)[0]

    def _factor(self, norm: Norm) -> Tensor:
        return norm.weight.float() + (1.0 if norm.unit_offset else 0.0)

    def _read_layer(self, layer: Any, cache: CacheLayer) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        fused_qkv, fused_gate_up = hasattr(attention, "qkv_proj"), hasattr(mlp, "gate_up_proj")
        qkv = ("qkv_proj",) if fused_qkv else ("q_proj", "k_proj", "v_proj")
        gate_up = ("gate_up_proj",) if fused_gate_up else ("gate_proj", "up_proj")
        return _Layer(
            attention_norm=read_norm(layer.input_layernorm),
            qkv=self._read_linear(*(getattr(attention, name) for name in qkv)),
            output=self._read_linear(attention.o_proj),
            mlp_norm=read_norm(layer.post_attention_layernorm),
            gate_up=self._read_linear(*(getattr(mlp, name) for name in gate_up)),
            down=self._read_linear(mlp.down_proj),
            activation=read_activation(mlp.activation_fn if fused_gate_up else mlp.act_fn),
            scale=attention.scaling,
            cache=cache,
        )

    def _read_linear(self, *modules: Any) -> _Linear:
        weights = []
        for module in modules:
            base = getattr(module, "base_layer", module)
            weight = NF4Weight.of(getattr(base, "weight", None))
            if weight is None or base.bias is not None:
                raise NotCoveredError(f"a {type(base).__name__} has no NF4 weight in blocks of 64, or has a bias")
            weights.append(weight)
        try:
            stacked = StackedWeights.of(weights, rank=self.rank, dtype=self._dtype)
        except ValueError as fault:
            raise NotCoveredError(str(fault)) from fault
        return _Linear(modules=modules, weights=stacked)


def _adapted_modules(model: nn.Module) -> list[Any]:
    """peft's LoRA layers.

    Raises:
        NotCoveredError: peft changed something else too.
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    if any(isinstance(module, AuxiliaryTrainingWrapper) for module in model.modules()):
        raise NotCoveredError("whole modules were trained beside the adapter")
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """``x weight^T`` in float32: near ties of the scores are not rounded away."""
    if x.is_cuda:
        return torch.mm(x, weight.t(), out_dtype=torch.float32)
    return x.float() @ weight.float().t()
