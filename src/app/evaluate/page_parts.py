"""The page's longer sections: answers, prompts, speed, and what the figures are."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from textwrap import shorten
from typing import Any

from app.pages.charts import number as short

_MODELS = ("base", "tuned")
_LONGEST = 4000


def examples(found: Sequence[Mapping[str, Any]]) -> str:
    """The best and the worst answers of the tuned model, beside the base's and the right ones."""
    parts = []
    for place, title in (("best", "Best"), ("worst", "Worst")):
        some = [example for example in found if example["place"] == place]
        if some:
            first = "".join(_example(example, shown=number == 0) for number, example in enumerate(some))
            parts.append(f"<h3>{title}</h3>{first}")
    return (
        f"{''.join(parts)}<p class='quiet'>By ROUGE-L of the tuned model's answer, of {len(found):,} answered "
        "questions; all of them are in report.json.</p>"
    )


def _example(example: Mapping[str, Any], *, shown: bool) -> str:
    scores = example["rouge_l"]
    title = shorten(" ".join(example["question"].split()), 80, placeholder=" …")
    sides = "".join(
        f"<div><h4>{name}</h4>{said(example[key])}</div>"
        for key, name in (
            ("question", "question"),
            ("reference", "right answer"),
            ("base", f"base, ROUGE-L {scores['base']:.2f}"),
            ("tuned", f"tuned, ROUGE-L {scores['tuned']:.2f}"),
        )
    )
    return (
        f'<details{" open" if shown else ""}><summary><span class="ends">{scores["base"]:.2f} → '
        f'{scores["tuned"]:.2f}</span>{escape(title)}</summary><div class="pair">{sides}</div></details>'
    )


def said(text: str) -> str:
    """A text as it was written."""
    shown = text[:_LONGEST] + (" …" if len(text) > _LONGEST else "")
    return f'<pre class="said">{escape(shown) if text.strip() else "<i>(nothing)</i>"}</pre>'


def prompts(report: Mapping[str, Any], by_name: Mapping[str, Mapping[str, Any]]) -> str:
    """Every benchmark prompt with both answers side by side and what became of its checks."""
    found = report["prompts"]
    metric = by_name.get("prompts_passed")
    passed = ""
    if metric and metric["tuned"]["n"]:
        base, tuned = (round((metric[model]["value"] or 0) * metric[model]["n"]) for model in _MODELS)
        passed = f"<p>Passed: base {base} of {metric['base']['n']}, tuned <b>{tuned} of {metric['tuned']['n']}</b>.</p>"
    categories = dict.fromkeys(each["category"] for each in found)
    return passed + "".join(
        f"<h3>{escape(category)}</h3>" + "".join(_prompt(each) for each in found if each["category"] == category)
        for category in categories
    )


def _prompt(each: Mapping[str, Any]) -> str:
    asked = "".join(f"<h4>{escape(m['role'])}</h4>{said(m['content'])}" for m in each["messages"])
    sides = "".join(
        f"<div><h4>{model}{'' if each[model]['ended'] else ', cut off at the limit'}</h4>{said(each[model]['text'])}"
        f"{_checks(each[model]['checks'])}</div>"
        for model in _MODELS
    )
    marks = " ".join(_mark(model, each[model]["checks"]) for model in _MODELS if each[model]["checks"])
    return (
        f'<details><summary><span class="ends">{marks}</span>{escape(each["id"])}</summary>'
        f'<div class="asked">{asked}</div><div class="pair">{sides}</div></details>'
    )


def _mark(model: str, checks: Sequence[Mapping[str, Any]]) -> str:
    good = all(check["passed"] for check in checks)
    return f'<span class="pill {"good" if good else "bad"}">{model} {"✓" if good else "✗"}</span>'


def _checks(checks: Sequence[Mapping[str, Any]]) -> str:
    pills = "".join(
        f'<span class="pill {"good" if check["passed"] else "bad"}">{"✓" if check["passed"] else "✗"} '
        f"{escape(check['detail'])}</span>"
        for check in checks
    )
    return f'<div class="checks">{pills}</div>' if pills else ""


def speed(found: Mapping[str, Any]) -> str:
    """What `benchmark` measured."""
    rows = "".join(
        f"<tr><th>{escape(each['title'])}</th><td>{short(each['median'])} {escape(each['unit'])}</td>"
        f"<td>{short(each['low'])} to {short(each['high'])}</td></tr>"
        for each in found["measurements"]
    )
    rows += f"<tr><th>peak memory</th><td>{found['peak_memory'] / 2**30:.2f} GiB</td><td></td></tr>"
    limit = found.get("limit")
    bound = (
        f"<p>Reading all weights once a token at {limit['bandwidth'] / 1e9:,.0f} GB/s would give "
        f"{limit['tokens_per_second']:,.0f} tokens/s; {limit['fraction']:.0%} of that is reached.</p>"
        if limit
        else ""
    )
    return (
        '<div class="scroll"><table class="wide"><tr><th></th><th>median</th><th>from … to</th></tr>'
        f"{rows}</table></div>"
        f'{bound}<p class="quiet">{escape(found["device"])}; {found["repeats"]} repeats after '
        f"{found['warmup']} to warm up; prompt of {found['prompt_tokens']:,} tokens.</p>"
    )


def harness(found: Mapping[str, Any]) -> str:
    """What lm-evaluation-harness measured."""
    rows = "".join(
        f"<tr><th>{escape(each['task'])} <small>{escape(each['metric'])}</small></th>"
        + "".join(f"<td>{short(each[model])} ± {short(each[model + '_stderr'])}</td>" for model in _MODELS)
        + "</tr>"
        for each in found["results"]
    )
    return (
        '<div class="scroll"><table class="wide"><tr><th>task</th><th>base</th><th>tuned</th></tr>'
        f'{rows}</table></div><p class="quiet">lm_eval {escape(found["version"])}; ± is its standard error.</p>'
    )


def appendix(report: Mapping[str, Any]) -> str:
    """How the figures were made: definitions, statistics, environment, configuration."""
    metrics = "".join(
        f'<tr><th>{escape(m["title"])}</th><td data-of="unit">{escape(m["unit"])}</td>'
        f'<td data-of="counted">{escape(m["denominator"])} ({m["tuned"]["denominator"]:,.0f})</td>'
        f'<td data-of="left out">{escape(m["excludes"])} ({m["tuned"]["excluded"]:,})</td>'
        f'<td data-of="source">{escape(m["source"])}</td></tr>'
        for m in report["metrics"]
    )
    forgetting = report["forgetting"]
    lost = f"<p>Forgetting: {escape(forgetting['definition'])}.</p>" if forgetting else ""
    stats = report["statistics"]
    environment = {**report["environment"], "measured": report["created"]}
    flat = {
        name: ", ".join(f"{key} {each}" for key, each in value.items()) if isinstance(value, Mapping) else value
        for name, value in environment.items()
    }
    facts = "".join(
        f"<tr><th>{escape(name.replace('_', ' '))}</th><td>{escape(str(value))}</td></tr>"
        for name, value in flat.items()
    )
    configuration = json.dumps(report["configuration"], indent=1, ensure_ascii=False)
    return (
        "<section><h2>How it was measured</h2>"
        f"<p>Intervals: {escape(stats['intervals'])}, {stats['confidence']:.0%}, {stats['resamples']:,} resamples. "
        f"Tests: {escape(stats['tests'])}; p values are corrected by {escape(stats['correction'])}; below "
        f"{stats['significance']} counts as shown. Seed {stats['seed']}.</p>{lost}"
        "<details><summary>What each metric counts</summary><div class='scroll'><table class='wide defined'><tr>"
        "<th>metric</th><th>unit</th><th>counted</th><th>left out</th><th>source</th></tr>"
        f"{metrics}</table></div></details>"
        f"<details><summary>Environment</summary><table class='facts'>{facts}</table></details>"
        f"<details><summary>Configuration of the run</summary>{said_whole(configuration)}</details></section>"
        "<footer>The same figures are in report.json; every sample's result is in evaluation-samples.jsonl.</footer>"
    )


def said_whole(text: str) -> str:
    """A text in full."""
    return f'<pre class="said">{escape(text)}</pre>'
