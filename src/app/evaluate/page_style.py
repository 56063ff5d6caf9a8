"""What the evaluation's page adds to the style that it shares with the data report."""

from app.data.page_style import STYLE as SHARED

STYLE = (
    SHARED
    + """
h3{font-size:14px;margin:0 0 6px;font-weight:600}
.headline{font-size:17px;margin:8px 0 0}
.card small{display:block}
.card .change{font-weight:600;font-size:13px}.good-text{color:var(--good)}.bad-text{color:var(--bad)}
.advice li.good{border-left-color:var(--good)}
.gate{list-style:none;margin:0;padding:0;display:grid;gap:6px}
.gate li{display:flex;gap:10px;align-items:baseline;flex-wrap:wrap}
code{font:13px/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.pill{display:inline-block;padding:0 9px;border-radius:99px;border:1px solid;font-size:12.5px;font-weight:600;
white-space:nowrap;line-height:1.6}
.pill.good{color:var(--good)}.pill.bad{color:var(--bad)}.pill.warn{color:var(--warn)}.pill.quiet{color:var(--quiet)}
.measure{display:grid;grid-template-columns:minmax(150px,205px) 1fr 158px 118px;gap:4px 16px;align-items:center;
padding:8px 0;border-top:1px solid var(--line)}.measure:first-of-type{border-top:0}
.measure .name{line-height:1.3}.measure .name small{display:block}
.measure .numbers{font-variant-numeric:tabular-nums;text-align:right}
.measure .numbers small{display:block}.measure .told{text-align:right}.measure .told small{display:block}
.strips{display:block;padding:0 6px}
.strip{display:block;position:relative;height:15px}
.strip::before{content:"";position:absolute;left:0;right:0;top:7px;height:1px;background:var(--line)}
.strip i{position:absolute}.strip .range{top:4.5px;height:6px;border-radius:3px;opacity:.38}
.strip .point{width:11px;height:11px;border-radius:50%;top:2px;margin-left:-5.5px;border:2px solid var(--card)}
.strip.base i{background:var(--quiet)}.strip.tuned i{background:var(--accent)}
.dot.base{background:var(--quiet)}.dot.tuned{background:var(--accent)}
.plots{display:grid;grid-template-columns:1fr 1fr;gap:22px 26px}
.plot svg text{font-size:11.5px}
svg .curve{fill:none;stroke-width:2;stroke-linejoin:round}svg .curve.faint{stroke-width:1;opacity:.35}
.curve.accent{stroke:var(--accent)}
.curve.warn{stroke:var(--warn)}svg .knot.accent{fill:var(--accent)}svg .knot.warn{fill:var(--warn)}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:10px 14px;margin:8px 0 4px}
.pair h4,.asked h4{margin:0 0 4px;font-size:13px;color:var(--quiet);font-weight:500}
.said{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;font:13px/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,
monospace;background:var(--back);border:1px solid var(--line);border-radius:8px;padding:9px 11px;max-height:330px;
overflow-y:auto}
.checks{display:flex;flex-wrap:wrap;gap:4px 6px;margin-top:6px}
.checks .pill{white-space:normal;font-weight:500;border-radius:9px;overflow-wrap:anywhere}
summary .ends{float:right;font-variant-numeric:tabular-nums;color:var(--quiet)}
.facts th{white-space:nowrap}.facts td{text-align:left;overflow-wrap:anywhere}
table.defined td,table.defined th{text-align:left}
@media (max-width:640px){.measure{grid-template-columns:1fr auto}.measure .strips{grid-column:1/-1;order:3}
.measure .told{grid-column:1/-1;order:4;text-align:left}.measure .told small{display:inline}
.plots,.pair{grid-template-columns:1fr}table.defined,table.defined tbody,table.defined tr,table.defined td,
table.defined th{display:block;border:0;padding:1px 0}table.defined tr{border-top:1px solid var(--line);padding:8px 0}
table.defined tr:first-child{display:none}table.defined td[data-of]::before{content:attr(data-of) ": ";
color:var(--quiet)}.facts th{white-space:normal}}
"""
)
