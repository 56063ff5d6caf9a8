"""From what ``data.path`` names to a token table per split; each step is done once and found again by its content."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from app.cache import cache_folder, cache_key, content_hash, drop_unused
from app.data.cache import TokenTable, code_hash, write_table
from app.data.lengths import TooLong
from app.data.prepare import prepare_for_training
from app.data.progress import progress_bar
from app.data.records import Conversation, read_prepared
from app.data.tokenize import Encoding, encode
from app.errors import DataError, several
from app.families import Family
from app.terminal import progress_bars

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)


def prepared_folder(
    source: str, *, seed: int, val_fraction: float, test_fraction: float, columns: Mapping[str, str] | None
) -> Path:
    """The folder itself if `prepare` wrote it; otherwise one prepared from it, found again by its content.

    A hub data set is prepared anew each time: what its name means can change.

    Raises:
        DataError: it cannot be read, or no row of it can be trained on.
        ConfigError: an option is wrong.
    """
    path = Path(source).expanduser()
    if (path / "train.jsonl").is_file():
        return path
    content = content_hash(path) if path.is_file() or path.is_dir() else ""
    key = cache_key(
        content=content, source=path.name if content else source, columns=dict(columns or {}), code=code_hash(),
        seed=seed, val_fraction=val_fraction, test_fraction=test_fraction,
    )  # fmt: skip
    target = cache_folder("prepared") / key
    if content and (target / "train.jsonl").is_file():
        os.utime(target)
        return target
    drop_unused(target.parent)
    # Prepared beside and moved: of two runs that start together, each finds a whole folder.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{key}.") as scratch:
        fresh = Path(scratch) / "data"
        with progress_bar() as progress:
            prepare_for_training(
                source, fresh, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction, columns=columns,
                progress=progress,
            )  # fmt: skip
        if target.exists() and not content:
            shutil.rmtree(target)
        if not target.exists():
            fresh.rename(target)
    return target


def split_hash(folder: Path, split: str) -> str:
    """SHA-256 of a split's prepared records in order: of the file as prepare writes it."""
    file = folder / f"{split}.jsonl"
    return content_hash(file) if file.is_file() else cache_key(empty=True)


def split_conversations(folder: Path, split: str) -> Iterable[Conversation]:
    """A split's conversations in order; none where the folder has no such file."""
    file = folder / f"{split}.jsonl"
    return read_prepared(file) if file.is_file() else ()


def tokenized(
    folder: Path,
    split: str,
    content: str,
    tokenizer: "PreTrainedTokenizerFast",
    family: Family,
    *,
    max_length: int,
    too_long: TooLong,
) -> TokenTable:
    """A split's token table, made now or mapped from an earlier start.

    Args:
        folder: a prepared folder.
        split: of it.
        content: from `split_hash`.
        tokenizer: of the base.
        family: whose chat format is used.
        max_length: the most tokens of a row.
        too_long: what becomes of longer ones.

    Raises:
        DataError: rows that cannot be trained on (all are named), or that are too long where that is an error.
    """
    tables = cache_folder("tokens")
    key = cache_key(
        content=content,
        tokenizer=tokenizer.backend_tokenizer.to_str(),
        template=family.chat.jinja(),
        max_length=max_length,
        too_long=too_long,
        code=code_hash(),
    )
    path = tables / f"{key}.arrow"
    if path.is_file():
        table = TokenTable(path)
        found = " (tokenised earlier)"
    else:
        drop_unused(tables)
        rows = _encoded(
            split, split_conversations(folder, split), tokenizer, family, max_length=max_length, too_long=too_long
        )
        samples = _samples(folder, split)
        with progress_bars() as display:
            write_table(path, (row for _, row in display.track(rows, samples, description=f"tokenise {split}")))
        table, found = TokenTable(path), ""
    tokens = int(table.lengths.sum())
    samples = _samples(folder, split)
    rows_left = f"{len(table)} rows" if len(table) == samples else f"{len(table)} of {samples} rows"
    log.info(f"{split}: {rows_left}, {tokens} tokens, {table.trained_tokens} of them trained{found}")
    return table


def kept_conversations(
    folder: Path,
    split: str,
    tokenizer: "PreTrainedTokenizerFast",
    family: Family,
    *,
    max_length: int,
    too_long: TooLong,
) -> Iterator[Conversation]:
    """The conversations behind the rows of a split's token table, in its order; found by tokenising them again."""
    conversations = split_conversations(folder, split)
    rows = _encoded(split, conversations, tokenizer, family, max_length=max_length, too_long=too_long)
    return (conversation for conversation, _ in rows)


def _samples(folder: Path, split: str) -> int:
    file = folder / f"{split}.jsonl"
    if not file.is_file():
        return 0
    with file.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def _encoded(
    split: str,
    conversations: Iterable[Conversation],
    tokenizer: "PreTrainedTokenizerFast",
    family: Family,
    *,
    max_length: int,
    too_long: TooLong,
) -> Iterator[tuple[Conversation, Encoding]]:
    faults: list[str] = []
    long = seen = 0
    for conversation in conversations:
        seen += 1
        try:
            row = encode(conversation.messages, tokenizer, family, answer_next=False)
        except DataError as fault:
            faults.append(f"{conversation.file}:{conversation.line} ({conversation.id}): {fault.what}")
            continue
        if len(row.input_ids) > max_length:
            long += 1
            if too_long != "truncate":
                continue
            row = Encoding(input_ids=row.input_ids[:max_length], trained=row.trained[:max_length])
        if any(row.trained[1:]):
            yield conversation, row
    if faults:
        raise DataError(
            several(f"{len(faults)} rows of {split} cannot be trained on", faults),
            where="data.path",
            remedy="prepare the data with `python -m app prepare`, which sets such rows aside",
        )
    if long and too_long == "error":
        raise DataError(
            f"{long} of {seen} rows of {split} are longer than {max_length} tokens",
            where="data.max_length",
            remedy="raise data.max_length, or choose data.too_long drop or truncate",
        )
    if long:
        fate = "truncated: their answers do not end" if too_long == "truncate" else "dropped"
        log.warning(f"{long} of {seen} rows of {split} exceed data.max_length {max_length}: {fate}")
