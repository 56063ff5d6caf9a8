"""A base in shards on two processes: bit for bit the whole one's losses and gradients, in half the memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import spawn

from app.errors import ConfigError
from app.families import all_families, get_family
from app.model.load import load_base
from app.model.lora import attach_lora
from app.model.loss import summed_loss
from app.model.module import QLoRAModule
from app.model.passes import enable_recomputation
from app.model.shard import require_strategy, shard_layers
from conftest import TinyCheckpoint

CPU = torch.device("cpu")


def adapted(name: str, checkpoint: str, *, mapped: bool, recompute: bool) -> Any:
    family = get_family(name)
    base = load_base(checkpoint, family, device=CPU, dtype=torch.bfloat16, trainable=True, mapped=mapped)
    torch.manual_seed(0)
    model = attach_lora(base, family, rank=4, alpha=8, dropout=0, targets=["all"], rslora=False, dora=False)
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.1)
    if recompute:
        enable_recomputation(model, dropout=False)
    return model.train()


def passes(model: Any) -> list[torch.Tensor]:
    """Losses of two micro-batches and an empty one, of an evaluation, and the gradients of all adapters."""
    values = []
    for number in range(3):
        ids = torch.randint(0, 90, (1, 24), generator=torch.Generator().manual_seed(number))
        trained = torch.full_like(ids, number < 2, dtype=torch.bool)
        loss, _ = summed_loss(
            model.get_base_model(), {"input_ids": ids, "trained": trained, "position_ids": torch.arange(24)[None]}
        )
        loss.backward()
        values.append(loss.detach())
    model.eval()
    with torch.no_grad():
        values.append(summed_loss(model.get_base_model(), {"input_ids": ids, "trained": ids > 0})[0])
    return values + [parameter.grad for parameter in model.parameters() if parameter.requires_grad]


def run_rank(rank: int, checkpoints: dict[str, str], folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for name, checkpoint in checkpoints.items():
        model = adapted(name, checkpoint, mapped=True, recompute=name != "gemma")
        shard_layers(model.get_base_model(), CPU)
        torch.save(passes(model), f"{folder}/{name}-{rank}.pt")
        frozen = [parameter for parameter in model.get_decoder().layers.parameters() if not parameter.requires_grad]
        assert all(isinstance(parameter, DTensor) for parameter in frozen)
        assert sum(each.to_local().numel() for each in frozen) * 2 == sum(each.numel() for each in frozen)
        if rank == 0:
            model.save_pretrained(f"{folder}/{name}-adapter")
    torch.distributed.destroy_process_group()


def test_every_family_in_shards_computes_what_it_does_whole(tiny: TinyCheckpoint, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    checkpoints = {name: str(tiny(name)) for name in all_families()}
    models = {name: adapted(name, path, mapped=False, recompute=False) for name, path in checkpoints.items()}
    spawn(run_rank, (checkpoints, str(tmp_path)), nprocs=2)
    for name, model in models.items():
        whole = passes(model)
        for rank in range(2):
            parts = torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True)
            assert len(parts) == len(whole) and whole[2] == 0
            assert all(torch.equal(part, want) for part, want in zip(parts, whole, strict=True))
        model.save_pretrained(tmp_path / "whole")
        files = [tmp_path / folder / "adapter_model.safetensors" for folder in ("whole", f"{name}-adapter")]
        ours, theirs = map(load_file, files)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_strategies_that_cut_weights_themselves_are_refused() -> None:
    for known in (SingleDeviceStrategy(), DDPStrategy()):
        require_strategy(known)
    for other in (FSDPStrategy(), ModelParallelStrategy()):
        with pytest.raises(ConfigError, match=type(other).__name__):
            require_strategy(other)


@pytest.mark.parametrize("kernels", ["bf16", "fp8"])
def test_fast_layers_are_refused(kernels: Any) -> None:
    with pytest.raises(ConfigError, match="need whole weights"):
        QLoRAModule("base", "mistral", kernels=kernels, shard_base=True)
