"""Inputs by what they are: formats whatever their name, files that are none, columns that are not there."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard

from app.errors import AppError, ConfigError, DataError
from support.reading import ROWS, as_csv, pairs, read


def test_formats_agree_and_wrong_names_do_not_matter(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = [{"question": q, "answer": a} for q, a in ROWS]
    (tmp_path / "a.csv").write_text("".join(json.dumps(r) + "\n" for r in records))
    (tmp_path / "b.csv").write_text(json.dumps(records, indent=2))
    (tmp_path / "c.jsonl").write_text(json.dumps({"version": 1, "data": records}))
    (tmp_path / "d.json").write_text(json.dumps({"data": records}, indent=1))
    (tmp_path / "e.txt").write_text(as_csv(";"))
    (tmp_path / "f.json").write_text(as_csv("\t"))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "g.csv")
    for path in sorted(tmp_path.iterdir()):
        if path.name != "e.txt":
            assert pairs(read(path)) == ROWS, path.name


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_parquet_may_be_compressed_as_a_whole(tmp_path: Path, pack: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{"question": q, "answer": a} for q, a in ROWS]), out)
    path = tmp_path / "rows.parquet.gz"
    path.write_bytes(pack(out.getvalue()))
    assert pairs(read(path)) == ROWS
    path.write_bytes(pack(out.getvalue())[:-50])
    with pytest.raises(DataError, match="damaged"):
        read(path)


def test_the_delimiter_that_excel_names(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("sep=;\n" + as_csv(";"))
    rows = read(path)
    assert pairs(rows) == ROWS and rows[0][0] == 3


@pytest.mark.parametrize("make", ["missing", "empty", "blank", "loop", "folder", "device", "nul-name"])
def test_what_is_no_file_is_a_clear_error(tmp_path: Path, make: str) -> None:
    path = tmp_path / "rows.csv"
    if make == "empty":
        path.touch()
    elif make == "blank":
        path.write_text("\n \n")
    elif make == "loop":
        path.symlink_to(path)
    elif make == "folder":
        path.mkdir()
    elif make == "device":
        path = Path("/dev/null")
    elif make == "nul-name":
        path = Path("a\0b.csv")
    with pytest.raises(AppError) as fault:
        read(path)
    assert fault.value.remedy


def test_columns_that_are_not_there_are_an_error_that_lists_those_that_are(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("colour,size\nred,1\n")
    with pytest.raises(DataError, match="'colour', 'size'"):
        read(path)
    with pytest.raises(ConfigError, match="no column 'Frage'"):
        read(path, columns={"question": "Frage", "answer": "size"})
    with pytest.raises(ConfigError, match="role"):
        read(path, columns={"qestion": "colour"})
    assert read(path, columns={"question": "colour", "answer": "size"})[0][1] == {"colour": "red", "size": "1"}
