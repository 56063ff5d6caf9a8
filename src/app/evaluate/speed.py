"""How fast a model answers, through the engine that chat, evaluation and serving use."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from rich.progress import Progress

from app.errors import MachineError, require_ranges
from app.evaluate.device import device_name
from app.evaluate.general import general_set
from app.generate.cache import head_shape
from app.generate.engine import Engine
from app.generate.request import Answer
from app.generate.sampling import Sampling
from app.generate.session import Session
from app.model.memory import read_memory
from app.plan.cards import find_card


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One figure over all repeats.

    Attributes:
        name, title, unit: what it is.
        median: of the repeats.
        low, high: least and greatest.
        values: of each repeat.
    """

    name: str
    title: str
    unit: str
    median: float
    low: float
    high: float
    values: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class BandwidthLimit:
    """What reading all weights once a token allows at batch 1.

    Attributes:
        bandwidth: of the device's memory, bytes/s, by its data sheet.
        bytes_per_token: weights that a token passes through, and keys and values of a context half written.
        tokens_per_second: their quotient.
        fraction: of it that decoding reached.
    """

    bandwidth: float
    bytes_per_token: int
    tokens_per_second: float
    fraction: float


@dataclass(frozen=True, kw_only=True)
class SpeedReport:
    """What `speed_benchmark` found.

    Attributes:
        device: its name.
        measurements: all figures.
        limit: by memory bandwidth; None where the device is not known (`app.plan.cards`).
        peak_memory: bytes; on a GPU by the driver's count for this process, on a CPU its resident set.
        prompt_tokens, new_tokens, load, repeats, warmup, speculate: as asked.
        drafted: share of the tokens at batch 1 that came from drafts.
    """

    device: str
    measurements: Sequence[Measurement]
    limit: BandwidthLimit | None
    peak_memory: int
    prompt_tokens: int
    new_tokens: int
    load: int
    repeats: int
    warmup: int
    speculate: bool
    drafted: float


def speed_benchmark(
    session: Session,
    *,
    prompt_tokens: int = 512,
    new_tokens: int = 256,
    load: int = 8,
    repeats: int = 5,
    warmup: int = 1,
    speculate: bool = False,
    progress: Progress,
) -> SpeedReport:
    """Times answers to prompts of plain English text, greedily and past stop tokens, so that all are equally long.

    Args:
        session: the opened model.
        prompt_tokens: of each prompt.
        new_tokens: of each answer.
        load: requests at once for the figures under load.
        repeats: of every measurement.
        warmup: unmeasured repeats before (kernels are compiled and chosen, memory is taken).
        speculate: draft by prompt lookup, as chat does; how much it helps depends on the text, so it is off here.
        progress: shows how far it is.

    Raises:
        ConfigError: an option is out of range.
        MachineError: the cache does not fit.
    """
    most = 10**6
    require_ranges(
        "",
        {
            "prompt_tokens": (prompt_tokens, 1, most),
            "new_tokens": (new_tokens, 2, most),
            "load": (load, 1, most),
            "repeats": (repeats, 1, most),
            "warmup": (warmup, 0, most),
        },
    )
    device = session.causal_lm.device
    context = prompt_tokens + new_tokens + 1
    sampling = Sampling(max_tokens=new_tokens, ignore_stop=True)
    times: dict[str, list[float]] = {name: [] for name in _FIGURES}
    task = progress.add_task("benchmark", total=2 * (warmup + repeats))
    drafted, peak = 0.0, 0
    for loaded in (False, True):
        requests = load if loaded else 1
        engine = Engine(session, slots=requests, context=context, speculate=speculate)
        for repeat in range(warmup + repeats):
            asked = [prompt_ids(session, prompt_tokens, start=17 * (repeat * load + each)) for each in range(requests)]
            answers, seconds = timed(partial(engine.generate, asked, sampling), device)
            peak = max(peak, read_memory(device).process)
            if repeat >= warmup:
                figures = _loaded(answers, seconds) if loaded else _alone(answers[0], seconds)
                for name, value in figures.items():
                    times[name].append(value)
                if not loaded:
                    drafted += answers[0].drafts[1] / len(answers[0].token_ids) / repeats
            progress.advance(task)
        del engine  # its cache is freed before the next one is made
    measurements = [_measurement(name, values, new_tokens=new_tokens) for name, values in times.items()]
    name = device_name(device)
    decode = next(each.median for each in measurements if each.name == "decode")
    return SpeedReport(
        device=name,
        measurements=measurements,
        limit=bandwidth_limit(session, name, decode, positions=prompt_tokens + new_tokens // 2),
        peak_memory=peak,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        load=load,
        repeats=repeats,
        warmup=warmup,
        speculate=speculate,
        drafted=drafted,
    )


_FIGURES = {
    "first_token": ("time to first token", "s"),
    "prompt": ("prompt processing", "tokens/s"),
    "decode": ("decoding, one request", "tokens/s"),
    "latency": ("latency of {new_tokens} tokens", "s"),
    "load_decode": ("all answers together, under load", "tokens/s"),
    "load_first_token": ("time to first token under load, mean", "s"),
}
"""Name -> title, which may name an option of the benchmark, and unit."""


def _alone(answer: Answer, seconds: float) -> dict[str, float]:
    """Figures of one request; the first token's time is nearly all prompt processing."""
    return {
        "first_token": answer.time_to_first,
        "prompt": answer.prompt_tokens / answer.time_to_first,
        "decode": answer.tokens_per_second,
        "latency": seconds,
    }


def _loaded(answers: Sequence[Answer], seconds: float) -> dict[str, float]:
    """Figures of several requests at once, prompts included in the time."""
    return {
        "load_decode": sum(len(answer.token_ids) for answer in answers) / seconds,
        "load_first_token": statistics.mean(answer.time_to_first for answer in answers),
    }


def _measurement(name: str, values: Sequence[float], *, new_tokens: int) -> Measurement:
    title, unit = _FIGURES[name]
    return Measurement(
        name=name,
        title=title.format(new_tokens=new_tokens),
        unit=unit,
        median=statistics.median(values),
        low=min(values),
        high=max(values),
        values=tuple(values),
    )


def timed(work: Callable[[], list[Answer]], device: torch.device) -> tuple[list[Answer], float]:
    """What ``work`` returns and the seconds it takes until the device has finished."""
    _wait(device)
    began = time.perf_counter()
    answers = work()
    _wait(device)
    return answers, time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def prompt_ids(session: Session, count: int, *, start: int) -> list[int]:
    """``count`` tokens of the general set's passages, beginning at another place for another ``start``."""
    text = "\n\n".join(passage.text for passage in general_set().passages)
    ids: list[int] = session.tokenizer(text, add_special_tokens=False)["input_ids"]
    return [ids[(start + place) % len(ids)] for place in range(count)]


def bandwidth_limit(session: Session, name: str, decode: float, *, positions: int) -> BandwidthLimit | None:
    """The device's limit at batch 1; None where its bandwidth is not known.

    Args:
        session: the model.
        name: of the device, as its driver gives it.
        decode: tokens/s that were reached.
        positions: tokens in the cache, on average.
    """
    try:
        bandwidth = find_card(name).bandwidth
    except MachineError:
        return None
    read = weight_bytes(session) + positions * cache_bytes_per_position(session)
    limit = bandwidth / read
    return BandwidthLimit(bandwidth=bandwidth, bytes_per_token=read, tokens_per_second=limit, fraction=decode / limit)


def weight_bytes(session: Session) -> int:
    """Bytes of all weights a token passes through: quantised ones as they lie in memory, with their block scales.

    Of the input embedding one row is read, unless it is the output head too.
    """
    causal_lm = session.causal_lm
    embedding, head = causal_lm.get_input_embeddings().weight, causal_lm.get_output_embeddings().weight
    parameters = [each for each in causal_lm.parameters() if each is not embedding or embedding is head]
    total = 0
    for each in parameters:
        total += each.numel() * each.element_size()
        state = getattr(each, "quant_state", None)
        if state is not None:
            total += state.absmax.numel() * state.absmax.element_size()
    return total


def cache_bytes_per_position(session: Session) -> int:
    """Bytes of keys and values of one token."""
    config = session.causal_lm.config
    heads, width = head_shape(config)
    element = session.causal_lm.get_input_embeddings().weight.element_size()
    return int(2 * config.num_hidden_layers * heads * width * element)
