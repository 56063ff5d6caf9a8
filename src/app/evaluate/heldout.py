"""The held-out data of a run, checked to be the data it was held out from."""

from dataclasses import dataclass
from typing import Literal

from app.artifact import Manifest
from app.data.module import SFTDataModule
from app.data.records import Conversation
from app.data.tokenize import Encoding, encode
from app.errors import DataError, RunError

Split = Literal["test", "val"]


@dataclass(frozen=True, kw_only=True)
class HeldOutRow:
    """A conversation that was not trained on, and the tokens `fit` would have trained of it."""

    conversation: Conversation
    encoding: Encoding


def open_heldout(manifest: Manifest, *, data: str | None = None) -> SFTDataModule:
    """The run's data, read and tokenised as `fit` did.

    Args:
        manifest: of the run.
        data: another path to read from, where the data has moved.

    Raises:
        RunError: the data is no longer what the run was trained on: what is held out may have been trained.
        DataError: it cannot be read.
    """
    options = {**manifest.config["data"], "base": manifest.base.id, "family": manifest.base.family}
    options |= {"revision": manifest.base.revision, "seed": manifest.seed}
    if data is not None:
        options["path"] = data
    module = SFTDataModule(**options)
    module.setup("test")
    found = module.fingerprint
    assert found is not None
    if dict(found.sha256) != dict(manifest.data.sha256):
        changed = [name for name, value in found.sha256.items() if manifest.data.sha256.get(name) != value]
        raise RunError(
            f"{options['path']} has changed since the run was trained ({', '.join(changed)} differ): "
            "rows that are held out now may have been trained on",
            where="--data",
            remedy="restore the data, name its copy with --data, or train again",
        )
    return module


def choose_split(module: SFTDataModule, split: Split | None) -> Split:
    """The split asked for, or the test split, or where that is empty the validation split.

    Raises:
        DataError: the split holds no row.
    """
    chosen: Split = split or ("test" if module.rows["test"] else "val")
    if not module.rows[chosen]:
        sizes = ", ".join(f"{name} {len(rows)}" for name, rows in module.rows.items())
        raise DataError(
            f"the {chosen} split holds no row ({sizes})",
            where="--split",
            remedy="hold rows out with `prepare` or data.test_fraction, and train again",
        )
    return chosen


def heldout_rows(module: SFTDataModule, split: Split) -> list[HeldOutRow]:
    """The split's rows with their conversations; those that `fit` leaves out (too long) are left out here too.

    The token table keeps the conversations' order and skips some: a row belongs to the next conversation that
    has its tokens, cut at the run's longest if need be.
    """
    rows = iter(module.rows[split])
    row = next(rows, None)
    found = []
    for conversation in module.conversations[split]:
        if row is None:
            break
        whole = encode(conversation.messages, module.tokenizer, module.family, answer_next=False)
        if whole.input_ids[: module.max_length] == list(row.input_ids):
            found.append(HeldOutRow(conversation=conversation, encoding=row))
            row = next(rows, None)
    assert row is None, "the token table holds a row of no conversation"
    return found
