"""The run directory: what `fit` leaves behind and every later stage starts from.

::

    runs/mistral/
      index.html         the run's page, for people
      manifest.json      what was trained, on what, with what: see Manifest
      config.yaml        the full resolved configuration; `fit --config` takes it again
      adapter/           the adapter to use (best by validation loss), as plain peft loads it, with its tokenizer
      adapter-last/      the adapter of the last step saved
      checkpoints/       step-*.ckpt: adapter, optimizer, schedule, random states, data position; each with its hash
      logs/              TensorBoard (and W&B) files; metrics.jsonl and samples.jsonl, which the page is made of
      reports/           what `evaluate` and `export` found
      .lock              held while a `fit` writes here

After training every stage takes a run directory and nothing else; which model, family, template and quantisation
were used is in the manifest.
"""

import dataclasses
import errno
import hashlib
import json
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal

from app.errors import MachineError, RunError

log = logging.getLogger(__name__)

SCHEMA = 1
Status = Literal["running", "finished", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """The frozen base a run was trained on.

    Attributes:
        id: hub id, or the path of a local folder as the user wrote it.
        revision: hub commit, None for a local folder.
        family: a name from ``app.families``.
        model_type: of the checkpoint's ``config.json``.
        quantization: "nf4", or "none" for 16-bit weights.
        double_quant: whether the block scales are quantised again (QLoRA paper, section 3).
        dtype: of the arithmetic, such as "bfloat16".
    """

    id: str
    revision: str | None
    family: str
    model_type: str
    quantization: Literal["nf4", "none"]
    double_quant: bool
    dtype: str


@dataclass(frozen=True, kw_only=True)
class GoldenEncoding:
    """One conversation with the ids it must encode to: a later stage that gets others refuses.

    Attributes:
        template_hash: SHA-256 of the family's Jinja template.
        special_ids: token -> id of the stop, pad and BOS tokens.
        messages: the conversation, as {"role", "content"}.
        input_ids: of the whole conversation.
        trained: one flag per id: whether it is trained.
    """

    template_hash: str
    special_ids: Mapping[str, int]
    messages: Sequence[Mapping[str, str]]
    input_ids: Sequence[int]
    trained: Sequence[bool]


@dataclass(frozen=True, kw_only=True)
class DataFingerprint:
    """Which data a run saw.

    Attributes:
        source: the option as given (folder, file or hub id).
        sha256: per split, of the prepared records in order.
        samples: per split, how many.
    """

    source: str
    sha256: Mapping[str, str]
    samples: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """What was changed to keep a run alive; a resume goes on with the last one.

    Attributes:
        step: optimizer steps done at the time.
        cause, change: a line each, for people.
        memory: the fields of `app.model.ladder.MemorySettings` from then on.
        lr_scale: factor on the learning rate from then on.
    """

    step: int
    cause: str
    change: str
    memory: Mapping[str, Any]
    lr_scale: float


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contract between `fit` and all later stages; ``manifest.json``.

    Attributes:
        status: "running" until `fit` ends.
        base: the frozen model.
        golden: the golden encoding.
        data: the data's fingerprint.
        max_length: tokens per training row.
        seed: of everything random.
        config: the full resolved configuration.
        versions: package -> version.
        git_commit: of the application's checkout, or None outside one.
        created: ISO 8601, UTC.
        result: what training measured (loss, tokens/s, peak memory …), filled in at the end.
        adaptations: what was changed on the way, in order; empty for nearly every run.
        app_version, schema: of the writer.
    """

    status: Status
    base: BaseModel
    golden: GoldenEncoding
    data: DataFingerprint
    max_length: int
    seed: int
    config: Mapping[str, Any]
    versions: Mapping[str, str]
    git_commit: str | None
    created: str
    result: Mapping[str, Any] = field(default_factory=dict)
    adaptations: Sequence[Adaptation] = ()
    app_version: str
    schema: int = SCHEMA


class RunDirectory:
    """Paths of a run directory, and its manifest."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest_path = self.path / "manifest.json"
        self.config_path = self.path / "config.yaml"
        self.adapter = self.path / "adapter"
        self.adapter_last = self.path / "adapter-last"
        self.checkpoints = self.path / "checkpoints"
        self.logs = self.path / "logs"
        self.reports = self.path / "reports"
        self.lock_path = self.path / ".lock"

    def create(self) -> None:
        """Makes the folder.

        Raises:
            MachineError: it cannot be written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as fault:
            raise MachineError(
                f"the run directory {self.path} cannot be written: {fault.strerror}",
                where="--run",
                remedy="choose a folder you may write to with --run FOLDER",
            ) from fault

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps every other process from writing here.

        The operating system holds the lock and lets go of it when the process dies, however it dies; what the file
        says is for people. A lock left by a dead process is taken over, with a warning.

        Raises:
            RunError: another process writes here.
        """
        with self.lock_path.open("a+", encoding="utf-8") as file:
            held = try_lock(file)
            file.seek(0)
            holder = file.read().strip()
            if not held:
                raise RunError(
                    f"another process writes to {self.path}: {holder}",
                    where="--run",
                    remedy="wait for its end or stop it, or choose another --run",
                )
            if holder:
                log.warning(f"{self.path}: the lock of {holder} is stale, that process is dead; it is taken over")
            file.truncate(0)
            started = datetime.now(UTC).isoformat(timespec="seconds")
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {started}")
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)

    def write_manifest(self, manifest: Manifest) -> None:
        write_atomic(self.manifest_path, json.dumps(dataclasses.asdict(manifest), indent=2, ensure_ascii=False) + "\n")

    def read_manifest(self) -> Manifest:
        """The run's manifest.

        Raises:
            RunError: there is none, or it is damaged or of another schema.
        """
        if not self.manifest_path.is_file():
            raise RunError(
                f"{self.path} is not a run directory: it has no manifest.json",
                where="--run",
                remedy="name a folder that `python -m app fit` wrote",
            )
        try:
            value = json.loads(self.manifest_path.read_text(encoding="utf-8"))
            if value["schema"] != SCHEMA:
                raise RunError(
                    f"{self.manifest_path} has schema {value['schema']}; this version reads {SCHEMA}",
                    remedy=f"use the version that wrote it ({value.get('app_version')}) or train again",
                )
            parts = {
                "base": BaseModel(**value["base"]),
                "golden": GoldenEncoding(**value["golden"]),
                "data": DataFingerprint(**value["data"]),
                "adaptations": [Adaptation(**adaptation) for adaptation in value.get("adaptations", ())],
            }
            return Manifest(**{**value, **parts})
        except (ValueError, KeyError, TypeError) as fault:
            raise RunError(
                f"{self.manifest_path} is damaged: {fault}", remedy="restore it from a copy, or train again"
            ) from fault

    def require_adapter(self) -> Path:
        """The adapter folder.

        Raises:
            RunError: training has not saved one yet.
        """
        if not (self.adapter / "adapter_config.json").is_file():
            raise RunError(
                f"{self.path} holds no adapter yet",
                where="--run",
                remedy="let `fit` reach its first checkpoint or its end",
            )
        return self.adapter


def try_lock(file: IO[str]) -> bool:
    """Takes the operating system's lock on an open file, until it is closed; False where another process has it.

    On Windows a locked byte cannot be read by others, so one far behind the text is locked. A file system without locks
    (some network drives) protects nothing, with a warning.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(2**30)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by data loader workers
    except OSError as fault:
        if fault.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        log.warning(f"{file.name} cannot be locked ({fault.strerror}): start no second run there")
    return True


def write_atomic(path: Path, text: str) -> None:
    """Writes a text file so that it is either the old one or the whole new one, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def sha256_text(text: str) -> str:
    """SHA-256 of the text's UTF-8 bytes, in hex."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
