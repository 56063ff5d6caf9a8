"""Bytes to rows: encodings, compression, formats and broken input; no good row is ever lost."""

import codecs
import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from app.data.encoding import survey
from app.data.ingest import MAX_ROW, Unreadable
from app.data.jsonlines import parse_row
from app.data.sources import open_source
from app.errors import AppError
from support.reading import ROWS, as_csv, pairs, read


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", "^", "~"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_delimiter_and_line_end(tmp_path: Path, delimiter: str, end: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(as_csv(delimiter, end).encode())
    assert pairs(read(path)) == ROWS


@pytest.mark.parametrize(
    "options",
    [
        {"quoting": csv.QUOTE_ALL},
        {"quoting": csv.QUOTE_ALL, "quotechar": "'"},
        {"doublequote": False, "escapechar": "\\", "quoting": csv.QUOTE_ALL},
    ],
)
def test_any_quoting(tmp_path: Path, options: dict[str, Any]) -> None:
    spoken = [(f'He said "no {n}", twice', f"It's \"fine\", isn't it? {n}") for n in range(20)]
    path = tmp_path / "rows.csv"
    path.write_text(as_csv(rows=spoken, **options))
    assert pairs(read(path)) == spoken


@pytest.mark.parametrize(
    ("encoding", "bom"),
    [
        ("utf-8", b""), ("utf-8", codecs.BOM_UTF8), ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE), ("utf-16-le", b""), ("utf-32-le", codecs.BOM_UTF32_LE), ("cp1252", b""),
    ],
)  # fmt: skip
def test_any_encoding_is_found_out(tmp_path: Path, encoding: str, bom: bytes) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(bom + as_csv().encode(encoding))
    assert pairs(read(path)) == ROWS


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1251", "Машинное обучение является разделом искусственного интеллекта и математики"),
        ("cp1250", "Příliš žluťoučký kůň úpěl ďábelské ódy řekl věštec při večeři"),
        ("shift_jis", "機械学習は人工知能の一分野であり、データから学習する技術である"),
        ("gb18030", "机器学习是人工智能的一个分支，它使计算机能够从数据中学习"),
    ],
)
def test_other_code_pages_are_guessed(tmp_path: Path, encoding: str, text: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(("question,answer\n" + "".join(f"{text} {n}?,{text}.\n" for n in range(40))).encode(encoding))
    assert read(path)[3][1]["answer"] == f"{text}."


def test_one_broken_byte_does_not_turn_utf8_into_a_code_page(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(as_csv().encode() + b"broken \xff row,answer\n")
    rows = read(path)
    assert pairs(rows[:-1]) == ROWS
    assert "\udcff" in rows[-1][1]["question"]


def test_high_bytes_late_in_a_large_file_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"question,answer\n" + b"what?,that\n" * 200_000 + "größer?,schöner\n".encode("cp1252"))
    assert survey(path, encoding=None).encoding == "cp1252"


@pytest.mark.parametrize("suffix", ["gz", "zst", "csv"])
@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_compression_is_found_by_content(tmp_path: Path, suffix: str, pack: Any) -> None:
    path = tmp_path / f"rows.csv.{suffix}"
    path.write_bytes(pack(as_csv().encode()))
    assert pairs(read(path)) == ROWS


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_a_damaged_archive_keeps_the_rows_before_the_damage(tmp_path: Path, pack: Any) -> None:
    path = tmp_path / "rows.jsonl.gz"
    import random

    noise = random.Random(0)
    lines = [json.dumps({"question": f"q{n}", "answer": f"{noise.random()}"}) for n in range(30_000)]
    packed = pack(("\n".join(lines) + "\n").encode())
    path.write_bytes(packed[: len(packed) * 2 // 3])
    rows = read(path)
    good = [fields for _, fields in rows if isinstance(fields, dict)]
    assert good == [json.loads(line) for line in lines[: len(good)]] and len(good) > 5000
    assert rows[-1][1].kind in ("broken-file", "broken-json")
    assert any(isinstance(row, Unreadable) and row.kind == "broken-file" for _, row in rows)


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('question,answer\n\na,1\n"b\nb","2\n2"\n\nc,3\n')
    assert [(line, fields["question"]) for line, fields in read(path)] == [(3, "a"), (4, "b\nb"), (8, "c")]
    path = tmp_path / "rows.json"
    path.write_text('[\n {"question": "a",\n  "answer": "1"},\n\n {"question": "b", "answer": "2"}]')
    assert [line for line, _ in read(path)] == [2, 5]


def test_a_stray_quote_costs_one_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    lines = [f'question {n},"answer, {n}"' for n in range(200)]
    lines[50] = 'question 50,"never closed'
    lines[120] = 'question 120,"also "not" doubled, here"'
    path.write_text("question,answer\n" + "\n".join(lines) + "\n")
    rows = read(path)
    assert len(rows) == 200
    assert [line for line, row in rows if isinstance(row, Unreadable)] == [52, 122]
    assert rows[51][1] == {"question": "question 51", "answer": "answer, 51"}


def test_half_a_line_at_the_end_is_one_rejected_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('question,answer\na,1\nb,"2')
    rows = read(path)
    assert rows[0] == (2, {"question": "a", "answer": "1"})
    assert rows[1][0] == 3 and rows[1][1].kind == "broken-row"
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "a", "answer": "1"}\n{"question": "b", "ans')
    assert [type(row) for _, row in read(path)] == [dict, Unreadable]


def test_an_array_goes_on_after_a_broken_element(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"question": "a", "answer": "1"},\n{"question": oops},\n{"question": "b", "answer": "2"}')
    rows = read(path)
    assert [row["question"] for _, row in rows if isinstance(row, dict)] == ["a", "b"]
    assert [row.kind for _, row in rows if isinstance(row, Unreadable)] == ["broken-json", "broken-json"]


def test_the_first_list_of_rows_is_read_and_a_second_one_reported(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    row = '{"question": "%s", "answer": "1"}'
    path.write_text('{"tags": ["x", "y"], "data": [' + row % "a" + ", " + row % "b" + '], "version": 1}')
    assert [each["question"] for _, each in read(path) if isinstance(each, dict)] == ["a", "b"]
    for before in ("", '"tags": ["x"], '):
        path.write_text("{" + before + '"train": [' + row % "a" + '], "validation": [' + row % "b" + "]}")
        first, second = (each for _, each in read(path))
        assert isinstance(first, dict) and isinstance(second, Unreadable)
        assert "'validation' is a second list of rows" in second.detail


@pytest.mark.parametrize("encoding", ["utf-8", "UTF8"])
def test_a_byte_order_mark_is_no_text_whatever_the_encoding_is_called(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "a", "answer": "1"}\n', encoding="utf-8-sig")
    (source,) = open_source(str(path), 0, columns=None, shape=None, encoding=encoding, delimiter=None)
    assert [parse_row(str(row)) for batch in source.batches() for _, row in batch.rows] == [
        {"question": "a", "answer": "1"}
    ]


def test_half_a_character_of_utf16_is_a_bad_row_and_no_end(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"question": "a", "answer": "1"}\n{"q'.encode("utf-16-le")[:-1])
    (source,) = open_source(str(path), 0, columns=None, shape=None, encoding="UTF-16LE", delimiter=None)
    assert len([row for batch in source.batches() for row in batch.rows]) == 2


def test_a_long_array_on_one_line_is_read_in_little_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "rows.json"
    element = json.dumps({"messages": [{"role": "user", "content": "ü" * 1000}, {"role": "assistant", "content": "b"}]})
    broken = element.replace('"assistant"', "assistant")
    with path.open("w", encoding="utf-8") as out:
        out.write("[" + ",".join([element] * 1500 + [broken] + [element] * 1500) + "]")
    assert path.stat().st_size > MAX_ROW
    source = open_source(str(path), 0, columns=None, shape=None, encoding=None, delimiter=None)[0]
    tracemalloc.start()
    good = bad = 0
    for batch in source.batches():
        good += sum(isinstance(row, dict) and list(row) == ["messages"] for _, row in batch.rows)
        bad += sum(isinstance(row, Unreadable) for _, row in batch.rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (good, bad) == (3000, 1)
    assert peak < 10 * MAX_ROW


@pytest.mark.parametrize("head", [",,\n", "\n,,\n , \n", ""])
def test_rows_of_empty_cells_before_the_header_are_nothing(tmp_path: Path, head: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(head + "question,answer,\na,1,\nb,2,x\n")
    assert [(row["question"], row["answer"]) for _, row in read(path) if isinstance(row, dict)] == [
        ("a", "1"),
        ("b", "2"),
    ]


def test_columns_without_a_name_do_not_share_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("question,answer,,\na,1,,\n")
    assert [(row["question"], row["answer"]) for _, row in read(path) if isinstance(row, dict)] == [("a", "1")]


def test_empty_cells_beyond_the_header_are_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("question;answer\na;1;;\nb;2;x;\nc;3\n")
    rows = read(path)
    assert [row["question"] for _, row in rows if isinstance(row, dict)] == ["a", "c"] and len(rows) == 3


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"question": "a", "question": "b", "answer": "c"}', "duplicate-key"),
        ("[" * 100_000, "broken-json"),
        ('{"a": ' * 5000 + "1" + "}" * 5000, "broken-json"),
        ('{"n": ' + "9" * 10_000 + "}", "broken-json"),
        ("123", "wrong-type"),
        ("null", "wrong-type"),
        ("{", "broken-json"),
    ],
)
def test_bad_json_has_a_kind(text: str, kind: str) -> None:
    row = parse_row(text)
    assert isinstance(row, Unreadable) and row.kind == kind


def test_a_hundred_megabyte_line_is_rejected_in_little_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "rows.jsonl"
    with path.open("w") as out:
        out.write('{"question": "a", "answer": "1"}\n{"question": "')
        for _ in range(100):
            out.write("x" * 1_000_000)
        out.write('"}\n{"question": "b", "answer": "2"}\n')
    tracemalloc.start()
    rows = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [type(row).__name__ for _, row in rows] == ["dict", "Unreadable", "dict"]
    assert rows[1][1].kind == "too-large" and rows[2][0] == 3
    assert peak < 120_000_000


cells = st.text(
    alphabet=st.characters(codec="utf-8", exclude_characters="\r", exclude_categories=("Cs",)), min_size=1, max_size=20
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(cells, cells), min_size=1, max_size=12), delimiter=st.sampled_from(",;\t|"))
def test_whatever_csv_writes_is_read_back(tmp_path: Path, rows: list[tuple[str, str]], delimiter: str) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writerows([("question", "answer"), *rows])
    found = [(f["question"], f["answer"]) for _, f in read(path, encoding="utf-8") if isinstance(f, dict)]
    assert found == [row for row in rows if "".join(row).strip()]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=400), start=st.sampled_from([b"", b"question,answer\n", b"[", b'{"question": ', b"PAR1"])
)
@example(data=b"\xff\xfe\x00", start=b"")
@example(data=b"\x28\xb5\x2f\xfd\x00", start=b"")
@example(data=b"\x1f\x8b", start=b"")
def test_random_bytes_are_rows_or_a_clear_error(tmp_path: Path, data: bytes, start: bytes) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(start + data)
    try:
        rows = read(path)
    except AppError as fault:
        assert fault.remedy
        return
    assert all(isinstance(row, (dict, Unreadable)) for _, row in rows)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 29), junk=st.binary(min_size=1, max_size=30), kind=st.sampled_from(["csv", "jsonl"]))
def test_a_bad_line_costs_no_good_row(tmp_path: Path, position: int, junk: bytes, kind: str) -> None:
    """Whatever stands in one line (no line break), all other rows are read."""
    junk = junk.replace(b"\n", b"").replace(b"\r", b"").replace(b"\x00", b"")
    assume(not junk.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")))  # a file that begins so is gzip or zstd
    lines = (
        [f'question {n},"answer, {n}"'.encode() for n in range(30)]
        if kind == "csv"
        else [json.dumps({"question": f"question {n}", "answer": f"answer, {n}"}).encode() for n in range(30)]
    )
    lines.insert(position, junk)
    path = tmp_path / f"rows.{kind}"
    path.write_bytes((b"question,answer\n" if kind == "csv" else b"") + b"\n".join(lines) + b"\n")
    found = [row["question"] for _, row in read(path, encoding="utf-8") if isinstance(row, dict) and "question" in row]
    missing = {f"question {n}" for n in range(30)} - set(found)
    assert not missing
