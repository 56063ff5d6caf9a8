"""The exports to files: each is written beside its target, checked there, and takes its place only if it passed."""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from app.export.adapter import Adapter
from app.export.check import References, Verdict, gather_references, judge
from app.export.equivalence import Sample, Scorer
from app.export.gguf_file import (
    DIRECT,
    Direct,
    check_quants,
    file_name,
    gguf_bytes,
    is_current,
    weight_bytes,
    write_gguf,
)
from app.export.lora_gguf import lora_tensors, write_lora_gguf
from app.export.merged import merged_bytes, pick_type, write_merged
from app.export.ollama import modelfile
from app.export.output import replaceable, require_folder
from app.export.report import write_report
from app.export.runtime import QUANTS, LlamaCpp, llama_cpp, quantize
from app.export.samples import held_out
from app.export.scorers import merged_scorer
from app.export.target import Advance, discard, partial_path, publish, publish_folder
from app.export.tuned import TunedModel, open_tuned, require_room, working_memory

Bars = Callable[[str, int], Advance]
"""Starts a progress bar with a title and a total; the result advances it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an export came to.

    Attributes:
        paths: what is in place now.
        verdicts: one per file or folder; empty where nothing was checked.
        report: the Markdown report, None where nothing was checked.
    """

    paths: Sequence[Path]
    verdicts: Sequence[Verdict]
    report: Path | None

    @property
    def passed(self) -> bool:
        return all(verdict.passed for verdict in self.verdicts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """What an export is compared at.

    Attributes:
        data: prepared JSONL; None is the run's test or validation split.
        prompts: how many conversations of it at most.
    """

    data: Path | None
    prompts: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """The comparison an export goes through: references asked once, for all files."""

    tuned: TunedModel
    samples: Sequence[Sample]
    source: str
    references: References
    bars: Bars

    def judge(self, scorer: Scorer, name: str, kind: str) -> Verdict:
        advance = self.bars(f"checking {name}", len(self.samples))
        return judge(scorer, self.tuned, self.references, name=name, kind=kind, advance=lambda: advance(1))

    def report(self, kind: str, verdicts: Sequence[Verdict]) -> Path:
        """Writes the report into the run directory."""
        references = self.references
        return write_report(
            self.tuned.run.reports,
            kind,
            verdicts,
            source=self.source,
            samples=self.samples,
            run=references.run,
            twin=references.twin,
            twin_dtype=references.twin_dtype,
        )

    def judge_gguf(self, file: Path, name: str, kind: str, *, adapter: Path | None = None) -> Verdict:
        context = max(len(sample.ids) for sample in self.samples) + 64
        with LlamaCpp(file, context=context, adapter=adapter) as scorer:
            return self.judge(scorer, name, kind)


@contextmanager
def checking(
    tuned: TunedModel, options: CheckOptions | None, *, bars: Bars, twin: bool = True
) -> Iterator[Check | None]:
    """The check, with its references' logits on disk while the block runs; None where none is wanted."""
    if options is None:
        yield None
        return
    samples, source = held_out(tuned, data=options.data, count=options.prompts)
    tuned.run.reports.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=tuned.run.reports, prefix=".export.") as folder:
        advance = bars("asking the run", (1 + twin) * len(samples))
        references = gather_references(tuned, samples, Path(folder), twin=twin, advance=lambda: advance(1))
        yield Check(tuned=tuned, samples=samples, source=source, references=references, bars=bars)


def export_merged(
    run: Path,
    output: Path | None,
    *,
    dtype: str,
    exact: bool,
    shard_bytes: int,
    check_at: CheckOptions | None,
    bars: Bars,
) -> Outcome:
    """A Hugging Face folder; see `merged`."""
    tuned = open_tuned(run, exact=exact)
    kind = pick_type(dtype, tuned)
    place = output or _default(run, "merged")
    target = replaceable(place, "merged", tuned)
    advance = bars("merging", merged_bytes(tuned, kind))
    work = write_merged(tuned, target, dtype=kind, shard_bytes=shard_bytes, advance=advance)
    verdicts = []
    with checking(tuned, check_at, bars=bars) as check:
        if check:
            with merged_scorer(work, tuned) as scorer:
                verdicts.append(check.judge(scorer, target.name, str(kind).removeprefix("torch.")))
    _settle(target, verdicts, place=publish_folder)
    return outcome_of("merged-exact" if exact else "merged", [place], verdicts, check)


def export_gguf(
    run: Path,
    output: Path | None,
    *,
    quants: Sequence[str],
    name: str | None,
    exact: bool,
    check_at: CheckOptions | None,
    bars: Bars,
) -> Outcome:
    """GGUF files, one per type; see `gguf_file` and `runtime.quantize`."""
    quants = list(dict.fromkeys(quant.lower() for quant in quants))
    check_quants(quants, [*DIRECT, *QUANTS])
    if check_at or set(quants) - set(DIRECT):
        llama_cpp()
    tuned = open_tuned(run, exact=exact)
    folder = output or _default(run, "gguf")
    require_folder(folder)
    _gguf_room(tuned, folder, quants)
    targets = [folder / file_name(tuned, quant, name=name) for quant in quants]
    verdicts = []
    with checking(tuned, check_at, bars=bars) as check:
        for quant, target, file in _written(tuned, quants, targets, bars):
            own = [check.judge_gguf(file, target.name, quant)] if check else []
            if file != target:
                _settle(target, own, place=publish)
            verdicts += own
    return outcome_of("gguf-exact" if exact else "gguf", targets, verdicts, check)


def export_lora_gguf(
    run: Path, output: Path | None, *, name: str | None, check_at: CheckOptions | None, bars: Bars
) -> Outcome:
    """The adapter as GGUF, checked on a float16 GGUF of the bare base that is written for it and removed."""
    tuned = open_tuned(run)
    size = sum(tensor.numel() * 4 for tensor in lora_tensors(tuned).tensors.values())
    folder = output or _default(run, "lora-gguf")
    require_folder(folder)
    target = folder / file_name(tuned, "F32", name=name).replace(".gguf", "-LoRA.gguf")
    if check_at:
        llama_cpp()
    require_room(folder, disk=size + (gguf_bytes(tuned, "f16") if check_at else 0), memory=working_memory(tuned))
    write_lora_gguf(tuned, target, advance=bars("adapter", size))
    verdicts = []
    with checking(tuned, check_at, bars=bars) as check:
        if check:
            bare = dataclasses.replace(tuned, adapter=Adapter(updates={}, replaced={}, config=tuned.adapter.config))
            base = folder / f".{target.name}.base"
            advance = bars("base for the check", weight_bytes(tuned, "f16"))
            try:
                file = write_gguf(bare, base, quant="f16", advance=advance)
                verdicts.append(check.judge_gguf(file, target.name, "f16", adapter=partial_path(target)))
            finally:
                discard(base)
    _settle(target, verdicts, place=publish)
    return outcome_of("lora-gguf", [target], verdicts, check)


def export_ollama(
    run: Path,
    output: Path | None,
    *,
    quant: str,
    name: str | None,
    check_at: CheckOptions | None,
    bars: Bars,
) -> Outcome:
    """A folder with GGUF file and Modelfile, for ``ollama create NAME -f Modelfile``."""
    quant = quant.lower()
    check_quants([quant], [*DIRECT, *QUANTS])
    if check_at or quant not in DIRECT:
        llama_cpp()
    tuned = open_tuned(run)
    place = output or _default(run, "ollama")
    target = replaceable(place, "ollama", tuned)
    _gguf_room(tuned, target.parent, [quant])
    work = partial_path(target)
    file = work / file_name(tuned, quant, name=name)
    verdicts = []
    with checking(tuned, check_at, bars=bars) as check:
        for _, inner, written in _written(tuned, [quant], [file], bars):
            if check:
                verdicts.append(check.judge_gguf(written, file.name, quant))
            if written != inner:
                publish(inner)
    (work / "Modelfile").write_text(modelfile(tuned, gguf_name=file.name), encoding="utf-8")
    for other in work.iterdir():
        if other.name not in (file.name, "Modelfile"):
            other.unlink()
    _settle(target, verdicts, place=publish_folder)
    return outcome_of("ollama", [place], verdicts, check)


def _written(
    tuned: TunedModel, quants: Sequence[str], targets: Sequence[Path], bars: Bars
) -> Iterator[tuple[str, Path, Path]]:
    """Type, target and the file as it lies now: the target itself if it is current, else its partial form.

    What llama.cpp makes smaller is made from the first 16- or 32-bit file of this export, or from a float16 file that
    is removed at the end.
    """
    small = [(quant, target) for quant, target in zip(quants, targets, strict=True) if quant not in DIRECT]
    source: Path | None = None
    for quant, target in zip(quants, targets, strict=True):
        if quant not in DIRECT:
            continue
        current = is_current(tuned, target)
        file = target if current else _write(tuned, target, quant, bars)
        yield quant, target, file
        if quant != "q8_0" and target.is_file():
            source = source or target
    missing = [(quant, target) for quant, target in small if not is_current(tuned, target)]
    temporary = targets[0].with_name(".for-llama.cpp.gguf")
    if missing and source is None:
        source = _write(tuned, temporary, "f16", bars)
    for quant, target in small:
        if (quant, target) in missing:
            assert source is not None
            advance = bars(f"quantising to {quant}", 1)
            quantize(source, partial_path(target), quant)
            advance(1)
            yield quant, target, partial_path(target)
        else:
            yield quant, target, target
    discard(temporary)


def _write(tuned: TunedModel, target: Path, quant: str, bars: Bars) -> Path:
    direct: Direct = next(kind for kind in DIRECT if kind == quant)
    return write_gguf(tuned, target, quant=direct, advance=bars(f"writing {quant}", weight_bytes(tuned, quant)))


def _gguf_room(tuned: TunedModel, folder: Path, quants: Sequence[str]) -> None:
    needed = sum(gguf_bytes(tuned, quant) for quant in quants)
    if set(quants) - set(DIRECT) and not set(quants) & {"f16", "bf16", "f32"}:
        needed += gguf_bytes(tuned, "f16")
    require_room(folder, disk=needed, memory=working_memory(tuned))


def _settle(target: Path, verdicts: Sequence[Verdict], *, place: Callable[[Path], None]) -> None:
    """Puts what passed in place and removes what did not; an older target stays where the new one failed."""
    if all(verdict.passed for verdict in verdicts):
        place(target)
    else:
        discard(target)


def _default(run: Path, kind: str) -> Path:
    return run / "export" / kind


def outcome_of(kind: str, targets: Sequence[Path], verdicts: Sequence[Verdict], check: Check | None) -> Outcome:
    """What an export came to, once its targets that passed are in place."""
    failed = {verdict.name for verdict in verdicts if not verdict.passed}
    # A single target may have another name than its verdict: Ollama's is the GGUF file's, BentoML's the tag.
    several = len(targets) > 1
    paths = [path for path in targets if (path.name not in failed if several else not failed)]
    return Outcome(paths=paths, verdicts=verdicts, report=check.report(kind, verdicts) if check else None)
