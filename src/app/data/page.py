"""report.html of prepared data: what was kept, what was not and why."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from app.data.charts import bars, histogram, stacked
from app.pages.document import document, section
from app.pages.style import STYLE

ROWS_SHOWN = 50
_VERBS = {"reject": "rejected", "repair": "repaired", "warn": "noted"}
_COPIES = ("duplicate", "near-duplicate", "contradiction", "leak")


def page(value: Mapping[str, Any]) -> str:
    """The report as HTML; see `app.data.report.summarise` for ``value``."""
    counts = value["counts"]
    title = ", ".join(dict.fromkeys(source["file"] for source in value["sources"]))
    body = "".join(
        (
            _head(value, title),
            _advice(value["advice"]),
            section("Rows", _rows(value)),
            section("Length", _length(value["tokens"])),
            section("Rejected, by reason", bars(_by_action(value, "reject"), tone="bad")),
            section("Copies and contradictions", _copies(value)),
            section("Repaired and noted", bars(_noted(value), tone="warn")),
            section("Where it comes from", _sources(value)),
            section("Languages", _languages(value["languages"])) if counts["rows_kept"] else "",
            section("Classes", bars(_first(value["labels"], 20))) if value["labels"] else "",
            section("How it was split", f"<p>{escape(value['split_rule']['text'])}</p>" + _split_facts(value)),
            section("Every finding", _findings(value["findings"])),
            f"<footer>prepare, app {escape(value['app_version'])}. The same figures are in report.json; every rejected "
            "row with its reason is in rejected.jsonl.</footer>",
        )
    )
    return document(f"Data report: {title}", body, style=STYLE)


def _head(value: Mapping[str, Any], title: str) -> str:
    counts, tokens = value["counts"], value["tokens"]["all"]
    verdict = ("good", "fit for training") if value["fit"] else ("bad", "not fit as it is")
    if not value["fit"] and counts["rows_kept"]:
        verdict = ("warn", "fit once the bad rows are set aside")
    cards = [
        (f"{counts['rows_in']:,}", "rows read"),
        (f"{counts['rows_kept']:,}", "kept"),
        (f"{counts['rows_rejected']:,}", "rejected"),
        (f"{tokens.get('median', 0):,.0f}", "median tokens"),
    ]
    shown = "".join(f'<div class="card"><b>{number}</b><span>{text}</span></div>' for number, text in cards)
    return (
        f'<header><p class="quiet">Data report</p><h1>{escape(title)}</h1>'
        f'<p class="verdict {verdict[0]}">{verdict[1]}</p></header><div class="cards">{shown}</div>'
    )


def _advice(advice: Sequence[Mapping[str, str]]) -> str:
    items = "".join(
        f'<li class="{"bad" if item["level"] == "error" else "warn"}"><b>{escape(item["text"])}</b>'
        f"<span>{escape(item['remedy'])}</span></li>"
        for item in advice
    )
    return f'<ul class="advice">{items}</ul>' if items else ""


def _rows(value: Mapping[str, Any]) -> str:
    splits = value["splits"]
    fate = {name: part["rows"] for name, part in splits.items()}
    chart = stacked({**fate, "rejected": value["counts"]["rows_rejected"]}, ("accent", "second", "third", "bad"))
    repeated = sum(part["samples"] - part["rows"] for part in splits.values())
    more = f"<p>Weights repeat {repeated:,} rows in train.</p>" if repeated else ""
    tokens = ", ".join(f"{name} {part['tokens']:,}" for name, part in splits.items())
    return f'{chart}{more}<p class="quiet">Tokens: {tokens}.</p>'


def _length(tokens: Mapping[str, Any]) -> str:
    if not tokens["all"]:
        return '<p class="quiet">no rows</p>'
    shape = tokens["histogram"]
    limits = [int(limit) for limit in tokens["over"]]
    chart = histogram(shape["edges"], shape["rows"], longer=shape["longer"][0], marks=limits, unit="tokens")
    figures = tokens["all"]
    names = (("median", "median"), ("mean", "mean"), ("p90", "90 % up to"), ("p99", "99 % up to"), ("max", "longest"))
    table = "".join(f"<tr><th>{text}</th><td>{figures[name]:,.0f}</td></tr>" for name, text in names)
    total = max(1, sum(shape["rows"]) + shape["longer"][0])
    cut = "".join(
        f"<tr><th>{int(limit):,}</th><td>{rows:,}</td><td>{rows / total:.2%}</td>"
        f"<td>{tokens['packed'][limit]:.1%}</td></tr>"
        for limit, rows in tokens["over"].items()
    )
    return (
        f'{chart}<p class="quiet">Token counts are {escape(tokens["counted"])}.</p><div class="tables">'
        f"<table><caption>Tokens a row</caption>{table}</table>"
        "<table><caption>What a sequence length would truncate</caption>"
        f"<tr><th>length</th><th>rows</th><th>share</th><th>full when packed</th></tr>{cut}</table></div>"
    )


def _by_action(value: Mapping[str, Any], action: str) -> dict[str, int]:
    return {f["title"]: f["rows_found"] for f in value["findings"] if f["action"] == action}


def _noted(value: Mapping[str, Any]) -> dict[str, int]:
    return {
        f"{f['title']} ({_VERBS[f['action']]})": f["rows_found"]
        for f in value["findings"]
        if f["action"] != "reject" and f["kind"] not in _COPIES
    }


def _copies(value: Mapping[str, Any]) -> str:
    found = {f["kind"]: f["rows_found"] for f in value["findings"]}
    names = {
        "duplicate": "exact copies (rejected)",
        "near-duplicate": "near-copies",
        "contradiction": "same question, another answer",
        "leak": "moved, so that no split sees another's near-copies",
    }
    return bars({text: found.get(kind, 0) for kind, text in names.items()}, tone="second")


def _sources(value: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{escape(s['file'])}<small>{escape('; '.join(s['found']))}</small></th><td>{s['rows']:,}</td>"
        f"<td>{s['kept']:,}</td><td>{s['weight']:g}</td><td>{s['train_samples']:,}</td><td>{s['train_share']:.1%}</td></tr>"
        for s in value["sources"]
    )
    shapes = "".join(f"<li>{escape(shape)}: {count:,} rows</li>" for shape, count in value["shapes"].items())
    return (
        '<div class="scroll"><table class="wide"><tr><th>file</th><th>rows</th><th>kept</th><th>weight</th>'
        f"<th>in train</th><th>share</th></tr>{rows}</table></div><ul class='plain'>{shapes}</ul>"
    )


def _languages(languages: Mapping[str, Any]) -> str:
    known = _first(languages["rows"], 12)
    text = f'<p class="quiet">Of a sample of {languages["sample"]:,} rows.</p>'
    return bars({("too short, or code" if code == "unknown" else code): rows for code, rows in known.items()}) + text


def _split_facts(value: Mapping[str, Any]) -> str:
    rule = value["split_rule"]
    return (
        f'<p class="quiet">Seed {rule["seed"]}; {rule["val_fraction"]:.0%} validation, '
        f"{rule['test_fraction']:.0%} test; "
        f"{rule['rows_moved']:,} rows moved to their likes' side; {rule['rows_torn']:,} could not be kept together.</p>"
    )


def _findings(findings: Sequence[Mapping[str, Any]]) -> str:
    if not findings:
        return '<p class="quiet">Nothing was found.</p>'
    parts = []
    for finding in findings:
        rows = "".join(
            f"<tr><th>{escape(row['file'])}:{row['line']}</th><td>{escape(row['detail'][:300])}</td></tr>"
            for row in finding["rows"][:ROWS_SHOWN]
        )
        rest = finding["rows_found"] - min(ROWS_SHOWN, len(finding["rows"]))
        more = f'<p class="quiet">and {rest:,} more</p>' if rest else ""
        tone = {"reject": "bad", "repair": "second", "warn": "warn"}[finding["action"]]
        parts.append(
            f'<details><summary><i class="dot {tone}"></i><b>{escape(finding["title"])}</b> '
            f"<small>{_VERBS[finding['action']]} {finding['rows_found']:,}</small></summary>"
            f'<p>Remedy: {escape(finding["remedy"])}.</p><div class="scroll">'
            f'<table class="wide left">{rows}</table></div>{more}</details>'
        )
    return "".join(parts)


def _first(rows: Mapping[str, int], count: int) -> dict[str, int]:
    """The first ``count``, the others added up."""
    items = list(rows.items())
    rest = sum(value for _, value in items[count:])
    return {**dict(items[:count]), **({f"{len(items) - count} others": rest} if rest else {})}
