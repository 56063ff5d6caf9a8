"""Inputs to a prepared folder, end to end: nothing lost, nothing leaked, all or nothing."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from app.data.prepare import prepare, prepare_for_training
from app.data.records import read_prepared
from app.errors import DataError
from support.samples import SPLITS, numbered, rejected, sentence, where, write_csv


def finding(report: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(f for f in report["findings"] if f["kind"] == kind)


def test_added_rows_move_no_old_ones(tmp_path: Path) -> None:
    rows = numbered(400)
    prepare([str(write_csv(tmp_path / "a.csv", rows))], tmp_path / "one", val_fraction=0.1, test_fraction=0.1)
    more = [*numbered(150, 1000), *rows, *numbered(150, 2000)]
    prepare([str(write_csv(tmp_path / "a.csv", more))], tmp_path / "two", val_fraction=0.1, test_fraction=0.1)
    before, after = where(tmp_path / "one"), where(tmp_path / "two")
    assert {q: after[q] for q in before} == before
    shares = Counter(before.values())
    assert 20 <= shares["val"] <= 60 and 20 <= shares["test"] <= 60
    prepare([str(tmp_path / "a.csv")], tmp_path / "three", val_fraction=0.1, test_fraction=0.1, seed=7)
    assert where(tmp_path / "three") != after


def test_groups_are_never_cut_and_the_largest_may_be_large(tmp_path: Path) -> None:
    rows = [{**row, "document_id": f"d{n % 9}"} for n, row in enumerate(numbered(180))]
    prepare([str(write_csv(tmp_path / "a.csv", rows))], tmp_path / "out", val_fraction=0.2, test_fraction=0.2)
    splits: dict[str, set[str]] = {}
    for split in SPLITS:
        for sample in read_prepared(tmp_path / "out" / f"{split}.jsonl"):
            splits.setdefault(sample.group, set()).add(split)
    assert len(splits) == 9 and all(len(found) == 1 for found in splits.values())
    assert {next(iter(found)) for found in splits.values()} == set(SPLITS)


def test_near_duplicates_and_equal_questions_end_on_one_side(tmp_path: Path) -> None:
    rows = []
    for n, row in enumerate(numbered(150)):
        changed = row["answer"].replace(" ", " indeed ", 1)
        rows += [row, {"question": row["question"], "answer": changed}]
        rows.append({"question": row["question"].upper(), "answer": sentence(f"other {n}", 25)})
    random.Random(1).shuffle(rows)
    value = prepare(
        [str(write_csv(tmp_path / "a.csv", rows))], tmp_path / "out", val_fraction=0.3, test_fraction=0.3
    ).value
    splits: dict[str, set[str]] = {}
    for question, split in where(tmp_path / "out").items():
        splits.setdefault(question.casefold(), set()).add(split)
    assert len(splits) == 150 and all(len(found) == 1 for found in splits.values())
    assert finding(value, "near-duplicate")["rows_found"] == 150
    assert finding(value, "contradiction")["rows_found"] >= 150
    assert value["split_rule"]["rows_moved"] == finding(value, "leak")["rows_found"] > 50
    assert all("a.csv:" in row["detail"] for row in finding(value, "near-duplicate")["rows"])


def test_a_set_of_one_pattern_is_split_and_reported(tmp_path: Path) -> None:
    rows = [{"question": f"{sentence('same', 40)} {n}?", "answer": f"{sentence('one', 40)} {n}."} for n in range(300)]
    value = prepare([str(write_csv(tmp_path / "a.csv", rows))], tmp_path / "out", val_fraction=0.1).value
    assert value["splits"]["val"]["rows"] > 5 and value["splits"]["train"]["rows"] > 200
    assert value["split_rule"]["rows_torn"] == 300
    assert any("alike" in advice["text"] for advice in value["advice"])


def test_large_groups_that_stay_whole_are_not_torn(tmp_path: Path) -> None:
    rows = [{**row, "group": f"g{number % 3}"} for number, row in enumerate(numbered(60))]
    path = str(write_csv(tmp_path / "a.csv", rows))
    value = prepare([path], tmp_path / "out", val_fraction=0.1, test_fraction=0.1).value
    assert [value["splits"][split]["rows"] for split in SPLITS] == [20, 20, 20]
    assert value["split_rule"]["rows_torn"] == value["split_rule"]["rows_moved"] == 0
    assert not any("alike" in advice["text"] for advice in value["advice"])


def test_a_set_without_training_rows_is_not_fit(tmp_path: Path) -> None:
    path = str(write_csv(tmp_path / "a.csv", numbered(3)))
    for seed in range(20):
        options: dict[str, Any] = {"val_fraction": 0.45, "test_fraction": 0.45, "seed": seed}
        value = prepare([path], tmp_path / f"out{seed}", **options).value
        empty = not value["splits"]["train"]["rows"]
        assert empty == any("the train split is empty" in advice["text"] for advice in value["advice"])
        if empty:
            return
    pytest.fail("no seed left the train split empty")


def test_files_of_one_name_do_not_share_their_rows_names(tmp_path: Path) -> None:
    paths = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        paths.append(str(write_csv(tmp_path / folder / "data.csv", numbered(20, start=100 * len(paths)))))
    prepare(paths, tmp_path / "out")
    ids = [row.id for split in SPLITS for row in read_prepared(tmp_path / "out" / f"{split}.jsonl")]
    assert len(ids) == len(set(ids)) == 40


def test_a_lone_surrogate_in_a_fields_name_costs_one_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"qu\\ud800": "x", "b": 1}\n{"question": "What?", "answer": "That."}\n')
    value = prepare([str(path)], tmp_path / "out").value
    assert (value["counts"]["rows_kept"], value["counts"]["rows_rejected"]) == (1, 1)


def test_drop_rejects_what_would_be_noted(tmp_path: Path) -> None:
    row = numbered(1)[0]
    rows = [*numbered(40), {**row, "answer": row["answer"].replace(" ", " so ", 1)}]
    path = str(write_csv(tmp_path / "a.csv", rows))
    value = prepare([path], tmp_path / "out", drop=["near-duplicate"]).value
    assert value["counts"] == {"rows_in": 41, "rows_kept": 40, "rows_rejected": 1}
    assert rejected(tmp_path / "out")[0]["kind"] == "near-duplicate"
    assert "a.csv:2" in rejected(tmp_path / "out")[0]["reason"]


def test_stratified_shares_hold_in_every_class(tmp_path: Path) -> None:
    rows = [{**row, "label": "rare" if n % 10 == 0 else "common"} for n, row in enumerate(numbered(400))]
    path = str(write_csv(tmp_path / "a.csv", rows))
    value = prepare([path], tmp_path / "out", stratify=True, val_fraction=0.1, test_fraction=0.1).value
    assert value["labels"] == {"common": 360, "rare": 40}
    classes = {row["question"]: row["label"] for row in rows}
    counts = Counter((classes[question], split) for question, split in where(tmp_path / "out").items())
    assert counts["rare", "val"] == 4 and counts["rare", "test"] == 4
    assert abs(counts["common", "val"] - 36) <= 1 and abs(counts["common", "test"] - 36) <= 1
    assert not value["split_rule"]["stable"]


def test_inputs_are_mixed_by_weight_and_none_is_lost(tmp_path: Path) -> None:
    base, domain = numbered(300), numbered(20, 5000)
    paths = [str(write_csv(tmp_path / "base.csv", base)), str(write_csv(tmp_path / "domain.csv", domain))]
    value = prepare(paths, tmp_path / "out", weights=[0.5, 3]).value
    lines = Counter(c.messages[0].content for c in read_prepared(tmp_path / "out" / "train.jsonl"))
    held = [c.messages[0].content for s in ("val", "test") for c in read_prepared(tmp_path / "out" / f"{s}.jsonl")]
    assert len(held) == len(set(held))
    of_domain = {row["question"] for row in domain} - set(held)
    assert of_domain and all(lines[question] == 3 for question in of_domain)
    left = [question for question in lines if question not in of_domain]
    assert all(lines[q] == 1 for q in left) and 90 < len(left) < 180
    assert value["counts"]["rows_in"] == value["counts"]["rows_kept"] + value["counts"]["rows_rejected"] == 320
    assert sum(source["train_share"] for source in value["sources"]) == pytest.approx(1, abs=1e-3)
    assert {r["kind"] for r in rejected(tmp_path / "out")} == {"unweighted"}


def test_a_small_input_is_pointed_out(tmp_path: Path) -> None:
    paths = [str(write_csv(tmp_path / "a.csv", numbered(300))), str(write_csv(tmp_path / "b.csv", numbered(5, 9000)))]
    value = prepare(paths, None).value
    assert any("b.csv is" in a["text"] and "--weights" in a["remedy"] for a in value["advice"])


def test_redact_masks_everywhere(tmp_path: Path) -> None:
    rows = numbered(30)
    rows[3]["answer"] += " Write to jane.doe@mail.example.org or call +49 171 1234567."
    rows[4]["answer"] += " Card 4111 1111 1111 1111."
    rows[5]["question"] += " jane.doe@mail.example.org"
    rows[5]["answer"] = ""
    path = str(write_csv(tmp_path / "a.csv", rows))
    value = prepare([path], tmp_path / "out", redact=True).value
    written = "".join(file.read_text("utf-8") for file in (tmp_path / "out").iterdir())
    assert "jane.doe" not in written and "1234567" not in written and "4111" not in written
    assert "[EMAIL]" in written and "[PHONE]" in written and "[CARD]" in written
    assert {kind: finding(value, kind)["rows_found"] for kind in ("email", "phone", "card")} == dict.fromkeys(
        ("email", "phone", "card"), 1
    )
    prepare([path], tmp_path / "plain")
    assert "4111 1111" in (tmp_path / "plain" / "train.jsonl").read_text("utf-8") or "4111 1111" in "".join(
        (tmp_path / "plain" / f"{split}.jsonl").read_text("utf-8") for split in SPLITS
    )


def test_too_long_rows_are_dropped_shortened_or_an_error(tmp_path: Path) -> None:
    rows = numbered(30)
    rows[7]["question"] = sentence("long", 900)
    path = str(write_csv(tmp_path / "a.csv", rows))
    assert finding(prepare([path], None, max_length=300).value, "too-long")["rows"][0]["line"] == 9
    prepare([path], tmp_path / "out", max_length=300, too_long="truncate")
    samples = [c for split in SPLITS for c in read_prepared(tmp_path / "out" / f"{split}.jsonl")]
    short = next(c for c in samples if c.line == 9)
    assert rows[7]["question"].startswith(short.messages[0].content) and len(short.messages[0].content) > 500
    assert short.messages[1].content == rows[7]["answer"]
    with pytest.raises(DataError, match=r"a\.csv:9"):
        prepare([path], tmp_path / "no", max_length=300, too_long="error")
    assert not (tmp_path / "no").exists()


def test_fit_prepares_what_the_command_writes(tmp_path: Path) -> None:
    path = str(write_csv(tmp_path / "a.csv", numbered(60)))
    prepare([path], tmp_path / "out")
    options = {"seed": 42, "val_fraction": 0.05, "test_fraction": 0.05, "columns": None}
    prepare_for_training(path, tmp_path / "fit", **options)
    splits = {split: list(read_prepared(tmp_path / "fit" / f"{split}.jsonl")) for split in SPLITS}
    assert splits == {split: list(read_prepared(tmp_path / "out" / f"{split}.jsonl")) for split in SPLITS}
    bad = tmp_path / "bad rows.csv"
    bad.write_text("question,answer\na,\nb,\n")
    with pytest.raises(DataError, match="2 rows: an empty answer") as fault:
        prepare_for_training(str(bad), tmp_path / "bad", **options)
    assert f"app prepare '{bad}'`" in fault.value.remedy


def test_the_same_whatever_the_number_of_workers(tmp_path: Path) -> None:
    rows = [*numbered(5000), *numbered(500)]
    rows[17]["answer"] = ""
    path = str(write_csv(tmp_path / "a.csv", rows))
    prepare([path], tmp_path / "one", workers=1)
    prepare([path], tmp_path / "two", workers=2)
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


def test_all_bad_inputs_are_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    with pytest.raises(DataError) as fault:
        prepare([str(tmp_path / "missing.csv"), str(tmp_path / "empty.csv")], None)
    assert "missing.csv" in str(fault.value) and "empty.csv" in str(fault.value)


def test_a_table_from_datasets_and_a_folder_of_files(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset, DatasetDict

    rows = numbered(60)
    Dataset.from_list(rows).save_to_disk(tmp_path / "one")
    DatasetDict({"a": Dataset.from_list(rows[:20]), "b": Dataset.from_list(rows[20:])}).save_to_disk(tmp_path / "two")
    (tmp_path / "three" / "deep").mkdir(parents=True)
    write_csv(tmp_path / "three" / "rows.csv", rows[:30])
    pq.write_table(pa.Table.from_pylist(rows[30:]), tmp_path / "three" / "deep" / "rows.parquet")
    (tmp_path / "three" / "README.md").write_text("not data")
    found = {}
    for name in ("one", "two", "three"):
        value = prepare([str(tmp_path / name)], tmp_path / f"{name}-out").value
        assert value["counts"] == {"rows_in": 60, "rows_kept": 60, "rows_rejected": 0}
        found[name] = where(tmp_path / f"{name}-out")
    assert found["one"] == found["two"] == found["three"]
    assert [source["file"] for source in value["sources"]] == ["deep/rows.parquet", "rows.csv"]


def test_plain_text_and_a_file_no_one_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("\n".join(f"{sentence(f't{n}')} {sentence(f'u{n}')}" for n in range(20)))
    assert prepare([str(path)], None).value["counts"]["rows_kept"] == 20

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # The tests may run as root, whom no permission stops.
    with pytest.raises(DataError, match="Permission denied"):
        prepare([str(path)], None)


def test_progress_is_told_from_start_to_end(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    path = write_csv(tmp_path / "a.csv", numbered(5000))
    prepare([str(path)], None, progress=lambda *state: told.append(state))
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages == ["read and check", "find near-duplicates", "write"]
    for stage in stages:
        done = [part for name, part, _ in told if name == stage]
        total = next(whole for name, _, whole in told if name == stage)
        assert done == sorted(done) and 0.6 * total <= done[-1] <= total


def test_a_hub_id_carries_config_split_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub answers here: what `datasets` is asked for is looked at, and what it gives is real."""
    import datasets

    asked: list[tuple[object, ...]] = []

    def load(name: str, config: str | None, *, split: str, revision: str | None) -> datasets.Dataset:
        asked.append((name, config, split, revision))
        return datasets.Dataset.from_list(numbered(30))

    monkeypatch.setattr(datasets, "load_dataset", load)
    value = prepare(["org/name?config=main&split=test&revision=abc", "org/plain"], None).value
    assert asked == [("org/name", "main", "test", "abc"), ("org/plain", None, "train", None)]
    assert value["counts"] == {"rows_in": 60, "rows_kept": 30, "rows_rejected": 30}


def test_what_prepare_wrote_is_checked_as_a_whole(tmp_path: Path) -> None:
    """A folder with splits made elsewhere: copies between them are found. An empty split is no fault of the folder."""
    rows = numbered(300)
    prepare([str(write_csv(tmp_path / "a.csv", rows))], tmp_path / "out", val_fraction=0)
    assert (tmp_path / "out" / "val.jsonl").stat().st_size == 0
    value = prepare([str(tmp_path / "out")], None).value
    assert value["counts"] == {"rows_in": 300, "rows_kept": 300, "rows_rejected": 0} and value["fit"]
    test = (tmp_path / "out" / "test.jsonl").read_text("utf-8")
    with (tmp_path / "out" / "train.jsonl").open("a", encoding="utf-8") as train:
        train.write(test)
    value = prepare([str(tmp_path / "out")], None).value
    assert finding(value, "duplicate")["rows_found"] == test.count("\n") > 0 and not value["fit"]


def test_answers_of_one_length_are_noted_once_each(tmp_path: Path) -> None:
    rows = [{"question": f"What is number {n}?", "answer": f"It is {n:03} {'and more ' * 12}so"} for n in range(60)]
    value = prepare([str(write_csv(tmp_path / "a.csv", rows))], None).value
    counts = {finding["kind"]: finding["rows_found"] for finding in value["findings"]}
    assert counts["same-length"] == 60 and max(counts.values()) == 60, counts
