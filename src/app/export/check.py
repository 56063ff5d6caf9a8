"""Is the exported model the tuned one? Two references, stated bounds, one verdict.

- The *run*: the NF4 base with the adapter, as it was trained. An ordinary export stands on the 16-bit base and so is
  not bit-near to it; it must not be worse.
- The *twin*: base weights of the export's own kind with peft's adapter beside them, never merged, in float32 where
  that fits. It differs from the export by rounding alone, so its bounds are tight: a forgotten permutation, norm
  offset, scale or head breaks them by orders of magnitude (top-1 0.34 and 0.0 for the first two, measured).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.data.records import prompt
from app.data.render import render
from app.export.equivalence import Distance, Evidence, Sample, Scorer, collect, compare
from app.export.scorers import run_scorer, twin_dtype, twin_scorer
from app.export.strings import nasty_strings
from app.export.tuned import TunedModel

GREEDY = 3
"""Conversations that are also answered, side by side."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What an export must keep.

    Attributes:
        kl: most nats per token from the twin.
        top1: least agreement with the twin.
        loss: most nats per token that its loss may lie above the run's, at the interval's lower end.
    """

    kl: float
    top1: float
    loss: float


BOUNDS = {
    "copy": Bounds(kl=1e-6, top1=1.0, loss=0.0),
    "f32": Bounds(kl=1e-5, top1=0.998, loss=0.05),
    "float32": Bounds(kl=1e-5, top1=0.998, loss=0.05),
    "f16": Bounds(kl=2e-4, top1=0.98, loss=0.05),
    "float16": Bounds(kl=2e-4, top1=0.98, loss=0.05),
    "bf16": Bounds(kl=5e-3, top1=0.95, loss=0.05),
    "bfloat16": Bounds(kl=5e-3, top1=0.95, loss=0.05),
    "q8_0": Bounds(kl=0.05, top1=0.9, loss=0.1),
    "q6_k": Bounds(kl=0.05, top1=0.9, loss=0.1),
    "q5": Bounds(kl=0.15, top1=0.85, loss=0.15),
    "q4": Bounds(kl=0.5, top1=0.65, loss=0.3),
    "iq4": Bounds(kl=0.5, top1=0.65, loss=0.3),
    "q3": Bounds(kl=1.0, top1=0.6, loss=0.6),
    "q2": Bounds(kl=2.0, top1=0.4, loss=1.2),
}
"""By type, or by its beginning. Set from SmolLM2-135M, where each type's error was measured (2026-11) and given room;
larger models lose less to each type."""

ARITHMETIC = Bounds(kl=0.02, top1=0.08, loss=0.0)
"""What is added to the bounds where a float32 export is held against the run itself, which computes in 16 bits."""

TOKENIZER_SHARE = 1.0
"""Share of the nasty strings that must encode to the same ids and decode to the same text."""


@dataclass(frozen=True, kw_only=True)
class TokenizerCheck:
    """How the exported tokenizer did on the nasty strings; ``differing`` lists those that differ."""

    strings: int
    differing: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found about one exported file.

    Attributes:
        name: of the file or folder.
        kind: its type, such as "q4_k_m".
        passed: whether all bounds hold.
        faults: the bounds that do not, in words.
        bounds: what was asked.
        run, twin: the distances; ``twin`` is None where its weights did not fit into memory.
        tokenizer: the strings' result.
    """

    name: str
    kind: str
    passed: bool
    faults: Sequence[str]
    bounds: Bounds
    run: Distance
    twin: Distance | None
    tokenizer: TokenizerCheck


@dataclass(frozen=True, kw_only=True)
class References:
    """What every export of this run is compared with.

    Attributes:
        samples: where.
        run, twin: what they said; None for a twin that did not fit into memory or was not wanted.
        twin_dtype: arithmetic of the twin, "" for none.
        stops: ids that end an answer.
    """

    samples: Sequence[Sample]
    run: Evidence
    twin: Evidence | None
    twin_dtype: str
    stops: Sequence[int]


def bounds_for(kind: str) -> Bounds:
    """The bounds of a type."""
    return next((bounds for name, bounds in BOUNDS.items() if kind == name or kind.startswith(name)), BOUNDS["q2"])


def gather_references(
    tuned: TunedModel, samples: Sequence[Sample], folder: Path, *, twin: bool = True, advance: Callable[[], None]
) -> References:
    """Asks run and (with ``twin``) twin, one after the other; their logits lie in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    stops = tuned.tokenizer.convert_tokens_to_ids(list(tuned.family.stop_tokens))
    with run_scorer(tuned) as scorer:
        run = collect(scorer, samples, folder / "run.logits", stops=stops, greedy=GREEDY, advance=advance)
    dtype = twin_dtype(tuned) if twin else None
    said = None
    if dtype is not None:
        with twin_scorer(tuned, dtype) as scorer:
            said = collect(scorer, samples, folder / "twin.logits", stops=stops, greedy=GREEDY, advance=advance)
    return References(
        samples=samples,
        run=run,
        twin=said,
        twin_dtype=str(dtype).removeprefix("torch.") if dtype else "",
        stops=stops,
    )


def judge(
    scorer: Scorer,
    tuned: TunedModel,
    references: References,
    *,
    name: str,
    kind: str,
    advance: Callable[[], None],
) -> Verdict:
    """Compares an exported model with the references."""
    both = [references.run, *([references.twin] if references.twin else [])]
    distances = compare(scorer, both, references.samples, stops=references.stops, advance=advance)
    run, twin = distances[0], distances[1] if references.twin else None
    tokenizer = check_tokenizer(scorer, tuned)
    bounds = bounds_for(kind)
    faults = []
    if twin:
        faults += _far(twin, "the twin", bounds.kl, bounds.top1)
    if kind == "copy":
        faults += _far(run, "the run", bounds.kl, bounds.top1)
    elif tuned.exact or tuned.manifest.base.quantization == "none":
        faults += _far(run, "the run", bounds.kl + ARITHMETIC.kl, bounds.top1 - ARITHMETIC.top1)
    if run.loss_interval[0] > bounds.loss:
        faults.append(
            f"the loss lies {run.loss_change:.3f} nats above the run's, at least {run.loss_interval[0]:.3f} "
            f"with 97.5 % confidence, more than {bounds.loss:g}"
        )
    same = 1 - len(tokenizer.differing) / tokenizer.strings
    if same < TOKENIZER_SHARE:
        faults.append(f"{len(tokenizer.differing)} of {tokenizer.strings} texts are not tokenised as in training")
    return Verdict(
        name=name,
        kind=kind,
        passed=not faults,
        faults=faults,
        bounds=bounds,
        run=run,
        twin=twin,
        tokenizer=tokenizer,
    )


def _far(distance: Distance, reference: str, kl: float, top1: float) -> list[str]:
    faults = []
    if not distance.kl <= kl:
        faults.append(f"KL from {reference} is {distance.kl:.3g} nats per token, above {kl:g}")
    if not distance.top1 >= top1:
        faults.append(f"top-1 agreement with {reference} is {distance.top1:.4f}, below {top1:g}")
    return faults


def check_tokenizer(scorer: Scorer, tuned: TunedModel) -> TokenizerCheck:
    """Encodes and decodes 500 nasty strings, each as a question in the family's chat format, as serving does."""
    strings = nasty_strings()
    differing = []
    tokenizer: Any = tuned.tokenizer
    for text in strings:
        # White space at a message's ends is cut off by the renderer; between letters it stays.
        question = text if text == text.strip() else f"a{text}b"
        rendered = render(prompt(question), tuned.family.chat, answer_next=True).text
        expected = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        got = scorer.encode(rendered)
        back = tokenizer.decode(expected, clean_up_tokenization_spaces=False)
        if got != expected or scorer.decode(got).lstrip(" ") != back.lstrip(" "):
            differing.append(text)
    return TokenizerCheck(strings=len(strings), differing=differing)
