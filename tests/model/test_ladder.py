"""What is given up when memory runs out, and that the step stays what it was."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.__main__ import main
from app.artifact import RunDirectory
from app.kernels.linear_cross_entropy import CHUNK_ELEMENTS
from app.model.ladder import MemorySettings, Phase, Trade, next_rung
from app.model.loss import summed_loss
from app.model.window import Window, pieces
from conftest import TinyCheckpoint
from support.faults import with_callback
from support.fitting import arguments, fit, write_csv
from support.tiny import tiny_checkpoint


@given(
    rows=st.integers(1, 64),
    length=st.integers(8, 4096),
    trades=st.sets(st.sampled_from(["budget", "recompute", "offload"])),
    shortest=st.none() | st.integers(8, 4096),
    phase=st.sampled_from(["training", "evaluation"]),
)
def test_ladder_ends_and_cuts_rows_last_and_only_if_allowed(
    rows: int, length: int, trades: set[Trade], shortest: int | None, phase: Phase
) -> None:
    settings = MemorySettings()
    for _ in range(100):
        rung = next_rung(settings, phase, rows=rows, length=length, trades=trades, shortest=shortest)
        if rung is None:
            break
        changed, said = rung
        assert changed != settings and said
        if changed.length != settings.length:
            assert shortest is not None and changed.length is not None and shortest <= changed.length < length
            assert rows == 1
            length = changed.length
        settings = changed
        rows = min(rows, (settings.rows if phase == "training" else settings.evaluation_rows) or rows)
    else:
        raise AssertionError("it never ends")
    assert rows == 1 and (shortest is None or length <= max(shortest, settings.length or length))
    if phase == "training":
        assert settings.recompute == ("recompute" in trades) and settings.offload == ("offload" in trades)


def test_order_on_a_gpu() -> None:
    settings, said = MemorySettings(), []
    rows, length = 4, 1000
    while rung := next_rung(
        settings, "training", rows=rows, length=length, trades=("recompute", "offload"), shortest=700
    ):
        settings, words = rung
        said.append(words.split(":")[0])
        rows, length = settings.rows or rows, settings.length or length
    firsts = ["training takes", "training takes", "each layer", "what the", "rows are", "rows are"]
    assert all(words.startswith(first) for words, first in zip(said, firsts, strict=True))
    assert settings == MemorySettings(rows=1, recompute=True, offload=True, length=700)


def test_window_that_runs_out_of_memory_is_run_again_from_its_start() -> None:
    """The second batch does not fit: gradient, loss and tokens are those of halves from the first batch on."""
    layer = torch.nn.Linear(1, 1, bias=False)
    settings, seen, drawn = MemorySettings(), [], []

    def step(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        ids = batch["input_ids"]
        drawn.append(float(torch.rand(())))
        loss = layer(ids[..., None].float()).sum()
        loss.backward()  # also where memory then runs out: half a gradient is left behind
        seen.append(ids.shape[0])
        if ids.shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss.detach(), torch.tensor(ids.numel())

    def climb(rows: int, length: int, fault: Exception) -> None:
        nonlocal settings
        assert (rows, length) == (4, 3)
        settings = MemorySettings(rows=2)

    window = Window(step, list(layer.parameters()), settings=lambda: settings, climb=climb)  # type: ignore[arg-type]
    small, large = torch.ones(2, 3, dtype=torch.int64), torch.ones(4, 3, dtype=torch.int64)
    torch.manual_seed(0)
    for ids in (small, large):
        window.add({"input_ids": ids, "trained": ids.bool()})
    assert seen == [2, 4, 2, 2, 2]
    assert layer.weight.grad == 18 and window.tokens == 18
    torch.manual_seed(0)
    assert drawn[2:] == [float(torch.rand(())) for _ in range(3)]
    window.close()
    window.add({"input_ids": small, "trained": small.bool()})
    assert layer.weight.grad == 6


@given(rows=st.integers(1, 9), piece=st.none() | st.integers(1, 9))
def test_pieces_are_the_batch(rows: int, piece: int | None) -> None:
    ids = torch.arange(rows * 5).view(rows, 5)
    parts = list(pieces({"input_ids": ids, "trained": ids.bool()}, rows=piece, length=None))
    assert torch.equal(torch.cat([part["input_ids"] for part in parts]), ids)
    assert all(part["input_ids"].shape[0] <= (piece or rows) for part in parts)


@given(
    trained=st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=4),
    length=st.integers(1, 9),
    packed=st.booleans(),
)
def test_cut_rows_keep_what_is_trained_last_and_packed_ones_their_first_documents(
    trained: list[list[bool]], length: int, packed: bool
) -> None:
    ids = torch.arange(len(trained) * 7).view(-1, 7)
    batch = {"input_ids": ids, "trained": torch.tensor(trained)} | ({"position_ids": ids % 7} if packed else {})
    cut = torch.cat([part["input_ids"] for part in pieces(batch, rows=1, length=length)])  # type: ignore[arg-type]
    for row, (kept, marks) in enumerate(zip(cut.tolist(), trained, strict=True)):
        last = max((at for at, mark in enumerate(marks) if mark), default=0)
        end = length if packed else max(length, last + 1)
        assert kept == ids[row].tolist()[max(0, end - length) : end]


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("data") / "questions.csv")


def short_run(base: Path, csv: Path, folder: Path, **changes: object) -> list[str]:
    return arguments(
        base,
        csv,
        folder,
        **{  # type: ignore[arg-type]
            "model__family": "smollm2",
            "model__dtype": "float32",
            "model__gradient_checkpointing": False,
            "data__batch_size": 4,
            "data__eval_batch_size": 4,
            "trainer__limit_train_batches": 6,
            **changes,
        },
    )


def results(folder: Path) -> tuple[dict[str, float], list[str]]:
    manifest = RunDirectory(folder).read_manifest()
    numbers = {name: manifest.result[name] for name in ("steps", "train_loss", "best_val_loss")}
    return numbers, [adaptation.change.split(",")[0] for adaptation in manifest.adaptations]


@pytest.fixture(scope="module")
def plenty(tiny: TinyCheckpoint, csv: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The numbers of the run with memory enough."""
    folder = tmp_path_factory.mktemp("plenty")
    fit(*short_run(tiny("smollm2"), csv, folder))
    numbers, changes = results(folder)
    assert not changes
    return numbers


def test_run_short_of_memory_gives_the_same_and_says_what_it_did(
    tiny: TinyCheckpoint, csv: Path, tmp_path: Path, plenty: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    """Neither four rows nor two fit in training, nor four in evaluation; all is found before the first step."""
    folder = tmp_path / "run"
    fault = with_callback(tmp_path, "TooLittleMemory", training=200, evaluation=300)
    fit(*fault, *short_run(tiny("smollm2"), csv, folder))
    numbers, changes = results(folder)
    assert numbers == pytest.approx(plenty, rel=1e-5)
    assert changes == [
        "evaluation takes 2 of 4 rows at a time",
        "training takes 2 of 4 rows at a time",
        "training takes 1 of 2 rows at a time",
    ]
    assert "out of memory in training at 4 x" in caplog.text and "from here on: training takes 2 of 4" in caplog.text

    caplog.clear()  # a resume begins with what was found out
    fit(*fault, *short_run(tiny("smollm2"), csv, folder), "--resume", "auto", "--trainer.max_epochs", "2")
    assert "out of memory" not in caplog.text and results(folder)[1] == changes


def test_memory_that_runs_out_in_the_middle_of_training(
    tiny: TinyCheckpoint, csv: Path, tmp_path: Path, plenty: dict[str, float]
) -> None:
    """Without the preflight: in a step, and in a validation."""
    folder = tmp_path / "run"
    fault = with_callback(tmp_path, "TooLittleMemory", training=560, evaluation=100)
    options = short_run(tiny("smollm2"), csv, folder, preflight="false", trainer__num_sanity_val_steps=0)
    assert main(["fit", *fault, *options, "--model.shorten_to", "64"]) == 0
    numbers, changes = results(folder)
    steps = [adaptation.step for adaptation in RunDirectory(folder).read_manifest().adaptations]
    assert (steps, len(changes)) == ([0, 2, 2], 3)
    assert changes[0] == "training takes 2 of 4 rows at a time"
    assert changes[1] == "evaluation takes 1 of 2 rows at a time"  # never more than training
    assert changes[2].startswith("rows are CUT to 99 tokens")
    assert numbers["steps"] == plenty["steps"]


def test_every_rung_runs(tiny: TinyCheckpoint, csv: Path, tmp_path: Path) -> None:
    """Where nothing but shorter rows helps, the steps are taken with each layer recomputed, and rows are cut."""
    folder = tmp_path / "run"
    fault = with_callback(tmp_path, "TooLittleMemory", training=115)
    fit(*fault, *short_run(tiny("smollm2"), csv, folder, model__shorten_to=64, trainer__limit_train_batches=2))
    numbers, changes = results(folder)
    assert [change.split(":")[0] for change in changes] == [
        "training takes 2 of 4 rows at a time",
        "training takes 1 of 2 rows at a time",
        "each layer is recomputed in the backward pass",
        "rows are CUT to 110 tokens",
    ]
    assert numbers["steps"] == 1 and numbers["train_loss"] > 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="limits of Linux")
def test_real_memory_limit(csv: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The allocator itself says no: attention of 24 rows of 147 tokens takes 66 MiB a time."""
    base = tiny_checkpoint("smollm2", tmp_path / "base", num_attention_heads=32, num_key_value_heads=32, head_dim=64)
    options = {"data__batch_size": 24, "data__eval_batch_size": 1, "trainer__accumulate_grad_batches": 1}
    runs = []
    for name, fault in (("free", []), ("limited", with_callback(tmp_path, "LimitMemory", mebibytes=220))):
        fit(*fault, *short_run(base, csv, tmp_path / name, **options))
        runs.append(results(tmp_path / name))
    assert "can't allocate memory" in caplog.text
    assert not runs[0][1] and runs[1][1][0] == "training takes 12 of 24 rows at a time"
    assert runs[1][0] == pytest.approx(runs[0][0], rel=1e-4)


def test_evaluation_never_holds_the_logits(tmp_path: Path) -> None:
    """With 300,000 words a chunk is 111 positions; the batch has 396 trained ones."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from app.families import get_family
    from app.model.load import load_base

    words = 300_000
    folder = tiny_checkpoint("smollm2", tmp_path / "base", vocab_size=words)
    model = load_base(str(folder), get_family("smollm2"), device=torch.device("cpu"), dtype=torch.float32)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            made = function(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor) and made.shape[-1:] == (words,):
                largest = max(largest, made.numel() // words)
            return made

    ids = torch.randint(5, 200, (4, 100))
    with torch.no_grad(), Watch():
        _, tokens = summed_loss(model, {"input_ids": ids, "trained": torch.ones_like(ids, dtype=torch.bool)})
    assert int(tokens) == 396
    assert 0 < largest <= CHUNK_ELEMENTS // words


def test_settings_of_two_ranks_are_joined_to_the_tightest_of_both() -> None:
    one = MemorySettings(rows=4, recompute=True, tighter=2)
    two = MemorySettings(rows=2, evaluation_rows=1, length=512, tighter=1)
    both = MemorySettings(rows=2, evaluation_rows=1, length=512, recompute=True, tighter=2)
    joined = [max(pair) for pair in zip(one.encode(), two.encode(), strict=True)]
    assert MemorySettings.decode(joined) == both
    assert all(MemorySettings.decode(each.encode()) == each for each in (one, two, MemorySettings()))
