"""``python -m app export KIND --run runs/X``: the tuned model in the form that others run, checked to be the same."""

import difflib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from app.artifact import RunDirectory
from app.commands import run_command
from app.errors import require_ranges
from app.pages.run import update_run_page
from app.terminal import is_quiet, progress_bars

if TYPE_CHECKING:
    from app.export.exporter import Bars, CheckOptions, Outcome

GB = 1000**3


@dataclass(frozen=True, kw_only=True)
class Export(ABC):
    """What every kind takes; the fields of a kind's class are its options.

    Args:
        run: the run directory.
        verify: compare the export with the run before it is put in place; exit 1 if it is not the same model.
        data: prepared JSONL to compare at; the run's test or validation split by default.
        prompts: how many conversations of it at most.
    """

    run: Path
    verify: bool = True
    data: Path | None = None
    prompts: int = 16

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"prompts": (1, 10**6)}

    @property
    def check_at(self) -> "CheckOptions | None":
        """What to compare at; None for --verify false."""
        from app.export.exporter import CheckOptions

        return CheckOptions(data=self.data, prompts=self.prompts) if self.verify else None

    def __call__(self) -> int:
        """Exports; returns the exit status."""
        require_ranges("", {name: (getattr(self, name), *limits) for name, limits in self.ranges.items()})
        with _bars() as bars:
            outcome = self.write(bars)
        update_run_page(RunDirectory(self.run))
        return _report(outcome)

    @abstractmethod
    def write(self, bars: "Bars") -> "Outcome":
        """Writes and checks what the kind is."""


@dataclass(frozen=True, kw_only=True)
class Merged(Export):
    """A Hugging Face folder: base and adapter in one, in 16 bits.

    Args:
        output: the folder to write; RUN/export/merged by default. An earlier export there is replaced when the new
            one is whole, anything else refused.
        dtype: auto (the base's), bfloat16, float16 or float32.
        exact: merge into the NF4-rounded base the adapter was trained on rather than the original one.
        shard_gb: at most so many gigabytes (10^9 bytes) of weights in a file.
    """

    output: Path | None = None
    dtype: str = "auto"
    exact: bool = False
    shard_gb: float = 5.0

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {**Export.ranges, "shard_gb": (0.001, 10**6)}

    def write(self, bars: "Bars") -> "Outcome":
        from app.export.exporter import export_merged

        return export_merged(
            self.run,
            self.output,
            dtype=self.dtype,
            exact=self.exact,
            shard_bytes=int(self.shard_gb * GB),
            check_at=self.check_at,
            bars=bars,
        )


@dataclass(frozen=True, kw_only=True)
class Gguf(Export):
    """Files for llama.cpp, LM Studio and others, straight from base and adapter.

    Args:
        output: the folder to write into; RUN/export/gguf by default.
        quant: types, several by commas: f32, f16, bf16, q8_0, and by llama.cpp (pip install 'app[gguf]') q6_k,
            q5_k_m, q4_k_m and others.
        name: of the model in the file's name, Model-Size-Quant.gguf; the family's by default.
        exact: from the NF4-rounded base the adapter was trained on rather than the original one.
    """

    output: Path | None = None
    quant: str = "f16"
    name: str | None = None
    exact: bool = False

    def write(self, bars: "Bars") -> "Outcome":
        from app.export.exporter import export_gguf

        return export_gguf(
            self.run,
            self.output,
            quants=[part.strip() for part in self.quant.split(",") if part.strip()],
            name=self.name,
            exact=self.exact,
            check_at=self.check_at,
            bars=bars,
        )


@dataclass(frozen=True, kw_only=True)
class LoraGguf(Export):
    """The adapter alone as GGUF, for `llama-server --lora` on any GGUF of the same base.

    It is checked on a float16 GGUF of the base, made for that and removed.

    Args:
        output: the folder to write into; RUN/export/lora-gguf by default.
        name: of the model in the file's name; the family's by default.
    """

    output: Path | None = None
    name: str | None = None

    def write(self, bars: "Bars") -> "Outcome":
        from app.export.exporter import export_lora_gguf

        return export_lora_gguf(
            self.run,
            self.output,
            name=self.name,
            check_at=self.check_at,
            bars=bars,
        )


@dataclass(frozen=True, kw_only=True)
class Ollama(Export):
    """A folder for `ollama create NAME -f Modelfile`: GGUF file, template, stop tokens, parameters.

    Args:
        output: the folder to write; RUN/export/ollama by default. An earlier export there is replaced when the new
            one is whole, anything else refused.
        quant: one GGUF type, as in `export gguf`.
        name: of the model in the file's name; the family's by default.
    """

    output: Path | None = None
    quant: str = "q8_0"
    name: str | None = None

    def write(self, bars: "Bars") -> "Outcome":
        from app.export.exporter import export_ollama

        return export_ollama(
            self.run,
            self.output,
            quant=self.quant,
            name=self.name,
            check_at=self.check_at,
            bars=bars,
        )


@dataclass(frozen=True, kw_only=True)
class Bento(Export):
    """The run in BentoML's model store, where the service finds it.

    Args:
        name: in the store; the run's own by default.
        include_base: store the base's weights too, for machines without a hub; otherwise the service gets them by the
            id in the manifest, and a base in a folder stays where it is.
    """

    name: str | None = None
    include_base: bool = False

    def write(self, bars: "Bars") -> "Outcome":
        from app.export.bento import export_bento

        outcome, tag = export_bento(
            self.run,
            name=self.name,
            include_base=self.include_base,
            check_at=self.check_at,
            bars=bars,
        )
        if outcome.passed:
            print(f"BentoML model {tag}")
        return outcome


@dataclass(frozen=True, kw_only=True)
class Push:
    """Uploads the adapter, or what an earlier export wrote, to the hub, with its model card.

    The token is the one of `hf auth login` or of HF_TOKEN; HF_ENDPOINT names another hub.

    Args:
        run: the run directory.
        repo: where to: organisation/name or user/name. It is made if there is none.
        what: the adapter, or the result of an `export` of that kind.
        private: whether a repository that is made is private; one that exists stays what it is.
        message: of the commit.
    """

    run: Path
    repo: str
    what: Literal["adapter", "merged", "gguf", "lora-gguf"] = "adapter"
    private: bool = True
    message: str = "Upload"

    def __call__(self) -> int:
        """Uploads; returns the exit status."""
        from app.export.push import push

        print(push(self.run, self.repo, what=self.what, private=self.private, message=self.message))
        return 0


KINDS: dict[str, type[Export] | type[Push]] = {
    "merged": Merged,
    "gguf": Gguf,
    "lora-gguf": LoraGguf,
    "ollama": Ollama,
    "bento": Bento,
    "push": Push,
}


def main(argv: Sequence[str]) -> int:
    """Exit status 0: exported and the same model; 1: not the same; 2: a fault the message explains; 130: ctrl-C."""
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {kind:<10} {(options.__doc__ or '').splitlines()[0]}" for kind, options in KINDS.items()]
        usage = ["usage: python -m app export KIND --run RUN [options]", "", *lines, ""]
        print("\n".join([*usage, "python -m app export KIND --help lists a kind's options and defaults."]))
        return 0 if argv else 2
    kind = argv[0]
    if kind not in KINDS:
        close = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        print(f"error: cannot export {kind!r}{hint}\n  remedy: use one of {', '.join(KINDS)}", file=sys.stderr)
        return 2
    try:
        return run_command(
            KINDS[kind], argv[1:], name=f"export {kind}", stays="what was written, and what is not the same model"
        )
    except KeyboardInterrupt:
        resumed = "nothing was replaced; the same command goes on where it stopped"
        print(f"stopped: {'the store is as it was' if kind == 'bento' else resumed}", file=sys.stderr)
        return 130


@contextmanager
def _bars() -> "Iterator[Bars]":
    """A bar for each step of the work."""
    with progress_bars() as progress:

        def bar(title: str, total: int) -> Callable[[int], None]:
            task = progress.add_task(title, total=total)

            def advance(amount: int) -> None:
                progress.advance(task, amount)

            return advance

        yield bar


def _report(outcome: "Outcome") -> int:
    for verdict in outcome.verdicts:
        if verdict.passed and is_quiet():
            continue
        near = verdict.twin or verdict.run
        word = "same model" if verdict.passed else "NOT THE SAME MODEL"
        texts = verdict.tokenizer
        print(
            f"{verdict.name}: {word}; KL {near.kl:.2g} nats per token, top-1 {near.top1:.4f}, perplexity "
            f"{near.perplexity:.3f} (reference {near.reference_perplexity:.3f}), "
            f"{texts.strings - len(texts.differing)} of {texts.strings} texts tokenised as in training"
        )
        for fault in verdict.faults:
            print(f"  - {fault}")
    for path in outcome.paths:
        print(f"wrote {path}")
    if is_quiet():
        return 0 if outcome.passed else 1
    if outcome.report:
        print(f"report: {outcome.report}")
    else:
        print("not checked (--verify false)")
    return 0 if outcome.passed else 1
