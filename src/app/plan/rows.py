"""How much there is to train on: rows and tokens of a prepared folder, all of a small one or an even sample."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app.data.lengths import count_tokens, estimate_tokens
from app.data.records import Conversation, read_prepared
from app.families import Family
from app.hub import is_local

SAMPLE = 2000
"""Rows whose tokens are counted: a second of tokenising; the mean is then known to a few percent."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Training rows.

    Attributes:
        rows: that will be trained on.
        tokens: in all of them.
        left_out: rows longer than the limit.
        how: how the tokens were counted.
    """

    rows: int
    tokens: int
    left_out: int
    how: str


def count_rows(
    path: str, family: Family, *, base: str, revision: str | None, max_length: int, truncate: bool
) -> Rows | None:
    """The training split of a prepared folder; None where ``path`` is none.

    Tokens are counted with the base's own tokenizer where it lies on this disk, and estimated from characters where
    it does not: nothing is downloaded.

    Raises:
        DataError: rows that were counted are not prepared records (all of them are named).
    """
    file = Path(path).expanduser() / "train.jsonl"
    if not file.is_file():
        return None
    with file.open("rb") as lines:
        rows = sum(1 for line in lines if line.strip())
    tokenizer = _tokenizer_file(base, revision)
    count: Callable[[Conversation], int]
    if tokenizer is None:
        how = "estimated from characters"

        def count(row: Conversation) -> int:
            return estimate_tokens(row.messages)
    else:
        from tokenizers import Tokenizer

        loaded, how = Tokenizer.from_file(str(tokenizer)), "counted"

        def count(row: Conversation) -> int:
            return count_tokens(row.messages, loaded, family.chat)

    step = max(1, -(-rows // SAMPLE))
    lengths = [count(row) for row in read_prepared(file, every=step)]
    kept = [min(length, max_length) for length in lengths if length <= max_length or truncate]
    if step > 1:
        how += f" in {len(lengths):,} rows of {rows:,}"
    share = rows / max(1, len(lengths))
    return Rows(
        rows=round(len(kept) * share),
        tokens=round(sum(kept) * share),
        left_out=round((len(lengths) - len(kept)) * share),
        how=how,
    )


def _tokenizer_file(base: str, revision: str | None) -> Path | None:
    if is_local(base):
        path = Path(base).expanduser() / "tokenizer.json"
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(base, "tokenizer.json", revision=revision)
    return Path(found) if isinstance(found, str) else None
