"""report.html of an evaluation: base against tuned, with what it means and how it was measured."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from app.evaluate.charts import strips
from app.evaluate.findings import p_text
from app.evaluate.page_parts import appendix, examples, harness, prompts, speed
from app.evaluate.page_style import STYLE
from app.pages.charts import line_chart, number
from app.pages.document import document, section

_MODELS = ("base", "tuned")
_TONES = {"better": "good", "worse": "bad", "higher": "quiet", "lower": "quiet"}
_CARDS = ("perplexity", "rouge_l", "ended")


def page(report: Mapping[str, Any]) -> str:
    """The report as HTML; see ``report.schema.json`` for ``report``."""
    title = report["run"]["path"]
    by_name = {metric["name"]: metric for metric in report["metrics"]}
    held_out = [metric for metric in report["metrics"] if metric["task"] == "heldout"]
    body = "".join(
        (
            _head(report, by_name),
            section("Gate", _gate(report["gate"])) if report["gate"] else "",
            _findings(report["findings"]),
            section("Before and after, on rows held out", _measures(held_out)),
            section("Perplexity by length", _lengths(report["by_length"])) if len(report["by_length"]) > 1 else "",
            section("Forgetting", _forgetting(report, by_name)) if report["forgetting"] else "",
            section("Training", _training(report["curves"])) if report["curves"] else "",
            section("Best and worst answers", examples(report["examples"])) if report["examples"] else "",
            section("Benchmark prompts", prompts(report, by_name)) if report["prompts"] else "",
            section("Speed", speed(report["speed"])) if report.get("speed") else "",
            section("lm-evaluation-harness", harness(report["lm_eval"])) if report.get("lm_eval") else "",
            appendix(report),
        )
    )
    return document(f"Evaluation: {title}", body, style=STYLE)


def _head(report: Mapping[str, Any], by_name: Mapping[str, Mapping[str, Any]]) -> str:
    run, told = report["run"], report["headline"]
    cards = [_card(by_name[name]) for name in _CARDS if name in by_name and by_name[name]["tuned"]["n"]]
    lost = report["forgetting"]
    if lost and lost["value"] is not None:
        known = lost["low"] is not None
        tone = "bad-text" if known and lost["low"] > 0 else "good-text" if known and lost["high"] < 0 else ""
        between = f"95 %: {lost['low']:+.1%} to {lost['high']:+.1%}" if known else ""
        cards.append(
            f'<div class="card"><span>Forgetting</span><b class="{tone}">{lost["value"]:+.1%}</b>'
            f"<small>{between}</small></div>"
        )
    result = run["result"]
    facts = [f"{run['base']} ({run['family']})"]
    if "steps" in result:
        facts.append(f"{result['steps']:,} steps")
    if run["status"] != "finished":
        facts.append(f"training {run['status']}")
    return (
        '<header><p class="quiet">Evaluation of a fine-tuned model, base against tuned</p>'
        f"<h1>{escape(run['path'])}</h1>"
        f'<p class="verdict {told["level"]}">{escape(told["verdict"])}</p>'
        f'<p class="headline">{escape(told["text"][:1].upper() + told["text"][1:])}</p>'
        f'<p class="quiet">{escape(", ".join(facts))}; measured on the {report["split"]} split</p></header>'
        f'<div class="cards">{"".join(cards)}</div>'
    )


def _card(metric: Mapping[str, Any]) -> str:
    before, after = metric["base"]["value"], metric["tuned"]["value"]
    share = metric["name"] == "ended"
    tone = {"better": "good-text", "worse": "bad-text"}.get(metric["verdict"], "quiet")
    change = f"{after / before - 1:+.0%}" if before and after is not None and not share else metric["verdict"]
    return (
        f'<div class="card"><span>{escape(metric["title"])}</span><b>{number(after, share=share)}</b>'
        f'<small>from {number(before, share=share)} <span class="change {tone}">{change}</span></small></div>'
    )


def _gate(results: Sequence[Mapping[str, Any]]) -> str:
    items = "".join(
        f'<li><span class="pill {"bad" if result["failed"] else "good"}">{"failed" if result["failed"] else "passed"}'
        f"</span><code>--fail-if {escape(repr(result['condition']))}</code><span>"
        f"{_gate_value(result)}</span></li>"
        for result in results
    )
    return f'<ul class="gate">{items}</ul>'


def _gate_value(result: Mapping[str, Any]) -> str:
    if result["value"] is None:
        return "could not be measured"
    share = result["condition"].rstrip().endswith("%")
    return f"it is {number(result['value'], share=share)}"


def _findings(found: Sequence[Mapping[str, str]]) -> str:
    items = "".join(
        f'<li class="{each["level"]}"><b>{escape(each["text"])}</b>'
        + (f"<span>{escape(each['remedy'][:1].upper() + each['remedy'][1:])}.</span>" if each["remedy"] else "")
        + "</li>"
        for each in found
    )
    return f'<ul class="advice">{items}</ul>' if items else ""


def _legend() -> str:
    dots = "".join(f'<span><i class="dot {model}"></i>{model}</span>' for model in _MODELS)
    return f'<div class="legend">{dots}<small>bar: 95 % bootstrap interval; scales begin at 0</small></div>'


def _measures(metrics: Sequence[Mapping[str, Any]]) -> str:
    shown = [metric for metric in metrics if metric["tuned"]["n"] or metric["base"]["n"]]
    left = [metric["title"] for metric in metrics if metric not in shown]
    note = f'<p class="quiet">Not shown, as no row counts for them: {escape(", ".join(left))}.</p>' if left else ""
    return "".join(_measure(metric) for metric in shown) + _legend() + note


def _measure(metric: Mapping[str, Any]) -> str:
    estimates = {model: metric[model] for model in _MODELS}
    highs = [found["high"] or found["value"] or 0 for found in estimates.values()]
    bounded = metric["unit"].startswith(("share", "F-measure", "distinct"))
    top = 1.0 if bounded and max(highs) > 0.5 else max(highs) * 1.08 or 1.0
    hint = {"lower": "lower is better", "higher": "higher is better", "neither": "neither way is better"}
    return (
        f'<div class="measure"><span class="name">{escape(metric["title"])}'
        f"<small>{hint[metric['better']]}</small></span>{strips(estimates, top=top)}{_numbers(estimates)}"
        f'<span class="told">{_verdict(metric)}</span></div>'
    )


def _numbers(estimates: Mapping[str, Mapping[str, Any]]) -> str:
    before, after = estimates["base"], estimates["tuned"]
    between = f"[{number(after['low'])}, {number(after['high'])}]" if after["low"] is not None else "no interval"
    return (
        f'<span class="numbers">{number(before["value"])} → <b>{number(after["value"])}</b>'
        f"<small>{between}, n = {after['n']:,}</small></span>"
    )


def _verdict(metric: Mapping[str, Any]) -> str:
    tone = _TONES.get(metric["verdict"], "quiet")
    text = "" if metric["p"] is None else escape(p_text(metric["p"]))
    verdict = metric["verdict"].replace("no difference shown", "no difference").replace(" to tell", "")
    return f'<span class="pill {tone}">{escape(verdict)}</span><small> {text}</small>'


def _lengths(buckets: Sequence[Mapping[str, Any]]) -> str:
    top = max(bucket[model]["high"] or bucket[model]["value"] or 0 for bucket in buckets for model in _MODELS) * 1.08
    lines = []
    for bucket in buckets:
        upper = bucket["up_to"]
        name = f"{bucket['above'] + 1:,} to {upper:,}" if upper else f"over {bucket['above']:,}"
        estimates = {model: bucket[model] for model in _MODELS}
        lines.append(
            f'<div class="measure"><span class="name">{name}<small>tokens a row</small></span>'
            f'{strips(estimates, top=top or 1.0)}{_numbers(estimates)}<span class="told"></span></div>'
        )
    return "".join(lines) + '<p class="quiet">Tokens of the whole row, prompt included; the loss is the answers\'.</p>'


def _forgetting(report: Mapping[str, Any], by_name: Mapping[str, Mapping[str, Any]]) -> str:
    lost = report["forgetting"]
    value = "–" if lost["value"] is None else f"{lost['value']:+.1%}"
    between = "" if lost["low"] is None else f" (95 %: {lost['low']:+.1%} to {lost['high']:+.1%})"
    parts = [by_name[name] for name in ("general_text", "general_answers", "general_passed") if name in by_name]
    return (
        f"<p>Perplexity on a fixed set of general texts and simple questions, which no run is trained on, changed by "
        f"<b>{value}</b>{between}. More than zero is forgetting.</p>{''.join(_measure(part) for part in parts)}"
    )


def _training(curves: Mapping[str, Any]) -> str:
    losses = {
        name: curves[tag] for tag, name in (("train/loss", "training"), ("val/loss", "validation")) if tag in curves
    }
    charts = [line_chart("Loss, nats per trained token", losses, unit="nats", noisy=True)]
    for tag, title, name, unit in (
        ("lr", "Learning rate", "learning rate", ""),
        ("speed/tokens_per_second", "Speed, tokens/s", "tokens/s", "tokens/s"),
        ("memory/process_gib", "Memory, GiB", "this process", "GiB"),
    ):
        if tag in curves:
            charts.append(line_chart(title, {name: curves[tag]}, unit=unit, noisy=tag.startswith("speed")))
    return f'<div class="plots">{"".join(charts)}</div><p class="quiet">Over optimizer steps.</p>'
