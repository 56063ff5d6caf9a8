"""`python -m app prepare`: the command as people use it, its exit codes and its report."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from app.__main__ import main
from app.data.records import read_prepared
from support.messy import FACTS, messy_csv
from support.page import Page

ROOT = Path(__file__).parents[2]
SPLITS = ("train", "val", "test")
GOOD = "question,answer\n" + "".join(
    f"What is the square of {n} in words and digits?,It is {n * n}: {'very ' * (n % 7)}much more than {n}.\n"
    for n in range(1100)
)


def test_a_messy_spreadsheet_becomes_a_clean_set_with_no_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    messy_csv(tmp_path / "messy.csv")
    assert main(["prepare", "messy.csv"]) == 0
    output = tmp_path / "data"
    kept = [sample for split in SPLITS for sample in read_prepared(output / f"{split}.jsonl")]
    rejected = [json.loads(line) for line in (output / "rejected.jsonl").read_text("utf-8").splitlines()]
    assert len(kept) + len(rejected) == FACTS["rows"]
    reasons = Counter(row["kind"] for row in rejected)
    assert reasons == {"duplicate": FACTS["copies"], "empty-answer": FACTS["empty"], "broken-row": FACTS["broken"]}
    raw = (tmp_path / "messy.csv").read_bytes().decode("cp1252").split("\r\n")
    for row in rejected:
        assert row["remedy"] and row["reason"] and row["line"] > 1
        if row["kind"] == "empty-answer":
            assert re.search(r";\s*;", raw[row["line"] - 1])
    text = " ".join(message.content for sample in kept for message in sample.messages)
    assert "Größe" in text and "–" in text and "„" in text and "�" not in text and "\x0b" not in text
    report = json.loads((output / "report.json").read_text("utf-8"))
    assert report["counts"] == {"rows_in": 5000, "rows_kept": len(kept), "rows_rejected": len(rejected)}
    counts = {finding["kind"]: finding["rows_found"] for finding in report["findings"]}
    assert counts["card"] == 1 and counts["control-characters"] == FACTS["control"]
    assert "cp1252" in " ".join(report["sources"][0]["found"]) and "semicolon" in " ".join(
        report["sources"][0]["found"]
    )
    assert max(report["languages"]["rows"], key=report["languages"]["rows"].get) == "de"
    assert sum(report["labels"].values()) == len(kept)
    shown = capsys.readouterr().out
    assert "5,000 rows in" in shown and "messy.csv:1201" in shown


def test_the_page_stands_alone_and_is_safe(tmp_path: Path) -> None:
    path = tmp_path / "a<b>.csv"
    path.write_text(GOOD + '"<script>alert(1)</script>",\n')
    assert main(["prepare", str(path), "--output", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.html").read_text("utf-8")
    page = Page(text)
    assert not page.fetches and not page.links and page.tags["rect"] > 5
    assert "<script" not in text and "a<b>" not in text and "url(" not in text
    for title in (
        "Length",
        "Rejected, by reason",
        "Copies and contradictions",
        "What a sequence length would truncate",
    ):
        assert title in text
    for length in ("512", "1,024", "2,048", "4,096"):
        assert f"<th>{length}</th>" in text


def test_check_writes_nothing_and_says_by_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.csv", tmp_path / "bad.csv"
    good.write_text(GOOD)
    bad.write_text(GOOD + "What now?,\n")
    before = sorted(tmp_path.iterdir())
    assert main(["prepare", str(good), "--check"]) == 0
    assert "fit for training" in capsys.readouterr().out
    assert main(["prepare", "--check", str(bad)]) == 1
    shown = capsys.readouterr().out
    assert "bad.csv:1102" in shown and "not fit" in shown and "write the answer" in shown
    assert sorted(tmp_path.iterdir()) == before


def test_nothing_usable_is_exit_1_with_the_reasons_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question,answer\na,\nb,\n")
    assert main(["prepare", str(path), "--output", str(tmp_path / "out")]) == 1
    assert len((tmp_path / "out" / "rejected.jsonl").read_text().splitlines()) == 2
    assert "no row can be used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["missing.csv"], "there is no file missing.csv"),
        (["good.csv", "--val_fraction", "0.7", "--test_fraction", "0.4"], "leave nothing to train on"),
        (["good.csv", "--weights", "1,2"], "2 weights for 1 inputs"),
        (["good.csv", "--weights", "many"], "no numbers"),
        (["good.csv", "--drop", "nonsense"], "nonsense"),
        (["good.csv", "--columns.question", "Frage"], "no column 'Frage'"),
        (["good.csv", "--encoding", "klingon"], "no encoding 'klingon'"),
        (["good.csv", "--base", "models/none"], "--family"),
        (["good.csv", "--family", "none"], "no family 'none'"),
        (["good.csv", "--output", "good.csv"], "is a file"),
        (["good.csv", "--preview", "-1"], "negative"),
        (["org/name?split=train&wrong=1"], "no option wrong"),
    ],
)
def test_faults_are_one_message_and_exit_2(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.csv").write_text(GOOD)
    assert main(["prepare", *options]) == 2
    error = capsys.readouterr().err
    assert said in error and "remedy" in error and "Traceback" not in error
    assert [p.name for p in tmp_path.iterdir()] == ["good.csv"]


def test_an_unreachable_hub_is_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "nobody/nothing", "--output", str(tmp_path / "out")]) == 2
    assert "nobody/nothing" in capsys.readouterr().err


def test_preview_colours_what_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text(GOOD)
    assert main(["prepare", str(path), "--check", "--preview", "3", "--family", "mistral"]) == 0
    shown = capsys.readouterr().out
    trained = re.findall(r"\x1b\[1;32m(.*?)\x1b\[0m", shown)
    assert len(trained) == 3 and all(text.strip().startswith("It is") and text.endswith("</s>") for text in trained)
    assert shown.count("[INST]") == 3


def test_preview_and_lengths_use_the_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], smollm2: Path
) -> None:
    from app.data.tokenize import encode, load_tokenizer
    from app.families import get_family

    path = tmp_path / "a.csv"
    path.write_text(GOOD)
    family = get_family("smollm2")
    options = ["--base", str(smollm2), "--family", "smollm2", "--output", str(tmp_path / "out"), "--preview", "1"]
    assert main(["prepare", str(path), *options]) == 0
    shown = capsys.readouterr().out
    tokenizer = load_tokenizer(str(smollm2), family)
    counted = {
        split: sum(
            len(encode(sample.messages, tokenizer, family, answer_next=False).input_ids)
            for sample in read_prepared(tmp_path / "out" / f"{split}.jsonl")
        )
        for split in SPLITS
    }
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {split: report["splits"][split]["tokens"] for split in SPLITS} == counted
    assert re.search(r"\d+ tokens, \d+ trained", shown) and "\x1b[1;4;32m" in shown


def test_the_script_is_the_command(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(GOOD)
    command = [sys.executable, str(ROOT / "scripts" / "prepare_data.py"), "a.csv", "--output", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ}, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "train.jsonl").is_file() and done.stderr == ""


def test_several_inputs_with_weights(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(GOOD)
    (tmp_path / "b.jsonl").write_text('{"instruction": "Say hello.", "input": "", "output": "Hello there."}\n')
    paths = [str(tmp_path / "a.csv"), str(tmp_path / "b.jsonl")]
    assert main(["prepare", *paths, "--weights", "0.5,4", "--output", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [source["weight"] for source in report["sources"]] == [0.5, 4.0]
    assert sum(source["train_share"] for source in report["sources"]) == pytest.approx(1, abs=1e-3)
