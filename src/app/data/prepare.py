"""From inputs to a prepared folder: read, check, drop copies, split, write; in bounded memory, all or nothing."""

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.data.examine import Rules, examine, rejected_line
from app.data.records import Conversation, read_prepared
from app.data.shapes import ShapeName
from app.data.sources import check_shape, open_source
from app.data.split import SPLITS, assign, position
from app.errors import ConfigError, DataError


def load_splits(
    source: str,
    *,
    seed: int = 42,
    val_fraction: float = 0.05,
    test_fraction: float = 0.05,
    columns: Mapping[str, str] | None = None,
    shape: ShapeName | None = None,
) -> dict[str, list[Conversation]]:
    """The conversations of a raw file, folder or hub data set, per split: what `prepare` would write, in memory.

    Raises:
        DataError: it cannot be read, or no row of it can be trained on.
        ConfigError: an option is wrong.
    """
    with tempfile.TemporaryDirectory(prefix="prepare-") as folder:
        output = Path(folder) / "data"
        prepare(
            [source], output, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction,
            columns=columns, shape=shape,
        )  # fmt: skip
        return {split: list(read_prepared(output / f"{split}.jsonl")) for split in SPLITS}


def prepare(
    inputs: Sequence[str],
    output: Path,
    *,
    seed: int = 42,
    val_fraction: float = 0.05,
    test_fraction: float = 0.05,
    columns: Mapping[str, str] | None = None,
    shape: ShapeName | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
) -> dict[str, Any]:
    """Writes train, val, test and rejected rows and the report into ``output``; returns the report.

    Raises:
        DataError: an input cannot be read, or no row of it can be trained on.
        ConfigError: an option is wrong.
    """
    if not (0 <= val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
        raise ConfigError(
            f"val_fraction {val_fraction} and test_fraction {test_fraction} leave nothing to train on",
            remedy="use fractions whose sum is below 1, such as 0.05 each",
        )
    check_shape(shape)
    opened = [
        part
        for number, given in enumerate(inputs)
        for part in open_source(
            given, number, columns=columns, shape=shape, encoding=encoding, delimiter=delimiter
        )
    ]  # fmt: skip
    rules = Rules(columns=columns, shape=shape)
    output.mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    seen: dict[bytes, str] = {}
    files = {split: (output / f"{split}.jsonl").open("w", encoding="utf-8") for split in (*SPLITS, "rejected")}
    try:
        for part in opened:
            for batch in part.batches():
                done = examine(batch, rules)
                counts["rows"] += done.rows
                files["rejected"].writelines(done.rejected)
                counts["rejected"] += len(done.rejected)
                kinds.update(kind for kind, _, _ in done.findings)
                for record, line, key, unit in zip(done.records, done.lines, done.keys, done.units, strict=True):
                    where = f"{done.file}:{line}"
                    if key in seen:
                        detail = f"the same as {seen[key]}"
                        text = rejected_line(
                            file=done.file, line=line, kind="duplicate", detail=detail, row=json.loads(record)
                        )
                        files["rejected"].write(text)
                        counts["rejected"] += 1
                        kinds["duplicate"] += 1
                        continue
                    seen[key] = where
                    at = position(unit, seed=seed)
                    split = assign(at, val_fraction=val_fraction, test_fraction=test_fraction)
                    files[split].write(record)
                    counts[split] += 1
    finally:
        for file in files.values():
            file.close()
    if not seen:
        raise DataError(f"none of {counts['rows']} rows can be trained on", remedy=f"see {output}/rejected.jsonl")
    report: dict[str, Any] = {"counts": dict(counts), "findings": dict(kinds)}
    (output / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    return report
