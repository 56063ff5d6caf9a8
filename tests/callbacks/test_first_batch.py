"""What the first batch is refused for."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from app.callbacks.first_batch import FirstBatchCheck, batch_faults
from app.data.module import SFTDataModule
from conftest import TinyCheckpoint

BOS, END, PAD = 1, 2, 0


def faults(ids: list[list[int]], trained: list[list[int]], bos: int | None = BOS) -> list[str]:
    return batch_faults(torch.tensor(ids), torch.tensor(trained).bool(), end_of_turn=END, bos=bos)


def test_good_rows_pass() -> None:
    assert faults([[1, 5, 6, 2, 0], [1, 5, 6, 7, 2]], [[0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]) == []


def test_no_trained_token() -> None:
    assert "row 1 has no trained token" in faults([[1, 5, 2], [1, 5, 2]], [[0, 1, 1], [0, 0, 0]])[0]


def test_first_token_alone_is_never_predicted() -> None:
    assert "no trained token" in faults([[1, 5, 2]], [[1, 0, 0]])[0]


def test_untrained_end_of_turn() -> None:
    assert "never stop" in faults([[1, 5, 6, 2, 0]], [[0, 1, 1, 0, 0]])[0]


def test_row_truncated_at_full_width_may_lack_its_end() -> None:
    assert faults([[1, 5, 6, 7]], [[0, 1, 1, 1]]) == []


def test_doubled_bos() -> None:
    assert "two BOS" in faults([[1, 1, 5, 2]], [[0, 0, 1, 1]])[0]
    assert faults([[1, 1, 5, 2]], [[0, 0, 1, 1]], bos=None) == []


def test_all_faults_at_once() -> None:
    assert len(faults([[1, 1, 5, 9, 0], [1, 5, 6, 2, 0]], [[0, 0, 1, 1, 0], [0, 0, 0, 0, 0]])) == 3


def test_rank_without_a_row_is_no_fault(tiny: TinyCheckpoint, tmp_path: Path) -> None:
    """More ranks than rows: one runs a row that trains nothing."""
    rows = tmp_path / "rows.csv"
    rows.write_text("question,answer\nWhat is one plus one?,It is two.\n", "utf-8")
    data = SFTDataModule(
        path=str(rows), base=str(tiny("smollm2")), family="smollm2", max_length=256, val_fraction=0, test_fraction=0
    )
    data.setup("fit")
    trainer: Any = SimpleNamespace(global_step=0, datamodule=data)
    module: Any = None
    FirstBatchCheck().on_train_batch_start(trainer, module, data.collate([]), 0)
