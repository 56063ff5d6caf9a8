"""From inputs to a prepared folder: read, check, drop copies, split, write; in bounded memory, all or nothing."""

import shlex
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from app.data.examine import Rules, examine
from app.data.findings import Findings
from app.data.finish import finish
from app.data.kinds import KINDS
from app.data.lengths import TooLong
from app.data.output import replaced_folder
from app.data.progress import Progress, no_progress
from app.data.report import Report, summarise
from app.data.shapes import ShapeName
from app.data.sources import Source, check_shape, open_source
from app.data.spool import Spool
from app.data.workers import Workers, default_count
from app.errors import AppError, ConfigError, DataError, several


def prepare_for_training(
    source: str,
    output: Path,
    *,
    seed: int,
    val_fraction: float,
    test_fraction: float,
    columns: Mapping[str, str] | None,
    progress: Progress = no_progress,
) -> None:
    """`prepare` of one input for `fit`, which needs at least one row.

    Raises:
        DataError: it cannot be read, or no row of it can be trained on.
        ConfigError: an option is wrong.
    """
    report = prepare(
        [source], output, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction, columns=columns,
        progress=progress,
    )  # fmt: skip
    if not report.value["counts"]["rows_kept"]:
        faults = [f"{f['rows_found']} rows: {f['title']}; {f['remedy']}" for f in report.value["findings"]]
        raise DataError(
            several(f"no row of {source} can be trained on", faults),
            remedy=f"run `python -m app prepare {shlex.quote(str(source))}`, whose report names every row",
        )


def prepare(
    inputs: Sequence[str],
    output: Path | None,
    *,
    weights: Sequence[float] | None = None,
    seed: int = 42,
    val_fraction: float = 0.05,
    test_fraction: float = 0.05,
    stratify: bool = False,
    columns: Mapping[str, str] | None = None,
    shape: ShapeName | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
    drop: Sequence[str] = (),
    redact: bool = False,
    similarity: float = 0.8,
    tokenizer: str | None = None,
    family: str | None = None,
    max_length: int | None = None,
    too_long: TooLong = "drop",
    workers: int | None = None,
    progress: Progress = no_progress,
) -> Report:
    """Writes train, val, test and rejected rows and the report into ``output``; returns the latter.

    Args:
        inputs: see `open_source`.
        output: the folder; None only looks.
        weights: of each input: how often its rows are repeated in train; below 1 a share of them is left out.
        seed: of the split.
        val_fraction, test_fraction: shares of the rows.
        stratify: the shares hold in each class of the label column.
        columns, shape, encoding, delimiter: how the inputs are read, where it should not be found out.
        drop: kinds of findings that reject a row instead of warning.
        redact: masks personal data.
        similarity: from which two texts are near-duplicates (Jaccard of words and word pairs).
        tokenizer: JSON of a fast tokenizer; without one token lengths are estimated.
        family: whose chat format lengths are counted in.
        max_length, too_long: the most tokens of a sample, and what becomes of longer ones.
        workers: processes; None takes all cores for large inputs.
        progress: told how far each stage is.

    Raises:
        DataError: an input cannot be read, a row is too long and ``too_long`` is "error", or no row can be used.
        ConfigError: an option is wrong.
    """
    _check_options(inputs, weights, val_fraction, test_fraction, drop, similarity)
    check_shape(shape)
    sources = _open_all(inputs, columns=columns, shape=shape, encoding=encoding, delimiter=delimiter)
    rules = Rules(
        columns=columns, shape=shape, drop=frozenset(drop), redact=redact, seed=seed, tokenizer=tokenizer,
        family=family, max_length=max_length, too_long=too_long,
    )  # fmt: skip
    total = sum(source.size for source in sources)
    findings = Findings()
    with replaced_folder(output) as folder, tempfile.TemporaryDirectory(prefix=".spool-", dir=folder) as scratch:
        with closing(Workers(workers or default_count(total))) as pool, closing(Spool(Path(scratch))) as spool:
            done = 0
            for source in sources:
                for batch in pool.map(partial(examine, rules=rules), source.batches()):
                    spool.add(batch, findings)
                    progress("read and check", done + batch.consumed, total)
                done += source.size
                progress("read and check", done, total)
            if too_long == "error" and findings.counts["too-long"]:
                long = [f"{w.file}:{w.line}: {w.detail}" for w in findings.rows["too-long"]]
                raise DataError(
                    several(f"{findings.counts['too-long']} rows are longer than {max_length} tokens", long),
                    where="--max_length",
                    remedy="raise --max_length, or use --too_long drop or truncate",
                )
            finished = finish(
                spool, findings, folder, weights=weights, seed=seed, val_fraction=val_fraction,
                test_fraction=test_fraction, stratify=stratify, drop=rules.drop, redact=redact,
                similarity=similarity, workers=pool, progress=progress,
            )  # fmt: skip
        report = summarise(
            finished, findings, sources=sources, inputs=inputs, weights=weights, seed=seed,
            val_fraction=val_fraction, test_fraction=test_fraction, stratify=stratify, dropped=rules.drop,
            redacted=redact, similarity=similarity, family=family if tokenizer else None,
        )  # fmt: skip
        if output is not None:
            report.write(folder)
    return report


def _check_options(
    inputs: Sequence[str],
    weights: Sequence[float] | None,
    val_fraction: float,
    test_fraction: float,
    drop: Sequence[str],
    similarity: float,
) -> None:
    faults = []
    if not (0 <= val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
        faults.append(f"val_fraction {val_fraction} and test_fraction {test_fraction} leave nothing to train on")
    if weights is not None and len(weights) != len(inputs):
        faults.append(f"{len(weights)} weights for {len(inputs)} inputs")
    if weights is not None and any(not 0 < weight <= 100 for weight in weights):
        faults.append(f"weights must lie between 0 and 100, not {', '.join(map(str, weights))}")
    unknown = sorted(set(drop) - set(KINDS))
    if unknown:
        faults.append(f"there is no kind of finding {', '.join(unknown)} to drop")
    if not 0.5 <= similarity <= 1:
        faults.append(f"similarity {similarity} is not between 0.5 and 1")
    if faults:
        kinds = ", ".join(kind for kind, facts in KINDS.items() if facts.action != "reject")
        raise ConfigError(several("options out of range", faults), remedy=f"correct them; kinds to drop are {kinds}")


def _open_all(
    inputs: Sequence[str],
    *,
    columns: Mapping[str, str] | None,
    shape: ShapeName | None,
    encoding: str | None,
    delimiter: str | None,
) -> list[Source]:
    opened: list[Source] = []
    faults: list[AppError] = []
    for number, given in enumerate(inputs):
        try:
            opened += open_source(
                given, number, columns=columns, shape=shape, encoding=encoding, delimiter=delimiter
            )  # fmt: skip
        except AppError as fault:
            faults.append(fault)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        lines = [f"{fault.what} ({fault.remedy})" for fault in faults]
        raise DataError(several(f"{len(faults)} inputs cannot be used", lines), remedy="correct each of them")
    # Rows are named after their file: two of one name (a/data.csv, b/data.csv) must not share their rows' names.
    names = Counter(source.name for source in opened)
    return [
        replace(source, name=str(source.path)) if names[source.name] > 1 and source.path is not None else source
        for source in opened
    ]
