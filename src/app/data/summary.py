"""The report in a few lines, for the terminal."""

from typing import Any

_MARKS = {"error": "✗", "warning": "!"}


def summary(value: dict[str, Any], *, rows_shown: int = 3) -> str:
    """What was read and written, every kind of finding with its first rows and remedy, and the judgements."""
    counts, splits, tokens = value["counts"], value["splits"], value["tokens"]
    lines = [f"{counts['rows_in']:,} rows in, {counts['rows_kept']:,} kept, {counts['rows_rejected']:,} rejected"]
    for source in value["sources"]:
        share = f", {source['train_share']:.0%} of train" if len(value["sources"]) > 1 else ""
        weight = f", weight {source['weight']:g}" if source["weight"] != 1 else ""
        lines.append(f"  {source['file']}: {source['rows']:,} rows ({'; '.join(source['found'])}){weight}{share}")
    lines.append("  " + ", ".join(f"{name} {part['samples']:,}" for name, part in splits.items()))
    if tokens["all"]:
        over = ", ".join(f"{rows:,} over {limit}" for limit, rows in tokens["over"].items() if rows) or "none over 512"
        figures = tokens["all"]
        lines.append(
            f"  tokens ({tokens['counted']}): median {figures['median']:,.0f}, 99 % up to {figures['p99']:,.0f}, "
            f"longest {figures['max']:,}; {over}"
        )
    verbs = {"reject": "rejected", "repair": "repaired", "warn": "noted"}
    for finding in value["findings"]:
        title = finding["title"]
        lines.append(f"{verbs[finding['action']]:>9} {finding['rows_found']:>7,}  {title}. {finding['remedy']}")
        for row in finding["rows"][:rows_shown]:
            lines.append(f"{'':>19}{row['file']}:{row['line']}: {row['detail'][:120]}")
        if finding["rows_found"] > rows_shown:
            lines.append(f"{'':>19}…")
    lines += [f"{_MARKS[a['level']]} {a['text']}: {a['remedy']}" for a in value["advice"]]
    return "\n".join(lines)
