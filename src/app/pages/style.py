"""The style sheet of all pages: light and dark by the reader's preference, one column on a phone."""

STYLE = """
:root{--back:#fbfbfa;--card:#fff;--ink:#1c1f23;--quiet:#626a73;--line:#e3e5e8;--accent:#2f6fb2;--second:#7a5ca8;
--third:#2a8c82;--good:#2a7d4f;--warn:#b26a00;--bad:#b8372f}
@media (prefers-color-scheme:dark){:root{--back:#14171a;--card:#1c2024;--ink:#e8eaed;--quiet:#9aa3ad;--line:#2e343a;
--accent:#6aa7e8;--second:#b095de;--third:#5cc2b5;--good:#6cc493;--warn:#e3a13f;--bad:#ec7b72}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:860px;margin:0 auto;padding:28px 18px 48px}
header{margin-bottom:18px}h1{font-size:26px;line-height:1.2;margin:2px 0 8px;overflow-wrap:anywhere}
h2{font-size:16px;margin:0 0 12px}p{margin:8px 0}.quiet,small,figcaption,caption{color:var(--quiet)}
small,figcaption,caption{font-size:13px}
.verdict{display:inline-block;padding:2px 12px;border-radius:99px;border:1.5px solid;font-weight:600}
.verdict.good{color:var(--good)}.verdict.warn{color:var(--warn)}.verdict.bad{color:var(--bad)}
.cards{display:grid;grid-template-columns:repeat(4,1fr);gap:10px}
.card,section{background:var(--card);border:1px solid var(--line);border-radius:10px}
.card{padding:12px 14px}.card b{display:block;font-size:24px;line-height:1.2}.card span{color:var(--quiet)}
section{padding:16px 18px;margin-top:14px}
.advice{list-style:none;padding:0;margin:14px 0 0;display:grid;gap:8px}
.advice li{background:var(--card);border:1px solid var(--line);border-left:4px solid var(--warn);border-radius:8px;
padding:9px 14px}.advice li.bad{border-left-color:var(--bad)}.advice span{display:block;color:var(--quiet)}
.bar{display:grid;grid-template-columns:minmax(90px,250px) 1fr 72px;gap:10px;align-items:center;padding:3px 0}
.bar .name{overflow-wrap:anywhere;line-height:1.3}.bar .track{height:14px}
.bar .value{text-align:right;font-variant-numeric:tabular-nums}
.bar .fill{display:block;height:14px;border-radius:0 3px 3px 0}
.stack{display:flex;gap:2px;height:22px}.stack .fill:first-child{border-radius:4px 0 0 4px}
.stack .fill:last-child{border-radius:0 4px 4px 0}
.fill.accent,.dot.accent{background:var(--accent)}.fill.second,.dot.second{background:var(--second)}
.fill.third,.dot.third{background:var(--third)}.fill.bad,.dot.bad{background:var(--bad)}
.fill.warn,.dot.warn{background:var(--warn)}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;margin-top:10px}
.dot{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:6px}
figure{margin:0}svg{width:100%;height:auto;display:block}svg text{fill:var(--quiet);font-size:12px}
svg .marked{fill:var(--bad)}svg .accent{fill:var(--accent)}svg .grid{stroke:var(--line)}
svg .mark{stroke:var(--bad);stroke-dasharray:4 3}
.tables{display:flex;flex-wrap:wrap;gap:14px 44px;margin-top:12px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}caption{text-align:left;padding-bottom:4px}
th,td{padding:4px 12px 4px 0;text-align:right;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:500;color:var(--quiet)}tr th:first-child{text-align:left}
th small{display:block;font-weight:400}.wide{width:100%}.left td{text-align:left;overflow-wrap:anywhere}
.left th{white-space:nowrap}.scroll{overflow-x:auto}.plain{padding-left:18px;color:var(--quiet);margin:10px 0 0}
details{border-top:1px solid var(--line);padding:8px 0}summary{cursor:pointer}
h3{font-size:14px;margin:0 0 6px;font-weight:600}
.card small{display:block}
code{font:13px/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.pill{display:inline-block;padding:0 9px;border-radius:99px;border:1px solid;font-size:12.5px;font-weight:600;
white-space:nowrap;line-height:1.6}
.pill.good{color:var(--good)}.pill.bad{color:var(--bad)}.pill.warn{color:var(--warn)}.pill.quiet{color:var(--quiet)}
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
.facts th{white-space:nowrap}.facts td{text-align:left;overflow-wrap:anywhere}
footer{color:var(--quiet);font-size:13px;margin-top:20px}
@media (max-width:560px){main{padding:18px 12px}svg text{font-size:18px}.cards{grid-template-columns:1fr 1fr}
.bar{grid-template-columns:1fr auto;gap:2px 10px}.bar .track{grid-column:1/-1;order:3}}
@media (max-width:640px){.plots,.pair{grid-template-columns:1fr}.plot svg text{font-size:14px}
.facts th{white-space:normal}}
@media print{section,.card{break-inside:avoid}}
"""
