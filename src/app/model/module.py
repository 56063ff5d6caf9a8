"""QLoRAModule: the LightningModule around the frozen 4-bit base and its LoRA adapter."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torchmetrics import MeanMetric

from app.artifact import Adaptation, BaseModel
from app.errors import ConfigError, require_ranges
from app.families import get_family
from app.model.accelerate import Acceleration, Kernels, accelerate
from app.model.fast_step import parse_budget
from app.model.load import Attention, Dtype, Quantization, load_base, pick_dtype, read_config
from app.model.lora import attach_lora
from app.model.loss import Batch, summed_loss
from app.model.optimizer import OptimizerName, Schedule, build_optimizer, schedule_factor
from app.model.options import options_of, require_same_options
from app.model.passes import Passes, enable_recomputation
from app.model.shard import require_strategy, shard_layers
from app.model.window import release_memory

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class QLoRAModule(LightningModule):
    """Trains LoRA adapters on a base that stays frozen in 4-bit NF4.

    The loss is per trained token over the whole accumulation window: micro-batches add up sums, and the gradient is
    divided by the window's count of trained tokens just before it is clipped and applied.

    Args:
        base: the base model: hub id (organisation/name) or local folder with 16-bit safetensors.
        family: mistral, llama3, gemma, phi3 or smollm2; checked against the checkpoint.
        revision: hub commit, tag or branch; pin a commit to be reproducible.
        quantization: nf4 (4-bit), or none for 16-bit LoRA.
        double_quant: quantise NF4's block scales too; saves about 0.4 bit per weight.
        dtype: of the arithmetic; auto is bfloat16 where the processor has it.
        attention: auto is varlen on a GPU (torch's flash attention, packed rows without a mask), eager on a CPU.
        rank: LoRA's rank.
        alpha: LoRA's scale; the update is multiplied by alpha / rank.
        dropout: of LoRA's input; 0 is fastest.
        targets: layers that get an adapter, or [all] for every linear layer of the decoder.
        rslora: scale by alpha / sqrt(rank) instead.
        dora: train magnitude and direction apart.
        lr: peak learning rate.
        weight_decay: of AdamW.
        warmup: steps of linear warm-up, as a share of all steps.
        schedule: cosine, linear or constant after the warm-up.
        optimizer: paged_adamw_8bit and adamw_8bit need CUDA; elsewhere adamw takes their place.
        gradient_checkpointing: recompute each decoder layer in the backward pass: slower, far less memory; without
            effect where the fast kernels run, which go by the memory budget.
        kernels: bf16: fast layers on a GPU, the same loss curve; fp8: a third faster on GPUs that have it (RTX 40 and
            later), within half a percent in perplexity; none: the plain layers; auto: fp8 where the GPU has it, else
            bf16, on a CPU the plain layers with lean adapters.
        memory_budget: GPU memory that training may take, such as 7150MiB; auto is nearly the whole card. Results that
            do not fit are copied to CPU memory or recomputed. For the fast kernels only.
        shorten_to: tokens that rows may be cut to when memory runs out and nothing else helps; null is never.
        shard_base: on several GPUs each holds a share of the frozen weights (torch's FSDP) instead of all of them: for
            models whose 4-bit weights do not fit one; slower, and with the plain layers only.
    """

    def __init__(
        self,
        base: str,
        family: str,
        revision: str | None = None,
        quantization: Quantization = "nf4",
        double_quant: bool = True,
        dtype: Dtype = "auto",
        attention: Attention = "auto",
        rank: int = 16,
        alpha: float = 32.0,
        dropout: float = 0.0,
        targets: Sequence[str] = ("all",),
        rslora: bool = False,
        dora: bool = False,
        lr: float = 2e-4,
        weight_decay: float = 0.0,
        warmup: float = 0.03,
        schedule: Schedule = "cosine",
        optimizer: OptimizerName = "paged_adamw_8bit",
        gradient_checkpointing: bool = True,
        kernels: Kernels = "auto",
        memory_budget: str = "auto",
        shorten_to: int | None = None,
        shard_base: bool = False,
    ) -> None:
        super().__init__()
        require_ranges(
            "model",
            {
                "rank": (rank, 1, 1024),
                "alpha": (alpha, 1e-6, 1e6),
                "dropout": (dropout, 0, 0.99),
                "lr": (lr, 1e-12, 1),
                "weight_decay": (weight_decay, 0, 1),
                "warmup": (warmup, 0, 1),
                "shorten_to": (shorten_to or 8, 8, 10**9),
            },
        )
        if shard_base and kernels in ("bf16", "fp8"):
            raise ConfigError(
                f"the fast layers (model.kernels {kernels}) need whole weights, and model.shard_base cuts them",
                where="model.kernels",
                remedy="leave it at auto or none; or train without model.shard_base, if the model fits one GPU",
            )
        self.base, self.family, self.revision = base, get_family(family), revision
        self.quantization, self.double_quant, self.dtype_name, self.attention = (
            quantization,
            double_quant,
            dtype,
            attention,
        )
        self.rank, self.alpha, self.dropout, self.targets = rank, alpha, dropout, list(targets)
        self.rslora, self.dora = rslora, dora
        self.lr, self.weight_decay, self.warmup, self.schedule = lr, weight_decay, warmup, schedule
        self.optimizer, self.gradient_checkpointing = optimizer, gradient_checkpointing
        self.kernels, self.memory_budget = kernels, parse_budget(memory_budget)
        self.shorten_to, self.shard_base = shorten_to, shard_base
        self.acceleration: Acceleration | None = None
        self.passes: Passes | None = None
        self.adaptations: list[Adaptation] = []
        self.strict_loading = False  # checkpoints hold the adapter, never the base
        self.model: PeftModel | None = None
        self.mean_loss = MeanMetric()
        self.step_loss = self.step_norm = 0.0

    def prepare_data(self) -> None:
        """Refuses a checkpoint of another family before data is read or weights are fetched."""
        read_config(self.base, self.family, revision=self.revision)

    def configure_model(self) -> None:
        """Loads base and adapter onto the trainer's device (Lightning calls it once, before the first batch)."""
        if self.model is not None:
            return
        strategy = self.trainer.strategy
        require_strategy(strategy)
        device = strategy.root_device
        # What an earlier attempt of this run has changed is known to rank 0, which wrote it down.
        self.adaptations[:] = strategy.broadcast(self.adaptations)
        if self.trainer.local_rank > 0:
            strategy.barrier("the first rank has stored the model in 4 bits")
        base = load_base(
            self.base,
            self.family,
            device=device,
            dtype=pick_dtype(self.dtype_name, device),
            revision=self.revision,
            quantization=self.quantization,
            double_quant=self.double_quant,
            attention=self.attention,
            trainable=True,
            mapped=self.sharded,
        )
        if self.trainer.local_rank == 0 and self.trainer.world_size > 1:
            strategy.barrier("the first rank has stored the model in 4 bits")
        self.model = attach_lora(
            base,
            self.family,
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            targets=self.targets,
            rslora=self.rslora,
            dora=self.dora,
        )
        if self.gradient_checkpointing:
            enable_recomputation(self.model, dropout=self.dropout > 0)
        # from_pretrained leaves eval mode, in which gradient checkpointing is silently off.
        self.model.train()
        if self.sharded:
            shard_layers(self.causal_lm, device)
        # All ranks have read the same file: DDP has only the adapters to make equal, not gigabytes of frozen weights.
        self._ddp_params_and_buffers_to_ignore = [
            name for name, parameter in self.named_parameters() if not parameter.requires_grad
        ]

    @property
    def sharded(self) -> bool:
        """Whether each rank holds only its share of the base."""
        return self.shard_base and self.trainer.world_size > 1

    @property
    def peft_model(self) -> "PeftModel":
        """The adapted model, once it is loaded."""
        assert self.model is not None, "configure_model has not run yet"
        return self.model

    @property
    def causal_lm(self) -> "PreTrainedModel":
        """The transformers model with the adapter's layers inside it."""
        return self.peft_model.get_base_model()

    def describe_base(self) -> BaseModel:
        """What the manifest says of the base."""
        config = self.causal_lm.config
        return BaseModel(
            id=self.base if not Path(self.base).is_dir() else str(Path(self.base)),
            revision=getattr(config, "_commit_hash", None) or self.revision,
            family=self.family.name,
            model_type=config.model_type,
            quantization=self.quantization,
            double_quant=self.double_quant,
            dtype=str(self.causal_lm.dtype).removeprefix("torch."),
        )

    def on_fit_start(self) -> None:
        """Swaps in the fast layers, after Lightning has moved the model and before the first batch.

        DDP has made the adapters equal on all ranks by now. Its wrapper goes: it would hold nodes of the autograd graph
        that belong to a stream of its own, for which every recorded step would wait, and `Window.reduce` does the rest.
        """
        if self.trainer.world_size > 1:
            self.trainer.strategy.model = self
            release_memory(self.device)
        self.acceleration = accelerate(self.causal_lm, "none" if self.sharded else self.kernels)
        self.passes = Passes(
            self.peft_model,
            summed_loss,
            [parameter for parameter in self.parameters() if parameter.requires_grad],
            rows=self.trainer.datamodule.batch_size,  # type: ignore[attr-defined]  # set by Trainer.fit
            acceleration=self.acceleration,
            budget=self.memory_budget,
            optimizer=self.optimizer,
            divisor=self.trainer.accumulate_grad_batches,
            recomputes=self.gradient_checkpointing,
            dropout=self.dropout > 0,
            shortest=self.shorten_to,
            sharded=self.sharded,
            adaptations=self.adaptations,
            steps=lambda: self.trainer.global_step,
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert self.passes is not None, "on_fit_start has not run yet"
        self.passes.window.add(batch)
        return torch.as_tensor(self.passes.window.loss)  # so that Lightning sees a loss; nothing is done with it

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """``training_step`` has made the gradients; at a window's end those of all ranks are added up."""
        assert self.passes is not None
        if self.trainer.world_size > 1 and not self.trainer.fit_loop._should_accumulate():
            self.passes.agree(self.trainer.strategy)
            self.passes.window.reduce(self.trainer.strategy)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Nothing: Lightning calls it between ``training_step``, which makes gradients, and ``backward``."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turns the window's gradient sum into the gradient of its mean loss per trained token.

        Every micro-batch's loss was divided by ``accumulate_grad_batches``, which is undone here. It runs before
        clipping.
        """
        assert self.passes is not None
        window = self.passes.window
        tokens = self.trainer.strategy.reduce(torch.as_tensor(window.tokens), reduce_op="sum").clamp(min=1)
        loss = self.trainer.strategy.reduce(torch.as_tensor(window.loss), reduce_op="sum") / tokens
        scale = self.trainer.accumulate_grad_batches / tokens
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        torch._foreach_mul_(gradients, scale)
        norm = torch.nn.utils.get_total_norm(gradients)
        self.log_dict({"train/loss": loss, "train/grad_norm": norm}, prog_bar=True)
        # The one place in a step that waits for the GPU.
        self.step_loss, self.step_norm = torch.stack([loss.float(), norm.float()]).tolist()
        if not (math.isfinite(self.step_loss) and math.isfinite(self.step_norm)):
            # Without gradients AdamW changes neither weights nor moments: the step is skipped.
            optimizer.zero_grad(set_to_none=True)
        window.close()

    def on_validation_start(self) -> None:
        if self.passes is not None:
            self.passes.pause()

    def on_validation_end(self) -> None:
        if self.passes is not None:
            self.passes.resume()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def _evaluate(self, batch: Batch) -> None:
        evaluate = partial(summed_loss, self.causal_lm) if self.passes is None else self.passes.evaluate
        loss, tokens = evaluate(batch)
        if tokens > 0:
            self.mean_loss.update(loss / tokens, weight=tokens)

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    def _log_evaluation(self, split: str) -> None:
        """Loss in nats per trained token, and its exponential: perplexity as torchmetrics defines it."""
        loss = self.mean_loss.compute()
        self.log(f"{split}/loss", loss, prog_bar=True)
        self.log(f"{split}/perplexity", torch.exp(loss))
        self.mean_loss.reset()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        total = int(self.trainer.estimated_stepping_batches)
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = build_optimizer(
            self.optimizer,
            parameters,
            lr=self.lr,
            weight_decay=self.weight_decay,
            device=self.trainer.strategy.root_device,
        )
        factor = schedule_factor(self.schedule, warmup_steps=math.ceil(self.warmup * total), total_steps=total)
        scale = self.adaptations[-1].lr_scale if self.adaptations else 1.0
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: scale * factor(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["options"] = options_of(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses options that the checkpoint does not go with, before weights are loaded or a file is written."""
        require_same_options(self, checkpoint)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # torch overloads it
        """The trainable parameters alone: a checkpoint is megabytes and never holds the base."""
        return {name: value.detach() for name, value in self.named_parameters() if value.requires_grad}
