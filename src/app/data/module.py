"""SFTDataModule: prepared or raw data to batches, for Lightning."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from app.artifact import DataFingerprint, sha256_text
from app.data.prepare import load_splits
from app.data.records import Conversation, dump_line, read_prepared
from app.data.sampler import EpochBatchSampler
from app.data.tokenize import Encoding, encode, load_tokenizer
from app.errors import DataError, require_ranges, several
from app.families import get_family

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
TooLong = Literal["drop", "truncate", "error"]


class SFTDataModule(LightningDataModule):
    """Conversations as padded batches in which only answers are trained.

    Args:
        path: a folder that `python -m app prepare` wrote; or a raw CSV, JSONL or other file, a local Hugging Face
            data set or a hub id, which goes through the same preparation in memory.
        base: whose tokenizer (linked to model.base).
        family: whose chat format (linked to model.family).
        revision: of the base (linked to model.revision).
        max_length: tokens per row.
        too_long: what becomes of longer rows: drop them, truncate them at the end, or stop with an error.
        batch_size: rows per training micro-batch.
        eval_batch_size: rows per validation or test batch.
        val_fraction: of raw data, held out for validation.
        test_fraction: of raw data, held out for the test.
        columns: of raw data: which column is the question, answer and so on, where its name does not say so.
        workers: processes that collate; rows are tokenised beforehand, so 0 is right unless the GPU starves.
        seed: of splits and order (linked to seed_everything).
    """

    def __init__(
        self,
        path: str,
        base: str,
        family: str,
        revision: str | None = None,
        max_length: int = 2048,
        too_long: TooLong = "drop",
        batch_size: int = 1,
        eval_batch_size: int = 1,
        val_fraction: float = 0.05,
        test_fraction: float = 0.05,
        columns: Mapping[str, str] | None = None,
        workers: int = 0,
        seed: int = 42,
    ) -> None:
        super().__init__()
        most = 10**9
        require_ranges(
            "data",
            {
                "max_length": (max_length, 8, most),
                "batch_size": (batch_size, 1, most),
                "eval_batch_size": (eval_batch_size, 1, most),
                "val_fraction": (val_fraction, 0, 0.9),
                "test_fraction": (test_fraction, 0, 0.9),
                "workers": (workers, 0, 1024),
            },
        )
        self.path, self.base, self.family, self.revision = path, base, get_family(family), revision
        self.max_length, self.too_long = max_length, too_long
        self.batch_size, self.eval_batch_size, self.workers = batch_size, eval_batch_size, workers
        self.val_fraction, self.test_fraction, self.columns, self.seed = val_fraction, test_fraction, columns, seed
        self.conversations: dict[str, list[Conversation]] = {}
        self.rows: dict[str, list[Encoding]] = {}
        self.fingerprint: DataFingerprint | None = None
        self._begin = (0, 0)

    def setup(self, stage: str) -> None:
        """Reads and tokenises every split once.

        Raises:
            DataError: no data, or no row that can be trained on.
            ModelError: no tokenizer.
        """
        if self.rows:
            return
        self.tokenizer = load_tokenizer(self.base, self.family, revision=self.revision)
        splits = self._read()
        self.fingerprint = DataFingerprint(
            source=self.path,
            sha256={name: sha256_text("".join(map(dump_line, rows))) for name, rows in splits.items()},
            samples={name: len(rows) for name, rows in splits.items()},
        )
        self.conversations = splits
        self.rows = {name: self._encode(name, rows) for name, rows in splits.items()}
        if not self.rows["train"]:
            raise DataError(
                f"{self.path} has no row to train on",
                where="data.path",
                remedy="see the report of `python -m app prepare`; raise data.max_length if all rows are too long",
            )
        if not self.rows["val"]:
            log.warning("there is no validation split: early stopping and best checkpoints have nothing to go by")

    def _read(self) -> dict[str, list[Conversation]]:
        folder = Path(self.path)
        if (folder / "train.jsonl").is_file():
            files = {name: folder / f"{name}.jsonl" for name in SPLITS}
            return {name: list(read_prepared(file)) if file.exists() else [] for name, file in files.items()}
        return load_splits(
            self.path,
            seed=self.seed,
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            columns=self.columns,
        )

    def _encode(self, split: str, conversations: Sequence[Conversation]) -> list[Encoding]:
        rows, faults, long = [], [], 0
        for conversation in conversations:
            try:
                row = encode(conversation.messages, self.tokenizer, self.family, answer_next=False)
            except DataError as fault:
                faults.append(f"{conversation.file}:{conversation.line} ({conversation.id}): {fault.what}")
                continue
            if len(row.input_ids) > self.max_length:
                long += 1
                if self.too_long != "truncate":
                    continue
                row = Encoding(input_ids=row.input_ids[: self.max_length], trained=row.trained[: self.max_length])
            if any(row.trained[1:]):
                rows.append(row)
        if faults:
            raise DataError(
                several(f"{len(faults)} rows of {split} cannot be trained on", faults),
                where="data.path",
                remedy="prepare the data with `python -m app prepare`, which sets such rows aside",
            )
        if long and self.too_long == "error":
            raise DataError(
                f"{long} of {len(conversations)} rows of {split} are longer than {self.max_length} tokens",
                where="data.max_length",
                remedy="raise data.max_length, or choose data.too_long drop or truncate",
            )
        if long:
            fate = "truncated: their answers do not end" if self.too_long == "truncate" else "dropped"
            log.warning(
                f"{long} of {len(conversations)} rows of {split} exceed data.max_length {self.max_length}: {fate}"
            )
        trained = sum(sum(row.trained) for row in rows)
        log.info(
            f"{split}: {len(rows)} rows, {sum(len(row.input_ids) for row in rows)} tokens, {trained} of them trained"
        )
        return rows

    def collate(self, rows: Sequence[Encoding]) -> dict[str, Tensor]:
        """Rows padded at the end to the longest: input_ids [B, T], attention_mask [B, T], trained [B, T]."""
        width = max(len(row.input_ids) for row in rows)
        input_ids = torch.full((len(rows), width), int(self.tokenizer.pad_token_id))  # [B, T]
        attention_mask = torch.zeros((len(rows), width), dtype=torch.int64)
        trained = torch.zeros((len(rows), width), dtype=torch.bool)
        for index, row in enumerate(rows):
            length = len(row.input_ids)
            input_ids[index, :length] = torch.tensor(row.input_ids)
            attention_mask[index, :length] = 1
            trained[index, :length] = torch.tensor(row.trained)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "trained": trained}

    def _loader(self, split: str, **order: Any) -> DataLoader[Encoding]:
        rows: Any = self.rows[split]
        # A generator of its own: drawing worker seeds from the global one would change the run's random numbers.
        generator = torch.Generator().manual_seed(self.seed)
        return DataLoader(rows, num_workers=self.workers, collate_fn=self.collate, generator=generator, **order)

    def _evaluation_loader(self, split: str) -> DataLoader[Encoding]:
        lengths = [len(row.input_ids) for row in self.rows[split]]
        order = EpochBatchSampler(lengths, self.eval_batch_size, seed=self.seed).order(0)
        return self._loader(split, batch_sampler=order)

    def train_dataloader(self) -> DataLoader[Encoding]:
        epoch, batch = self._begin
        lengths = [len(row.input_ids) for row in self.rows["train"]]
        sampler = EpochBatchSampler(lengths, self.batch_size, seed=self.seed, epoch=epoch, batch=batch)
        return self._loader("train", batch_sampler=sampler)

    def val_dataloader(self) -> DataLoader[Encoding]:
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Encoding]:
        return self._evaluation_loader("test")

    def state_dict(self) -> dict[str, int]:
        """Where the order stands. The total count is right at every place Lightning saves: after a batch, after a
        validation, at an epoch's end (its per-epoch counters differ between these)."""
        assert self.trainer is not None
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress
        epoch, batch = divmod(progress.total.processed, int(self.trainer.num_training_batches))
        return {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._begin = (state_dict["epoch"], state_dict["batch"])
