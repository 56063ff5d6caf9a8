"""The speed benchmark: what it counts, not how fast this machine is."""

import dataclasses

import pytest
import torch
from rich.progress import Progress

from app.errors import ConfigError
from app.evaluate.speed import SpeedReport, bandwidth_limit, prompt_ids, speed_benchmark, weight_bytes
from app.generate.session import Session, open_base
from conftest import TinyCheckpoint
from support.opening import open_plain, open_tuned


@pytest.fixture(scope="module")
def session(tiny: TinyCheckpoint) -> Session:
    return open_plain(tiny("smollm2"), "smollm2")


@pytest.fixture(scope="module")
def report(session: Session) -> SpeedReport:
    with Progress(disable=True) as progress:
        return speed_benchmark(session, prompt_tokens=20, new_tokens=6, load=3, repeats=3, warmup=1, progress=progress)


def test_every_figure_has_its_repeats(report: SpeedReport) -> None:
    names = [each.name for each in report.measurements]
    assert names == ["first_token", "prompt", "decode", "latency", "load_decode", "load_first_token"]
    for each in report.measurements:
        assert len(each.values) == 3
        assert 0 < each.low <= each.median <= each.high
        assert (each.low, each.high) == (min(each.values), max(each.values))
    assert report.peak_memory > 10 * 2**20
    assert report.limit is None  # no known GPU
    assert report.drafted == 0


def test_the_figures_fit_together(report: SpeedReport) -> None:
    by_name = {each.name: each.values for each in report.measurements}
    for first, prompt, decode, latency in zip(
        *(by_name[name] for name in ("first_token", "prompt", "decode", "latency")), strict=True
    ):
        assert prompt == pytest.approx(20 / first)
        assert first + 5 / decode <= latency * 1.001  # five tokens after the first one


def test_prompts_are_as_long_as_asked_and_differ(session: Session) -> None:
    first, second = prompt_ids(session, 3000, start=0), prompt_ids(session, 3000, start=17)
    assert len(first) == len(second) == 3000
    assert first != second


def test_the_bandwidth_limit_of_a_known_card(session: Session) -> None:
    found = bandwidth_limit(session, "NVIDIA GeForce RTX 4060", 100.0, positions=10)
    assert found is not None
    config = session.causal_lm.config
    cache = 10 * 2 * config.num_hidden_layers * config.num_key_value_heads * (64 // 4) * 4  # float32, width 64, 4 heads
    assert found.bytes_per_token == weight_bytes(session) + cache
    assert found.tokens_per_second == pytest.approx(272e9 / found.bytes_per_token)
    assert found.fraction == pytest.approx(100 / found.tokens_per_second)


def test_quantised_weights_count_as_they_lie_in_memory(session: Session, tiny: TinyCheckpoint) -> None:
    """NF4 is half a byte a weight, with a scale for each block of 64; embedding and norms stay as they are."""
    quantised = open_tuned(tiny("smollm2"), "smollm2", alpha=8, dtype=torch.bfloat16)
    linear = sum(
        module.weight.numel()
        for name, module in session.causal_lm.named_modules()
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name
    )
    adapter = sum(p.numel() * p.element_size() for name, p in quantised.causal_lm.named_parameters() if "lora_" in name)
    rest = (weight_bytes(session) - 4 * linear) // 2
    assert weight_bytes(quantised) == adapter + rest + linear // 2 + linear // 64


def test_options_out_of_range_are_all_named(session: Session) -> None:
    with Progress(disable=True) as progress, pytest.raises(ConfigError) as caught:
        speed_benchmark(session, prompt_tokens=0, repeats=0, progress=progress)
    assert "prompt_tokens is 0" in str(caught.value) and "repeats is 0" in str(caught.value)


def test_the_report_is_plain_data(report: SpeedReport) -> None:
    assert dataclasses.asdict(report)["measurements"][0]["title"] == "time to first token"


@pytest.mark.gpu
def test_a_gpu_is_measured_against_its_bandwidth(tiny: TinyCheckpoint) -> None:
    session = open_base(str(tiny("smollm2")), "smollm2", device="cuda")
    with Progress(disable=True) as progress:
        found = speed_benchmark(session, prompt_tokens=20, new_tokens=6, load=2, repeats=2, progress=progress)
    assert found.peak_memory > 100 * 2**20  # the driver's count: with the CUDA context
    assert found.device == torch.cuda.get_device_name()
    assert found.limit is None or 0 < found.limit.fraction < 1
