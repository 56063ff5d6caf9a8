"""peft's LoRA layers without their generality, for training on a CPU.

peft casts a layer's input to the adapters' float32, multiplies there, scales and adds in float32 and casts back: on a
CPU a seventh of a training step. Here both products run in the model's own type, as in the fast layers on a GPU, and
the second one adds to the frozen layer's output. Adapters stay float32 and stay peft's.
"""

from typing import Any

import torch
from torch import Tensor, nn


def lean_adapters(model: nn.Module) -> int:
    """Replaces the forward of every LoRA layer it covers, on this model object alone; returns how many.

    Left as they are: layers with dropout, with DoRA, with biased adapters, with other than one active adapter.
    """
    from peft.tuners.lora import LoraLayer

    covered = [module for module in model.modules() if isinstance(module, LoraLayer) and _is_covered(module)]
    for module in covered:
        setattr(module, "forward", _Lean(module))  # noqa: B010  # mypy forbids assigning methods
    return len(covered)


def _is_covered(module: Any) -> bool:
    if len(module.active_adapters) != 1:
        return False
    (name,) = module.active_adapters
    return (
        name in module.lora_A
        and isinstance(module.lora_dropout[name], nn.Identity)
        and name not in module.lora_magnitude_vector
        and module.lora_A[name].bias is None
        and module.lora_B[name].bias is None
    )


class _Lean:
    """A LoRA layer's forward; a merged or disabled adapter goes to the original one."""

    def __init__(self, module: Any) -> None:
        (name,) = module.active_adapters
        self._module, self._original = module, module.forward
        self._a, self._b, self._scaling = module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        module = self._module
        if module.merged or module.disable_adapters or args or kwargs:
            out: Tensor = self._original(x, *args, **kwargs)
            return out
        added: Tensor = _AddLora.apply(module.base_layer(x), x, self._a, self._b, self._scaling)  # type: ignore[no-untyped-call]
        return added


class _AddLora(torch.autograd.Function):
    """frozen [..., N] + scaling * x [..., K] A^T B^T."""

    @staticmethod
    def forward(ctx: Any, frozen: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        rows = x.flatten(0, -2)
        a_cast, b_cast = a.to(x.dtype), (b * scaling).to(x.dtype)
        projected = rows @ a_cast.t()  # [T, r]
        ctx.save_for_backward(rows, projected, a_cast, b_cast)
        ctx.scaling = scaling
        return torch.addmm(frozen.flatten(0, -2), projected, b_cast.t()).view(frozen.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        rows, projected, a, b = ctx.saved_tensors
        flat = grad.flatten(0, -2)
        grad_projected = flat @ b  # [T, r]
        grad_x = (grad_projected @ a).view(*grad.shape[:-1], -1)
        grad_a, grad_b = grad_projected.t() @ rows, flat.t() @ projected
        return grad, grad_x, grad_a.float(), grad_b.float().mul_(ctx.scaling), None
