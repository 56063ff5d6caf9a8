"""``python -m app export KIND --run runs/X``: the tuned model in the form that others run, checked to be the same."""

import difflib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from app.commands import run_command

if TYPE_CHECKING:
    from app.export.exporter import Bars, Outcome

GB = 1000**3


def merged(
    run: Path,
    output: Path | None = None,
    dtype: str = "auto",
    exact: bool = False,
    shard_gb: float = 5.0,
    verify: bool = True,
    data: Path | None = None,
    prompts: int = 16,
) -> int:
    """A Hugging Face folder: base and adapter in one, in 16 bits.

    Args:
        run: the run directory.
        output: the folder to write; RUN/export/merged by default. What is there is replaced when the new one is whole.
        dtype: auto (the base's), bfloat16, float16 or float32.
        exact: merge into the NF4-rounded base the adapter was trained on rather than the original one.
        shard_gb: at most so many gigabytes (10^9 bytes) of weights in a file.
        verify: compare with the run before the folder is put in place; exit 1 if it is not the same model.
        data: prepared JSONL to compare at; the run's test or validation split by default.
        prompts: how many conversations of it at most.
    """
    from app.export.exporter import export_merged

    _require_positive(shard_gb=shard_gb, prompts=prompts)
    with _bars() as bars:
        outcome = export_merged(
            run,
            output,
            dtype=dtype,
            exact=exact,
            shard_bytes=int(shard_gb * GB),
            verify=verify,
            data=data,
            prompts=prompts,
            bars=bars,
        )
    return _report(outcome)


def gguf(
    run: Path,
    output: Path | None = None,
    quant: str = "f16",
    name: str | None = None,
    exact: bool = False,
    verify: bool = True,
    data: Path | None = None,
    prompts: int = 16,
) -> int:
    """Files for llama.cpp, LM Studio and others, straight from base and adapter.

    Args:
        run: the run directory.
        output: the folder to write into; RUN/export/gguf by default.
        quant: types, several by commas: f32, f16, bf16, q8_0, and by llama.cpp (pip install 'app[gguf]') q6_k,
            q5_k_m, q4_k_m and others.
        name: of the model in the file's name, Model-Size-Quant.gguf; the family's by default.
        exact: from the NF4-rounded base the adapter was trained on rather than the original one.
        verify: compare each with the run before it is put in place; exit 1 if one is not the same model.
        data: prepared JSONL to compare at; the run's test or validation split by default.
        prompts: how many conversations of it at most.
    """
    from app.export.exporter import export_gguf

    _require_positive(prompts=prompts)
    quants = [part.strip() for part in quant.split(",") if part.strip()]
    with _bars() as bars:
        outcome = export_gguf(
            run,
            output,
            quants=quants,
            name=name,
            exact=exact,
            verify=verify,
            data=data,
            prompts=prompts,
            bars=bars,
        )
    return _report(outcome)


def lora_gguf(
    run: Path,
    output: Path | None = None,
    name: str | None = None,
    verify: bool = True,
    data: Path | None = None,
    prompts: int = 16,
) -> int:
    """The adapter alone as GGUF, for `llama-server --lora` on any GGUF of the same base.

    Args:
        run: the run directory.
        output: the folder to write into; RUN/export/lora-gguf by default.
        name: of the model in the file's name; the family's by default.
        verify: compare with the run on a float16 GGUF of the base, made for it; exit 1 if it is not the same model.
        data: prepared JSONL to compare at; the run's test or validation split by default.
        prompts: how many conversations of it at most.
    """
    from app.export.exporter import export_lora_gguf

    _require_positive(prompts=prompts)
    with _bars() as bars:
        outcome = export_lora_gguf(run, output, name=name, verify=verify, data=data, prompts=prompts, bars=bars)
    return _report(outcome)


def ollama(
    run: Path,
    output: Path | None = None,
    quant: str = "q8_0",
    name: str | None = None,
    verify: bool = True,
    data: Path | None = None,
    prompts: int = 16,
) -> int:
    """A folder for `ollama create NAME -f Modelfile`: GGUF file, template, stop tokens, parameters.

    Args:
        run: the run directory.
        output: the folder to write; RUN/export/ollama by default. What is there is replaced when the new one is whole.
        quant: one GGUF type, as in `export gguf`.
        name: of the model in the file's name; the family's by default.
        verify: compare with the run before the folder is put in place; exit 1 if it is not the same model.
        data: prepared JSONL to compare at; the run's test or validation split by default.
        prompts: how many conversations of it at most.
    """
    from app.export.exporter import export_ollama

    _require_positive(prompts=prompts)
    with _bars() as bars:
        outcome = export_ollama(
            run, output, quant=quant, name=name, verify=verify, data=data, prompts=prompts, bars=bars
        )
    return _report(outcome)


def bento(
    run: Path,
    name: str | None = None,
    include_base: bool = False,
    verify: bool = True,
    data: Path | None = None,
    prompts: int = 16,
) -> int:
    """The run in BentoML's model store, where the service finds it.

    Args:
        run: the run directory.
        name: in the store; the run's own by default.
        include_base: store the base's weights too, for machines without a hub; otherwise the service gets them by the
            id in the manifest, and a base in a folder stays where it is.
        verify: compare the copy's answers with the run's; exit 1 (and no entry in the store) if they differ.
        data: prepared JSONL to compare at; the run's test or validation split by default.
        prompts: how many conversations of it at most.
    """
    from app.export.bento import export_bento

    _require_positive(prompts=prompts)
    with _bars() as bars:
        outcome, tag = export_bento(
            run, name=name, include_base=include_base, verify=verify, data=data, prompts=prompts, bars=bars
        )
    if outcome.passed:
        print(f"BentoML model {tag}")
    return _report(outcome)


KINDS: dict[str, Callable[..., int]] = {
    "merged": merged,
    "gguf": gguf,
    "lora-gguf": lora_gguf,
    "ollama": ollama,
    "bento": bento,
}


def main(argv: Sequence[str]) -> int:
    """Exit status 0: exported and the same model; 1: not the same; 2: a fault the message explains; 130: ctrl-C."""
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {kind:<10} {(function.__doc__ or '').splitlines()[0]}" for kind, function in KINDS.items()]
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
        return run_command(KINDS[kind], argv[1:], name=f"export {kind}")
    except KeyboardInterrupt:
        print("stopped: nothing was replaced; the same command goes on where it stopped", file=sys.stderr)
        return 130


def _require_positive(**values: float) -> None:
    from app.errors import ConfigError, several

    faults = [f"--{name} is {value}" for name, value in values.items() if value <= 0]
    if faults:
        raise ConfigError(several("these options must be above 0", faults), remedy="leave them out for the defaults")


@contextmanager
def _bars() -> "Iterator[Bars]":
    """Progress bars on a terminal, silence elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        def bar(title: str, total: int) -> Callable[[int], None]:
            task = progress.add_task(title, total=total)

            def advance(amount: int) -> None:
                progress.advance(task, amount)

            return advance

        yield bar


def _report(outcome: "Outcome") -> int:
    for verdict in outcome.verdicts:
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
    if outcome.report:
        print(f"report: {outcome.report}")
    else:
        print("not checked (--verify false)")
    return 0 if outcome.passed else 1
