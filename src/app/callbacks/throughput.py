"""How fast training goes, counted in real tokens."""

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

PEAK_TFLOPS = {
    "NVIDIA GeForce RTX 3060": 25.5,
    "NVIDIA GeForce RTX 3070": 40.6,
    "NVIDIA GeForce RTX 3080": 59.5,
    "NVIDIA GeForce RTX 3090": 71.0,
    "NVIDIA GeForce RTX 4060": 30.2,
    "NVIDIA GeForce RTX 4060 Laptop GPU": 29.0,
    "NVIDIA GeForce RTX 4070": 58.3,
    "NVIDIA GeForce RTX 4080": 97.5,
    "NVIDIA GeForce RTX 4090": 165.2,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA H100 80GB HBM3": 989.0,
    "NVIDIA H200": 989.0,
}
"""Device name -> dense bf16 TFLOP/s with fp32 accumulation, from NVIDIA's architecture whitepapers (GA102, AD102, A100,
H100) and, for the laptop cards, their data sheets' boost clocks."""


def model_flops_per_token(model: torch.nn.Module) -> float:
    """Floating-point operations per token that training needs at least: 4 per weight of the frozen linear layers.

    Two in the forward pass and two for the gradient of the input; a frozen weight has no gradient of its own, and
    recomputation does not count (model FLOPs as in PaLM, arXiv 2204.02311, appendix B). Attention's own products,
    the adapters and the head are left out: under 5 % for 7B at 2048 tokens.
    """
    weights: int = sum(
        module.in_features * module.out_features
        for name, module in model.named_modules()
        if hasattr(module, "in_features") and ".lora_" not in name and not hasattr(module, "base_layer")
        if not name.endswith("lm_head")
    )
    return 4.0 * weights


class Throughput(Callback):
    """Logs ``speed/tokens_per_second``, ``samples_per_second`` and, where the device's peak is known, ``mfu``.

    Tokens are those attended to, prompt included, padding not, on all ranks together. Time is wall time of training
    alone: validation between two steps is taken out.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.samples = 0
        self.seconds = 0.0
        self._since: float | None = None
        self._window: list[int | torch.Tensor] = [0, 0]
        self._flops = 0.0

    def state_dict(self) -> dict[str, float]:
        return {"tokens": self.tokens, "samples": self.samples, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tokens, self.samples, self.seconds = (state_dict[name] for name in ("tokens", "samples", "seconds"))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._flops = model_flops_per_token(pl_module)
        self._since = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._since is not None:
            self._since -= time.perf_counter()  # stands still until the validation's end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._since is not None:
            self._since += time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        packed = batch.get("size")
        # Tensors until the step's end: a number would make the CPU wait for the GPU at every micro-batch.
        size = packed if packed is not None else (batch["attention_mask"].sum(), len(batch["input_ids"]))
        self._window = [have + more for have, more in zip(self._window, size, strict=True)]
        if trainer.fit_loop._should_accumulate() or self._since is None:
            return
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        tokens, samples = map(int, self._window)
        if trainer.world_size > 1:
            window = torch.tensor([tokens, samples], device=pl_module.device)
            tokens, samples = trainer.strategy.reduce(window, reduce_op="sum").tolist()
        self._window = [0, 0]
        self.tokens += tokens
        self.samples += samples
        self.seconds += seconds
        speed = {
            "speed/tokens_per_second": tokens / seconds,
            "speed/samples_per_second": samples / seconds,
        }
        if pl_module.device.type == "cuda":
            peak = PEAK_TFLOPS.get(torch.cuda.get_device_name(pl_module.device))
            if peak is not None:
                speed["speed/mfu"] = tokens / seconds * self._flops / (peak * 1e12)
        pl_module.log_dict(speed)
