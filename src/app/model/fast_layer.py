"""One pre-norm decoder layer (Llama, Mistral, Gemma, Phi-3) as a single autograd function.

Forward and backward are written out, so that nothing is saved but what the memory plan keeps, no product is
recomputed whose result was kept, and the down projection is never recomputed at all. The MLP runs over tiles of
tokens: its width is 3.5 to 8 times the model's, and tiles bound what exists of it at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from app.kernels.attention import Documents, Heads, attention, attention_backward
from app.kernels.fp8 import Rows, quantise_rows
from app.kernels.frozen_linear import FrozenLinear, StackedLora
from app.kernels.glu import Activation, glu, glu_backward
from app.kernels.rms_norm import rms_norm, rms_norm_backward
from app.kernels.rotary import fused_gradient, rotate_
from app.model.activation_store import ActivationStore

TILE = 2048
"""Tokens of the MLP at once; products of 2,048 rows reach full speed on an H100, so larger tiles gain nothing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Norm:
    """An RMSNorm's frozen weight [D] and how it is applied; see `app.kernels.rms_norm`."""

    weight: torch.Tensor
    eps: float
    unit_offset: bool

    def __call__(
        self, hidden: torch.Tensor, *, room: int | None = None, added: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Rows]:
        return rms_norm(hidden, self.weight, self.eps, unit_offset=self.unit_offset, room=room, added=added)

    def backward(
        self, grad: torch.Tensor, hidden: torch.Tensor, residual_grad: torch.Tensor, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        return rms_norm_backward(
            grad, hidden, self.weight, self.eps, unit_offset=self.unit_offset, residual_grad=residual_grad, out=out
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Positions:
    """Of one step: ``cos`` and ``sin`` [T, R] of the rotary embedding, and where the documents begin."""

    cos: torch.Tensor
    sin: torch.Tensor
    documents: Documents


class FastLayer:
    """A decoder layer over tokens in one row.

    Args:
        index: of the layer.
        attention_norm, mlp_norm: before attention and MLP.
        qkv, output, gate_up, down: the projections.
        heads: of the attention.
        activation: of the gate.
        store: keeps what the backward pass needs.
    """

    def __init__(
        self,
        *,
        index: int,
        attention_norm: Norm,
        mlp_norm: Norm,
        qkv: FrozenLinear,
        output: FrozenLinear,
        gate_up: FrozenLinear,
        down: FrozenLinear,
        heads: Heads,
        activation: Activation,
        store: ActivationStore,
    ) -> None:
        self.index, self.store = index, store
        self.attention_norm, self.mlp_norm = attention_norm, mlp_norm
        self.qkv, self.output, self.gate_up, self.down = qkv, output, gate_up, down
        self.heads, self.activation, self.fp8 = heads, activation, qkv.fp8
        self.parameters = [*qkv.parameters, *output.parameters, *gate_up.parameters, *down.parameters]

    def __call__(self, hidden: torch.Tensor, positions: Positions) -> torch.Tensor:
        """[T, D] -> [T, D]."""
        if not torch.is_grad_enabled():
            return self.forward(hidden, positions, save=False)[0]
        out: torch.Tensor = _LayerFunction.apply(hidden, self, positions, *self.parameters)  # type: ignore[no-untyped-call]
        return out

    def forward(
        self, hidden: torch.Tensor, positions: Positions, *, save: bool
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
        """The output, and the inputs' projections by the adapters' A, [T, R] each: small, so always kept.

        What is not to be trained on (``save`` is False) is computed with the weights as they are, never in FP8: a
        validation loss is that of the adapted model itself, and does not change with the scales of a step.
        """
        fp8 = self.fp8 and save
        projected: dict[str, torch.Tensor | None] = {}
        _, x = self.attention_norm(hidden, room=self.qkv.room if fp8 else None)
        fused, projected["qkv"] = self._rotated(x, positions)
        out, lse = attention(fused, self.heads, positions.documents)
        added, projected["output"] = self._project(self.output, _quantised(out, self.output, fp8=fp8))
        if save:
            self.store.save(self.index, "hidden", hidden)
            self.store.save(self.index, "attention", fused, out, lse)
        del fused, out, lse
        middle, x = self.mlp_norm(hidden, room=self.gate_up.room if fp8 else None, added=added)
        del added
        if save:
            self.store.save(self.index, "middle", middle)
        result = torch.empty_like(middle)
        keep = save and self.store.placement(self.index, "gate_up") != "recompute"
        gate_up_lora, down_lora = self.gate_up.stack(), self.down.stack()
        gate_up_weight = self.gate_up.decode(gate_up_lora, fp8=fp8)
        down_weight = self.down.decode(down_lora, fp8=fp8)
        kept: list[torch.Tensor] = []
        gate_up_projected, down_projected = [], []
        for tile in _tiles(hidden.shape[0]):
            gate_up, tile_projected = self.gate_up.forward(x[tile], gate_up_weight, gate_up_lora)
            gate_up_projected.append(tile_projected)
            active, stored = glu(gate_up, self.activation, room=self.down.room if fp8 else None, keep=keep)
            del gate_up
            if keep:
                kept += [stored.value] if stored.fp8 is None or stored.scale is None else [stored.fp8, stored.scale]
            del stored
            out, tile_projected = self.down.forward(active, down_weight, down_lora)
            down_projected.append(tile_projected)
            torch.add(middle[tile], out, out=result[tile])
        projected["gate_up"], projected["down"] = _joined(gate_up_projected), _joined(down_projected)
        if keep:
            self.store.save(self.index, "gate_up", *kept)
        return result, projected

    def backward(
        self, grad: torch.Tensor, positions: Positions, projected: dict[str, torch.Tensor | None], *, to_input: bool
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """Gradients of the layer's input (None unless ``to_input``) and of ``parameters``."""
        self.store.prefetch(self.index - 1)
        saved = self.store.load(self.index, "hidden")
        assert saved is not None
        (hidden,) = saved
        attended = self.store.load(self.index, "attention")
        if attended is None:
            _, x = self.attention_norm(hidden, room=self.qkv.room if self.fp8 else None)
            fused, _ = self._rotated(x, positions, projected["qkv"])
            attended = fused, *attention(fused, self.heads, positions.documents)
            del x
        fused, out, lse = attended
        saved = self.store.load(self.index, "middle")
        if saved is None:
            middle, _ = self._project(self.output, _quantised(out, self.output, fp8=self.fp8), projected["output"])
            middle += hidden
        else:
            (middle,) = saved
        grad_middle, gate_up_grads, down_grads = self._mlp_backward(grad, middle, projected)
        del middle, saved

        grad_out, output_grads = self._linear_backward(
            self.output, _quantised(grad_middle, self.output, fp8=self.fp8), out, projected["output"]
        )
        grad_qkv = attention_backward(grad_out, fused, out, lse, self.heads, positions.documents)
        del grad_out, fused, out, lse, attended
        room = self.qkv.room if self.fp8 else None
        grad_fused = fused_gradient(*grad_qkv, positions.cos, positions.sin, room=room)
        del grad_qkv
        _, x = self.attention_norm(hidden)
        grad_x, qkv_grads = self._linear_backward(self.qkv, grad_fused, x.value, projected["qkv"])
        grads = [*qkv_grads, *output_grads, *gate_up_grads, *down_grads]
        return (self.attention_norm.backward(grad_x, hidden, grad_middle) if to_input else None), grads

    def _mlp_backward(
        self, grad: torch.Tensor, middle: torch.Tensor, projected: dict[str, torch.Tensor | None]
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        """Gradient of the residual stream before the MLP and its norm, and of the MLP's adapters."""
        kept = self.store.load(self.index, "gate_up")
        tiles = _tiles(grad.shape[0])
        grad_middle = torch.empty_like(grad)
        gate_up_lora, down_lora = self.gate_up.stack(), self.down.stack()
        gate_up_sum, down_sum = _GradSum(), _GradSum()
        weights = _Weights(self, gate_up_lora, down_lora, hold=len(tiles) > 1)
        room = self.gate_up.room if self.fp8 else None
        for index, tile in enumerate(tiles):
            grad_active, down_projected_grad = self.down.backward(
                _quantised(grad[tile], self.down, fp8=self.fp8), weights.down_transposed(), down_lora
            )
            gate_up = self._kept_tile(kept, index)
            _, x = self.mlp_norm(middle[tile], room=room if gate_up is None else None)
            if gate_up is None:
                recomputed, _ = self.gate_up.forward(
                    x, weights.gate_up(), gate_up_lora, _rows(projected["gate_up"], tile)
                )
                gate_up = Rows(value=recomputed)
                del recomputed
            active, grad_gate_up = glu_backward(grad_active, gate_up, self.activation, room=room)
            del grad_active, gate_up
            down_sum.add(
                self.down.adapter_grads(grad[tile], active, _rows(projected["down"], tile), down_projected_grad)
            )
            del active
            grad_x, gate_up_projected_grad = self.gate_up.backward(
                grad_gate_up, weights.gate_up_transposed(), gate_up_lora
            )
            self.mlp_norm.backward(grad_x, middle[tile], grad[tile], out=grad_middle[tile])
            del grad_x
            gate_up_sum.add(
                self.gate_up.adapter_grads(
                    grad_gate_up.value, x.value, _rows(projected["gate_up"], tile), gate_up_projected_grad
                )
            )
        return grad_middle, self.gate_up.split_grads(gate_up_sum.total), self.down.split_grads(down_sum.total)

    def _kept_tile(self, kept: tuple[torch.Tensor, ...] | None, index: int) -> Rows | None:
        if kept is None:
            return None
        if not self.fp8:
            return Rows(value=kept[index])
        fp8, scale = kept[2 * index], kept[2 * index + 1]
        return Rows(value=scale.new_empty(0), fp8=fp8, scale=scale)

    def _linear_backward(
        self, linear: FrozenLinear, grad: Rows, x: torch.Tensor, projected: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        lora = linear.stack()
        out, projected_grad = linear.backward(grad, linear.decode_transposed(lora), lora)
        return out, linear.split_grads(linear.adapter_grads(grad.value, x, projected, projected_grad))

    def _project(
        self, linear: FrozenLinear, x: Rows, projected: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        lora = linear.stack()
        return linear.forward(x, linear.decode(lora, fp8=x.fp8 is not None), lora, projected)

    def _rotated(
        self, x: Rows, positions: Positions, projected: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Query, key and value of the normed input, the former two rotated, and its projection by the adapters."""
        fused, projected = self._project(self.qkv, x, projected)
        count = self.heads.queries + self.heads.keys
        rotate_(fused, positions.cos, positions.sin, head_dim=self.heads.head_dim, count=count)
        return fused, projected


class _Weights:
    """The MLP's decoded weights of one backward pass: held over several tiles, given up after use with one tile."""

    def __init__(
        self, layer: FastLayer, gate_up_lora: StackedLora | None, down_lora: StackedLora | None, *, hold: bool
    ) -> None:
        self._layer, self._hold = layer, hold
        self._gate_up_lora, self._down_lora = gate_up_lora, down_lora
        self._held: dict[str, torch.Tensor] = {}

    def down_transposed(self) -> torch.Tensor:
        return self._get("down", partial(self._layer.down.decode_transposed, self._down_lora))

    def gate_up(self) -> torch.Tensor:
        decode = partial(self._layer.gate_up.decode, self._gate_up_lora, fp8=self._layer.fp8)
        return self._get("gate_up", decode)

    def gate_up_transposed(self) -> torch.Tensor:
        # Outside FP8 both products read the same matrix.
        name = "gate_up_transposed" if self._layer.fp8 else "gate_up"
        return self._get(name, partial(self._layer.gate_up.decode_transposed, self._gate_up_lora))

    def _get(self, name: str, decode: Any) -> torch.Tensor:
        if name in self._held:
            return self._held[name]
        weight: torch.Tensor = decode()
        if self._hold:
            self._held[name] = weight
        return weight


class _GradSum:
    """Sum of the stacked adapters' gradients over tiles."""

    def __init__(self) -> None:
        self.total: tuple[torch.Tensor, torch.Tensor] | None = None

    def add(self, grads: tuple[torch.Tensor, torch.Tensor] | None) -> None:
        if self.total is None or grads is None:
            self.total = grads
        else:
            for total, grad in zip(self.total, grads, strict=True):
                total += grad


def _quantised(value: torch.Tensor, linear: FrozenLinear, *, fp8: bool) -> Rows:
    """Inputs or gradients of a layer, with their FP8 form if its product is to be in FP8."""
    return quantise_rows(value, room=linear.room) if fp8 else Rows(value=value)


def _tiles(tokens: int) -> list[slice]:
    return [slice(start, min(start + TILE, tokens)) for start in range(0, tokens, TILE)]


def _rows(value: torch.Tensor | None, tile: slice) -> torch.Tensor | None:
    return None if value is None else value[tile]


def _joined(parts: list[torch.Tensor | None]) -> torch.Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present) if len(present) > 1 else present[0] if present else None


class _LayerFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, layer: FastLayer, positions: Positions, *parameters: torch.Tensor
    ) -> torch.Tensor:
        out, ctx.projected = layer.forward(hidden.detach(), positions, save=True)
        ctx.layer, ctx.positions = layer, positions
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        to_input, *_ = ctx.needs_input_grad
        grad_hidden, grads = ctx.layer.backward(grad.contiguous(), ctx.positions, ctx.projected, to_input=to_input)
        return grad_hidden, None, None, *grads
