"""The frozen base in one piece per GPU, by torch's FSDP, for models whose 4-bit weights do not fit one.

Each decoder layer is a unit of ``torch.distributed.fsdp.fully_shard``: every GPU keeps its share of the packed weights,
all of them gather a layer before they compute with it, forward and backward, and drop it afterwards. Adapters are left
out: they are small, every GPU has them whole, and their gradients are added up as they are without shards. So what is
saved, resumed and reduced is the same as on any number of GPUs.
"""

from typing import TYPE_CHECKING

import torch
from torch import nn

from app.errors import ConfigError

if TYPE_CHECKING:
    from lightning.pytorch.strategies import Strategy
    from transformers import PreTrainedModel

STORAGE = torch.bfloat16
"""What packed bytes are passed around as, bit for bit: FSDP takes no integers (bitsandbytes' ``quant_storage``)."""


def require_strategy(strategy: "Strategy") -> None:
    """Refuses strategies that would cut weights themselves: 4-bit ones in bytes are no shards to them.

    Lightning's FSDPStrategy flattens a layer's weights to one tensor, bitsandbytes' scales do not survive it, and
    checkpoints would hold the base; ModelParallelStrategy leaves the cutting to the module, which DDP does as well.

    Raises:
        ConfigError: it is neither DDP nor for a single device.
    """
    from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
        raise ConfigError(
            f"QLoRA does not train under {type(strategy).__name__}, which would cut 4-bit weights into pieces",
            where="trainer.strategy",
            remedy="use --config configs/strategy/ddp.yaml, or configs/strategy/fsdp.yaml where one GPU is too small",
        )


def shard_layers(causal_lm: "PreTrainedModel", device: torch.device) -> None:
    """Moves a base to the GPUs layer by layer, so that none ever holds more than its share and one layer.

    Embeddings, head and block scales (1/64 byte per weight) stay whole on every GPU.

    Args:
        causal_lm: with its adapters, on the CPU, where its weights may be mapped from disk.
        device: this process's; all processes of the default group call this together.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    adapters = {parameter for parameter in causal_lm.parameters() if parameter.requires_grad}
    decoder = causal_lm.get_decoder()
    for layer in decoder.layers:
        store_as_floats(layer, device)
        layer.to(device)
        fully_shard(layer, mesh=mesh, ignored_params=adapters)
    # Without weights of its own: one root lets a layer be gathered while the one before it computes.
    fully_shard(decoder, mesh=mesh, ignored_params=set(decoder.parameters()))


def store_as_floats(module: nn.Module, device: torch.device) -> None:
    """Moves 4-bit weights and makes each a plain parameter of the same bytes; ``Linear4bit`` keeps the scales."""
    from bitsandbytes.nn import Linear4bit

    for linear in module.modules():
        if isinstance(linear, Linear4bit):
            linear.quant_state, linear.quant_storage = linear.weight.quant_state, STORAGE
            linear.quant_state.to(device)
            packed = linear.weight.data.to(device).view(-1).view(STORAGE).view(-1, 1)  # [N * K / 4, 1]
            linear.weight = nn.Parameter(packed, requires_grad=False)
