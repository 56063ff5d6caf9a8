"""Parts of the run's page: answers during training, links to what the run holds, configuration."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from app.artifact import Manifest, RunDirectory
from app.pages.history import Row
from app.pages.style import STYLE as SHARED

STYLE = (
    SHARED
    + """
a{color:var(--accent);text-underline-offset:2px}
.told{margin-left:6px}
.progress{height:8px;border-radius:99px;background:var(--line);overflow:hidden;margin:12px 0}
.progress span{display:block;height:100%;background:var(--accent);border-radius:99px}
.wide-plot,.narrow-plot{margin-bottom:22px}.narrow-plot{display:none}
.asked{padding:14px 0 6px;border-top:1px solid var(--line)}.asked:first-of-type{border-top:0;padding-top:0}
.asked>p{font-weight:600;margin:0 0 8px;white-space:pre-wrap;overflow-wrap:anywhere}
.asked .said{max-height:220px}.asked details{border:0;padding:4px 0 0;display:inline-block;margin-right:18px}
.asked details[open]{display:block}.asked summary{color:var(--quiet);font-size:13px}
.asked details h4{color:var(--quiet);font-size:13px;font-weight:500;margin:8px 0 4px}
.links{list-style:none;margin:0;padding:0;display:grid;gap:8px}.links code{overflow-wrap:anywhere}
.links span{color:var(--quiet)}
details{overflow-wrap:anywhere}
@media (max-width:640px){.wide-plot{display:none}.narrow-plot{display:block}
.facts th,.facts td{display:block;border:0;padding:1px 0}
.facts tr{display:block;border-bottom:1px solid var(--line);padding:5px 0}}
"""
)
FILES = (
    ("adapter", "the best adapter, as peft loads it; its README.md is the model card"),
    ("adapter-last", "the adapter of the last step saved"),
    ("config.yaml", "the whole configuration; fit --config takes it again"),
    ("manifest.json", "base, data, versions, results"),
)
NEXT = (
    ("reports/report.html", "evaluate", "is it better than its base?"),
    ("export", "export merged", "the model in the form that others run"),
)
"""Where its result lies, command, and what it answers; shown while there is no result."""
SECTIONS = ("model", "data", "trainer", "early_stopping", "divergence", "checkpoints", "run_page")
"""Of the configuration, in the order they are shown; the rest stands behind them."""
KEEP_OUT = ("callbacks", "logger", "plugins")


def samples(answers: Sequence[Row]) -> str:
    """Every prompt with its first and its newest answer side by side, and those between to unfold."""
    by_prompt: dict[str, list[Row]] = {}
    for row in answers:
        by_prompt.setdefault(row["prompt"], []).append(row)
    return "".join(_asked(prompt, rows) for prompt, rows in by_prompt.items())


def _asked(prompt: str, rows: Sequence[Row]) -> str:
    first, last, between = rows[0], rows[-1], rows[1:-1]
    shown = [(_step(first), first["answer"]), (_step(last), last["answer"])] if len(rows) > 1 else []
    shown = shown or [(_step(first), first["answer"])]
    expected = first.get("expected")
    folded = fold("Expected", said(expected)) if expected else ""
    if between:
        older = "".join(f"<h4>{_step(row)}</h4>{said(row['answer'])}" for row in reversed(between))
        folded += fold(f"{len(between)} more on the way", older)
    pair = "".join(f"<div><h4>{when}</h4>{said(text)}</div>" for when, text in shown)
    return f'<div class="asked"><p>{escape(prompt)}</p><div class="pair">{pair}</div>{folded}</div>'


def _step(row: Row) -> str:
    return f"step {row['step']:,}" if row["step"] else "before training"


def files(run: RunDirectory) -> str:
    """Links to what is there, and the commands that make what is not."""
    reports = sorted(
        (path for path in run.reports.glob("*") if path.suffix in (".html", ".md")),
        key=lambda path: (path.suffix, path.name),
    )
    items = [_link(f"reports/{path.name}", _about(path.stem)) for path in reports]
    exports = sorted(path for path in (run.path / "export").glob("*") if not path.name.startswith("."))
    items += [_link(f"export/{path.name}", "an export") for path in exports]
    items += [_link(name, note) for name, note in FILES if (run.path / name).exists()]
    place = escape(shlex.quote(str(run.path)))
    if (run.logs / "tensorboard").is_dir():
        items.append(
            f'<li><a href="logs/tensorboard">logs/tensorboard</a> <span>all curves: '
            f"<code>tensorboard --logdir {escape(shlex.quote(str(run.logs)))}</code></span></li>"
        )
    items += [
        f"<li><code>python -m app {command} --run {place}</code> <span>{note}</span></li>"
        for path, command, note in NEXT
        if not (run.path / path).exists()
    ]
    return f'<ul class="links">{"".join(items)}</ul>'


def _about(report: str) -> str:
    if report.startswith("export-"):
        return "is the export the same model?"
    return "base against tuned, on rows held out" if report == "report" else ""


def _link(path: str, note: str) -> str:
    told = f" <span>{escape(note)}</span>" if note else ""
    return f'<li><a href="{escape(path)}">{escape(path)}</a>{told}</li>'


def configuration(manifest: Manifest) -> str:
    """Every option with its value, section by section, and what it ran on."""
    config = {name: value for name, value in manifest.config.items() if name not in KEEP_OUT}
    single = {name: value for name, value in config.items() if not isinstance(value, Mapping)}
    sections = sorted(
        (name for name in config if name not in single),
        key=lambda name: SECTIONS.index(name) if name in SECTIONS else len(SECTIONS),
    )
    folded = [fold(name, _table(_flat(config[name])), is_open=name == "model") for name in sections]
    if single:
        folded.append(fold("general", _table(single.items())))
    made = {
        "app": manifest.app_version,
        "commit": manifest.git_commit,
        **manifest.versions,
        **{f"{split} data, SHA-256": digest for split, digest in manifest.data.sha256.items()},
    }
    folded.append(fold("versions and data", _table(made.items())))
    return "".join(folded)


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{name}.")
        elif name not in KEEP_OUT:
            yield f"{before}{name}", value


def _table(rows: Any) -> str:
    lines = "".join(f"<tr><th>{escape(str(name))}</th><td>{escape(_text(value))}</td></tr>" for name, value in rows)
    return f'<table class="facts wide">{lines}</table>'


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def said(text: str) -> str:
    """A text as it was written."""
    return f'<pre class="said">{escape(text) or "<i>nothing</i>"}</pre>'


def fold(title: str, content: str, *, is_open: bool = False) -> str:
    """What is shown on a click, without script."""
    return f"<details{' open' if is_open else ''}><summary>{escape(title)}</summary>{content}</details>"
