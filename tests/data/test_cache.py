"""Token tables: what is written is read back, mapped and shared; a second start does nothing twice."""

import json
import logging
import os
import pickle
import time
from itertools import pairwise
from pathlib import Path

import pytest

from app.cache import cache_key, content_hash, drop_unused
from app.data.cache import TokenTable, write_table
from app.data.module import SFTDataModule
from app.data.pack import Packed
from app.data.prepare import prepare
from app.data.tokenize import Encoding
from app.errors import AppError, DataError, MachineError
from conftest import TinyCheckpoint
from support.fitting import write_csv


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("APP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def rows(count: int) -> list[Encoding]:
    return [
        Encoding(input_ids=list(range(n, 2 * n + 1)), trained=[(n + place) % 3 == 0 for place in range(n + 1)])
        for n in range(count)
    ]


@pytest.mark.parametrize("count", [0, 1, 999, 2500])
def test_a_table_holds_what_was_written(tmp_path: Path, count: int) -> None:
    path = tmp_path / "rows.arrow"
    written = rows(count)
    write_table(path, iter(written))
    table = TokenTable(path)
    assert list(table) == written and len(table) == count
    assert table.lengths.tolist() == [len(row.input_ids) for row in written]
    assert table.trained_tokens == sum(sum(row.trained) for row in written)
    copy = pickle.loads(pickle.dumps(table))
    assert copy[-1:] == table[-1:] == written[-1:] and len(pickle.dumps(table)) < 500
    with pytest.raises(IndexError):
        table[count]


def test_a_fault_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> object:
        yield from rows(1500)
        raise DataError("row 1500 is bad", remedy="mend it")

    with pytest.raises(DataError):
        write_table(tmp_path / "rows.arrow", broken())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_keys_and_hashes_depend_on_every_part(tmp_path: Path) -> None:
    parts = {"content": "a", "template": "b", "max_length": 5}
    keys = {cache_key(**parts), *(cache_key(**{**parts, name: "other"}) for name in parts)}
    assert len(keys) == 4
    (tmp_path / "one").write_text("x")
    first = content_hash(tmp_path)
    (tmp_path / "one").rename(tmp_path / "two")
    assert content_hash(tmp_path) != first
    assert content_hash(tmp_path / "two") == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"


def test_what_nobody_used_for_a_month_goes(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.touch()
    new.touch()
    os.utime(old, (0, time.time() - 31 * 24 * 3600))
    drop_unused(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


def module(path: Path, base: Path, **options: object) -> SFTDataModule:
    options = {"max_length": 256, "val_fraction": 0.2, "test_fraction": 0.2, **options}
    data = SFTDataModule(str(path), str(base), "smollm2", **options)  # type: ignore[arg-type]
    data.setup("fit")
    return data


@pytest.mark.parametrize("raw", [True, False])
def test_a_second_start_reads_the_tables(
    tmp_path: Path, tiny: TinyCheckpoint, raw: bool, cache: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    source = write_csv(tmp_path / "rows.csv")
    if not raw:
        prepare([str(source)], tmp_path / "data", val_fraction=0.2, test_fraction=0.2)
        source = tmp_path / "data"
    first = module(source, tiny("smollm2"))
    files = sorted(p for p in cache.rglob("*") if p.is_file())
    assert sum(p.suffix == ".arrow" for p in files) == 3

    def never(*_: object, **__: object) -> None:
        raise AssertionError("done twice")

    monkeypatch.setattr("app.data.tokenized.encode", never)
    monkeypatch.setattr("app.data.tokenized.prepare_for_training", never)
    with caplog.at_level(logging.INFO):
        second = module(source, tiny("smollm2"))
    assert "tokenised earlier" in caplog.text
    assert {name: list(table) for name, table in second.rows.items()} == {n: list(t) for n, t in first.rows.items()}
    assert second.fingerprint == first.fingerprint
    assert second.conversations == first.conversations
    assert sorted(p for p in cache.rglob("*") if p.is_file()) == files
    with pytest.raises(AssertionError, match="done twice"):
        module(source, tiny("smollm2"), max_length=100)


def test_what_is_used_every_day_is_not_old(tmp_path: Path, tiny: TinyCheckpoint, cache: Path) -> None:
    """Raw data that was prepared a month ago, and is trained on still."""
    source = write_csv(tmp_path / "rows.csv")
    module(source, tiny("smollm2"))
    made = [entry for kind in ("prepared", "tokens") for entry in (cache / kind).iterdir()]
    assert len(made) == 4
    for entry in made:
        os.utime(entry, (0, time.time() - 31 * 24 * 3600))
    module(source, tiny("smollm2"))
    for kind in ("prepared", "tokens"):
        drop_unused(cache / kind)
    assert all(entry.exists() for entry in made)


def test_rows_left_out_are_said_at_every_start(
    tmp_path: Path, tiny: TinyCheckpoint, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_csv(tmp_path / "rows.csv")
    kept = len(module(source, tiny("smollm2"), max_length=120).rows["train"])
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            everything = len(module(source, tiny("smollm2")).rows["train"])
            module(source, tiny("smollm2"), max_length=120)
        assert kept < everything and f"train: {kept} of {everything} rows" in caplog.text
        assert f"train: {everything} rows" in caplog.text


def test_changed_data_is_tokenised_anew(tmp_path: Path, tiny: TinyCheckpoint) -> None:
    source = write_csv(tmp_path / "rows.csv")
    first = module(source, tiny("smollm2"))
    source.write_text(source.read_text() + "row-x,What is new here?,Everything is new here.,group-x\n")
    second = module(source, tiny("smollm2"))
    assert sum(map(len, second.rows.values())) == sum(map(len, first.rows.values())) + 1


def test_a_cache_that_cannot_be_written_is_said(
    tmp_path: Path, tiny: TinyCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("APP_CACHE", str(tmp_path / "file"))
    with pytest.raises(MachineError, match="APP_CACHE"):
        module(write_csv(tmp_path / "rows.csv"), tiny("smollm2"))


def test_a_bad_row_names_its_line_and_is_not_cached(tmp_path: Path, tiny: TinyCheckpoint, cache: Path) -> None:
    source = write_csv(tmp_path / "rows.csv")
    prepare([str(source)], tmp_path / "data")
    path = tmp_path / "data" / "train.jsonl"
    lines = path.read_text().splitlines()
    record = json.loads(lines[3])
    record["messages"][1]["content"] = "It <|im_end|> forges"
    path.write_text("\n".join([*lines[:3], json.dumps(record), *lines[4:]]) + "\n")
    with pytest.raises(AppError, match=rf"rows\.csv:{record['source']['line']}"):
        module(tmp_path / "data", tiny("smollm2"))
    assert not list(cache.rglob("*.arrow"))


def test_packed_batches_hold_every_training_sample_once(tmp_path: Path, tiny: TinyCheckpoint) -> None:
    source = write_csv(tmp_path / "rows.csv")
    plain = module(source, tiny("smollm2"))
    data = module(source, tiny("smollm2"), packing=True, batch_size=2)
    assert data.packed is not None and isinstance(data.packed[0], Packed)
    trained, size = 0, [0, 0]
    seen: list[list[int]] = []
    for batch in data.train_dataloader():
        assert set(batch) == {"input_ids", "position_ids", "trained", "size"} and batch["input_ids"].shape[1] == 256
        size = [have + more for have, more in zip(size, batch["size"].tolist(), strict=True)]
        trained += int(batch["trained"].sum())
        for ids, positions in zip(batch["input_ids"].tolist(), batch["position_ids"].tolist(), strict=True):
            starts = [place for place, position in enumerate(positions) if position == 0] + [len(ids)]
            seen += [ids[start:end] for start, end in pairwise(starts)]
    samples = sorted(row.input_ids for row in plain.rows["train"])
    assert sorted(part for part in seen if part in samples) == samples
    assert size == [plain.rows["train"].lengths.sum(), len(samples)]
    assert trained == sum(sum(row.trained) for row in plain.rows["train"])
    assert set(next(iter(data.val_dataloader()))) == {"input_ids", "attention_mask", "trained"}
