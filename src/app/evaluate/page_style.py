"""What the evaluation's page adds to the style that it shares with the data report."""

from app.pages.style import STYLE as SHARED

STYLE = (
    SHARED
    + """
.headline{font-size:17px;margin:8px 0 0}
.card .change{font-weight:600;font-size:13px}.good-text{color:var(--good)}.bad-text{color:var(--bad)}
.advice li.good{border-left-color:var(--good)}
.gate{list-style:none;margin:0;padding:0;display:grid;gap:6px}
.gate li{display:flex;gap:10px;align-items:baseline;flex-wrap:wrap}
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
.checks{display:flex;flex-wrap:wrap;gap:4px 6px;margin-top:6px}
.checks .pill{white-space:normal;font-weight:500;border-radius:9px;overflow-wrap:anywhere}
summary .ends{float:right;font-variant-numeric:tabular-nums;color:var(--quiet)}
table.defined td,table.defined th{text-align:left}
@media (max-width:640px){.measure{grid-template-columns:1fr auto}.measure .strips{grid-column:1/-1;order:3}
.measure .told{grid-column:1/-1;order:4;text-align:left}.measure .told small{display:inline}
table.defined,table.defined tbody,table.defined tr,table.defined td,
table.defined th{display:block;border:0;padding:1px 0}table.defined tr{border-top:1px solid var(--line);padding:8px 0}
table.defined tr:first-child{display:none}table.defined td[data-of]::before{content:attr(data-of) ": ";
color:var(--quiet)}}
"""
)
