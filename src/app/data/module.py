"""SFTDataModule: prepared or raw data to batches, for Lightning."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from app.artifact import DataFingerprint
from app.data.cache import TokenTable
from app.data.lengths import TooLong
from app.data.pack import Packed, PackedRows
from app.data.packing import best_fit_decreasing, efficiency
from app.data.padding import padded
from app.data.records import Conversation
from app.data.sampler import EpochBatchSampler, shard
from app.data.split import SPLITS
from app.data.tokenize import Encoding, load_tokenizer
from app.data.tokenized import kept_conversations, prepared_folder, split_conversations, split_hash, tokenized
from app.errors import DataError, RunError, changes, require_ranges, several
from app.families import get_family

NOTHING = 8
"""Tokens of the row that a rank without a batch runs."""
log = logging.getLogger(__name__)


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
        packing: put several samples into each training row of max_length tokens, with no attention between them: no
            padding, so more trained tokens a step; a step then holds several times as many samples.
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
        packing: bool = False,
        batch_size: int = 1,
        eval_batch_size: int = 1,
        val_fraction: float = 0.05,
        test_fraction: float = 0.05,
        columns: Mapping[str, str] | None = None,
        workers: int = 0,
        seed: int = 42,
    ) -> None:
        super().__init__()
        require_ranges(
            "data",
            {
                "max_length": (max_length, 8, 10**9),
                "batch_size": (batch_size, 1, 10**9),
                "eval_batch_size": (eval_batch_size, 1, 10**9),
                "val_fraction": (val_fraction, 0, 0.9),
                "test_fraction": (test_fraction, 0, 0.9),
                "workers": (workers, 0, 1024),
            },
        )
        self.path, self.base, self.family, self.revision = path, base, get_family(family), revision
        self.max_length, self.too_long = max_length, too_long
        self.batch_size, self.eval_batch_size, self.workers = batch_size, eval_batch_size, workers
        self.val_fraction, self.test_fraction, self.columns, self.seed = val_fraction, test_fraction, columns, seed
        self.packing = packing
        self.rows: dict[str, TokenTable] = {}
        self.packed: PackedRows | None = None
        self._folder: Path | None = None
        self.fingerprint: DataFingerprint | None = None
        self._begin = (0, 0)

    def setup(self, stage: str) -> None:
        """Reads and tokenises every split, or maps what an earlier start has tokenised.

        Raises:
            DataError: no data, or no row that can be trained on.
            ModelError: no tokenizer.
        """
        if self.rows:
            return
        self.tokenizer = load_tokenizer(self.base, self.family, revision=self.revision)
        self._folder = prepared_folder(
            self.path,
            seed=self.seed,
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            columns=self.columns,
        )
        hashes = {name: split_hash(self._folder, name) for name in SPLITS}
        self.rows = {
            name: tokenized(
                self._folder,
                name,
                hashes[name],
                self.tokenizer,
                self.family,
                max_length=self.max_length,
                too_long=self.too_long,
            )
            for name in SPLITS
        }
        self.fingerprint = DataFingerprint(
            source=self.path, sha256=hashes, samples={name: len(rows) for name, rows in self.rows.items()}
        )
        if not self.rows["train"]:
            raise DataError(
                f"{self.path} has no row to train on",
                where="data.path",
                remedy="see the report of `python -m app prepare`; raise data.max_length if all rows are too long",
            )
        if not self.rows["val"]:
            log.warning("there is no validation split: early stopping and best checkpoints have nothing to go by")
        if self.packing:
            lengths = self.rows["train"].lengths.tolist()
            bins = best_fit_decreasing(lengths, self.max_length)
            full = efficiency(lengths, bins, self.max_length)
            log.info(f"packed: {len(lengths)} rows in {len(bins)} of {self.max_length} tokens, {full:.1%} of them used")
            self.packed = PackedRows(self.rows["train"], bins, self.max_length, pad_id=int(self.tokenizer.pad_token_id))

    @cached_property
    def conversations(self) -> dict[str, list[Conversation]]:
        """The text behind every split, read when first asked for."""
        assert self._folder is not None, "setup has not run yet"
        return {name: list(split_conversations(self._folder, name)) for name in SPLITS}

    def stream(self, split: str) -> Iterable[Conversation]:
        """The conversations of a split in order, read one after the other."""
        assert self._folder is not None, "setup has not run yet"
        return split_conversations(self._folder, split)

    def collate(self, rows: Sequence[Encoding]) -> dict[str, Tensor]:
        """Rows padded at the end to the longest: input_ids [B, T], attention_mask [B, T], trained [B, T]."""
        if not rows:
            return self._nothing(NOTHING)
        return padded(rows, pad_id=int(self.tokenizer.pad_token_id))

    def collate_packed(self, rows: Sequence[Packed]) -> dict[str, Tensor]:
        """Packed rows: input_ids [B, T], position_ids [B, T], trained [B, T], T = max_length; no attention mask.

        ``size`` [2] is what they hold: tokens without padding, and samples.
        """
        if not rows:
            return self._nothing(self.max_length)
        return {
            "input_ids": torch.tensor([row.input_ids for row in rows]),
            "position_ids": torch.tensor([row.position_ids for row in rows]),
            "trained": torch.tensor([row.trained for row in rows]),
            "size": torch.tensor([sum(row.tokens for row in rows), sum(row.samples for row in rows)]),
        }

    def _nothing(self, width: int) -> dict[str, Tensor]:
        """A row in which nothing is trained, for a rank whose turn has no batch left: [1, width]."""
        return {
            "input_ids": torch.full((1, width), int(self.tokenizer.pad_token_id)),
            "position_ids": torch.arange(width)[None],
            "trained": torch.zeros((1, width), dtype=torch.bool),
            "size": torch.zeros(2, dtype=torch.int64),
        }

    def _ranks(self) -> tuple[int, int]:
        """Which of how many processes this one is; the only one without a trainer."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _loader(self, rows: Any, collate: Any, order: Any) -> DataLoader[Any]:
        # A generator of its own: drawing worker seeds from the global one would change the run's random numbers.
        generator = torch.Generator().manual_seed(self.seed)
        return DataLoader(rows, batch_sampler=order, num_workers=self.workers, collate_fn=collate, generator=generator)

    def _evaluation_loader(self, split: str) -> DataLoader[Any]:
        rows = self.rows[split]
        order = EpochBatchSampler(rows.lengths.tolist(), self.eval_batch_size, seed=self.seed).order(0)
        return self._loader(rows, self.collate, shard(order, *self._ranks()))

    def _training_order(self, epoch: int = 0, batch: int = 0) -> EpochBatchSampler:
        lengths = [self.max_length] * len(self.packed) if self.packed else self.rows["train"].lengths.tolist()
        rank, ranks = self._ranks()
        return EpochBatchSampler(
            lengths, self.batch_size, seed=self.seed, epoch=epoch, batch=batch, rank=rank, ranks=ranks
        )

    def train_dataloader(self) -> DataLoader[Any]:
        rows, collate = (self.packed, self.collate_packed) if self.packed else (self.rows["train"], self.collate)
        return self._loader(rows, collate, self._training_order(*self._begin))

    def val_dataloader(self) -> DataLoader[Any]:
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        return self._evaluation_loader("test")

    def longest_batch(self, split: Literal["train", "val"]) -> dict[str, Tensor] | None:
        """The batch that takes most memory: as many rows as a batch has, the longest there are. None of no rows."""
        rows = self.rows[split]
        if split == "train" and self.packed:
            return self.collate_packed([self.packed[row] for row in range(min(self.batch_size, len(self.packed)))])
        size = self.batch_size if split == "train" else self.eval_batch_size
        longest = rows.lengths.argsort(kind="stable")[-size:].tolist()
        return self.collate([rows[row] for row in longest]) if longest else None

    def samples_of(self, epoch: int, batches: Sequence[int]) -> list[Conversation]:
        """The conversations in some training batches of an epoch, counted over all ranks; tokenises the split again."""
        assert self._folder is not None, "setup has not run yet"
        order = self._training_order().order(epoch)
        rows = [row for batch in batches for row in (order[batch] if batch < len(order) else ())]
        if self.packed:
            rows = [sample for row in rows for sample in self.packed.bins[row]]
        kept = kept_conversations(
            self._folder, "train", self.tokenizer, self.family, max_length=self.max_length, too_long=self.too_long
        )
        wanted = set(rows)
        found = {row: conversation for row, conversation in enumerate(kept) if row in wanted}
        return [found[row] for row in rows]

    def state_dict(self) -> dict[str, Any]:
        """Where the order stands, in batches of all ranks, and which order it is. The total count is right at every
        place Lightning saves: after a batch, after a validation, at an epoch's end (its per-epoch counters differ)."""
        assert self.trainer is not None
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress
        epoch, batch = divmod(progress.total.processed, int(self.trainer.num_training_batches))
        ranks = self.trainer.world_size
        return {"epoch": epoch, "batch": batch * ranks, "ranks": ranks, "order": self._identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on in the order.

        Raises:
            RunError: it is another one, in which rows would be repeated and others left out.
        """
        faults = self.changes(state_dict)
        if faults:
            raise RunError(
                several("the checkpoint stands in another order of rows than this one", faults),
                where="--resume",
                remedy="go on with the data and options the run began with, or begin anew with --overwrite true",
            )
        self._begin = (state_dict["epoch"], state_dict["batch"])

    def changes(self, state_dict: Mapping[str, Any]) -> list[str]:
        """What the order depends on and is not as it was, a line each."""
        return changes(self._identity(), state_dict.get("order", {}))

    def _identity(self) -> dict[str, Any]:
        """All that the order of training rows depends on."""
        assert self.fingerprint is not None, "setup has not run yet"
        return {
            "data": self.fingerprint.sha256["train"],
            "data.max_length": self.max_length,
            "data.too_long": self.too_long,
            "data.packing": self.packing,
            "data.batch_size": self.batch_size,
            "seed_everything": self.seed,
        }
