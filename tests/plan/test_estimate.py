"""Rows and tokens of real data, steps, hours and disk."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.data.records import Conversation, Message, dump_line
from app.data.tokenize import encode, load_tokenizer
from app.errors import ConfigError, DataError
from app.families import get_family
from app.plan.cards import find_card
from app.plan.estimate import Estimate, estimate, micro_batch_work
from app.plan.gpu import Gpu, imagined
from app.plan.options import read_options
from app.plan.rows import SAMPLE, count_rows
from app.plan.speed import step_seconds
from conftest import ROOT, TinyCheckpoint

MISTRAL = get_family("mistral")


def prepared(folder: Path, rows: int) -> Path:
    """A prepared folder whose answers have from 1 to 20 sentences."""
    folder.mkdir()
    lines = [
        Conversation(
            id=str(row),
            group=str(row),
            messages=(
                Message(role="user", content=f"What is {row}?"),
                Message(role="assistant", content="It is a number, and not the last one. " * (row % 20 + 1)),
            ),
            file="made",
            line=row,
        )
        for row in range(rows)
    ]
    (folder / "train.jsonl").write_text("".join(map(dump_line, lines)), "utf-8")
    return folder


def count(path: Path, base: Path | str, *, max_length: int = 10_000, truncate: bool = False) -> Any:
    return count_rows(str(path), MISTRAL, base=str(base), revision=None, max_length=max_length, truncate=truncate)


def test_counts_what_fit_will_train_on(tiny: TinyCheckpoint, tmp_path: Path) -> None:
    base, folder = tiny("mistral"), prepared(tmp_path / "data", 60)
    tokenizer = load_tokenizer(str(base), MISTRAL)
    from app.data.tokenized import split_conversations

    lengths = [
        len(encode(row.messages, tokenizer, MISTRAL, answer_next=False).input_ids)
        for row in split_conversations(folder, "train")
    ]
    everything = count(folder, base)
    assert (everything.rows, everything.tokens, everything.left_out) == (60, sum(lengths), 0)
    assert everything.how == "counted"
    limit = sorted(lengths)[40]
    shorter = [length for length in lengths if length <= limit]
    dropped = count(folder, base, max_length=limit)
    assert (dropped.rows, dropped.tokens, dropped.left_out) == (len(shorter), sum(shorter), 60 - len(shorter))
    cut = count(folder, base, max_length=limit, truncate=True)
    assert (cut.rows, cut.tokens) == (60, sum(min(length, limit) for length in lengths))


def test_samples_large_data_and_estimates_without_a_tokenizer(tiny: TinyCheckpoint, tmp_path: Path) -> None:
    folder = prepared(tmp_path / "data", SAMPLE + 500)
    exact, rough = count(folder, tiny("mistral")), count(folder, "nobody/nothing")
    assert exact.rows == rough.rows == SAMPLE + 500
    assert "1,250 rows of 2,500" in exact.how and rough.how.startswith("estimated")
    per_row = exact.tokens / exact.rows
    everything = count(prepared(tmp_path / "less", 100), tiny("mistral"))
    assert per_row == pytest.approx(everything.tokens / everything.rows, rel=0.06)
    assert count(tmp_path / "nothing", "nobody/nothing") is None


@pytest.mark.parametrize("line", [b'{"messages": [', b"[]", b'{"messages": []}', b'"\xff"'])
def test_lines_that_are_no_records_are_named(line: bytes, tmp_path: Path) -> None:
    file = prepared(tmp_path / "data", 6) / "train.jsonl"
    lines = file.read_bytes().splitlines()
    lines[1] = lines[4] = line
    file.write_bytes(b"\n\n".join(lines))
    with pytest.raises(DataError, match="2 lines are not prepared records") as fault:
        count(file.parent, "nobody/nothing")
    assert f"{file}:3: " in fault.value.what and f"{file}:9: " in fault.value.what


def planned(gpu: Gpu | None = None, **changes: Any) -> Estimate:
    """Of the plain layers, whose needs do not follow what is free."""
    options = read_options([ROOT / "configs" / "mistral.yaml"], {"model.kernels": "none", **changes})
    return estimate(options, gpu or imagined(find_card("rtx4060-laptop")))


def test_time_follows_rows_epochs_and_length(tmp_path: Path) -> None:
    data = str(prepared(tmp_path / "data", 320))
    once = planned(**{"data.path": data, "trainer.max_epochs": 1})
    assert once.rows is not None and once.rows.rows == 320
    assert once.steps == 20
    assert once.seconds is not None and once.tokens_per_second is not None
    # Padding is never trained on, so the tokens of all rows at the predicted speed are the time.
    assert once.seconds == pytest.approx(once.rows.tokens / once.tokens_per_second, rel=0.01)
    thrice = planned(**{"data.path": data, "trainer.max_epochs": 3})
    assert thrice.seconds == pytest.approx(3 * once.seconds)
    # Short rows decode the weights as often as long ones: packed into full rows they take less time.
    packed = planned(**{"data.path": data, "trainer.max_epochs": 1, "data.packing": True})
    assert packed.seconds is not None and packed.seconds < once.seconds
    nothing = planned(**{"data.path": str(tmp_path / "nothing")})
    assert nothing.rows is nothing.steps is nothing.seconds is None
    assert nothing.tokens_per_second is not None


@pytest.mark.parametrize(
    ("trainer", "steps", "batches"),
    [
        # 330 micro-batches an epoch in windows of 16: 20 whole ones, and one of 10.
        ({"max_epochs": 2}, 42, 660),
        ({"max_epochs": 2, "max_steps": -1}, 42, 660),
        ({"max_epochs": 2, "max_steps": 5}, 5, 80),
        ({"max_epochs": 2, "max_steps": 22}, 22, 346),
        ({"max_epochs": 2, "max_steps": 1000}, 42, 660),
        ({"max_epochs": -1, "max_steps": 63}, 63, 990),
        ({"max_epochs": None, "max_steps": 5}, 5, 80),
        ({"max_epochs": None}, 21_000, 330_000),
        ({"max_epochs": 0}, 0, 0),
        ({"max_epochs": 1, "limit_train_batches": 0.5}, 11, 165),
        ({"max_epochs": 1, "limit_train_batches": 1.0}, 21, 330),
        ({"max_epochs": 1, "limit_train_batches": 1}, 1, 1),
        ({"max_epochs": 1, "limit_train_batches": 400}, 21, 330),
    ],
)
def test_steps_are_those_that_the_trainer_will_do(
    trainer: dict[str, Any], steps: int, batches: int, tmp_path: Path
) -> None:
    data = str(prepared(tmp_path / "data", 330))
    found = planned(**{"data.path": data, **{f"trainer.{name}": value for name, value in trainer.items()}})
    assert found.steps == steps
    assert found.rows is not None and found.seconds is not None and found.tokens_per_second is not None
    assert found.seconds == pytest.approx(batches / 330 * found.rows.tokens / found.tokens_per_second, rel=0.01)


@pytest.mark.parametrize("limit", [0, 0.001])
def test_a_limit_that_leaves_no_batch_is_refused(limit: float, tmp_path: Path) -> None:
    data = str(prepared(tmp_path / "data", 330))
    with pytest.raises(ConfigError, match=r"limit_train_batches .* leaves none of 330"):
        planned(**{"data.path": data, "trainer.limit_train_batches": limit})


def test_what_is_in_use_is_not_free() -> None:
    card = find_card("rtx4060")
    idle = planned(imagined(card))
    assert idle.fits and idle.shorter is None
    playing = Gpu(name=card.name, total=card.memory, reserved=0, used=2300 * 2**20)
    game = planned(playing)
    assert not game.fits
    assert game.memory is not None and idle.memory is not None and game.memory.peak == idle.memory.peak
    assert game.shorter is not None
    fitting = planned(playing, **{"data.max_length": game.shorter})
    assert fitting.fits
    assert planned(Gpu(name=card.name, total=card.memory, reserved=0, used=card.memory)).shorter is None


def test_an_unknown_card_gets_memory_but_no_speed() -> None:
    found = planned(Gpu(name="NVIDIA GeForce RTX 9999", total=8 * 2**30, reserved=0, used=0))
    assert found.fits and found.tokens_per_second is None and found.seconds is None


def test_disk_counts_the_base_only_if_it_must_be_fetched(tiny: TinyCheckpoint, tmp_path: Path) -> None:
    needs = {need.what: need for need in planned(run=str(tmp_path / "runs" / "one")).disk}
    assert needs["base model from the hub"].bytes == 2 * MISTRAL.parameters
    assert needs["its NF4 form, for later starts"].bytes == pytest.approx(4.1e9, rel=0.05)
    run = needs["checkpoints and adapters"]
    assert run.free > 0 and run.bytes > 12 * 41_943_040
    local = planned(**{"model.base": str(tiny("mistral"))}).disk
    assert "base model from the hub" not in {need.what for need in local}


def test_mistral_trains_over_500_tokens_a_second_on_a_laptop_4060(tmp_path: Path) -> None:
    """The issue's target, by the written roofline that `scripts/bench/roofline.py` prints part by part."""
    options = read_options([ROOT / "configs" / "mistral.yaml"], {"data.path": str(tmp_path / "none")})
    for kernels, least in (("fp8", 800), ("bf16", 500)):
        changed = replace(options, model={**options.model, "kernels": kernels})
        found = estimate(changed, imagined(find_card("rtx4060-laptop")))
        assert found.fits and found.tokens_per_second is not None and found.tokens_per_second > least
        assert found.memory is not None
        work = micro_batch_work(found.shape, changed, found.memory, 2048)
        assert found.tokens_per_second == pytest.approx(2048 / step_seconds(work, find_card("rtx4060-laptop")))
