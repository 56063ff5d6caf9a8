"""The distances are what their definitions say, and the verdict catches models that are not the same."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.data.prepare import prepare
from app.data.records import Conversation, Message, dump_line, read_prepared
from app.errors import DataError
from app.export import gguf_file
from app.export.adapter import Adapter
from app.export.check import BOUNDS, Verdict, bounds_for, gather_references, judge
from app.export.equivalence import Distance, Sample, bootstrap, collect, compare
from app.export.exporter import CheckOptions, export_merged
from app.export.layout import Layout, make_layout
from app.export.report import write_report
from app.export.samples import held_out
from app.export.tuned import TunedModel, open_tuned
from app.families import Family
from conftest import TinyCheckpoint
from export.conftest import MakeRun
from support.fitting import write_csv


class Table:
    """A model whose logits after each token are a row of a table."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = table.astype(np.float32)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        return self.table[list(ids)]

    def greedy(self, ids: Sequence[int], *, tokens: int, stops: Sequence[int]) -> str:
        return str(self.table[ids[-1]].argmax())

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


SAMPLES = [
    Sample(ids=[0, 3, 1, 4], targets=[1, 3], prompt=1, question="one"),
    Sample(ids=[2, 2, 5, 0, 1], targets=[2, 3, 4], prompt=2, question="two"),
]


def measured(reference: np.ndarray, candidate: np.ndarray, folder: Path) -> Distance:
    evidence = collect(Table(reference), SAMPLES, folder / "logits", stops=[0], greedy=1, advance=lambda: None)
    return compare(Table(candidate), [evidence], SAMPLES, stops=[0], advance=lambda: None)[0]


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31), size=st.floats(0, 30))
def test_distances_are_torchs(seed: int, size: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    random = np.random.default_rng(seed)
    reference, candidate = random.normal(size=(2, 6, 6)) * size
    distance = measured(reference, candidate, tmp_path_factory.mktemp("logits"))
    rows = [ids for sample in SAMPLES for ids in np.array(sample.ids)[np.array(sample.targets) - 1]]
    targets = torch.tensor([ids for sample in SAMPLES for ids in np.array(sample.ids)[np.array(sample.targets)]])
    theirs = torch.tensor(reference.astype(np.float32)[rows]).double().log_softmax(1)
    ours = torch.tensor(candidate.astype(np.float32)[rows]).double().log_softmax(1)
    kl = torch.nn.functional.kl_div(ours, theirs, log_target=True, reduction="batchmean").item()
    assert distance.kl == pytest.approx(kl, rel=1e-6, abs=1e-9)
    assert distance.top1 == pytest.approx((ours.argmax(1) == theirs.argmax(1)).double().mean().item())
    loss = torch.nn.functional.nll_loss(ours, targets)
    assert distance.perplexity == pytest.approx(loss.exp().item(), rel=1e-6)
    change = loss - torch.nn.functional.nll_loss(theirs, targets)
    assert distance.loss_change == pytest.approx(change.item(), rel=1e-5, abs=1e-7)
    assert (distance.positions, distance.conversations) == (5, 2)
    assert distance.kl_interval[0] <= distance.kl + 1e-12 and distance.kl <= distance.kl_interval[1] + 1e-12


def test_a_model_is_at_no_distance_from_itself(tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(size=(6, 6))
    distance = measured(table, table, tmp_path)
    assert (distance.kl, distance.top1, distance.logit, distance.loss_change) == (0, 1, 0, 0)
    assert distance.answers == [str(table[0].argmax())]


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(7)
    covered = 0
    for trial in range(200):
        counts = random.integers(5, 50, size=60).astype(float)
        sums = counts * random.normal(2.0, 0.5, size=60)
        low, high = bootstrap(sums, counts, seed=trial)
        covered += low <= 2.0 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_bounds_get_wider_with_fewer_bits() -> None:
    order = [bounds_for(kind) for kind in ("f32", "f16", "bf16", "q8_0", "q5_k_m", "q4_k_m", "q3_k_s", "q2_k")]
    assert [bounds.kl for bounds in order] == sorted(bounds.kl for bounds in order)
    assert [bounds.top1 for bounds in order] == sorted((bounds.top1 for bounds in order), reverse=True)
    assert bounds_for("iq4_xs") is BOUNDS["iq4"]


def mistakes(family: Family) -> dict[str, dict[str, Any]]:
    """What a converter for this family could get wrong: its two switches the other way round."""
    found: dict[str, dict[str, Any]] = {"norms": {"norm_offset": 0.0 if family.gguf.norm_offset else 1.0}}
    if any(target == "q_proj" for target in family.lora_targets):  # Phi-3's fused matrix has no rows of q to reorder
        found["order of q and k"] = {"permute_qk": not family.gguf.permute_qk}
    return found


def test_the_report_passes_the_model_and_catches_every_familys_mistakes(
    family: Family, make_run: MakeRun, tiny: TinyCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llama_cpp")
    from app.export.runtime import LlamaCpp

    tuned = open_tuned(make_run(tiny(family.name), family.name))
    samples, _ = held_out(tuned, data=None, count=4)
    references = gather_references(tuned, samples, tmp_path / "references", advance=lambda: None)
    bare = dataclasses.replace(tuned, adapter=Adapter(updates={}, replaced={}, config=tuned.adapter.config))
    verdicts = []
    for name, model, change in [
        ("right", tuned, {}),
        ("adapter", bare, {}),
        *((name, tuned, change) for name, change in mistakes(family).items()),
    ]:

        def layout(*arguments: Any, change: dict[str, Any] = change) -> Layout:
            return dataclasses.replace(make_layout(*arguments), **change)

        monkeypatch.setattr(gguf_file, "make_layout", layout)
        file = gguf_file.write_gguf(model, tmp_path / f"{name}.gguf", quant="f16", advance=lambda amount: None)
        with LlamaCpp(file, context=256) as scorer:
            verdicts.append(judge(scorer, tuned, references, name=name, kind="f16", advance=lambda: None))
    assert [verdict.name for verdict in verdicts if verdict.passed] == ["right"]
    assert all(bool(verdict.faults) != verdict.passed for verdict in verdicts)
    report = write_report(
        tmp_path,
        "gguf",
        verdicts,
        source="tests",
        samples=samples,
        run=references.run,
        twin=references.twin,
        twin_dtype=references.twin_dtype,
    ).read_text()
    assert [f"Why {verdict.name} failed" in report for verdict in verdicts] == [not v.passed for v in verdicts]
    assert "side by side" in report and f"{verdicts[0].run.positions} answer tokens of 4" in report


def test_a_wrong_merge_is_not_put_in_place_of_a_right_one(
    make_run: MakeRun, tiny: TinyCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tiny("llama3"), "llama3")

    def export() -> Sequence[Verdict]:
        return export_merged(
            run,
            tmp_path / "merged",
            dtype="float32",
            exact=False,
            shard_bytes=1 << 30,
            check_at=CheckOptions(data=None, prompts=3),
            bars=lambda title, total: lambda amount: None,
        ).verdicts

    assert all(verdict.passed for verdict in export())
    right = (tmp_path / "merged" / "model.safetensors").read_bytes()
    whole = TunedModel.weight

    def half(self: TunedModel, name: str, rows: range | None = None) -> torch.Tensor:
        return self.places[name].read(rows) if "layers.1" in name else whole(self, name, rows)

    monkeypatch.setattr(TunedModel, "weight", half)
    assert not any(verdict.passed for verdict in export())
    assert (tmp_path / "merged" / "model.safetensors").read_bytes() == right
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_held_out_data_is_used_where_it_is_given(make_run: MakeRun, tiny: TinyCheckpoint, tmp_path: Path) -> None:
    tuned = open_tuned(make_run(tiny("smollm2"), "smollm2"))
    file = tmp_path / "test.jsonl"
    turns = (Message(role="user", content="Which?"), Message(role="assistant", content="This one."))
    lines = [
        dump_line(Conversation(id=str(i), group="g", messages=turns[: 1 + (i > 0)], file="x", line=i)) for i in range(5)
    ]
    file.write_text("".join(lines))
    samples, source = held_out(tuned, data=file, count=3)
    assert source == "test.jsonl" and len(samples) == 3
    text = tuned.tokenizer.decode([samples[0].ids[index] for index in samples[0].targets])
    assert text == "This one.<|im_end|>"
    file.write_text(lines[0])
    with pytest.raises(DataError, match="no conversation with an answer"):
        held_out(tuned, data=file, count=3)


@pytest.mark.parametrize(("test_fraction", "split"), [(0.2, "test"), (0.0, "val")])
@pytest.mark.parametrize("raw", [True, False])
def test_a_run_s_own_held_out_rows_are_taken_also_of_raw_data(
    make_run: MakeRun,
    tiny: TinyCheckpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    test_fraction: float,
    split: str,
    raw: bool,
) -> None:
    monkeypatch.setenv("APP_CACHE", str(tmp_path / "cache"))
    source, folder = write_csv(tmp_path / "questions.csv"), tmp_path / "data"
    options: dict[str, Any] = {"val_fraction": 0.2, "test_fraction": test_fraction}
    prepare([str(source)], folder, **options)
    tuned = open_tuned(make_run(tiny("smollm2"), "smollm2"))
    data = dataclasses.replace(tuned.manifest.data, source=str(source if raw else folder))
    manifest = dataclasses.replace(tuned.manifest, data=data, config={"data": {**options, "columns": None}})
    samples, said = held_out(dataclasses.replace(tuned, manifest=manifest), data=None, count=99)
    rows = list(read_prepared(folder / f"{split}.jsonl"))
    assert [sample.question for sample in samples] == [row.messages[0].content for row in rows]
    assert said == f"{split}.jsonl of the run's data"


def test_without_held_out_rows_there_are_questions_of_our_own(make_run: MakeRun, tiny: TinyCheckpoint) -> None:
    samples, said = held_out(open_tuned(make_run(tiny("smollm2"), "smollm2")), data=None, count=3)
    assert len(samples) == 3 and "own conversations" in said
