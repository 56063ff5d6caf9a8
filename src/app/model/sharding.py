"""The frozen base in shards: for models whose 4-bit weights do not fit one GPU."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch.strategies import FSDPStrategy, Strategy
from torch import nn


class FrozenShards(FSDPStrategy):
    """Lightning's FSDP for QLoRA: each rank keeps a part of the frozen weights and gathers a decoder layer at a time.

    bitsandbytes stores 4-bit weights in the arithmetic's own type (``bnb_4bit_quant_storage``), so a layer's weights
    and norms are one flat parameter. Adapters are left out of the shards: in float32 they are 0.8 GB of a 70B model,
    and so gradients, clipping, optimizer and checkpoints are those of DDP, and either goes on from the other's.
    """

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def _setup_model(self, model: nn.Module) -> nn.Module:
        from torch.distributed.fsdp import FullyShardedDataParallel
        from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

        module: Any = model
        layers = {type(layer) for layer in module.causal_lm.get_decoder().layers}
        adapters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in adapters:
            parameter.data = parameter.data.to(self.root_device)
        for each in model.modules():
            state = getattr(each, "quant_state", None)
            if state is not None:
                state.to(self.root_device)  # scales and tables are no parameters: every rank has them all
        # Lightning's own would name the device by its index, which a CPU does not have.
        shards = FullyShardedDataParallel(
            model,
            auto_wrap_policy=partial(transformer_auto_wrap_policy, transformer_layer_cls=layers),
            ignored_states=adapters,
            device_id=self.root_device,
            sharding_strategy=self.sharding_strategy,
            cpu_offload=self.cpu_offload,
            **self.kwargs,
        )
        module.mean_loss.to(self.root_device)
        return shards

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The adapters, under the names they have without shards."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        adapters = checkpoint["state_dict"]
        with torch.no_grad():
            for name, parameter in self.lightning_module.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(adapters[plain_name(name)])

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return Strategy.optimizer_state(self, optimizer)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        Strategy.load_optimizer_state_dict(self, checkpoint)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)


def plain_name(name: str) -> str:
    """A parameter's name without what wrapping in shards has put into it."""
    return name.replace("_fsdp_wrapped_module.", "")
