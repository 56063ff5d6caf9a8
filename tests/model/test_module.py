"""The loss of an accumulation window, the frozen base, and bitsandbytes' silent trap."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from app.data.module import SFTDataModule
from app.errors import ConfigError
from app.families import Family
from app.model.accelerate import swap_in
from app.model.load import load_base
from app.model.lora import attach_lora
from app.model.loss import summed_loss
from app.model.module import QLoRAModule
from conftest import TinyCheckpoint
from support.fitting import write_csv


class Gradients(Callback):
    """Keeps the gradient that the first optimizer step used."""

    def __init__(self) -> None:
        self.kept: list[torch.Tensor] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            self.kept = [p.grad.clone() for group in optimizer.param_groups for p in group["params"]]

        trainer.optimizers[0].register_step_post_hook(keep)


def gradient(base: Path, family: str, csv: Path, *, batch_size: int, accumulate: int) -> list[torch.Tensor]:
    seed_everything(42)
    module = QLoRAModule(str(base), family, dtype="float32", optimizer="adamw", gradient_checkpointing=False)
    data = SFTDataModule(str(csv), str(base), family, batch_size=batch_size, val_fraction=0, test_fraction=0)
    gradients = Gradients()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=1,
        accumulate_grad_batches=accumulate,
        callbacks=[gradients],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    return gradients.kept


def test_window_of_uneven_rows_has_the_gradient_of_one_big_batch(
    family: Family, tiny: TinyCheckpoint, tmp_path: Path
) -> None:
    """8 rows at once, or one by one: the loss is per trained token of the window, not per micro-batch."""
    csv = write_csv(tmp_path / "rows.csv")
    lines = csv.read_text().splitlines(keepends=True)
    csv.write_text("".join(lines[:9]))
    big = gradient(tiny(family.name), family.name, csv, batch_size=8, accumulate=1)
    small = gradient(tiny(family.name), family.name, csv, batch_size=1, accumulate=8)
    norm = sum(float(g.norm()) ** 2 for g in big) ** 0.5
    assert norm > 0
    error = sum(float((a - b).norm()) ** 2 for a, b in zip(big, small, strict=True)) ** 0.5
    assert error < 1e-3 * norm


def test_mean_of_means_would_differ(tiny: TinyCheckpoint, tmp_path: Path) -> None:
    """The control of the test above: its rows are uneven enough that the usual averaging would be caught."""
    csv = write_csv(tmp_path / "rows.csv")
    data = SFTDataModule(str(csv), str(tiny("smollm2")), "smollm2", val_fraction=0, test_fraction=0)
    data.setup("fit")
    counts = [sum(row.trained) for row in data.rows["train"][:8]]
    assert max(counts) > 2 * min(counts)


def test_summed_loss_is_transformers_own_over_trained_tokens(family: Family, tiny: TinyCheckpoint) -> None:
    model = load_base(str(tiny(family.name)), family, device=torch.device("cpu"), dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(10, 200, (3, 17), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 12:] = 0
    trained = (torch.rand(3, 17, generator=generator) < 0.5) & attention_mask.bool()
    labels = torch.where(trained, input_ids, -100)
    with torch.no_grad():
        loss, count = summed_loss(model, {"input_ids": input_ids, "attention_mask": attention_mask, "trained": trained})
        expected = model(input_ids=input_ids, attention_mask=attention_mask, labels=labels).loss
    assert int(count) == int(trained[:, 1:].sum())
    torch.testing.assert_close(loss / count, expected, rtol=1e-4, atol=1e-4)


def test_gradients_are_the_same_before_and_after_a_validation(tiny: TinyCheckpoint) -> None:
    """bitsandbytes repacks 4-bit weights on AVX512-BF16 CPUs at the first eval-mode forward and then trains wrong."""
    from app.families import get_family

    family = get_family("smollm2")
    torch.manual_seed(0)
    base = load_base(str(tiny("smollm2")), family, device=torch.device("cpu"), dtype=torch.bfloat16, trainable=True)
    model = attach_lora(base, family, rank=4, alpha=8, dropout=0, targets=["all"], rslora=False, dora=False)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    input_ids = torch.arange(5, 45)[None]
    batch: Any = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "trained": torch.ones_like(input_ids, dtype=torch.bool),
    }

    def gradients() -> list[torch.Tensor]:
        model.train()
        model.zero_grad()
        summed_loss(model.get_base_model(), batch)[0].backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    before = gradients()
    model.eval()
    with torch.no_grad():
        summed_loss(model.get_base_model(), batch)
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(), strict=True))


def test_every_option_out_of_range_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as fault:
        QLoRAModule("base", "mistral", rank=0, lr=-1.0, dropout=2.0)
    assert all(name in str(fault.value) for name in ("model.rank", "model.lr", "model.dropout"))


def test_target_that_is_no_layer_is_refused(tiny: TinyCheckpoint) -> None:
    from app.families import get_family

    family = get_family("smollm2")
    base = load_base(str(tiny("smollm2")), family, device=torch.device("cpu"), dtype=torch.float32)
    with pytest.raises(ConfigError, match="'q_prj'"):
        attach_lora(base, family, rank=4, alpha=8, dropout=0, targets=["q_prj", "v_proj"], rslora=False, dora=False)


def curve(base: Path, family: str, csv: Path, *, fast: bool, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The training loss of each optimizer step: windows of two micro-batches, gradients clipped, validated between."""
    with monkeypatch.context() as patched:
        if fast:  # as on a GPU, with the kernels' plain references
            patched.setattr("app.kernels.triton_support.triton", None)
            patched.setattr(
                "app.model.module.accelerate", lambda causal_lm, _: swap_in(causal_lm.get_decoder(), fp8=False)
            )
        seed_everything(42)
        module = QLoRAModule(str(base), family, dtype="float32", optimizer="adamw", lr=1e-2, warmup=0, kernels="auto")
        data = SFTDataModule(str(csv), str(base), family, batch_size=2, val_fraction=0.2, test_fraction=0)
        losses: list[float] = []

        class Losses(Callback):
            def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
                if "train/loss" in trainer.callback_metrics and trainer.global_step > len(losses):
                    losses.append(float(trainer.callback_metrics["train/loss"]))

        trainer = Trainer(
            accelerator="cpu",
            max_steps=6,
            accumulate_grad_batches=2,
            gradient_clip_val=0.5,
            val_check_interval=4,
            check_val_every_n_epoch=None,
            callbacks=[Losses()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, datamodule=data)
        assert (module.acceleration is not None) == fast
        return losses


def test_fast_steps_train_as_plain_ones_do_under_lightning(
    family: Family, tiny: TinyCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    csv = write_csv(tmp_path / "rows.csv")
    plain, fast = (
        curve(tiny(family.name), family.name, csv, fast=fast, monkeypatch=monkeypatch) for fast in (False, True)
    )
    assert len(plain) == 6 and plain[-1] < plain[0]
    assert fast == pytest.approx(plain, rel=1e-4)
