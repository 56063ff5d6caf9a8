"""The whole plan of a run: memory against what the card has free, speed, hours and disk."""

import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from app.errors import ConfigError, MachineError
from app.families import Family, get_family
from app.hub import is_local
from app.plan.gpu import Gpu
from app.plan.memory import MemoryPlan, plan_memory, trained_parameters
from app.plan.options import FitOptions, epochs_of
from app.plan.rows import Rows, count_rows
from app.plan.shapes import ModelShape, read_shape
from app.plan.speed import Work, launch_seconds, step_seconds, step_work

LENGTHS = (8192, 4096, 2048, 1536, 1024, 768, 512, 256)
PACKED = 0.97
"""Of packed rows' tokens, what is none of padding (best-fit decreasing on 100,000 samples)."""


@dataclass(frozen=True, kw_only=True)
class DiskNeed:
    """Bytes that a run writes.

    Attributes:
        what: it writes.
        where: the folder.
        bytes: at most.
        free: on that folder's disk.
    """

    what: str
    where: Path
    bytes: int
    free: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What `plan` found.

    Attributes:
        options: of the run.
        shape: of the base.
        gpu: the card.
        memory: part by part; None where not even the smallest memory plan of the fast layers fits.
        refusal: then, why.
        shorter: the longest row that fits, where the configured one does not; None where none does.
        rows: what there is to train on; None where there is no prepared folder.
        steps: optimizer steps of the whole run; None likewise.
        tokens_per_second: on rows of the mean length (without data: of the full length); None for an unknown card.
        seconds: of the whole run; None where rows or card are unknown.
        disk: what is written.
    """

    options: FitOptions
    shape: ModelShape
    gpu: Gpu
    memory: MemoryPlan | None
    refusal: str
    shorter: int | None
    rows: Rows | None
    steps: int | None
    tokens_per_second: float | None
    seconds: float | None
    disk: tuple[DiskNeed, ...]

    @property
    def fits(self) -> bool:
        return self.memory is not None and self.memory.peak <= self.gpu.free


def estimate(options: FitOptions, gpu: Gpu) -> Estimate:
    """The plan of a run on ``gpu``; of the base only config.json is fetched.

    Raises:
        ModelError: the base's config.json cannot be had, or is of another family.
        ConfigError: an option is wrong.
    """
    family = get_family(options.model["family"])
    shape = read_shape(options.model["base"], family, revision=options.model["revision"])
    memory, refusal = _memory(shape, family, options, gpu)
    shorter = None
    if memory is None or memory.peak > gpu.free:
        shorter = longest_that_fits(shape, family, options, gpu)
    data = options.data
    rows = count_rows(
        data["path"],
        family,
        base=options.model["base"],
        revision=options.model["revision"],
        max_length=data["max_length"],
        truncate=data["too_long"] == "truncate",
    )
    batches, length = _micro_batches(options, rows)
    steps = speed = seconds = None
    if batches is not None:
        steps, batches = _until_the_end(options.trainer, batches)
    if memory is not None and gpu.card is not None:
        each = micro_batch_seconds(shape, options, gpu, memory, length)
        speed = data["batch_size"] * length / each
        if batches is not None:
            seconds = batches * each
    return Estimate(
        options=options,
        shape=shape,
        gpu=gpu,
        memory=memory,
        refusal=refusal,
        shorter=shorter,
        rows=rows,
        steps=steps,
        tokens_per_second=speed,
        seconds=seconds,
        disk=disk_needs(shape, family, options, memory),
    )


def _memory(shape: ModelShape, family: Family, options: FitOptions, gpu: Gpu) -> tuple[MemoryPlan | None, str]:
    try:
        return plan_memory(shape, family, options, gpu), ""
    except MachineError as fault:
        return None, fault.what


def longest_that_fits(shape: ModelShape, family: Family, options: FitOptions, gpu: Gpu) -> int | None:
    """The longest rows that need no more than is free, among common lengths below the configured one."""
    for length in LENGTHS:
        if length < options.data["max_length"]:
            memory, _ = _memory(shape, family, replace(options, data={**options.data, "max_length": length}), gpu)
            if memory is not None and memory.peak <= gpu.free:
                return length
    return None


def micro_batch_work(shape: ModelShape, options: FitOptions, memory: MemoryPlan, length: int) -> list[Work]:
    """Kind by kind, of one micro-batch with rows of ``length`` tokens, run as the memory plan says."""
    rows = options.data["batch_size"]
    return step_work(
        shape,
        rows=rows,
        length=length,
        trained=rows * length,
        rank=options.model["rank"],
        precision=memory.precision,
        recomputed=memory.recomputed,
        attention_again=memory.attention_again,
    )


def micro_batch_seconds(shape: ModelShape, options: FitOptions, gpu: Gpu, memory: MemoryPlan, length: int) -> float:
    """Of one micro-batch with rows of ``length`` tokens: what the card needs, or Python if that is more."""
    assert gpu.card is not None
    seconds = step_seconds(micro_batch_work(shape, options, memory, length), gpu.card)
    if memory.precision == "plain":
        return max(seconds, launch_seconds(shape, recomputed=memory.recomputed))
    return seconds


def _micro_batches(options: FitOptions, rows: Rows | None) -> tuple[int | None, int]:
    """How many an epoch has, and the tokens of a row in them."""
    data = options.data
    if rows is None or not rows.rows:
        return None, data["max_length"]
    count, length = rows.rows, max(1, round(rows.tokens / rows.rows))
    if data["packing"]:
        count, length = math.ceil(rows.tokens / PACKED / data["max_length"]), data["max_length"]
    batches = math.ceil(count / data["batch_size"])
    limit = options.trainer.get("limit_train_batches")
    if limit is not None:
        # As Lightning takes it: a whole number is a count, any other one a share.
        every, batches = batches, min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        if not batches:
            raise ConfigError(
                f"trainer.limit_train_batches {limit} leaves none of {every:,} micro-batches to train on",
                remedy="raise it",
            )
    return batches, length


def _until_the_end(trainer: Mapping[str, Any], batches: int) -> tuple[int, int]:
    """Optimizer steps and micro-batches of all epochs, or until ``max_steps``; an epoch's last step may be a short one.

    Args:
        trainer: its options.
        batches: of an epoch.
    """
    window = trainer["accumulate_grad_batches"]
    each = math.ceil(batches / window)
    epochs, most = epochs_of(trainer), trainer.get("max_steps", -1)
    steps = most if epochs == -1 else epochs * each if most == -1 else min(most, epochs * each)
    whole, rest = divmod(steps, each)
    return steps, whole * batches + rest * window


def disk_needs(
    shape: ModelShape, family: Family, options: FitOptions, memory: MemoryPlan | None
) -> tuple[DiskNeed, ...]:
    """The base from the hub, its NF4 form in the cache, and the run directory."""
    needs = []
    base = options.model["base"]
    if not is_local(base) and not _downloaded(base, options.model["revision"]):
        home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
        needs.append(_need("base model from the hub", home, 2 * (shape.block_weights + shape.plain_weights)))
    if options.model["quantization"] == "nf4":
        cache = Path(os.environ.get("APP_CACHE") or Path.home() / ".cache" / "app")
        parts = {part.name: part.bytes for part in memory.parts} if memory is not None else {}
        quantised = parts.get("weights", shape.block_weights // 2) + 2 * shape.plain_weights
        needs.append(_need("its NF4 form, for later starts", cache / "nf4", quantised))
    trained = 4 * trained_parameters(shape, family, options.model)
    # A checkpoint holds the adapter and at most two moments as wide; one more is there while the oldest is replaced.
    saved = options.checkpoints.get("keep", 2) + options.checkpoints.get("best", 1) + 1
    needs.append(_need("checkpoints and adapters", Path(options.run), (3 * saved + 3) * trained))
    return tuple(needs)


def _need(what: str, where: Path, size: int) -> DiskNeed:
    there = where.expanduser().absolute()
    while not there.exists():
        there = there.parent
    return DiskNeed(what=what, where=where, bytes=size, free=shutil.disk_usage(there).free)


def _downloaded(base: str, revision: str | None) -> bool:
    """Whether weights of the checkpoint lie in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    files = ("model.safetensors", "model.safetensors.index.json")
    return any(isinstance(try_to_load_from_cache(base, file, revision=revision), str) for file in files)
