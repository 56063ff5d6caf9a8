"""Looks at the very first batch before a step is taken on it."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from app.errors import DataError, several


def batch_faults(input_ids: Tensor, trained: Tensor, *, end_of_turn: int, bos: int | None) -> list[str]:
    """What would train in vain or do harm, a line per fault.

    Args:
        input_ids: [B, T].
        trained: [B, T] bool.
        end_of_turn: the id that must end every answer: untrained, the model never stops.
        bos: the id a row begins with, or None where the family has none.
    """
    faults = []
    for row, (ids, mask) in enumerate(zip(input_ids.tolist(), trained.tolist(), strict=True)):
        ends = [at for at in range(len(mask)) if mask[at] and (at + 1 == len(mask) or not mask[at + 1])]
        if not any(mask[1:]):
            faults.append(f"row {row} has no trained token: its loss is always zero")
        elif ids[ends[-1]] != end_of_turn and ends[-1] + 1 < len(ids):
            faults.append(f"row {row} does not train the end-of-turn token {end_of_turn}: the model would never stop")
        if bos is not None and ids[:2] == [bos, bos]:
            faults.append(f"row {row} begins with two BOS tokens")
    return faults


class FirstBatchCheck(Callback):
    """Refuses to train on rows without a trained token, with an untrained end of turn, or with a doubled BOS.

    A row that was truncated at the batch's full width may lack its end of turn.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        nothing = "size" in batch and batch["size"].sum() == 0  # of a rank for which there is no row
        if trainer.global_step > 0 or batch_idx > 0 or nothing:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit
        vocabulary = data.tokenizer.get_vocab()
        bos = data.family.chat.bos
        faults = batch_faults(
            batch["input_ids"],
            batch["trained"],
            end_of_turn=vocabulary[data.family.stop_tokens[0]],
            bos=vocabulary[bos] if bos else None,
        )
        if faults:
            raise DataError(
                several("the first batch cannot be trained on", faults),
                where="data.path",
                remedy="look at the samples with `python -m app prepare … --preview 3`",
            )
